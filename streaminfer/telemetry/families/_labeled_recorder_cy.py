"""Recorder of requests by labels: latency and outcomes of each set of values.

The same source is compiled with the C types of ``_labeled_recorder_cy.pxd`` or runs uncompiled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streaminfer.telemetry.families.routes import route_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streaminfer.request import Request, Response
    from streaminfer.telemetry.families._label_family_cy import LabelFamilyState
    from streaminfer.telemetry.histograms._histogram_cy import HistogramState

__all__ = ["LABELS", "LabeledCounts", "LabeledRecorder"]

LABELS = ("tenant", "route", "priority")
_TENANT, _ROUTE = 0, 1  # positions in LABELS


class LabeledCounts:
    """Requests of one set of label values.

    Args:
        latency: histogram of their latency.

    Attributes:
        latency: as given.
        degraded: degraded responses.
        errors: requests that completed without a response, by error.
    """

    def __init__(self, latency: HistogramState) -> None:
        self.latency = latency
        self.degraded = 0
        self.errors: dict[str, int] = {}

    def responses(self) -> tuple[int, int]:
        """Return the numbers of degraded responses and of all responses, at the same moment."""
        return self.degraded, self.latency.count


class LabeledRecorder:
    """Recorder of requests by label values.

    Args:
        labels: label names from ``LABELS``.
        family: family with a `LabeledCounts` for each set of values.
    """

    def __init__(self, labels: Sequence[str], family: LabelFamilyState) -> None:
        self._codes = [LABELS.index(label) for label in labels]
        self._family = family

    def answer(self, request: Request, response: Response, started_ns: int, now_ns: int) -> None:
        """Count a response."""
        counts: LabeledCounts = self._family.child(self._values(request, response.source))
        if response.degraded:
            counts.degraded += 1
        counts.latency.count_ns(max(now_ns - started_ns, 0))

    def fail(self, request: Request, reason: str) -> None:
        """Count a request that completed without a response; its route is an empty string."""
        counts: LabeledCounts = self._family.child(self._values(request, ""))
        counts.errors[reason] = counts.errors.get(reason, 0) + 1

    def _values(self, request: Request, source: str) -> tuple[Any, ...]:
        values: list[Any] = []
        for code in self._codes:
            if code == _TENANT:
                values.append("" if request.tenant is None else request.tenant)
            elif code == _ROUTE:
                values.append(route_of(source))
            else:
                values.append(request.priority)
        return tuple(values)
