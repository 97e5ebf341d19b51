"""Picture of a plan: who is how far from which site, and where the requests go."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from streaminfer.placement.matrix_plot import plot_matrix

if TYPE_CHECKING:
    from streaminfer.placement.plan_record import Plan

__all__ = ["plot_plan"]


def plot_plan(plan: "Plan", ax: Any) -> Any:
    """Draw the clusters and sites of a plan; see `Plan.plot`.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    problem = plan.problem
    access = {it.name: it.rtt for it in problem.access}
    used = plan.shares_by_site(plan.assignment)
    served: dict[str, float] = {}
    parts = {}
    for cluster in problem.clusters:
        for site, share in used.get(cluster.name, {}).items():
            served[site] = served.get(site, 0.0) + share * max(cluster.rates)
        promise = problem.promise_of(cluster)
        own_s = access[cluster.access].quantile(promise.share)
        parts[cluster.name] = {
            site: (link.rtt.quantile(promise.share) + own_s) / promise.slo_s
            for site, link in problem.links.get(cluster.name, {}).items()
        }
    return plot_matrix(ax, parts, used, _labels(plan, served))


def _labels(plan: "Plan", served: Mapping[str, float]) -> dict[str, str]:
    """Replicas, load and cost of each site."""
    labels = {}
    for site in plan.problem.sites:
        groups = [group for group in plan.replicas if site.name in group.sites]
        if not groups:
            labels[site.name] = "unused"
            continue
        most = sum(group.replicas * group.max_rate for group in groups)
        cost = site.price + sum(group.price / len(group.sites) for group in groups)
        count = sum(group.replicas for group in groups)
        labels[site.name] = f"{count} repl.\n{served.get(site.name, 0.0) / most:.0%} load\n{cost:.3g}/h"
    return labels
