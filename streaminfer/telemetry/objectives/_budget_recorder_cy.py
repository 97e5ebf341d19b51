"""Recorder that also feeds an error budget: a class of its own, so that others neither load nor check it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streaminfer.telemetry import _recorder_cy

if TYPE_CHECKING:
    from streaminfer.telemetry.histograms._histogram_cy import HistogramState
    from streaminfer.telemetry.objectives._budget_cy import BudgetState

__all__ = ["BudgetRecorder"]


class BudgetRecorder(_recorder_cy.Recorder):
    """A :class:`Recorder` whose responses are also events of an error budget.

    Args:
        budget: the error budget.
        histograms: as of :class:`Recorder`.
    """

    __slots__ = ("_budget",)

    def __init__(self, budget: BudgetState, *histograms: HistogramState) -> None:
        _recorder_cy.Recorder.__init__(self, *histograms)
        self._budget = budget

    def record(self, started_ns: int, now_ns: int) -> None:
        """Count one response's duration; :meth:`answer` ends here as well."""
        _recorder_cy.Recorder.record(self, started_ns, now_ns)
        self._budget.count_ns(now_ns - started_ns)
