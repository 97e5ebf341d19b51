"""`RttSamples`: measured round-trip times between clusters and sites, in the order of measurement."""

import csv
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Self

import attrs
import numpy as np
from numpy.typing import ArrayLike, NDArray

from streaminfer._internal.distributions.real_arrays import real_array
from streaminfer._internal.validation import check_instance, check_number, check_share, expected, field_check
from streaminfer.placement.distribution import Distribution
from streaminfer.placement.network.promised_rtt import CONFIDENCE, UNPROMISABLE_S, Backtest, independent_samples
from streaminfer.placement.problem import AccessProfile, Link, check_unique

__all__ = ["END_TO_END", "PairSummary", "RttSamples"]

END_TO_END = AccessProfile(name="end to end", rtt=Distribution.of(0.0))
"""Access profile of clusters with links that were measured from user devices: the link includes the last mile."""

Floats = NDArray[np.float64]


@attrs.frozen(kw_only=True)
class PairSummary:
    """Measurements of one cluster and one site.

    Attributes:
        samples: number of measurements.
        independent: equivalent number of independent measurements; neighbors in time are alike.
        median_s: median of all measurements.
        moved_s: median of the later half minus the median of the earlier half.
        measured_s: measured quantile at the given share.
        promised_s: promised time at this share; infinity: nothing can be promised.
    """

    samples: int
    independent: float
    median_s: float
    moved_s: float
    measured_s: float
    promised_s: float


def _is_table(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(row, Mapping) for row in value.values())


