"""Learned interference: how many times as long a batch takes while batches of other models run on the device.

*Design*. While a batch runs, the device adds up the time that it spends beside each other model. If that is at least
half of its time for one model, the ratio of its duration to the expected duration alone is a sample of that pair's
*slowdown*, and goes into an exponential mean of the logarithms. Durations are corrected by the slowdowns before a
service time learns them, so it stays that of a batch alone. If a model has never run alone, its own duration cannot be
separated from the slowdown. The service time then includes all of it, which plans as well; the first batches alone
separate the two.

Two models that together complete less than one after the other are kept apart: if ``1/s_ab + 1/s_ba < 1``. After 128
batches they run together once, because otherwise a change would not show.

*Complexity*. O(running batches) at the begin and at the end of a batch. Synchronous, takes the time as an argument.
"""

import math
from collections.abc import Hashable, Mapping

import attrs

__all__ = ["Interference"]

_NEWEST_WEIGHT = 0.1
_MIN_OVERLAP = 0.5  # of a batch's time
_RETRY_AFTER = 128  # batches


@attrs.define(eq=False)
class _Running:
    model: Hashable
    started_ns: int
    beside_ns: dict[Hashable, int] = attrs.field(factory=dict)


class Interference:
    """Slowdown of each pair of models; belongs to one device."""

    def __init__(self) -> None:
        self._running: dict[Hashable, _Running] = {}
        self._updated_ns = 0
        self._log_slowdowns: dict[tuple[Hashable, Hashable], float] = {}
        self._begun = 0
        self._together_at: dict[frozenset[Hashable], int] = {}  # batches begun when the pair last ran

    def begin(self, token: Hashable, model: Hashable, now_ns: int) -> None:
        """Note that a batch of a model begins."""
        self._pass_time(now_ns)
        self._begun += 1
        for other in self._running.values():
            self._together_at[frozenset((model, other.model))] = self._begun
        self._running[token] = _Running(model, now_ns)

    def end(self, token: Hashable, expected_ns: int, now_ns: int) -> int:
        """Note that a batch ended, and learn from it.

        Args:
            token: as in :meth:`begin`.
            expected_ns: its expected duration alone; 0: unknown, or the batch failed, so there is nothing to learn.
            now_ns: when it ended.

        Returns:
            The nanoseconds that it would have taken alone.
        """
        self._pass_time(now_ns)
        batch = self._running.pop(token)
        duration_ns = max(now_ns - batch.started_ns, 1)
        shares = {other: beside_ns / duration_ns for other, beside_ns in batch.beside_ns.items()}
        if expected_ns > 0:
            self._learn(batch.model, shares, duration_ns / expected_ns)
        # learn the slowdown first, so that a first slowdown does not look like a slower model
        slower = sum(share * (self._slowdown(batch.model, other) - 1.0) for other, share in shares.items())
        return max(round(duration_ns / (1.0 + slower)), 1)

    def forget(self) -> None:
        """Forget the running batches, because their loop was closed."""
        self._running.clear()

    def slowdown(self, model: Hashable) -> float:
        """Return how many times as long a batch of a model takes beside the running batches."""
        return 1.0 + sum(self._slowdown(model, batch.model) - 1.0 for batch in self._running.values())

    def keeps_apart(self, model: Hashable) -> bool:
        """Return whether a batch of a model should wait for a running one."""
        for batch in self._running.values():
            together = 1.0 / self._slowdown(model, batch.model) + 1.0 / self._slowdown(batch.model, model)
            last = self._together_at.get(frozenset((model, batch.model)), self._begun)
            if together < 1.0 and self._begun - last < _RETRY_AFTER:
                return True
        return False

    def slowdowns(self) -> Mapping[tuple[Hashable, Hashable], float]:
        """Return by pair how many times as long a batch of the first model takes beside one of the second."""
        return {pair: math.exp(log) for pair, log in self._log_slowdowns.copy().items()}

    def _slowdown(self, model: Hashable, other: Hashable) -> float:
        return math.exp(self._log_slowdowns.get((model, other), 0.0))

    def _pass_time(self, now_ns: int) -> None:
        passed_ns = max(now_ns - self._updated_ns, 0)
        self._updated_ns = max(now_ns, self._updated_ns)
        if len(self._running) < 2:
            return
        for token, batch in self._running.items():
            for other_token, other in self._running.items():
                if other_token != token:
                    batch.beside_ns[other.model] = batch.beside_ns.get(other.model, 0) + passed_ns

    def _learn(self, model: Hashable, shares: Mapping[Hashable, float], ratio: float) -> None:
        beside = max(shares, key=shares.__getitem__, default=None)
        if beside is not None and shares[beside] >= _MIN_OVERLAP:
            log = math.log(max(1.0 + (ratio - 1.0) / shares[beside], 1.0))
            before = self._log_slowdowns.get((model, beside), log)
            self._log_slowdowns[model, beside] = before + _NEWEST_WEIGHT * (log - before)
