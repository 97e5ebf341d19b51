"""Recorder that also feeds an error budget and a rolling histogram; the base `Recorder` does not load this module."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streaminfer.telemetry import _recorder_cy

if TYPE_CHECKING:
    from streaminfer.telemetry.histograms._histogram_cy import HistogramState
    from streaminfer.telemetry.histograms._rolling_cy import RollingState
    from streaminfer.telemetry.objectives._budget_cy import BudgetState

__all__ = ["BudgetRecorder"]


class BudgetRecorder(_recorder_cy.Recorder):
    """A :class:`Recorder` that also records responses in an error budget and a rolling histogram.

    Args:
        budget: the error budget; ``None``: no budget.
        recent: the rolling histogram; ``None``: no histogram.
        histograms: as for :class:`Recorder`.
    """

    def __init__(self, budget: BudgetState | None, recent: RollingState | None, *histograms: HistogramState) -> None:
        _recorder_cy.Recorder.__init__(self, *histograms)
        self._budget = budget
        self._recent = recent

    def record(self, started_ns: int, now_ns: int) -> None:
        """Record the duration of one response; :meth:`answer` calls this too."""
        _recorder_cy.Recorder.record(self, started_ns, now_ns)
        if self._budget is not None:
            self._budget.count_ns(now_ns - started_ns)
        if self._recent is not None and now_ns >= started_ns:
            self._recent.count_ns(now_ns - started_ns)
