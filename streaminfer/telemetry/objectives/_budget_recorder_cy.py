"""Recorder that also feeds an error budget and a rolling histogram: others neither load nor check them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streaminfer.telemetry import _recorder_cy

if TYPE_CHECKING:
    from streaminfer.telemetry.histograms._histogram_cy import HistogramState
    from streaminfer.telemetry.histograms._rolling_cy import RollingState
    from streaminfer.telemetry.objectives._budget_cy import BudgetState

__all__ = ["BudgetRecorder"]


class BudgetRecorder(_recorder_cy.Recorder):
    """A :class:`Recorder` whose responses are also events of an error budget, and in a rolling histogram.

    Args:
        budget: the error budget; ``None``: there is none.
        recent: the histogram; ``None``: there is none.
        histograms: as of :class:`Recorder`.
    """

    def __init__(self, budget: BudgetState | None, recent: RollingState | None, *histograms: HistogramState) -> None:
        _recorder_cy.Recorder.__init__(self, *histograms)
        self._budget = budget
        self._recent = recent

    def record(self, started_ns: int, now_ns: int) -> None:
        """Count one response's duration; :meth:`answer` ends here as well."""
        _recorder_cy.Recorder.record(self, started_ns, now_ns)
        if self._budget is not None:
            self._budget.count_ns(now_ns - started_ns)
        if self._recent is not None and now_ns >= started_ns:
            self._recent.count_ns(now_ns - started_ns)
