"""Frames that have no time for the next batch, and give way under overload.

If the sender sent every frame that can just meet its deadline, any delay would make all frames late. The planner would
also make small batches to save the oldest frames, because it does not see the younger ones that wait here. A frame is
*late* if it has less time left than 19 of 20 batches take. Late frames are sent only if the other frames leave room.
If other streams fill the room, or if two batches wait, the late frames of a stream with a backlog are dropped, and its
next frame takes the turn. Otherwise a stream with frames that are too old at each turn would have no results, and each
batch would have too few rows.

The next batch has as many rows as the waiting streams can fill, which may be few. If several workers are free, each
gets its share of them: streams whose frames were in one batch would all wait for its end and meet in the next one
again, beside idle workers. One batch is sent where shares would be hardly shorter, or would take half as long again per
row: the workers would then be missing for the next frames and other callers. If only one of several workers is free, no
more frames are sent than can be on time together: of more, the planner would leave out those with most time left,
mostly of the same streams. They are the first at the next worker, which is free soon.

Frames may also wait in a queue of the user before the stream reads them. Then all frames that the stream has read may
be too old at its next turn, and at each later turn. So the stream keeps reading its source until its next frame has
time for the batch after the next one, which is the first batch that this frame can join. A stream that is behind
like this drops its late frames also if there is room: sent in vain, they would occupy places of its next frames.

If the service does not report how long a batch takes, the time of recent frames at the service replaces it: their mean,
raised to the time of any frame that was too late.

*Complexity.* `estimate` is O(waiting streams) but stops when the room is full; for one free worker of several it is O(n
log n). `share_of_worker`, for several free workers, and `release_sources` are O(waiting streams), and the cost per
frame is O(1).

One source, compiled with the C types of ``_late_frames_cy.pxd`` or run uncompiled. Not thread-safe: for one event loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from streaminfer._internal.units import NEVER_NS

if TYPE_CHECKING:
    from streaminfer.protocols import Capabilities
    from streaminfer.streams._live_stream_cy import Stream
    from streaminfer.streams._stream_cy import StreamResult, StreamState
    from streaminfer.streams.stream_settings import StreamSettings
    from streaminfer.streams.turns._fair_order_cy import Turn

__all__ = ["LateFrames"]

_NEWEST = 0.1
"""Weight of the newest frame in the mean time of frames at the service."""
_SLOW_FACTOR = 1.25
"""Duration of a slow batch as a multiple of that mean."""
_SHARE_LIMIT = 0.95
"""Longest duration of a share of the rows, relative to one batch of all, for which they are shared."""
_COST_LIMIT = 1.5
"""Longest duration per row of a share, relative to that of one batch, for which the rows are shared."""


class LateFrames:
    """Frames of the streams of a session that have no time for the next batch.

    Args:
        settings: settings of the streams.

    Attributes:
        next_end_ns: end of a slow batch after the next one; 0: not known.
    """

    def __init__(self, settings: StreamSettings) -> None:
        self._reports_batch_time = False  # the service reports how long a batch takes
        self._max_in_flight = settings.max_in_flight
        self._mean_service_ns = 0.0  # mean time of a frame at the service, if the service reports none; 0: not known
        self._has_limit = settings.max_age_ns > 0
        self._now_ns = 0
        self._ends_ns = 0  # end of a slow batch that begins next
        self._is_behind = False  # others fill the room, or two batches wait
        self.next_end_ns = 0

    def update(self, capabilities: Capabilities) -> None:
        """Update the capabilities of the service; keep what was learned."""
        self._batch_ns, self._expected_ns = capabilities.slow_batch_ns, capabilities.expected_batch_ns
        self._workers = capabilities.max_in_flight or 1

    def estimate(self, queued: list[Turn], room: int, now_ns: int, starts_ns: int, lead_ns: int, workers: int) -> int:
        """Estimate when the next batch ends, and whether frames pile up; return how many frames to send.

        Args:
            queued: turns of the streams that wait.
            room: how many frames may be sent.
            now_ns: the present instant.
            starts_ns: when a worker is expected to be free.
            lead_ns: how long it may take until a free worker has its batch.
            workers: how many workers are free then.

        Returns:
            How many frames to send, at most ``room``.
        """
        self._now_ns = self._ends_ns = now_ns
        self._is_behind = False
        if not self._has_limit or room <= 0 or not queued:
            return room
        rows = later_rows = frames = 0
        earliest_ns = NEVER_NS
        for turn in queued:
            stream = turn.owner
            state = stream.state
            rows += self._rows_of(state)
            later_rows += 1 if state.one_by_one else min(state.waiting, self._max_in_flight)
            frames += state.waiting
            earliest_ns = min(earliest_ns, state.last_deadline_ns())
            if rows > room:
                break
        self._is_behind = rows > room or frames >= 2 * rows
        starts_ns = max(now_ns, starts_ns) + lead_ns
        self._ends_ns = starts_ns + self._slow_batch_ns(room if rows > room else max(1, -(-rows // workers)))
        if self._reports_batch_time and earliest_ns < self._ends_ns and workers == 1 < self._workers:
            room = self._rows_in_time(queued, room, starts_ns)
            self._is_behind = self._is_behind or rows > room
        self.next_end_ns = self._ends_ns + lead_ns + self._slow_batch_ns(max(1, -(-later_rows // workers)))
        return room

    def share_of_worker(self, queued: list[Turn], room: int, workers: int) -> int:
        """Return how many frames the first of some free workers gets; ``room`` if it gets all.

        Args:
            queued: turns of the streams that wait.
            room: how many frames may be sent.
            workers: how many workers are free.
        """
        if room < 2 or workers < 2 or self._expected_ns is None:
            return room
        rows = 0
        for turn in queued:
            stream = turn.owner
            rows += self._rows_of(stream.state)
        rows = min(rows, room)
        share = -(-rows // workers)
        whole = min(rows, -(-room // workers))  # rows of one batch, without sharing
        share_ns, whole_ns = self._expected_ns(share), self._expected_ns(whole)
        is_quicker = share_ns < _SHARE_LIMIT * whole_ns
        return share if is_quicker and share_ns * whole <= _COST_LIMIT * whole_ns * share else room

    def _slow_batch_ns(self, rows: int) -> int:
        """Return the duration of a slow batch; if the service does not know it, of a slow frame."""
        batch_ns = None if self._batch_ns is None else self._batch_ns(rows)
        self._reports_batch_time = batch_ns is not None
        return int(_SLOW_FACTOR * self._mean_service_ns) if batch_ns is None else batch_ns

    def _rows_of(self, state: StreamState) -> int:
        """Return how many frames of a stream the next batch can have."""
        return 1 if state.one_by_one else min(state.waiting, self._max_in_flight - state.running)

    def _rows_in_time(self, queued: list[Turn], room: int, starts_ns: int) -> int:
        """Return how many frames can be on time in one batch; ``room`` if none can."""
        deadlines_ns: list[int] = []
        for turn in queued:
            stream = turn.owner
            state = stream.state
            deadlines_ns += [state.last_deadline_ns()] * self._rows_of(state)
        deadlines_ns.sort(reverse=True)
        low, high = 0, min(len(deadlines_ns), room)
        while low < high:
            rows = (low + high + 1) // 2
            ends_ns = starts_ns + self._batch_ns(rows)  # type: ignore[misc,operator]
            if deadlines_ns[rows - 1] >= ends_ns:
                low, self._ends_ns = rows, ends_ns
            else:
                high = rows - 1
        return low or room

    def release_sources(self, queued: list[Turn], now_ns: int) -> None:
        """Release the held sources of streams that wait for another turn with frames too old for it."""
        if self._has_limit:
            for turn in queued:
                stream = turn.owner
                stream.release_source(now_ns)

    def learn(self, service_ns: int, is_in_time: bool) -> None:
        """Learn from the time of a frame at the service, if the service does not report how long a batch takes."""
        if self._reports_batch_time or not self._has_limit:
            return
        if not is_in_time:
            self._mean_service_ns = max(self._mean_service_ns, service_ns)
        elif self._mean_service_ns:
            self._mean_service_ns += _NEWEST * (service_ns - self._mean_service_ns)
        else:
            self._mean_service_ns = service_ns

    def is_late(self, stream: Stream) -> bool:
        """Return whether the next frame of a stream has some time left, but less than the next batch takes.

        If other streams fill the room, or two batches wait, late frames with a younger one behind them are dropped
        first. A frame without time left is dropped at its turn, because a held or ended source sends no younger one.
        """
        if not self._has_limit:
            return False
        if self._is_behind or stream.state.is_behind():
            stream.drop_late(self._now_ns, self._ends_ns)
        return stream.state.time_left_ns(self._ends_ns) < 0 < stream.state.time_left_ns(self._now_ns)

    def is_denied(self, stream: Stream, result: StreamResult, now_ns: int) -> bool:
        """Return whether to drop a frame that would be late even in a batch alone.

        It would occupy the place of its stream until its deadline. By then the next frame would be as old, and so would
        every later one. Every second such frame is sent all the same, because the expectation may be wrong.
        """
        if self._expected_ns is None or not self._has_limit or stream.turn.denied & 1:
            return False
        return now_ns + self._expected_ns(1) > stream.state.deadline_ns(result)
