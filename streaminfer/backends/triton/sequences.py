"""Sequences of the server for live streams, and the order of their steps.

A model with a sequence batcher keeps state for each *correlation id*. Each request of a sequence is one step: the first
carries a start flag, the last one an end flag. A stream gets an id with its first request; its steps are sent one at a
time, in the order in which they came. Ids begin at a random number, so that two clients of one server, or a restarted
client, do not disturb each other's sequences.

**Failed steps.** If a step fails, is cancelled or runs out of time, it is not known whether the model has run it. The
state cannot be trusted, and the sequence is *lost*: queued steps of the stream end with :class:`SequenceLost`, and the
next request begins a new sequence with another id and an empty state. The error of a step tells the caller that the
stream starts again. That also holds if a step succeeds but its caller leaves while the batch still runs: the caller
already has an error. Some failures do not lose the sequence, because the model cannot have seen the step: inputs that
cannot be encoded, a deadline that had passed before the step was sent, and a full queue. If the server has forgotten
the sequence (idle for too long, or a restart of server or model), its error ends the next step with
:class:`SequenceLost`.

A server has a limited number of places for sequences, and a sequence keeps its place until it ends or was idle for
long. Lost sequences are therefore ended: otherwise, after a stall that loses all of them, no new sequence could begin
for that time.
"""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from contextvars import Context
from typing import Self

from streaminfer._runtime.lifecycle import end_tasks
from streaminfer.errors import BackendError, Overloaded

__all__ = ["LostSequences", "NotSent", "SequenceLost", "Sequences", "Stream"]

_BITS = {"TYPE_INT32": 30, "TYPE_UINT32": 31, "TYPE_STRING": 62, "TYPE_INT64": 62, "TYPE_UINT64": 62}


class SequenceLost(BackendError):  # noqa: N818 - as the others of the tree
    """Raised when the server's state of a stream is lost; the stream's next request begins with an empty state."""

    retryable = False

    @classmethod
    def after_lost_step(cls, stream_id: Hashable) -> Self:
        """Return the error for a step that follows a step whose sequence was lost."""
        return cls(f"stream {stream_id!r}: a step before this one failed, and the state with it")