@attrs.frozen(eq=False, repr=False)
class RttSamples:
    """Round-trip times by cluster and site.

    Attributes:
        rtt_s: seconds ≥ 0, at least two for each pair, in the order of measurement. The arrays are not copied.
    """

    rtt_s: Mapping[str, Mapping[str, Floats]] = attrs.field(
        validator=field_check(check_instance, _is_table, "a mapping of cluster to a mapping of site to seconds")
    )

    @classmethod
    def from_array(cls, rtt_s: ArrayLike, clusters: Sequence[str], sites: Sequence[str]) -> Self:
        """Make samples from measurements of all pairs at the same instants.

        Args:
            rtt_s: shape (instants, clusters, sites), seconds; NaN: not measured.
            clusters: names of the clusters.
            sites: names of the sites.

        Raises:
            TypeError, ValueError: ``rtt_s`` is not such an array.
        """
        check_unique("clusters", clusters)
        check_unique("sites", sites)
        table = real_array("rtt_s", rtt_s)
        if table.shape[1:] != (len(clusters), len(sites)):
            expectation = f"shape (instants, {len(clusters)}, {len(sites)}), for the names of clusters and sites"
            raise ValueError(f"rtt_s: expected {expectation}, got shape {table.shape}")
        return cls._of(
            (cluster, site, column[~np.isnan(column)])
            for c, cluster in enumerate(clusters)
            for s, site in enumerate(sites)
            for column in (table[:, c, s],)
        )

    @classmethod
    def from_rows(cls, rows: Iterable[tuple[str, str, float]]) -> Self:
        """Make samples from rows of cluster, site and seconds, in the order of measurement.

        Raises:
            TypeError, ValueError: ``rows`` are not such rows.
        """
        columns: dict[tuple[str, str], list[float]] = defaultdict(list)
        for row in rows:
            try:
                cluster, site, rtt_s = row
            except (TypeError, ValueError):
                raise ValueError(expected("rows", "rows of cluster, site and seconds", row)) from None
            columns[cluster, site].append(check_number("rtt_s", rtt_s, "finite seconds ≥ 0", _is_duration))
        return cls._of((cluster, site, np.array(column)) for (cluster, site), column in columns.items())

    @classmethod
    def from_csv(cls, path: str | os.PathLike[str]) -> Self:
        """Read a CSV file with a head and at least the columns ``cluster``, ``site`` and ``rtt_s``.

        Raises:
            OSError: the file cannot be read.
            ValueError: a column is missing, or a value is no number; the message has the line.
        """
        with open(path, newline="", encoding="utf-8-sig") as file:  # noqa: PTH123 - a path of any kind
            reader = csv.DictReader(file)
            names = reader.fieldnames or ()
            if missing := {"cluster", "site", "rtt_s"} - set(names):
                raise ValueError(f"{path}: expected the columns cluster, site, rtt_s, got no {min(missing)!r}")
            return cls.from_rows(  # the reader counts lines, those that are empty included
                (row["cluster"], row["site"], _seconds(row["rtt_s"], path, reader.line_num)) for row in reader
            )

    @classmethod
    def _of(cls, pairs: Iterable[tuple[str, str, Floats]]) -> Self:
        by_cluster: dict[str, dict[str, Floats]] = {}
        for cluster, site, column in pairs:
            if not (np.isfinite(column) & (column >= 0)).all():
                raise ValueError(expected(f"rtt_s of {cluster!r} to {site!r}", "finite seconds ≥ 0", column))
            if column.size >= 2:
                by_cluster.setdefault(cluster, {})[site] = column
        if not by_cluster:
            raise ValueError("rtt_s: expected at least two measurements of one cluster and site, got none")
        return cls(by_cluster)

    def links(
        self, *, confidence: float = CONFIDENCE, bandwidth_bytes_s: float | None = None
    ) -> dict[str, dict[str, Link]]:
        """Return the links of a `Problem`, with round-trip times that can be promised.

        The promised times are longer than the measured ones, because networks change and measurements are few. They
        come from a backtest: how similar pairs changed from the earlier half of the measurements to the later half.

        Args:
            confidence: probability that a pair keeps its promise, below 1.
            bandwidth_bytes_s: bandwidth of each link, for one request.

        Raises:
            TypeError, ValueError: not such numbers.
        """
        backtest = Backtest.of(self._columns(), confidence)
        return {
            cluster: {
                site: Link(rtt=backtest.promised(column), bandwidth_bytes_s=bandwidth_bytes_s)
                for site, column in row.items()
            }
            for cluster, row in self.rtt_s.items()
        }

    def summary(self, share: float = 0.99, *, confidence: float = CONFIDENCE) -> dict[tuple[str, str], PairSummary]:
        """Return, for each cluster and site, a summary of the measurements and of what they can promise.

        Args:
            share: promised share of the requests.
            confidence: as for `links`.

        Raises:
            TypeError, ValueError: not such numbers.
        """
        share = check_share("share", share)
        backtest = Backtest.of(self._columns(), confidence)
        return {
            (cluster, site): PairSummary(
                samples=column.size,
                independent=independent_samples(column),
                median_s=float(np.median(column)),
                moved_s=float(np.median(column[column.size // 2 :]) - np.median(column[: column.size // 2])),
                measured_s=float(np.quantile(column, share, method="higher")),
                promised_s=promised_s if promised_s < UNPROMISABLE_S else math.inf,
            )
            for cluster, row in self.rtt_s.items()
            for site, column in row.items()
            for promised_s in (backtest.promised(column).quantile(share),)
        }

    def _columns(self) -> list[Floats]:
        return [column for row in self.rtt_s.values() for column in row.values()]

    def __repr__(self) -> str:
        columns = self._columns()
        sites = {site for row in self.rtt_s.values() for site in row}
        counts = f"{len(self.rtt_s):,} clusters, {len(sites):,} sites, {len(columns):,} pairs"
        return f"<RttSamples: {counts}, {sum(column.size for column in columns):,} measurements>"


def _is_duration(number: float) -> bool:
    return 0 <= number < math.inf


def _seconds(text: str, path: object, line: int) -> float:
    name = f"{path}, line {line}: rtt_s"
    try:
        seconds = float(text)
    except (TypeError, ValueError):
        raise ValueError(expected(name, "a number of seconds", text)) from None
    return check_number(name, seconds, "finite seconds ≥ 0", _is_duration)
