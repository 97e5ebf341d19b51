"""Hundreds of live microphones on one event loop, with a driver of low cost that hardly affects the measurement.

A microphone sends a chunk every 32 ms whether or not the last response has come (an *open loop*). The response must be
there when the next chunk is due: that is the objective, and the age limit of the session. A lost chunk is not sent
again, as in a live call: the stream continues from its last state.

A timer for each microphone would take a good part of the measured time. Instead the 32 ms are cut into 64 phases, and
one timer wakes the microphones of one phase after the other.
"""

import asyncio
import math
from array import array
from collections.abc import AsyncIterator, Awaitable, Hashable

import streaminfer as si
from demo.audio import CHUNK_NS, CHUNK_S, Clip
from demo.by_hand import DetectorByHand
from demo.live import DirectStreams, LiveStreams, SessionStreams
from streaminfer.protocols import Clock
from streaminfer.streams import Frame, LatestOnly, StreamSession

__all__ = ["Microphones"]

PHASES = 64
AGES = 2
"""After so many chunks, a chunk has its response or will never get one."""


class Metronome:
    """One timer for all microphones, with 64 phases that each come once every 32 ms.

    Args:
        clock: returns monotonic nanoseconds, the same time as the event loop.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._beats = [self._loop.create_future() for _ in range(PHASES)]
        self._began_ns = clock()
        self._count = 0
        self.stopped = False
        self.passed_ns = [self._began_ns - CHUNK_NS + phase * CHUNK_NS // PHASES for phase in range(PHASES)]
        """Last instant at which each phase was due, by phase."""
        self._beat()

    async def next_beat(self, phase: int) -> None:
        """Wait until the phase comes again.

        All microphones of a phase wait for one future, so call :meth:`stop` before you cancel one of them.
        """
        await self._beats[phase]

    def stop(self) -> None:
        """Let every phase come for the last time."""
        self.stopped = True
        for beat in self._beats:
            beat.set_result(None)

    def _beat(self) -> None:
        if self.stopped:
            return
        now_ns = self._clock()
        # a stall of the loop can skip phases; from `passed_ns` the microphones see how many chunks are due
        while (due_ns := self._began_ns + self._count * CHUNK_NS // PHASES) <= now_ns:
            phase = self._count % PHASES
            self._count += 1
            self.passed_ns[phase] = due_ns
            self._beats[phase].set_result(None)
            self._beats[phase] = self._loop.create_future()
        self._loop.call_at(due_ns / 1e9, self._beat)


class Microphones:
    """A growing number of microphones that all play one clip in a loop.

    Args:
        detector: the voice detector, which keeps the state of each microphone.
        clip: clip that they play.

    Attributes:
        live: their streams.
        heard: for each microphone the speech probabilities in the order of its chunks, NaN for a lost chunk; complete
            after the stop, except for the last chunks, which the stop may have ended.
    """

    def __init__(self, detector: si.Stack | DetectorByHand, clip: Clip) -> None:
        self.live: LiveStreams
        if isinstance(detector, si.Stack):
            session = StreamSession(detector, policy=LatestOnly(), max_age_s=CHUNK_S)
            self.live = SessionStreams(
                session, CHUNK_NS, detector.clock, lambda one: self._hear(one.stream_id, one.number, one.outputs.item())
            )
        else:
            by_hand = detector

            def detect(stream_id: Hashable, frame: Frame) -> Awaitable[float | None]:
                return by_hand.detect(
                    stream_id, frame.inputs, frame.captured_ns + CHUNK_NS, discontinuity=frame.discontinuity
                )

            self.live = DirectStreams(detect, CHUNK_NS, by_hand.clock, self._hear)
        self.heard: list[array[float]] = []
        self._first_due_ns: dict[int, int] = {}
        self._clip = clip
        self._clock = detector.clock
        self._metronome = Metronome(detector.clock)

    def grow_to(self, count: int) -> None:
        """Let more microphones join, each with the next beat of its phase."""
        for number in range(len(self.heard), count):
            self.heard.append(array("f"))
            self.live.add(self._play(number), number)

    async def stop(self) -> None:
        """End every stream."""
        decided_ns = self._clock() - AGES * CHUNK_NS
        self._metronome.stop()
        await self.live.stop()
        for number, first_due_ns in self._first_due_ns.items():
            self._note_lost(number, (decided_ns - first_due_ns) // CHUNK_NS + 1)

    async def _play(self, number: int) -> AsyncIterator[Frame]:
        phase = number % PHASES
        metronome, passed_ns = self._metronome, self._metronome.passed_ns
        await metronome.next_beat(phase)
        self._first_due_ns[number] = passed_ns[phase]
        due_ns = passed_ns[phase] - CHUNK_NS
        while True:
            # when the clip starts again, the speaker is a new one
            for place, chunk in enumerate(self._clip.chunks):
                due_ns += CHUNK_NS
                while passed_ns[phase] < due_ns:
                    if metronome.stopped:
                        return
                    await metronome.next_beat(phase)
                yield Frame(chunk, due_ns, discontinuity=not place)

    def _hear(self, stream_id: Hashable, number: int, probability: float) -> None:
        microphone = int(str(stream_id))
        self._note_lost(microphone, number)
        self.heard[microphone].append(probability)

    def _note_lost(self, microphone: int, count: int) -> None:
        """Record as lost those of the first chunks of a microphone that have no response."""
        heard = self.heard[microphone]
        heard.extend([math.nan] * (count - len(heard)))