class NotSent(Exception):  # noqa: N818 - a wrapper, not an error for callers
    """Wraps an error that was raised before a step was sent: the sequence is unchanged."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class Stream:
    """One stream, and its current sequence.

    Attributes:
        correlation: the id of the sequence.
        started: whether the server knows the sequence.
        losses: number of sequences that were lost.
        in_flight: number of steps that are queued or running.
        seen_ns: the latest instant at which the server may have seen the sequence.
    """

    def __init__(self, correlation: int | str) -> None:
        self.correlation = correlation
        self.started = False
        self.losses = 0
        self.in_flight = 0
        self.seen_ns = 0
        self.turn = asyncio.Lock()

    def parameters(self, *, end: bool) -> dict[str, int | bool | str]:
        """Return the sequence parameters of the next step."""
        return {"sequence_id": self.correlation, "sequence_start": not self.started, "sequence_end": end}


class Sequences:
    """The streams of one backend.

    Args:
        kind: the protocol's type of a sequence's id.
        idle_s: idle seconds after which the server forgets a sequence; 0: the server does not say.
        max_streams: the most streams to remember. If there are more, a stream is forgotten whose sequence the server
            has forgotten too; if there is none, a new stream is rejected.
        on_lost: called with the id of each lost sequence that the server may still know.
    """

    def __init__(
        self, kind: str, idle_s: float, max_streams: int, on_lost: Callable[[int | str], None] = lambda _: None
    ) -> None:
        self._kind = ""
        self._bits = self._next = self._idle_ns = 0
        self.update(kind, idle_s)
        self._max = max_streams
        self._on_lost = on_lost
        self._streams: dict[Hashable, Stream] = {}  # in the order of their latest steps

    def __len__(self) -> int:
        return len(self._streams)

    def update(self, kind: str, idle_s: float) -> None:
        """Apply a new description of the model; the arguments are those of the constructor.

        Streams keep their ids; for those that the server has forgotten, its response says so.
        """
        self._idle_ns = round(idle_s * 1e9) or 3_600_000_000_000
        if kind != self._kind:
            self._kind = kind
            self._bits = _BITS.get(kind, 62)
            self._next = secrets.randbits(self._bits)

    def knows(self, stream_id: Hashable) -> bool:
        """Return whether a stream has a sequence, or a step in flight."""
        stream = self._streams.get(stream_id)
        return stream is not None and (stream.started or stream.in_flight > 0)

    @contextlib.asynccontextmanager
    async def step(self, stream_id: Hashable, now_ns: int, *, end: bool = False) -> AsyncIterator[Stream]:
        """Wait for the turn of one step; an error inside decides whether the sequence is lost.

        Args:
            stream_id: the request's stream.
            now_ns: the current instant.
            end: whether this is the last step: the stream is then forgotten, and its next step begins a new sequence.

        Raises:
            SequenceLost: an earlier step failed.
            Overloaded: there are too many streams.
        """
        stream = self._find(stream_id, now_ns)
        stream.in_flight += 1
        losses = stream.losses
        try:
            async with stream.turn:
                if stream.losses != losses:
                    raise SequenceLost.after_lost_step(stream_id)
                try:
                    yield stream
                except NotSent as wrapped:
                    raise wrapped.error from wrapped.error.__cause__
                except Overloaded:
                    raise
                except BaseException as error:
                    self._lose(stream, is_known=not isinstance(error, SequenceLost))
                    raise
                stream.started = not end
                if end:
                    stream.correlation = self._new_id()
        finally:
            stream.in_flight -= 1
            stream.seen_ns = max(stream.seen_ns, now_ns)
            del self._streams[stream_id]
            if stream.in_flight or stream.started:  # else the stream has no state
                self._streams[stream_id] = stream

    def lose(self, stream_id: Hashable, correlation: int | str) -> bool:
        """Lose a sequence that has run a step whose caller had left, and with it the stream's queued steps.

        Args:
            stream_id: the request's stream.
            correlation: the id of the sequence.

        Returns:
            Whether this was still the stream's sequence.
        """
        stream = self._streams.get(stream_id)
        if stream is None or stream.correlation != correlation:
            return False
        self._lose(stream)
        if not stream.in_flight:
            del self._streams[stream_id]
        return True

    def _find(self, stream_id: Hashable, now_ns: int) -> Stream:
        stream = self._streams.get(stream_id)
        if stream is None:
            if len(self._streams) >= self._max:
                self._make_room(now_ns)
            stream = self._streams[stream_id] = Stream(self._new_id())
        return stream

    def _make_room(self, now_ns: int) -> None:
        idle = ((stream_id, stream) for stream_id, stream in self._streams.items() if not stream.in_flight)
        stream_id, stream = next(idle, (None, None))
        if stream is None or now_ns - stream.seen_ns <= self._idle_ns:
            raise Overloaded(f"{len(self._streams)} streams are remembered already (max_streams={self._max})")
        del self._streams[stream_id]

    def _lose(self, stream: Stream, *, is_known: bool = True) -> None:
        if is_known:
            self._on_lost(stream.correlation)
        stream.losses += 1
        stream.started = False
        stream.correlation = self._new_id()

    def _new_id(self) -> int | str:
        self._next = self._next % (1 << self._bits) + 1  # never 0, which means no sequence
        return f"streaminfer-{self._next:x}" if self._kind == "TYPE_STRING" else self._next


class LostSequences:
    """Ends lost sequences at the server; belongs to the event loop that created it.

    Sequences that are lost during a round of ends are ended in the next round.

    Args:
        end: ends one sequence, by its id.
    """

    def __init__(self, end: Callable[[int | str], Awaitable[None]]) -> None:
        self._end = end
        self._lost: asyncio.Queue[int | str] = asyncio.Queue()
        # started now: if a loop cancels all tasks at its end and so loses sequences, a task started then would be left
        self._task = asyncio.get_running_loop().create_task(self._end_all(), context=Context())

    def add(self, correlation: int | str) -> None:
        """End a sequence soon."""
        self._lost.put_nowait(correlation)

    async def stop(self) -> None:
        """Stop; the server forgets the remaining sequences when they were idle for long enough."""
        await end_tasks([self._task])

    async def _end_all(self) -> None:
        while True:
            lost = [await self._lost.get()]
            while not self._lost.empty():
                lost.append(self._lost.get_nowait())
            await asyncio.gather(*map(self._end, lost))
