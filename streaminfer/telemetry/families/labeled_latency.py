"""`LabeledLatency`: latency and outcomes by tenant, route or priority, for a bounded number of label sets."""

import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

from streaminfer._internal.validation import check_count, check_instance, expected
from streaminfer.telemetry.families._labeled_recorder_cy import LABELS, LabeledCounts, LabeledRecorder
from streaminfer.telemetry.families.label_family import LabelFamily
from streaminfer.telemetry.histograms.latency_histogram import LatencyHistogram
from streaminfer.telemetry.statistics import LabeledStatistics, read_responses

__all__ = ["LabeledLatency"]

_DIGITS = 2
"""Significant digits of its histograms: 20 KB for each set of labels, instead of 200 KB with three digits."""


class LabeledLatency:
    """Latency and outcomes of requests by label values.

    Args:
        labels: names of the labels.
        max_sets: most sets of values that are counted separately.

    Attributes:
        recorder: records the requests.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range, or a label is unknown or repeated.
    """

    def __init__(self, labels: Sequence[str], max_sets: int) -> None:
        expectation = f"names of {LABELS}"
        check_instance("labels", labels, _are_names, f"a tuple of {expectation}")
        if len(set(labels)) < len(labels) or not set(labels) <= set(LABELS):
            raise ValueError(expected("labels", f"{expectation}, each at most once", labels))
        self._labels = tuple(labels)
        sets = check_count("max_label_sets", max_sets, at_most=sys.maxsize)
        self._family = LabelFamily(_counts, *labels, max_sets=sets)
        self.recorder = LabeledRecorder(self._labels, self._family)

    def statistics(self, *, live: bool) -> tuple[LabeledStatistics, ...]:
        """Return a snapshot of each set of values.

        Args:
            live: whether the snapshots share the live histograms instead of copies.
        """
        merged: dict[tuple[tuple[str, str], ...], LabeledStatistics] = {}
        for values, counts in self._family.items():
            read = self._read(values, counts, live=live)
            before = merged.get(read.labels)  # a tenant may have the name "other"
            merged[read.labels] = read if before is None else _merge(before, read)
        return tuple(merged.values())

    def _read(self, values: tuple[Any, ...], counts: LabeledCounts, *, live: bool) -> LabeledStatistics:
        latency, degraded, responses = read_responses(counts, cast("LatencyHistogram", counts.latency), live=live)
        outcomes = {"ok": responses - degraded, "degraded": degraded, **counts.errors}
        return LabeledStatistics(
            labels=tuple(zip(self._labels, map(str, values), strict=True)),
            outcomes={outcome: count for outcome, count in outcomes.items() if count},
            latency=latency,
        )


def _counts() -> LabeledCounts:
    return LabeledCounts(LatencyHistogram(significant_digits=_DIGITS))


def _merge(one: LabeledStatistics, other: LabeledStatistics) -> LabeledStatistics:
    latency = one.latency.copy()
    latency.merge(other.latency)
    outcomes = Counter(one.outcomes) + Counter(other.outcomes)
    return LabeledStatistics(labels=one.labels, outcomes=outcomes, latency=latency)


def _are_names(labels: Any) -> bool:
    return isinstance(labels, tuple | list) and all(isinstance(label, str) for label in labels)
