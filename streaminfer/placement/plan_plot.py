"""Picture of a plan: who is how far from which site, and where the requests go."""

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
    parts = {}
    for cluster in problem.clusters:
        promise = problem.promise_of(cluster)
        own_s = access[cluster.access].quantile(promise.share)
        parts[cluster.name] = {
            site: (link.rtt.quantile(promise.share) + own_s) / promise.slo_s
            for site, link in problem.links.get(cluster.name, {}).items()
        }
    return plot_matrix(ax, parts, used, _labels(plan))


def _labels(plan: "Plan") -> dict[str, str]:
    """Replicas, load in the busiest hour, and cost of each site."""
    labels = {}
    rates = plan.group_rates(*plan.busiest)
    for site in plan.problem.sites:
        here = [(group, rate) for group, rate in zip(plan.replicas, rates, strict=True) if site.name in group.sites]
        if not here:
            labels[site.name] = "unused"
            continue
        load = sum(rate for _, rate in here) / sum(group.replicas * group.max_rate for group, _ in here)
        shares = (group.price * group.sites.count(site.name) / len(group.sites) for group, _ in here)
        count = sum(group.replicas for group, _ in here)
        labels[site.name] = f"{count} repl.\n{load:.0%} load\n{site.price + sum(shares):.3g}/h"
    return labels
