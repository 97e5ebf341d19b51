"""`Plan`: the variants at each site, the clusters that they serve, and the cost."""

import math
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from streaminfer._internal.display.figures import inline_svg
from streaminfer._internal.display.html_table import html_table
from streaminfer._internal.units import format_duration
from streaminfer._internal.validation import expected
from streaminfer.placement.matrix_plot import plot_height_in, plot_matrix
from streaminfer.placement.predictions import Prediction, predict
from streaminfer.placement.problem import Problem
from streaminfer.placement.solver.instance import Instance

__all__ = ["Assignment", "Plan", "ReplicaGroup"]

Assignment = Mapping[str, Mapping[int, float]]
"""By cluster: the share of its requests that each replica group serves, by the group's index in `Plan.replicas`."""


@attrs.frozen(kw_only=True)
class ReplicaGroup:
    """Equal replicas at one site, or along a path of sites.

    Attributes:
        model: name of the model.
        variant: name of the variant.
        sites: name of the site of each shard.
        kinds: the kind of device of each shard.
        replicas: number of replicas.
        max_rate: most requests per second of one replica with which the promises hold.
        price: price of all replicas per hour, without the price of the sites.
    """

    model: str
    variant: str
    sites: tuple[str, ...]
    kinds: tuple[str, ...]
    replicas: int
    max_rate: float
    price: float

    def __str__(self) -> str:
        places = " → ".join(f"{site} ({kind})" for site, kind in zip(self.sites, self.kinds, strict=True))
        return f"{self.replicas} × {self.model}/{self.variant} at {places}"


