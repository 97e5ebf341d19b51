"""What the planner knows of one bucket of requests: how large its batches may be and what they take.

Requests that may share a batch stand in one *lane*. Without length buckets there is one; with them each bucket has its
own, since a batch of long rows takes longer than one of short rows.

*Trying sizes.* Under full load every batch has the size that seems best, and nothing would tell that half of it, or
twice, has become better, or was learned wrongly in a bad moment. So a size next to it, by a factor of two, is tried
where none like it was seen for 128 batches, at most once in 8. That costs less than a hundredth of the throughput, and
goes down octave by octave as long as nothing is lost by it.

A model of microseconds answers faster than it could be learned: once it is known, and while nothing about it is in
doubt, one batch in five milliseconds says as much as all of them, and costs a hundredth of the time. Batches that take
a millisecond are all observed: left out by the clock, it would always be the short ones behind the long ones.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streaminfer.batching._order_cy import Timetable

__all__ = ["Lane"]

_LEARN_EVERY_NS = 5_000_000
_SHORT_NS = 1_000_000
_ALL_OF_THE_FIRST = 16
_TRY_AFTER = 128
_TRY_EVERY = 8
_AS_GOOD = 0.95
"""Behind a size with this share of the best throughput, still smaller ones are worth a try."""
_NEVER = 2**63 - 1


class Lane:
    """The tables of one bucket, remade when its service time has learned.

    Args:
        cap: the largest batch.
        service_time: a `ServiceTime`, taken as it is, or a `LearnedServiceTime`.
        workers: how many batches may run at once.
        padded: what a batch of a size is padded to before the model sees it, where the backend wants fixed sizes.

    Attributes:
        cap: the same.
        service_time: the same.
        timetable: what batches take up to the size of best throughput; ``None`` before anything is known.
        durations: the same as an array, shape (size of best throughput + 1,), int64 nanoseconds.
        steps: the same shape: by how much later the next batch may start, with several workers.
        learns: whether the service time learns.
        learns_again_ns: batches that end earlier need not be observed.
    """

    __slots__ = (
        "_padded",
        "_tried",
        "_version",
        "_workers",
        "cap",
        "durations",
        "learns",
        "learns_again_ns",
        "service_time",
        "steps",
        "timetable",
    )

    def __init__(self, cap: int, service_time: Any, *, workers: int, padded: Callable[[int], int] | None) -> None:
        self.cap = cap
        self.service_time = service_time
        self.learns = hasattr(service_time, "observe")
        self.learns_again_ns = 0 if self.learns else _NEVER
        self.timetable: Timetable | None = None
        self.durations: NDArray[np.int64] = np.zeros(1, np.int64)
        self.steps = self.durations
        self._workers = workers
        self._padded = None if padded is None else np.array([0, *(padded(size) for size in range(1, cap + 1))])
        self._version = -1
        self._tried = -_TRY_EVERY // 2  # not the very first batches
        self.refresh()

    def observe(self, size: int, duration_ns: int, now_ns: int, cut_short: bool) -> None:
        """Learns from a batch; one that was cut short teaches only where it took longer than was thought."""
        if self._padded is not None and size <= self.cap:
            size = int(self._padded[size])
        model = self.service_time
        # one that was given up took at least that long: nothing new, unless it was thought to take less
        if not (cut_short and model.known and duration_ns <= model.upper_ns(max(size, self.cap))[size]):
            model.observe(size, duration_ns, now_ns)
            if duration_ns < _SHORT_NS and model.observations > _ALL_OF_THE_FIRST and not model.in_doubt:
                self.learns_again_ns = now_ns + _LEARN_EVERY_NS
            self.refresh()

    def expected_ns(self, size: int) -> int:
        """The central estimate of what a batch takes, of those in ``durations``."""
        if not self.learns:
            return int(self.durations[size])
        seen = size if self._padded is None else self._padded[size]
        return int(self.service_time.expected_ns(self.cap)[seen])

    def refresh(self) -> None:
        """Takes over what the service time has learned since."""
        model = self.service_time
        if self.learns:
            if model.version == self._version or not model.known:
                return
            self._version = model.version
            table, best = model.upper_ns(self.cap), model.size_worth_trying(self.cap)
        elif self.timetable is None:
            table, best = model.table_ns(self.cap), model.best_batch_size(self.cap)
        else:
            return
        if self._padded is not None:
            table = table[self._padded]
            best = int(np.searchsorted(self._padded, self._padded[best], side="right")) - 1
        self._set(table[: best + 1])

    def size_to_try(self, now_ns: int, waiting: int, *, smaller: bool) -> int:
        """A size that wants to be seen again; 0: none does.

        Args:
            now_ns: the present instant.
            waiting: how many requests there are for it.
            smaller: whether a smaller batch than the best may be tried too.
        """
        if not self.learns or now_ns + int(self.durations[-1]) < self.learns_again_ns:
            return 0  # it would not be observed
        model = self.service_time
        if model.observations - self._tried < _TRY_EVERY:
            return 0
        best = len(self.durations) - 1
        larger, half = min(2 * best, self.cap), best // 2
        if self._padded is not None:
            larger = int(self._padded[min(best + 1, self.cap)])
            half = self._next_smaller(best)
        if best < larger <= waiting and model.batches_since(larger) >= _TRY_AFTER:
            self._tried = model.observations
            return larger
        while smaller and 0 < half <= waiting:
            if model.batches_since(half) >= _TRY_AFTER:
                self._tried = model.observations
                return half
            if half * self.durations[best] < _AS_GOOD * best * self.durations[half]:
                return 0  # half of it would hardly be better
            half = half // 2 if self._padded is None else self._next_smaller(half)
        return 0

    def _next_smaller(self, size: int) -> int:
        """The size that the backend was compiled for below that of a batch of this size; 0: there is none."""
        sizes = self._padded[1:] if self._padded is not None else np.zeros(0, np.int64)
        return int(sizes[sizes < sizes[size - 1]].max(initial=0))

    def borrow(self, other: "Lane", ratio: float) -> None:
        """Until anything is known here: what the batches of another lane take, times a ratio."""
        scaled = np.maximum((other.durations * ratio).astype(np.int64), 1)[: self.cap + 1]
        scaled[0] = 0
        self._set(scaled)
        self._version = -1

    def _set(self, durations: NDArray[np.int64]) -> None:
        durations = np.array(durations)
        self.durations = durations
        self.steps = durations if self._workers == 1 else np.maximum(durations // self._workers, 1)
        self.timetable = Timetable(self.durations, self.steps)

    def __repr__(self) -> str:
        return f"Lane({self.cap}, {self.service_time!r})"
