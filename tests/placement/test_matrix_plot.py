"""The picture of a plan can be printed, and shows the clusters that matter."""

import attrs
import numpy as np
import pytest
from pictures import check_printable
from placement_problems import small_problem

from streaminfer.placement import Distribution, Link, plan
from streaminfer.placement.matrix_plot import plot_matrix


def matrix(clusters, sites, *, seed=0):
    rng = np.random.default_rng(seed)
    names = [f"site number {n}" for n in range(sites)]
    parts = {
        f"cluster {n}": {site: float(rng.uniform(0.1, 1.4)) for site in names if site == names[0] or rng.random() < 0.9}
        for n in range(clusters)
    }
    shares = {name: {min(row, key=row.get): 1.0} for name, row in parts.items()}
    return parts, shares, dict.fromkeys(names, "3 repl.\n71% load\n1.25/h")


@pytest.mark.parametrize(("clusters", "sites"), [(1, 1), (4, 14), (60, 30)], ids=["one", "wide", "many"])
def test_picture_is_printable(clusters, sites):
    axes = plot_matrix(None, *matrix(clusters, sites))

    check_printable(axes)
    assert len(axes.get_yticks()) <= 30
    assert len(axes.get_xticks()) <= 14


def test_tightest_clusters_come_first():
    """Unserved clusters come first, then those whose round trip takes most of the SLO; the others are counted."""
    parts, shares, labels = matrix(40, 5)
    shares["cluster 7"] = {}
    axes = plot_matrix(None, parts, shares, labels)

    shown = [label.get_text() for label in axes.get_yticklabels()]
    assert shown[0] == "cluster 7"
    used = [max(parts[name][site] for site in shares[name]) for name in shown[1:]]
    assert used == sorted(used, reverse=True)
    assert "10 clusters with more room" in axes.get_ylabel()


def test_names_are_no_formulas():
    """Names with dollars are drawn as text; matplotlib would read a formula, and fail if that is wrong."""
    parts = {r"gold $\frac$": {"$5 or $6": 0.5}}

    axes = plot_matrix(None, parts, {r"gold $\frac$": {"$5 or $6": 1.0}}, {"$5 or $6": "1 repl."})

    check_printable(axes)


def test_load_is_that_of_one_hour():
    """The load of a site is that of the busiest hour, not of all hours; a chain at one site has its whole price."""
    problem = small_problem(1, "shards")
    near = {"s0": Link(rtt=Distribution.of(0.002))}
    clusters = [
        attrs.evolve(problem.clusters[0], name=name, rates=rates, service_class="slow")
        for name, rates in (("day", (200.0, 1.0)), ("night", (1.0, 200.0)))
    ]
    device = attrs.evolve(problem.sites[0].devices[0], slots=4, price=1.0)
    site = attrs.evolve(problem.sites[0], devices=[device])
    found = plan(
        attrs.evolve(problem, clusters=clusters, sites=[site], links={"day": near, "night": near}, site_links={})
    )

    replicas, load, cost = found._site_labels()["s0"].splitlines()

    assert 0.5 < float(load.split("%")[0]) / 100 <= 1.0
    assert cost == f"{found.cost:.3g}/h"
    assert replicas == f"{sum(group.replicas for group in found.replicas)} repl."
