"""Batches that are not learned one by one: their number and total duration, by about equal size.

Compiled with the C types of ``_batch_means_cy.pxd`` or run uncompiled.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from streaminfer.batching.queue._ticket_cy import Execution

__all__ = ["BatchMeans"]

_STEPS = 96  # three an octave up to 2**31 rows: a power of two, one row more, and the sizes between


class BatchMeans:
    """Counts and totals of one bucket's batches since its model last learned.

    Sizes of one step, which count as equal, share a mean. A step is closed until a first batch opens it. So a caller
    that knows the model decides which batches may be absorbed, and other callers need not know it.

    Args:
        work_ns: total duration of the batches of a mean, over all steps.
        single_ns: duration from which a batch is learned alone, at most ``work_ns``.
    """

    def __init__(self, work_ns: int, single_ns: int) -> None:
        self._work_ns = self._left_ns = work_ns
        self._single_ns = single_ns
        self._expected: Sequence[int] = array("q", [0])
        self._steps: Sequence[int] = array("q", [0])
        self._counts = array("q", [0]) * _STEPS
        self._totals_ns = array("q", [0]) * _STEPS

    def expect(self, durations: NDArray[np.int64], steps: NDArray[np.int64]) -> None:
        """Set the expected durations of batches.

        Args:
            durations: shape (n,), nanoseconds by size.
            steps: shape (n,), int64, 0 to 95: the step of each size.
        """
        # read through the buffer, entries are Python ints
        self._expected = durations.data
        self._steps = steps.data

    def absorb(self, size: int, duration_ns: int, opens: bool = False) -> bool:
        """Count a batch, unless it has to be learned at once.

        Args:
            size: number of its rows.
            duration_ns: how long it took.
            opens: whether it may open its step.

        Returns:
            False if its step is closed, or if it is long or completes the work of a mean; then it was not counted.
        """
        if size < 0 or size >= len(self._expected):
            return False
        step = self._steps[size]
        if self._counts[step] == 0 and not opens:
            return False
        # so that a model that has become fast is learned soon
        work_ns = duration_ns if duration_ns > self._expected[size] else self._expected[size]
        if work_ns >= self._single_ns or work_ns >= self._left_ns:
            return False
        self._left_ns -= work_ns
        self._counts[step] += 1
        self._totals_ns[step] += duration_ns
        return True

    def absorb_execution(self, execution: Execution, ended_ns: int) -> bool:
        """Count a batch that was neither pipelined nor cancelled, unless it has to be learned at once."""
        if execution.predecessor_end_ns != 0 or execution.abandoned:
            return False
        return self.absorb(len(execution.tickets), ended_ns - execution.effective_start_ns)

    def mean_ns(self, size: int, duration_ns: int) -> int:
        """Return the mean duration of a batch that was not absorbed and the absorbed ones of its step."""
        if size < 0 or size >= len(self._expected):
            return duration_ns
        step = self._steps[size]
        mean_ns: int = (self._totals_ns[step] + duration_ns) // (self._counts[step] + 1)
        return mean_ns

    def clear(self) -> None:
        """Forget all absorbed batches, and close all steps."""
        self._left_ns = self._work_ns
        for step in range(_STEPS):
            self._counts[step] = 0
            self._totals_ns[step] = 0