# with slots, attrs would make a `__getattr__` without a module, on which `help` fails in CPython 3.13
@attrs.frozen(kw_only=True, eq=False, repr=False, slots=False)
class Plan:
    """Result of `plan`; a notebook shows it as tables.

    Attributes:
        problem: the problem that was planned.
        replicas: the replicas that run, in groups.
        assignments: assignment of clusters to groups, by hour and name of the scenario.
        cost: cost of replicas and sites per hour.
        quality: mean quality over the requests of all hours.
        bound: cost (or quality, if there is a budget) that no plan can improve on.
        gap: relative distance between the plan and the bound.
        binding: the limits that the plan uses up, in words.
        unserved: requests per second of clusters for which there is no capacity; only `repair` leaves any.
        instance: pools and settings of the solver, for repairs and prices.
        counts: replicas of each pool of the instance.
        flows: flows of demand to these pools, by hour and name of the scenario, in the unit of `Flows`.
    """

    problem: Problem
    replicas: tuple[ReplicaGroup, ...]
    assignments: Mapping[tuple[int, str], Assignment]
    cost: float
    quality: float
    bound: float
    gap: float
    binding: tuple[str, ...]
    unserved: Mapping[str, float]
    instance: Instance
    counts: NDArray[np.float64]
    flows: Mapping[tuple[int, str], NDArray[np.int64]]

    @cached_property
    def predictions(self) -> Mapping[str, Prediction]:
        """The predicted latency of each served cluster, by name; computed at the first access."""
        return predict(self.instance, self.counts, self.flows)

    @property
    def sites(self) -> tuple[str, ...]:
        """The names of the sites in use."""
        used = {site for group in self.replicas for site in group.sites}
        return tuple(site.name for site in self.problem.sites if site.name in used)

    @property
    def busiest(self) -> tuple[int, str]:
        """The hour, and the name of the scenario, with the most requests."""
        return self._busiest_first()[0]

    @property
    def assignment(self) -> Assignment:
        """The assignment in the busiest hour."""
        return self.assignments[self.busiest]

    def _busiest_first(self) -> list[tuple[int, str]]:
        return sorted(self.assignments, key=lambda key: -sum(self._rates(*key)))

    def _rates(self, hour: int, scenario: str) -> list[float]:
        """Return the requests per second of each cluster."""
        factor = next(it.rate_factor for it in self.problem.scenarios if it.name == scenario)
        return [factor * cluster.rates[hour % len(cluster.rates)] for cluster in self.problem.clusters]

    def group_rates(self, hour: int, scenario: str) -> NDArray[np.float64]:
        """Return the requests per second that each replica group serves, in an hour of a scenario.

        Raises:
            ValueError: the plan does not cover this hour of this scenario.
        """
        if (hour, scenario) not in self.assignments:
            raise ValueError(expected("hour, scenario", f"one of {list(self.assignments)[:10]}", (hour, scenario)))
        flows = self.instance.flows
        state = self.instance.normal()[list(self.flows).index((hour, scenario))]
        demand = np.maximum(flows.rates[state] * flows.unit, 1.0)  # without what is not served
        shares = self.flows[hour, scenario][:, self.counts > 0] / demand[:, None]
        return np.asarray(self._rates(hour, scenario) @ shares)

    def busiest_shares(self) -> dict[str, dict[str, float]]:
        """Return the shares of each cluster by site, in the busiest hour that serves it; some send only at night.

        The shares are those of the first scenario: a site that is in time in another scenario may be late in this one.
        """
        first = self.problem.scenarios[0].name
        by_hour = [self.shares_by_site(self.assignments[key]) for key in self._busiest_first() if key[1] == first]
        return {
            cluster.name: served[0]
            for cluster in self.problem.clusters
            if (served := [shares[cluster.name] for shares in by_hour if cluster.name in shares])
        }

    def shares_by_site(self, assignment: Assignment) -> dict[str, dict[str, float]]:
        """Return, for each cluster that an assignment serves, the shares by the site that its requests go to first."""
        shares: dict[str, dict[str, float]] = {}
        for cluster, groups in assignment.items():
            row = shares.setdefault(cluster, {})
            for group, share in groups.items():
                site = self.replicas[group].sites[0]
                row[site] = row.get(site, 0.0) + share
        return shares

    @property
    def running(self) -> dict[tuple[str, str, tuple[str, ...], tuple[str, ...]], int]:
        """Replicas by model, variant, names of sites and kinds of devices."""
        counts: Counter[tuple[str, str, tuple[str, ...], tuple[str, ...]]] = Counter()
        for group in self.replicas:
            counts[group.model, group.variant, group.sites, group.kinds] += group.replicas
        return counts

    def plot(self, ax: Any = None) -> Any:
        """Draw the round trip from each cluster to each site, and the shares of its requests.

        A cell is darker if the round trip, at the promised share, takes more of the SLO. If there are many clusters,
        the plot shows those with the least room; of many sites, the most used.

        Args:
            ax: a matplotlib ``Axes``, or ``None`` for a new figure.

        Returns:
            The axes: x = site, y = cluster.

        Raises:
            MissingExtra: matplotlib is not installed.
        """
        problem = self.problem
        access = {it.name: it.rtt for it in problem.access}
        parts = {}
        for cluster in problem.clusters:
            promise = problem.promise_of(cluster)
            access_s = access[cluster.access].quantile(promise.share)
            parts[cluster.name] = {
                site: (link.rtt.quantile(promise.share) + access_s) / promise.slo_s
                for site, link in problem.links.get(cluster.name, {}).items()
            }
        return plot_matrix(ax, parts, self.shares_by_site(self.assignment), self._site_labels())

    def _site_labels(self) -> dict[str, str]:
        """Return the replicas, the load in the busiest hour, and the cost of each site as text."""
        labels = {}
        rates = self.group_rates(*self.busiest)
        for site in self.problem.sites:
            groups_at_site = [
                (group, rate) for group, rate in zip(self.replicas, rates, strict=True) if site.name in group.sites
            ]
            if not groups_at_site:
                labels[site.name] = "unused"
                continue
            load = sum(rate for _, rate in groups_at_site) / sum(
                group.replicas * group.max_rate for group, _ in groups_at_site
            )
            shares = (group.price * group.sites.count(site.name) / len(group.sites) for group, _ in groups_at_site)
            count = sum(group.replicas for group, _ in groups_at_site)
            labels[site.name] = f"{count} repl.\n{load:.0%} load\n{site.price + sum(shares):.3g}/h"
        return labels

    def _title(self) -> str:
        replicas = _count_text(sum(group.replicas for group in self.replicas), "replica")
        sites = _count_text(len(self.sites), "site")
        title = f"{replicas} at {sites}, {self.cost:.4g} per hour"
        if math.isfinite(self.gap):  # else no plan serves everybody
            title += f", gap {self.gap:.2%}"
        return f"{title}; {_count_text(len(self.unserved), 'cluster')} unserved" if self.unserved else title

    def __repr__(self) -> str:
        lines = [f"<Plan: {self._title()}>", *(f"  {group}" for group in self.replicas[:20])]
        if len(self.replicas) > 20:
            lines.append(f"  … {len(self.replicas) - 20} more groups")
        return "\n".join([*lines, *(f"  binds: {text}" for text in self.binding[:10])])

    def _repr_html_(self) -> str:
        groups = [
            (
                f"{group.model}/{group.variant}",
                " → ".join(group.sites),
                " → ".join(group.kinds),
                group.replicas,
                f"{group.max_rate:.4g}/s",
                f"{group.price:.4g}",
            )
            for group in self.replicas
        ]
        shares = self.shares_by_site(self.assignment)
        latencies = [
            (
                it.cluster,
                f"p{100 * it.share:.6g} {format_duration(it.latency_s)}",
                format_duration(it.slo_s),
                ", ".join(f"{site} {share:.0%}" for site, share in shares.get(it.cluster, {}).items()),
            )
            for it in sorted(self.predictions.values(), key=lambda it: it.slo_s - it.latency_s)[:50]
        ]
        head = ["variant", "sites", "devices", "replicas", "rate of each", "price"]
        tables = [
            inline_svg(
                self.plot, self._title(), height_in=plot_height_in(len(self.problem.clusters), len(self.problem.sites))
            ),
            html_table(groups, head=head, caption=self._title()),
            html_table(
                latencies, head=["cluster", "predicted", "SLO", "served at"], caption="Clusters, the least slack first"
            ),
        ]
        if self.binding:
            tables.append(html_table([(text,) for text in self.binding], head=["what binds"]))
        return "".join(tables)


def _count_text(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
