"""Which frames have no time for the next batch, and give way under overload.

If each frame was sent that can just be answered in time, all would be late as soon as anything takes longer than
expected, and the planner would make small batches to save the oldest ones: it does not see the frames behind them. So
those that have less time left than 19 of 20 batches take are only sent where the others leave room. Of a stream with a
backlog they are dropped instead, if others fill the room or two batches wait: the frame behind it takes the turn. A
stream whose frames always come to their turn too old would have no result at all otherwise, and each batch would be
short of its rows.

The batch is the one that the streams can fill, which may be few beside its most rows. Where it is no full one, its
rows are taken to be spread over the free workers. Where one of several is free, no more frames are sent than are in
time together. The planner would leave out those with most time left, mostly the same streams'; the next worker is soon
free, and in their turn they are the first.

Where frames wait before they are read, in a queue of the user's, those that a stream has read may all be too old at
its next turn, and at each one after it. So its source is read on until a frame has time for the batch behind the next
one, which is the first that it may be part of.

A service that does not tell how long a batch takes is measured: by the mean time that it had recent frames, and no
less than it had one that was too late.

*Complexity.* O(streams that wait) for a look, at most as many as there is room for, and to read on; O(1) for a frame.

One source, compiled with the C types of ``_late_frames_cy.pxd`` or run uncompiled. Not thread-safe: of one event loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from streaminfer._internal.units import NEVER_NS

if TYPE_CHECKING:
    from collections.abc import Callable

    from streaminfer.streams._live_stream_cy import Stream
    from streaminfer.streams._stream_cy import StreamResult, StreamState
    from streaminfer.streams.stream_settings import StreamSettings
    from streaminfer.streams.turns._fair_order_cy import Turn

__all__ = ["LateFrames"]

_NEWEST = 0.1
"""Weight of a frame in the time that the service has one."""
_SLOW = 1.25
"""Times as long as in the mean that it has one now and then."""


class LateFrames:
    """Frames of the streams of a session that have no time for the next batch.

    Args:
        settings: of the streams.

    Attributes:
        next_end_ns: of a slow batch behind the next one; 0: not known.
    """

    def __init__(self, settings: StreamSettings) -> None:
        self._batch_ns: Callable[[int], int | None] | None = None
        self._expected_ns: Callable[[int], int] | None = None
        self._workers = 1
        self._is_told = False  # how long a batch takes
        self._max_in_flight = settings.max_in_flight
        self._took_ns = 0.0  # by frames, where the service does not tell; 0: not known
        self._has_limit = settings.max_age_ns > 0
        self._now_ns = 0
        self._ends_ns = 0  # a slow batch that begins next
        self._is_behind = False  # others fill the room, or two batches wait
        self.next_end_ns = 0

    def update(
        self,
        batch_ns: Callable[[int], int | None] | None,
        expected_ns: Callable[[int], int] | None,
        workers: int,
    ) -> None:
        """Take what the service says now; what was learned stays.

        Args:
            batch_ns: returns how long a slow batch of so many rows takes; ``None``, also of the function: not known.
            expected_ns: returns how long one is expected to take; ``None``: not known.
            workers: how many batches run at once.
        """
        self._batch_ns, self._expected_ns, self._workers = batch_ns, expected_ns, workers

    def look(self, queued: list[Turn], room: int, now_ns: int, starts_ns: int, workers: int) -> int:
        """Foresee the next batch.

        Args:
            queued: turns of the streams that wait.
            room: how many frames may be sent.
            now_ns: the present instant.
            starts_ns: when the batch begins, as far as is known.
            workers: how many are free then.

        Returns:
            How many frames are to be sent.
        """
        self._now_ns = self._ends_ns = now_ns
        self._is_behind = False
        if not self._has_limit or room <= 0:
            return room
        rows = frames = 0
        least_ns = NEVER_NS
        for turn in queued:
            stream = turn.owner
            state = stream.state
            rows += self._rows_of(state)
            frames += state.waiting
            least_ns = min(least_ns, state.last_deadline_ns())
            if rows > room:
                break
        self._is_behind = rows > room or frames >= 2 * rows
        takes_ns = None
        if self._batch_ns is not None:
            takes_ns = self._batch_ns(room if rows > room else max(1, -(-rows // workers)))
        self._is_told = takes_ns is not None
        takes_ns = int(_SLOW * self._took_ns) if takes_ns is None else takes_ns
        self._ends_ns = max(now_ns, starts_ns) + takes_ns
        if self._is_told and least_ns < self._ends_ns and workers == 1 < self._workers:
            room = self._rows_in_time(queued, room, max(now_ns, starts_ns))
            self._is_behind = self._is_behind or rows > room
        self.next_end_ns = self._ends_ns + takes_ns
        return room

    def _rows_of(self, state: StreamState) -> int:
        """Return how many frames of a stream the next batch can have."""
        return 1 if state.one_by_one else min(state.waiting, self._max_in_flight - state.running)

    def _rows_in_time(self, queued: list[Turn], room: int, starts_ns: int) -> int:
        """Return how many frames are in time in a batch together; all that there is room for where none is."""
        deadlines_ns: list[int] = []
        for turn in queued:
            stream = turn.owner
            state = stream.state
            deadlines_ns += [state.last_deadline_ns()] * self._rows_of(state)
        deadlines_ns.sort(reverse=True)
        least, most = 0, min(len(deadlines_ns), room)
        while least < most:
            rows = (least + most + 1) // 2
            ends_ns = starts_ns + self._batch_ns(rows)  # type: ignore[misc,operator]
            if deadlines_ns[rows - 1] >= ends_ns:
                least, self._ends_ns = rows, ends_ns
            else:
                most = rows - 1
        return least or room

    def read_on(self, queued: list[Turn], now_ns: int) -> None:
        """Let the sources go on of streams that wait for another turn, where their frames will be too late for it."""
        if self._has_limit:
            for turn in queued:
                stream = turn.owner
                stream.let_source_go_on(now_ns)

    def learn(self, took_ns: int, is_in_time: bool) -> None:
        """Take how long the service had a frame, where it does not tell how long a batch takes."""
        if self._is_told or not self._has_limit:
            return
        if not is_in_time:
            self._took_ns = max(self._took_ns, took_ns)
        elif self._took_ns:
            self._took_ns += _NEWEST * (took_ns - self._took_ns)
        else:
            self._took_ns = took_ns

    def is_late(self, stream: Stream) -> bool:
        """Return whether the next frame of a stream has less time left than the next batch takes, but some.

        Where others fill the room or two batches wait, those with a younger one behind them are dropped. One without
        time left is dropped in its turn, since a source that is held, or has ended, sends no younger one.
        """
        if not self._has_limit:
            return False
        if self._is_behind:
            stream.drop_late(self._now_ns, self._ends_ns)
        return stream.state.time_left_ns(self._ends_ns) < 0 < stream.state.time_left_ns(self._now_ns)

    def is_denied(self, stream: Stream, result: StreamResult, now_ns: int) -> bool:
        """Return whether a frame is dropped for which even a batch of its own is expected to end too late.

        It would have the place of its stream until its deadline. The frame behind it would be too old by then too, and
        so on for ever. Every other one is sent all the same, since what is expected may be wrong.
        """
        if self._expected_ns is None or not self._has_limit or stream.turn.denied & 1:
            return False
        return now_ns + self._expected_ns(1) > stream.state.deadline_ns(result)
