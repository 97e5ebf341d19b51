"""Durations and batch sizes of one length bucket, in the form that the planner reads.

Without buckets there is one :class:`BucketModel`. With buckets each has its own, because a batch of long rows takes
longer than one of short rows.

*Comparison.* Under full load every batch has the size of best throughput. Nothing would then show that half or twice
that size has become better, or was measured at a bad moment. Each of these two sizes therefore runs if it has not run
for 128 batches, which costs less than a hundredth of the throughput. If fewer callers wait than the best size holds, no
batch is full; half of their batch then runs as often, if that makes no request late. Sometimes requests are lost
because larger batches seem to take too long. In that case up to twice the size runs, if a batch that large has run
before, but not for 128 batches. Such a batch may be cancelled and teach nothing, so the next one of about that size is
sent only after others have run for 128 times its duration.

If durations scatter, half of a size may look as good although an eighth is much better, as for convolutions on a CPU.
At first, each power of two below a batch therefore runs four times, if that makes no request late. This applies also to
batches that are not full, because with fewer callers than a full batch holds there would be no full ones. The four
batches run one after another: a small batch after a large one seems slow, because the event loop is busy with the
callers of the large one. Near the capacity, a queue would build up if they cost more per row. So after a batch that
cost a quarter more per row, a size that seems as costly runs 16 batches later, and 128 batches later once it is known.

*Losses.* A model that loses from batching is known only by small batches. If large batches leave no time for the sizes
between, these would never run. So each smaller size runs once in place of a full batch although it makes requests late,
at most as many as the rows of one batch. The next size runs 16 batches later, and only if this one was about as good.

*Samples.* A fast model responds faster than the policy could learn: on a busy event loop, learning takes about 0.2 ms.
Once the model is known and nothing about it is in doubt, the policy learns one batch in about 16 ms of work, cancelled
ones included. Each batch is learned if it is expected to take 4 ms or more, or is of a size that ran less than four
times, or not for long. `BatchSampler`, which is compiled, chooses the batches. For each size, the dispatcher reports
only the first batch of a sampling interval to the policy, and the one that is learned.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streaminfer._internal.units import NEVER_NS
from streaminfer.batching.queue._feasibility_cy import DurationTable
from streaminfer.batching.service_time._batch_sampler_cy import BatchSampler
from streaminfer.batching.service_time.latency_model import size_steps
from streaminfer.batching.service_time.service_time import ServiceTime

__all__ = ["BucketModel", "lend_durations"]

_SAMPLE_EVERY_NS = 16_000_000
_ALWAYS_LEARNED_NS = 4_000_000
_UNAVERAGED_BATCHES = 16  # batches
_MIN_DURATION_RATIO = 0.7  # of the mean: shortest possible duration, if it is learned and scatters no more than that
_MIN_DURATION_DEVIATIONS = 2.0
_SLOW_DEVIATIONS = 2.0
_LARGEST_SAFETY = 0.01  # added because plans end exactly at deadlines, and half of all batches exceed the mean
_CENSORED = 1.5  # assumed duration of a cancelled batch, relative to the expected one
_CENSORED_FROM = 0.8
_MAX_BLOCKING_RATIO = 1.25  # times the mean
_EXPLORE_TIMES = 4
_MAX_COST_RATIO = 1.25  # of the duration per row: up to this, a still smaller size may be better
_COSTLY_EVERY = 16  # batches between two that cost more per row, or may cost requests
_COMPARE_AFTER, _COMPARE_EVERY, _COMPARE_SOON = 128, 8, 1  # batches
_MAX_CUTS = 8  # batches of a size that limits of cost or bytes made smaller, after which the size is not tried


class BucketModel:
    """Tables of one bucket, rebuilt whenever its service time has learned.

    Args:
        cap: the largest batch.
        service_time: a `ServiceTime`, which is exact, or a `LearnedServiceTime`.
        workers: how many batches may run at once.
        padded: the number of rows that the model gets for a batch of a size; ``None``: the size.

    Attributes:
        cap: the largest batch, reduced if the memory is not enough.
        service_time: the same.
        sampler: chooses the batches that are learned.
        timetable: the mean durations up to the size of best throughput; ``None`` before anything is known.
        upper_timetable: the timetable of ``upper``.
        slow_timetable: the timetable of ``slow``, for predictions. If about one batch in twenty is an outlier, that of
            ``upper`` includes outliers or not by chance.
        durations: the mean durations as an array, shape (size of best throughput + 1,), int64 nanoseconds.
        steps: the same shape: nanoseconds after which the next batch may start, with several workers.
        upper: the same shape: the duration that 19 of 20 batches do not exceed.
        slow: the same shape: the duration that nearly all batches do not exceed, apart from outliers, which no plan can
            avoid; at most ``upper``, and at most two standard deviations above the mean.
        slow_steps: as ``steps``, for ``slow``.
        blocking_ns: the same shape: nanoseconds that a batch makes another model wait.
        spread: duration of a batch that is slower than five of six, relative to the mean.
        min_duration_ns: shortest possible duration of a batch of one: with less time left, a request cannot be on time.
        learns: whether the service time learns.
        compared_from: number of rows from which a batch may be replaced by one that compares a smaller size.
    """

    def __init__(self, cap: int, service_time: Any, *, workers: int, padded: Callable[[int], int] | None) -> None:
        self.cap = cap
        self.service_time = service_time
        self.learns = not isinstance(service_time, ServiceTime)
        self._compare_from = _COMPARE_EVERY if self.learns else NEVER_NS
        self._mean: NDArray[np.int64] = np.zeros(1, np.int64)
        self.timetable: DurationTable | None = None
        self.upper_timetable: DurationTable | None = None
        self.slow_timetable: DurationTable | None = None
        self.durations: NDArray[np.int64] = np.zeros(1, np.int64)
        self.steps = self.upper = self.slow = self.slow_steps = self.blocking_ns = self.durations
        self.min_duration_ns = 0
        self.spread = 1.0
        self.compared_from = 2
        self._compared_size = 0  # size of the last batch that was sent to learn or compare a size
        self._cut: dict[int, int] = {}  # by size: how often such a batch had fewer rows when it ran
        self._costly_at = -_COMPARE_AFTER  # number of observations when a costly size was last learned or compared
        self._costly_from = _COSTLY_EVERY  # number of observations from which a size may cost requests again
        self._last_recheck = (0, 0)  # the larger size requested last, and the observations at that time
        self._borrowed_durations: NDArray[np.int64] | None = None
        self.sampler = BatchSampler(_SAMPLE_EVERY_NS, _ALWAYS_LEARNED_NS)
        self._workers = workers
        self._padded = None if padded is None else np.array([0, *(padded(size) for size in range(1, cap + 1))])
        self._version = -1
        self.refresh()

    def observe(self, size: int, duration_ns: int, now_ns: int, cancelled: bool) -> None:
        """Learn from a batch.

        Args:
            size: number of its rows.
            duration_ns: how long it took.
            now_ns: when it ended.
            cancelled: the batch was cancelled at ``now_ns``, so the duration is a lower bound. It teaches nothing if a
                longer duration was expected; if about this one was, the batch is assumed to need half as long again.
        """
        if not self.learns:
            return
        self._cut.pop(size, None)
        was_compared = self._end_comparison(size)
        if self.sampler.skip(size, duration_ns, cancelled):
            return
        rows = size if self._padded is None or size > self.cap else int(self._padded[size])
        model = self.service_time
        is_clear = model.observations > _UNAVERAGED_BATCHES and not model.in_doubt and self._is_settled(rows)
        if is_clear and self.sampler.skip(size, duration_ns, cancelled, opens=True):
            return
        if cancelled and model.known:
            largest = max(rows, self.cap)
            mean_ns = int(model.expected_ns(largest)[rows])
            if mean_ns > duration_ns:
                return
            if mean_ns > _CENSORED_FROM * duration_ns:
                duration_ns = int(_CENSORED * mean_ns)
        elif is_clear:
            duration_ns = self.sampler.smoothed_ns(size, duration_ns)
        self.sampler.restart()
        model.observe(rows, duration_ns, now_ns)
        self.refresh()
        if was_compared and self._is_costly(size):
            self._costly_at = model.observations
        if rows < self.compared_from and self.compares and self._half_to_compare(min(size, self.cap)):
            self.compared_from = max(size, 2)

    def _end_comparison(self, size: int) -> bool:
        """Return whether a batch that ended is the one that was sent to learn or compare a size."""
        compared_size = self._compared_size
        if size < compared_size:  # unless it is another worker's batch, and the tried one ends later
            self._cut[compared_size] = self._cut.get(compared_size, 0) + 1
        if size <= compared_size:  # a larger one was sent before
            self._compared_size = 0
        return size == compared_size

    def refresh(self) -> None:
        """Rebuild the tables if the service time has learned since."""
        model = self.service_time
        largest = self.cap if self._padded is None else int(self._padded[-1])  # padded sizes may exceed a limit of rows
        if self.learns:
            if model.version == self._version or not model.known:
                return
            self._version = model.version
            mean, upper = model.expected_ns(largest), model.upper_ns(largest)
        elif self.timetable is None:
            mean = upper = model.table_ns(largest)
        else:
            return
        best = model.best_batch_size(self.cap)
        if self._padded is not None:
            mean, upper = mean[self._padded], upper[self._padded]
            # a size in between is padded, so the next preferred size below may have more throughput
            smaller, larger = (
                int(np.searchsorted(self._padded, self._padded[best], side=side)) - 1 for side in ("left", "right")
            )
            is_better = best < larger and smaller * mean[larger] > larger * mean[smaller]
            best = smaller if is_better else larger
        if self.learns:
            steps = size_steps(largest)
            self.sampler.expect(mean, steps if self._padded is None else steps[self._padded])
        self._mean = mean
        self._set(mean, upper, best, safety=min(model.deviation, _LARGEST_SAFETY) if self.learns else 0.0)

    def limit_rows(self, most: int) -> None:
        """Plan batches of at most so many rows from now on."""
        if most >= self.cap:
            return
        self.cap = most
        if self._padded is not None:
            self._padded = self._padded[: most + 1]
        if self.timetable is None:
            return  # no duration is known yet
        if self.learns and not self.service_time.known:  # the durations are borrowed
            self._set(self.durations, self.upper, min(most, len(self.durations) - 1))
            return
        self._version, self.timetable = -1, None
        self.refresh()

    def size_to_explore(self, available: int) -> int:
        """Return the size to try if the known sizes cannot serve all queued requests; 0: none.

        Durations of sizes above the largest trusted one are a guess. As long as batches have not become slower with
        their size, up to four times as many rows are tried.
        """
        if not self.learns:
            return 0
        trusted = self.service_time.trusted
        size = min(available, self.cap, _EXPLORE_TIMES * max(trusted, 1))
        return size if size > trusted and self.service_time.flat_up_to(trusted) else 0

    @property
    def compares(self) -> bool:
        """Whether it is time to compare another size with the best one."""
        return self.learns and self.service_time.observations >= self._compare_from

    def size_instead_of(self, planned: int, available: int) -> int:
        """Return a size to learn or to compare in place of a batch's size, and note the request; 0: none.

        Args:
            planned: the rows of the batch.
            available: the most rows that there are for it.
        """
        if planned < self.compared_from or not self.compares:
            return 0
        if learned := self.size_to_learn(planned):
            return learned
        if planned >= len(self.durations) - 1:
            return self.size_to_compare(available)
        return self._not_run_for_long([self._half_to_compare(planned)])

    def size_to_compare(self, available: int) -> int:
        """Return a size next to the best one that has not run for long, and note the request; 0: none.

        Args:
            available: the most rows that there are for it.
        """
        best = len(self.durations) - 1
        return self._not_run_for_long(
            [size for size in self._neighbors(best) if 0 < size <= available and size != best]
        )

    def size_to_learn(self, planned: int) -> int:
        """Return the smaller power of two that ran least, if less than four times, and note the request; 0: none now.

        Args:
            planned: the rows of the batch that it would replace.
        """
        model, best = self.service_time, len(self.durations) - 1
        sizes = [1 << power for power in reversed(range(1, best.bit_length()))]
        if self._padded is not None:
            sizes = [int(self._padded[size]) for size in sizes]
        missing = {size: model.until_settled(size) for size in sizes if size < best and self._is_reached(size)}
        needed = [size for size in sizes if missing.get(size)]
        self.compared_from = min(needed, default=best - 1) + 1
        self._compare_from = model.observations + _COMPARE_EVERY
        since = model.observations - self._costly_at
        due = [size for size in needed if size < planned and since >= self._pause_before(size)]
        return max(due, key=missing.__getitem__, default=0)

    def _pause_before(self, size: int) -> int:
        """Return how many batches to run after one of a costly size, before one of this size runs."""
        if not self._is_costly(size):
            return 0
        return _COMPARE_AFTER if self.service_time.knows(size) else _COSTLY_EVERY

    def _is_costly(self, size: int) -> bool:
        """Return whether a size costs much more per row than the best one, as far as is known."""
        best = len(self.durations) - 1
        return self.expected_ns(size) * best > _MAX_COST_RATIO * self.spread * size * self.expected_ns(best)

    def size_to_try_again(self, size: int, available: int) -> int:
        """Return up to twice a size if one that large has run, but not for long, and note the request; 0: none.

        Args:
            size: of the batches that are expected to be on time.
            available: the most rows that there are.
        """
        model = self.service_time
        larger = min(2 * size, self.cap, max(model.seen(), default=0))
        if larger <= size:
            return 0
        last_size, observations = self._last_recheck
        pause = _COMPARE_AFTER * self.expected_ns(larger) / self.expected_ns(size)
        was_tried = last_size < 2 * larger < 4 * last_size and model.observations - observations < pause
        as_run = larger if self._padded is None else int(self._padded[larger])
        due_size = self._not_run_for_long([as_run] if larger <= available and not was_tried else [])
        if not due_size:
            return 0
        self._last_recheck = larger, model.observations
        return larger

    def size_at_a_loss(self, planned: int, is_alone: bool) -> int:
        """Return a smaller size to learn or to compare in place of a batch while requests are lost; 0: none.

        Args:
            planned: the rows of the batch.
            is_alone: whether there are no other groups; a size that is only learned must not cost their requests.
        """
        if planned < len(self.durations) - 1:
            return 0
        size = self.size_to_learn(planned) if is_alone else 0
        return size if size and self.is_worth_losses(size, planned) else self.size_to_compare(planned - 1)

    def is_worth_losses(self, size: int, planned: int) -> bool:
        """Return whether a size may run for the first time although requests become late, and note that it does.

        Args:
            size: the smaller size.
            planned: the rows of the batch that it replaces.
        """
        model = self.service_time
        if model.observations < self._costly_from or planned < len(self.durations) - 1 or model.knows(size):
            return False
        larger = min(2 * size, planned)
        if self.expected_ns(larger) * planned > _MAX_COST_RATIO * larger * self.expected_ns(planned):
            return False
        self._costly_from = model.observations + _COSTLY_EVERY
        return True

    def compare_soon(self, size: int) -> None:
        """Compare again at the next batch, because a batch of the requested size is sent.

        If the size seems costly, one more batch per worker runs first: by then the requested one has ended, and if it
        was costly, the next size has to pause.
        """
        self._compared_size = size
        others = self._workers if self._pause_before(size) else 0
        self._compare_from = self.service_time.observations + _COMPARE_SOON + others

    def compare_next(self) -> None:
        """Compare at the next decision, because the batch of the requested size was not sent."""
        self._compared_size, self._last_recheck = 0, (0, 0)
        self._compare_from = min(self._compare_from, self.service_time.observations)

    def _not_run_for_long(self, sizes: Sequence[int]) -> int:
        model = self.service_time
        self._compare_from = model.observations + _COMPARE_EVERY
        return next((size for size in sizes if self._is_stale(size) and self._is_reached(size)), 0)

    def _is_stale(self, size: int) -> bool:
        return size > 0 and bool(self.service_time.batches_since(size) >= _COMPARE_AFTER)

    def _half_to_compare(self, planned: int) -> int:
        """Return half of a batch that is not full, where none is, if it has not run for long; 0: none."""
        half, best = self._neighbors(planned)[0], len(self.durations) - 1
        full = best if self._padded is None else int(self._padded[best])
        return half if self._is_stale(half) and self._is_stale(full) else 0

    def _is_settled(self, rows: int) -> bool:
        """Return whether batches of a size may count towards a mean, which a longer batch of another size ends."""
        model = self.service_time
        return not model.until_settled(rows) and not self._is_stale(rows)

    def _is_reached(self, size: int) -> bool:
        """Return whether batches of a size really run with that many rows, as far as is known."""
        return self._cut.get(size, 0) < _MAX_CUTS

    def expected_ns(self, size: int) -> int:
        """Return the mean duration of a batch, even above the best size; 0 above the largest size."""
        return int(self._mean[size]) if size < len(self._mean) else 0

    def _neighbors(self, best: int) -> tuple[int, int]:
        if self._padded is None:
            return best // 2, min(2 * best, self.cap)
        sizes = self._padded[1:]
        smaller = int(sizes[sizes < sizes[best - 1]].max(initial=0))
        return smaller, int(self._padded[min(best + 1, self.cap)])

    def borrow(self, other: "BucketModel", ratio: float) -> None:
        """Use the durations of another bucket, times a ratio, until those of this one are known."""
        if self._borrowed_durations is other.durations:
            return  # the other bucket has learned nothing since
        self._borrowed_durations = other.durations
        scaled = np.maximum((other.durations * ratio).astype(np.int64), 1)[: self.cap + 1]
        scaled[0] = 0
        self._set(scaled, scaled, len(scaled) - 1)
        self._version = -1

    def _set(self, mean: NDArray[np.int64], upper: NDArray[np.int64], largest: int, *, safety: float = 0.0) -> None:
        mean, self.upper = mean[: largest + 1], upper[: largest + 1]
        self.durations = mean + (mean * safety).astype(np.int64)
        self.slow = self.upper
        self.spread, shortest_ratio = 1.0, 1.0
        if self.learns:
            self.spread = math.exp(self.service_time.deviation)
            shortest_ratio = min(_MIN_DURATION_RATIO, self.spread**-_MIN_DURATION_DEVIATIONS)
            self.slow = np.minimum(self.durations * self.spread**_SLOW_DEVIATIONS, self.upper).astype(np.int64)
        self.steps, self.slow_steps = self._steps_of(self.durations), self._steps_of(self.slow)
        self.timetable = DurationTable(self.durations, self.steps)
        self.upper_timetable = DurationTable(self.upper, self._steps_of(self.upper))
        self.slow_timetable = DurationTable(self.slow, self.slow_steps)
        # with the mean, a waiting request would be late whenever a batch takes longer than planned; values above the
        # limit come from outliers or too few batches, and a model that seems so slow would get no turn to correct them
        self.blocking_ns = np.minimum(self.upper, (_MAX_BLOCKING_RATIO * self.durations).astype(np.int64))
        self.compared_from = min(self.compared_from, largest) if self.learns else largest
        self.min_duration_ns = int(self.durations[1] * shortest_ratio)

    def _steps_of(self, durations: NDArray[np.int64]) -> NDArray[np.int64]:
        return durations if self._workers == 1 else np.maximum(durations // self._workers, 1)


def lend_durations(models: Sequence[BucketModel], lengths: Sequence[int] | None) -> bool:
    """Give buckets with unknown durations those of the nearest known bucket.

    Args:
        models: one per bucket.
        lengths: lengths of the buckets; ``None``: they grow evenly.

    Returns:
        Whether the durations of any bucket are known.
    """
    learned = [bucket for bucket, model in enumerate(models) if not model.learns or model.service_time.known]
    if not learned:
        return False
    lengths = lengths or range(1, len(models) + 1)
    for bucket, model in enumerate(models):
        if bucket not in learned:
            nearest = min(learned, key=lambda other, bucket=bucket: abs(other - bucket))  # type: ignore[misc]
            model.borrow(models[nearest], max(1.0, lengths[bucket] / lengths[nearest]))
    return True
