"""Which batches of a fast model are learned: a sample, because learning each would take longer than the batches.

*Design.* A batch is learned whenever the batches since the last one were expected to take the sampling interval
together. Intervals vary by half (a golden-ratio sequence), so that batches whose sizes or durations alternate are all
sampled. Whether a batch is learned does not depend on its own duration. A sample that preferred long batches would show
rare long ones as frequent. The exception is a model that has become much slower, since samples would be rare then: of
four batches in a row that take over twice as long, the last is learned. Cancelled batches count towards the interval,
and otherwise teach nothing.

A busy event loop notices the ends of two short batches almost at once, so the first seems to take long and the second
no time. What is learned is therefore the mean of a batch and the one before it, relative to what they were expected to
take.

*Complexity.* O(1) per batch.

Compiled with the C types of ``_batch_sampler_cy.pxd`` or run uncompiled.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from streaminfer.batching.queue._ticket_cy import Execution

__all__ = ["BatchSampler"]

_STEPS = 96  # three an octave up to 2**31 rows: a power of two, one row more, and the sizes between
_SLOW = 2  # times the expected duration
_SLOW_IN_A_ROW = 4


class BatchSampler:
    """Chooses the batches of one bucket that are learned.

    Batches whose sizes are of one step count as equal. A step is closed until a batch opens it, and again after each
    batch that was learned. So a caller that knows the model decides which sizes are sampled, and other callers need not
    know it.

    Args:
        interval_ns: mean total of the durations from one sample to the next.
        always_ns: expected duration from which every batch is learned.
    """

    def __init__(self, interval_ns: int, always_ns: int) -> None:
        self._interval_ns = interval_ns
        self._always_ns = always_ns
        self._phase = 0  # thousandths
        self._in_a_row = 0  # batches that were much slower than expected
        self._last_ratio = 0.0  # of the last batch that was skipped: duration over expected duration; 0: none
        self._expected: Sequence[int] = array("q", [0])
        self._steps: Sequence[int] = array("q", [0])
        self._is_open = bytearray(_STEPS)
        self._left_ns = interval_ns

    def expect(self, durations: NDArray[np.int64], steps: NDArray[np.int64]) -> None:
        """Set the expected durations of batches.

        Args:
            durations: shape (n,), nanoseconds by size.
            steps: shape (n,), int64, 0 to 95: the step of each size.
        """
        # read through the buffer, entries are Python ints
        self._expected = durations.data
        self._steps = steps.data

    def skip(self, size: int, duration_ns: int, cancelled: bool, opens: bool = False) -> bool:
        """Return whether a batch need not be learned; if so, it is counted.

        Args:
            size: number of its rows.
            duration_ns: how long it took.
            cancelled: whether it was cancelled then.
            opens: whether it may open its step.

        Returns:
            False if its step is closed, or if it is to be learned.
        """
        if size < 0 or size >= len(self._expected):
            return False
        expected_ns = self._expected[size]
        step = self._steps[size]
        if not 0 < expected_ns < self._always_ns or not (opens or self._is_open[step]):
            return False
        in_a_row = self._in_a_row + 1 if duration_ns > _SLOW * expected_ns else 0
        if expected_ns >= self._left_ns or in_a_row >= _SLOW_IN_A_ROW:
            return False
        self._is_open[step] = 1
        self._left_ns -= expected_ns
        if not cancelled:
            self._in_a_row = in_a_row
            self._last_ratio = duration_ns / expected_ns
        return True

    def skip_execution(self, execution: Execution, ended_ns: int) -> bool:
        """Count a batch as :meth:`skip`, unless it was pipelined: then it is learned."""
        if execution.predecessor_end_ns != 0:
            return False
        return self.skip(len(execution.tickets), ended_ns - execution.effective_start_ns, execution.abandoned)

    def smoothed_ns(self, size: int, duration_ns: int) -> int:
        """Return what to learn from a batch that was not skipped: its mean with the batch before, if that was."""
        if self._last_ratio == 0.0 or size < 0 or size >= len(self._expected):
            return duration_ns
        return int((duration_ns + self._last_ratio * self._expected[size]) / 2)

    def restart(self) -> None:
        """Begin the next interval, after a batch that was learned, and close all steps."""
        self._phase = (self._phase + 618) % 1000
        self._left_ns = self._interval_ns * (500 + self._phase) // 1000
        self._in_a_row = 0
        self._last_ratio = 0.0
        for step in range(_STEPS):
            self._is_open[step] = 0
