"""State machine of one stream: waiting frames, frames in flight, ordered results, and dropped frames by reason.

*Design.* One object, a `StreamResult`, represents a frame from its arrival to its delivery. The frame waits in a short
queue. It is sent only when a place is free, so the freshest frame is sent. Results are delivered in the order in which
their frames were sent. A frame keeps its place *in flight* until its result is delivered. So a slow consumer slows the
stream down or has frames dropped, but results do not pile up. If the policy holds the source, one frame more than
``max_in_flight`` may be in flight, so that the service need not wait for the consumer.

*Policy.* A policy describes the queue by ``max_waiting`` and ``waits``. When ``max_waiting`` frames wait, either the
source is held until at most a quarter of them is left (``waits``), or the oldest frame is dropped as ``stale``. A
source that ``lags`` behind an age limit is released, because its next frames are younger. A selector chooses the frames
of interest; the others are dropped as ``skipped``.

*State of recurrent models.* A frame with ``discontinuity`` resets the state of the stream when it is sent, whatever its
outcome. If it is dropped before it is sent, the next frame of the stream inherits ``discontinuity``, so no reset is
lost. With ``resets_after_gap`` each frame after one that was dropped or failed resets the state too. A frame with a
reset is sent only when no earlier frame runs. With ``one_by_one`` this holds for every frame, because an earlier one
may still fail, or be rejected and sent again.

*Invariants*, which the property tests check: ``received`` = ``delivered`` + ``failed`` + every count in ``dropped`` +
``waiting`` + ``in_flight``; results are delivered in the order of ``number``; ``running`` ≤
``max_in_flight``; ``in_flight`` ≤ ``max_in_flight``, or one more where the source is held.

*Complexity.* O(1) for each operation, O(in flight) in memory.

One source, compiled with the C types of ``_stream_cy.pxd`` or run uncompiled. Not thread-safe: one event loop uses it.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streaminfer.streams.stream_settings import StreamSettings

__all__ = ["StreamResult", "StreamState", "make_source_failure"]

# status of a frame; C variables in the compiled module
_WAITING = 0
_RUNNING = 1
_READY = 2
_DROPPED = 3
_MAX_INSTANT_NS = 1 << 62
"""Bound of capture instants, positive or negative; twice this value overflows C integers."""


class StreamResult:
    """Result of one frame of a stream.

    Attributes:
        stream_id: id of the stream.
        outputs: outputs of the model; ``None`` if there is an error.
        error: error with which the request ended; ``None``: the request succeeded.
        degraded: the outputs have lower quality: they come from another model, or are stale.
        number: number of the frame in its stream, from 0; numbers of dropped frames are missing.
        captured_ns: instant of capture, as given by the source.
        arrived_ns: instant at which the session got the frame; for bare inputs also the instant of capture.
        completed_ns: instant at which the service had responded.
        delivered_ns: instant at which the consumer got the result.
        position_s: position in the medium, in seconds from its start; ``None``: unknown.
        source_failed: the source raised ``error``, so the stream ended; this result belongs to no frame.
    """

    stream_id: Hashable
    outputs: Any
    error: BaseException | None
    degraded: bool
    number: int
    captured_ns: int
    arrived_ns: int
    completed_ns: int
    delivered_ns: int
    position_s: float | None
    source_failed: bool
    _inputs: Any
    _discontinuity: bool
    _next_result: StreamResult | None  # in its queue
    _status: int

    @property
    def age_s(self) -> float:
        """Seconds from capture to delivery; from arrival, if the source dates the capture after the arrival."""
        return (self.delivered_ns - self._since_ns()) / 1e9

    def _since_ns(self) -> int:
        """Return the instant from which its age counts."""
        if self.captured_ns > self.arrived_ns:
            return self.arrived_ns
        return self.captured_ns

    def __repr__(self) -> str:
        outcome = f"error={self.error!r}" if self.error is not None else f"outputs={type(self.outputs).__name__}"
        return f"StreamResult(stream_id={self.stream_id!r}, number={self.number}, {outcome}, age_s={self.age_s:.6f})"


class ResultQueue:
    """Linked list of frames in order; each frame holds the link to the next one.

    Attributes:
        head: first frame; ``None``: the queue is empty.
        count: number of frames.
    """

    def __init__(self) -> None:
        self.head: StreamResult | None = None
        self.tail: StreamResult | None = None
        self.count = 0

    def append(self, result: StreamResult) -> None:
        """Append a frame."""
        if self.tail is None:
            self.head = result
        else:
            self.tail._next_result = result
        self.tail = result
        self.count += 1

    def pop(self) -> StreamResult:
        """Remove and return the first frame; the queue must not be empty."""
        result = self.head
        assert result is not None  # noqa: S101 - for the type checker
        self.head = result._next_result
        result._next_result = None
        if self.head is None:
            self.tail = None
        self.count -= 1
        return result


class StreamState:
    """Frames of one stream, from their arrival to their delivery.

    Args:
        stream_id: id of the stream.
        settings: its policy and its limits.
        one_by_one: send a frame only when no earlier one runs.
        ages: its ``record_ns(age_ns)`` is called when a result with outputs is delivered.

    Attributes:
        received: frames that arrived.
        delivered: results with outputs that were delivered.
        failed: results with an error that were delivered.
        dropped: frames that were dropped, by reason.
        in_flight: frames that were sent; their results are not delivered yet.
        running: frames in flight that the service has not completed.
    """

    def __init__(self, stream_id: Hashable, settings: StreamSettings, one_by_one: bool, ages: Any) -> None:
        self.stream_id = stream_id
        self._max_waiting = settings.policy.max_waiting
        self._waits = settings.waits
        self._selector = settings.policy.make_selector()
        self._max_in_flight = settings.max_in_flight
        self._max_age_ns = settings.max_age_ns
        self._resets_after_gap = settings.resets_after_gap
        self.one_by_one = one_by_one
        self._ages = ages
        self._waiting = ResultQueue()
        self._sent = ResultQueue()
        self._discontinuity = False  # the next frame resets the state
        self.received = 0
        self.delivered = 0
        self.failed = 0
        self.dropped: dict[str, int] = {}
        self.in_flight = 0
        self.running = 0

    @property
    def waiting(self) -> int:
        """Frames that were not sent yet."""
        return self._waiting.count

    def is_full(self) -> bool:
        """Return whether the source must be held."""
        return self._waits and self._waiting.count >= self._max_waiting

    def has_too_many(self) -> bool:
        """Return whether more frames wait than the policy allows, because the stream read on beyond old ones."""
        return self._waits and self._waiting.count > self._max_waiting

    def lags(self, now_ns: int, ends_ns: int) -> bool:
        """Return whether the next frame is too old at ``ends_ns``, but a later one may be in time.

        A source whose frames age only once they are read is held until all the waiting frames are too old.
        """
        head, tail = self._waiting.head, self._waiting.tail
        if head is None or tail is None or not self._max_age_ns or self.deadline_ns(head) >= ends_ns:
            return False
        if ends_ns > now_ns + self._max_age_ns:
            return False
        return self._ages_in_source(tail) or self.deadline_ns(tail) < ends_ns

    def is_behind(self) -> bool:
        """Return whether the stream is full, and frames grow old in its source."""
        tail = self._waiting.tail
        return tail is not None and self.is_full() and self._ages_in_source(tail)

    def _ages_in_source(self, result: StreamResult) -> bool:
        """Return whether a frame had lost over an eighth of its time when it was read: others wait in its source."""
        return result.arrived_ns - result.captured_ns > self._max_age_ns >> 3

    def has_room(self) -> bool:
        """Return whether a held source may continue: at most a quarter waits, or fewer than can be sent at once."""
        if self.is_full():
            return False
        return self._waiting.count <= self._max_waiting >> 2 or self._waiting.count < self._max_in_flight

    def offer(self, inputs: Any, captured_ns: int, position_s: float | None, discontinuity: bool, now_ns: int) -> bool:
        """Accept a frame that arrived.

        Returns:
            Whether the frame was queued; false if the selector skips it.

        Raises:
            OverflowError: the capture is more than a century away.
        """
        if not -_MAX_INSTANT_NS < captured_ns < _MAX_INSTANT_NS:
            raise OverflowError
        result = _new_result(self.stream_id, self.received, captured_ns, position_s, now_ns)
        result._inputs = inputs
        result._discontinuity = discontinuity or self._discontinuity
        if self._selector is not None and not self._selector.takes(captured_ns):
            self.received += 1
            self._discontinuity = result._discontinuity  # a frame that the policy skips is no gap
            self._count("skipped")
            return False
        self.received += 1
        self._discontinuity = False
        self._waiting.append(result)
        if not self._waits and self._waiting.count > self._max_waiting:
            self._forget(self._waiting.pop(), "stale")
        return True

    def can_send(self) -> bool:
        """Return whether a frame waits that may be sent now."""
        if self.running >= self._max_in_flight or self.in_flight >= self._max_in_flight + self._waits:
            return False
        head = self._waiting.head
        if head is None:
            return False
        return self.running == 0 or not (head._discontinuity or self.one_by_one)

    def next(self, now_ns: int) -> StreamResult | None:
        """Move the next frame from waiting to in flight, and drop those that are too old."""
        while self.can_send():
            result = self._waiting.pop()
            if self._max_age_ns and self.deadline_ns(result) <= now_ns:
                self._forget(result, "deadline_exceeded")
                continue
            result._status = _RUNNING
            self._sent.append(result)
            self.in_flight += 1
            self.running += 1
            return result
        return None

    def drop_late(self, now_ns: int, ends_ns: int) -> None:
        """Drop waiting frames, from the oldest, that are too old at ``ends_ns`` or too many; keep the last one."""
        head = self._waiting.head
        while head is not None and self._waiting.count > 1:
            if self._waiting.count <= self._max_waiting and self.deadline_ns(head) >= ends_ns:
                return
            is_too_old = self.deadline_ns(head) <= now_ns
            self._forget(self._waiting.pop(), "deadline_exceeded" if is_too_old else "infeasible")
            head = self._waiting.head

    def deadline_ns(self, result: StreamResult) -> int:
        """Return the instant at which the result of a frame becomes too old."""
        return result._since_ns() + self._max_age_ns

    def time_left_ns(self, now_ns: int) -> int:
        """Return the time until the next frame is too old, or a century if none waits; needs an age limit."""
        head = self._waiting.head
        return _MAX_INSTANT_NS if head is None else self.deadline_ns(head) - now_ns

    def last_deadline_ns(self) -> int:
        """Return the deadline of the youngest frame that waits, of a stream with an age limit where one does."""
        tail = self._waiting.tail
        return _MAX_INSTANT_NS if tail is None else self.deadline_ns(tail)

    def drop(self, result: StreamResult, reason: str) -> bool:
        """Drop a running frame; do nothing if the stream was closed meanwhile.

        Returns:
            Whether a later result can be delivered now.
        """
        if not self._end(result, _DROPPED):
            return False
        self.in_flight -= 1
        self._count(reason)
        self._pass_on_discontinuity(self._resets_after_gap)
        return self.has_ready()

    def complete(self, result: StreamResult, outputs: Any, degraded: bool, now_ns: int) -> bool:
        """Store the outputs of a running frame; do nothing if the stream was closed meanwhile.

        Returns:
            Whether a result can be delivered now.
        """
        if not self._end(result, _READY):
            return False
        result.outputs = outputs
        result.degraded = degraded
        result.completed_ns = now_ns
        return self.has_ready()

    def fail(self, result: StreamResult, error: BaseException, now_ns: int) -> bool:
        """Store the error of a running frame, as :meth:`complete` stores outputs."""
        if not self._end(result, _READY):
            return False
        result.error = error
        result.completed_ns = now_ns
        self._pass_on_discontinuity(self._resets_after_gap)
        return self.has_ready()

    def has_ready(self) -> bool:
        """Return whether a result can be delivered."""
        head = self._sent.head
        return head is not None and head._status == _READY

    def take(self, now_ns: int) -> StreamResult | None:
        """Deliver the next result in order; ``None``: there is none yet."""
        if not self.has_ready():
            return None
        result = self._sent.pop()
        self._skip_dropped()
        self.in_flight -= 1
        result.delivered_ns = now_ns
        if result.error is None:
            self.delivered += 1
            self._ages.record_ns(now_ns - result._since_ns() if now_ns > result._since_ns() else 0)
        else:
            self.failed += 1
        return result

    def close(self, drop_ready: bool) -> list[StreamResult]:
        """Drop the waiting and the running frames as ``closed``.

        Args:
            drop_ready: also drop the results that were not delivered.

        Returns:
            The results that ``drop_ready`` dropped.
        """
        undelivered: list[StreamResult] = []
        while self._waiting.count:
            self._waiting.pop()
            self._count("closed")
        ready = ResultQueue()
        while self._sent.count:
            result = self._sent.pop()
            if result._status == _READY and not drop_ready:
                ready.append(result)
            elif result._status != _DROPPED:
                if result._status == _RUNNING:
                    self.running -= 1
                else:
                    undelivered.append(result)
                result._status = _DROPPED
                self.in_flight -= 1
                self._count("closed")
        self._sent = ready
        return undelivered

    def _end(self, result: StreamResult, status: int) -> bool:
        if result._status != _RUNNING:
            return False
        result._status = status
        result._inputs = None
        self.running -= 1
        if status == _DROPPED:
            self._skip_dropped()
        return True

    def _skip_dropped(self) -> None:
        head = self._sent.head
        while head is not None and head._status == _DROPPED:
            self._sent.pop()
            head = self._sent.head

    def _forget(self, result: StreamResult, reason: str) -> None:
        """Count a frame that was not sent; the next one resets the state if this one would have, or if gaps do."""
        self._count(reason)
        self._pass_on_discontinuity(result._discontinuity or self._resets_after_gap)

    def _pass_on_discontinuity(self, discontinuity: bool) -> None:
        head = self._waiting.head
        if discontinuity and head is not None:
            head._discontinuity = True
        elif discontinuity:
            self._discontinuity = True

    def _count(self, reason: str) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + 1

    def __repr__(self) -> str:
        return f"StreamState({self.stream_id!r}, waiting={self._waiting.count}, in_flight={self.in_flight})"


def make_source_failure(stream_id: Hashable, error: BaseException, now_ns: int) -> StreamResult:
    """Return the last result of a stream, with the error that its source raised."""
    result = _new_result(stream_id, -1, now_ns, None, now_ns)
    result.error = error
    result.completed_ns = now_ns
    result.source_failed = True
    return result


def _new_result(
    stream_id: Hashable, number: int, captured_ns: int, position_s: float | None, now_ns: int
) -> StreamResult:
    result = StreamResult.__new__(StreamResult)
    result.stream_id = stream_id
    result.outputs = None
    result.error = None
    result.degraded = False
    result.number = number
    result.captured_ns = captured_ns
    result.arrived_ns = now_ns
    result.completed_ns = 0
    result.delivered_ns = now_ns
    result.position_s = position_s
    result.source_failed = False
    result._inputs = None
    result._discontinuity = False
    result._next_result = None
    result._status = _WAITING
    return result
