"""Hundreds of live microphones on one event loop, and a driver that is cheap enough not to be what is measured.

A microphone sends a chunk every 32 ms, come what may (an *open loop*), and each chunk needs the state that the model
gave back for the one before. So the answer to a chunk has to be there when the next one is due: that is the objective,
and the deadline of every chunk. A chunk that is lost is gone, as in a live call: the stream goes on from the last state
that it has.

Each microphone is a task that lives as long as the stream. A timer for each of them would be a good part of what is
measured; instead the 32 ms are cut into 64 phases, microphones are dealt out over the phases, and one timer wakes the
microphones of one phase after the other.
"""

import asyncio
from array import array

import numpy as np
from numpy.typing import NDArray

import streaminfer as si
from demo.audio import CHUNK_NS, SILENCE, Clip
from demo.meter import Meter
from streaminfer.protocols import Clock

__all__ = ["Microphones"]

PHASES = 64


class Metronome:
    """One timer for everybody: 64 phases, each of which comes once every 32 ms.

    Args:
        clock: monotonic nanoseconds, the same time as the event loop's.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._beats = [self._loop.create_future() for _ in range(PHASES)]
        self._began_ns = clock()
        self._count = 0
        self._stopped = False
        self.passed_ns = [self._began_ns - CHUNK_NS + phase * CHUNK_NS // PHASES for phase in range(PHASES)]
        """The last instant at which each phase was due, by phase."""
        self._beat()

    async def next_beat(self, phase: int) -> None:
        """Waits until the phase comes again. All its microphones wait for one future: cancel none of them."""
        await self._beats[phase]

    def stop(self) -> None:
        """The last beat of every phase."""
        self._stopped = True
        for beat in self._beats:
            beat.set_result(None)

    def _beat(self) -> None:
        if self._stopped:
            return
        now_ns = self._clock()
        # after a stall of the loop more than one phase has passed; `passed_ns` tells the microphones how much they owe
        while (due_ns := self._began_ns + self._count * CHUNK_NS // PHASES) <= now_ns:
            phase = self._count % PHASES
            self._count += 1
            self.passed_ns[phase] = due_ns
            self._beats[phase].set_result(None)
            self._beats[phase] = self._loop.create_future()
        self._loop.call_at(due_ns / 1e9, self._beat)


class Microphones:
    """A growing crowd of microphones that all play one clip, each over and over, each with its own recurrent state.

    Args:
        service: answers ``{"input": chunk, "state": state}`` with ``{"output": probability, "stateN": state}``.
        clip: what they play.

    Attributes:
        meter: counts the chunks that are due from now on; replace it to begin a new window.
        heard: for each microphone the speech probabilities in the order of its chunks, NaN where the chunk was lost.
    """

    def __init__(self, service: si.Stack, clip: Clip) -> None:
        self.meter = Meter(CHUNK_NS)
        self.heard: list[array[float]] = []
        self._service = service
        self._clip = clip
        self._metronome = Metronome(service.clock)
        self._running = True
        self._tasks: list[asyncio.Task[None]] = []

    def __len__(self) -> int:
        return len(self._tasks)

    def grow_to(self, count: int) -> None:
        """Lets more microphones join, each with the next beat of its phase."""
        for number in range(len(self._tasks), count):
            heard: array[float] = array("f")
            self.heard.append(heard)
            self._tasks.append(asyncio.create_task(self._play(number, heard)))

    async def measure(self, seconds: float) -> Meter:
        """Count the chunks that are due in the next seconds, and return once each has completed."""
        meter = self.meter = Meter(CHUNK_NS)
        clock = self._service.clock
        end_ns = clock() + round(seconds * 1e9)
        while (left_s := (end_ns - clock()) / 1e9) > 0:
            await asyncio.sleep(min(left_s, 0.1))
            self._raise_failure()
        self.meter = Meter(CHUNK_NS)
        while meter.ended < meter.sent:
            await asyncio.sleep(CHUNK_NS / 1e9)
            self._raise_failure()
        return meter

    async def stop(self) -> None:
        """Ends every stream after its present chunk."""
        self._running = False
        self._metronome.stop()
        await asyncio.gather(*self._tasks)

    def _raise_failure(self) -> None:
        for task in self._tasks:
            if task.done():
                task.result()

    async def _play(self, number: int, heard: "array[float]") -> None:
        phase = number % PHASES
        metronome, passed_ns, call = self._metronome, self._metronome.passed_ns, self._service.call
        chunks = self._clip.chunks
        state: NDArray[np.float32] = SILENCE
        await metronome.next_beat(phase)
        due_ns = passed_ns[phase] - CHUNK_NS
        while True:
            for chunk in chunks:
                due_ns += CHUNK_NS
                while passed_ns[phase] < due_ns and self._running:
                    await metronome.next_beat(phase)
                if not self._running:
                    return
                meter = self.meter
                meter.sent += 1
                try:
                    response = await call(
                        si.Request({"input": chunk, "state": state}, deadline_ns=due_ns + CHUNK_NS, stream_id=number)
                    )
                except si.StreamInferError as error:
                    meter.failed(error)
                    heard.append(np.nan)
                    continue
                meter.answered(self._service.clock() - due_ns)
                heard.append(response.outputs["output"].item())
                state = response.outputs["stateN"]
            state = SILENCE  # the clip begins again: another speaker is on the line
