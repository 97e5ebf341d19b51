"""Round-trip times become links whose promises hold in the second half of the measurements."""

import math

import numpy as np
import pytest
from _lib.rtt_data import synthetic

from streaminfer.placement.network.promised_rtt import LEVELS, UNPROMISABLE_S, Backtest, independent_samples
from streaminfer.placement.network.rtt_samples import END_TO_END, RttSamples


def samples_of(rtt_s, sites=12):
    names = [str(device) for device in range(rtt_s.shape[1])]
    return RttSamples.from_array(rtt_s[:, sites:, :sites], names[sites:], names[:sites])


@pytest.fixture(scope="module")
def moving():
    return synthetic(344, 60)


@pytest.mark.parametrize("share", [0.9, 0.95, 0.99])
def test_promises_are_kept_in_the_future(moving, share):
    """At least 95 % of the pairs keep a promise made from their past; fewer than 70 % keep their measured quantile."""
    links = samples_of(moving[:172]).links()
    future = samples_of(moving[172:])

    def kept(value_of):
        return np.mean([
            (column <= value_of(cluster, site)).mean() >= share
            for cluster, row in future.rtt_s.items()
            for site, column in row.items()
        ])  # fmt: skip

    past = samples_of(moving[:172]).rtt_s
    assert kept(lambda cluster, site: links[cluster][site].rtt.quantile(share)) >= 0.95
    assert kept(lambda cluster, site: np.quantile(past[cluster][site], share, method="higher")) < 0.7


def test_best_of_many_sites_keeps_its_promise(moving):
    """Promises hold at the site that promises most, although this choice prefers sites with a lucky past."""
    links = samples_of(moving[:172], sites=30).links()
    future = samples_of(moving[172:], sites=30).rtt_s
    best = {cluster: min(row, key=lambda site: row[site].rtt.quantile(0.95)) for cluster, row in links.items()}

    kept = [
        (future[cluster][site] <= links[cluster][site].rtt.quantile(0.95)).mean() >= 0.95
        for cluster, site in best.items()
    ]

    assert np.mean(kept) >= 0.95


def test_promise_is_never_below_what_was_measured(moving):
    samples = samples_of(moving[:100])
    links = samples.links()

    for cluster, row in samples.rtt_s.items():
        for site, column in row.items():
            for share in (0.5, 0.9, 0.99):
                assert links[cluster][site].rtt.quantile(share) >= np.quantile(column, share, method="higher")


def test_more_confidence_promises_less(moving):
    samples = samples_of(moving[:100])
    sure, unsure = samples.links(confidence=0.99), samples.links(confidence=0.8)

    assert all(
        sure[cluster][site].rtt.quantile(0.95) >= link.rtt.quantile(0.95)
        for cluster, row in unsure.items()
        for site, link in row.items()
    )


def test_few_pairs_promise_as_independent_samples_do():
    """Without enough pairs for a backtest, 300 independent samples are enough to promise p98, and not p99.5."""
    rng = np.random.default_rng(1)
    samples = RttSamples({"a": {"x": rng.exponential(0.02, 300)}})
    rtt = samples.links(confidence=0.95)["a"]["x"].rtt

    assert 0.02 * -math.log(1 - 0.98) < rtt.quantile(0.98) < 0.2
    assert rtt.quantile(0.995) == UNPROMISABLE_S


def test_order_statistic_covers_the_quantile():
    """The promised bound is above the true quantile as often as `confidence` says."""
    rng = np.random.default_rng(2)
    draws = [RttSamples({"a": {"x": rng.exponential(1.0, 400)}}) for _ in range(300)]
    covered = [it.links(confidence=0.9)["a"]["x"].rtt.quantile(0.9) >= -math.log(0.1) for it in draws]

    assert 0.86 <= np.mean(covered) <= 0.99


def test_samples_that_repeat_are_worth_less():
    rng = np.random.default_rng(3)
    fresh = rng.exponential(1.0, 500)

    assert independent_samples(fresh) > 400
    assert independent_samples(np.repeat(fresh[:50], 10)) < 60
    assert independent_samples(np.full(100, 0.2)) == 1.0


def test_backtest_needs_pairs():
    rng = np.random.default_rng(4)
    columns = [rng.exponential(1.0, 100) for _ in range(39)]

    assert Backtest.of(columns, 0.97).past.size == 0
    assert Backtest.of([*columns, columns[0]], 0.97).past.shape == (len(LEVELS), 1)


def test_rows_and_csv_give_the_same(tmp_path):
    rows = [("a", "x", 0.01), ("a", "y", 0.03), ("a", "x", 0.02), ("a", "y", 0.04)]
    file = tmp_path / "rtt.csv"
    text = "cluster,site,when,rtt_s\n" + "".join(f"{c},{s},9,{r}\n" for c, s, r in rows)
    file.write_text(text, encoding="utf-8-sig")  # as a spreadsheet writes it

    read, given = RttSamples.from_csv(file), RttSamples.from_rows(rows)

    assert read.rtt_s["a"]["x"].tolist() == given.rtt_s["a"]["x"].tolist() == [0.01, 0.02]
    assert repr(read) == "<RttSamples: 1 clusters, 2 sites, 2 pairs, 4 measurements>"


def test_lost_packets_may_take_any_time():
    """A round trip of more than a day counts as no response, and becomes the unpromisable time."""
    lost = np.where(np.arange(200) % 4, 0.01, 1e9)
    rows = [(f"c{n}", "x", rtt_s) for n in range(50) for rtt_s in lost]

    rtt = RttSamples.from_rows(rows).links()["c0"]["x"].rtt

    assert rtt.quantile(0.99) == UNPROMISABLE_S
    assert rtt.quantile(0.5) < 0.02


def test_pairs_without_measurements_have_no_link():
    table = np.full((5, 2, 2), 0.1)
    table[:, 0, 1] = np.nan
    table[1:, 1, 1] = np.nan

    samples = RttSamples.from_array(table, ["a", "b"], ["x", "y"])

    assert {cluster: set(row) for cluster, row in samples.rtt_s.items()} == {"a": {"x"}, "b": {"x"}}


def test_summary_rates_the_measurements():
    """A summary has the number of independent samples that the measurements of a link are worth."""
    column = np.concatenate([np.full(50, 0.1), np.full(50, 0.16)])
    summary = RttSamples({"a": {"x": column}}).summary(0.9)["a", "x"]

    assert (summary.samples, summary.measured_s) == (100, 0.16)
    assert summary.moved_s == pytest.approx(0.06)
    assert summary.independent < 2
    assert summary.promised_s == math.inf


def test_links_measured_end_to_end_add_no_access():
    assert END_TO_END.rtt.quantile(0.999) == 0.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RttSamples.from_rows([("a", "x", -0.1)]), "rtt_s: expected finite seconds"),
        (
            lambda: RttSamples.from_rows([("a", "x")]),
            r"rows: expected rows of cluster, site and seconds, got \('a', 'x'\)",
        ),
        (lambda: RttSamples.from_rows([]), "at least two measurements"),
        (lambda: RttSamples.from_array(np.zeros((3, 2, 1)), ["a"], ["x"]), r"got shape \(3, 2, 1\)"),
        (lambda: RttSamples.from_array("x", ["a"], ["x"]), "rtt_s: expected an array of real numbers, got 'x'"),
        (lambda: RttSamples.from_array(np.full((3, 1, 1), np.inf), ["a"], ["x"]), "rtt_s of 'a' to 'x'"),
        (lambda: RttSamples.from_array(np.ones((3, 2, 1)), ["a", "a"], ["x"]), "clusters: expected names that differ"),
        (lambda: RttSamples.from_array(np.ones((3, 1, 2)), ["a"], ["x", "x"]), "sites: expected names that differ"),
        (lambda: RttSamples(5), "rtt_s: expected a mapping of cluster to a mapping of site to seconds, got 5"),
        (lambda: RttSamples({"a": np.ones(5)}), "rtt_s: expected a mapping of cluster to a mapping of site to seconds"),
        (lambda: RttSamples({"a": {"x": np.ones(5)}}).links(confidence=1), "confidence: expected"),
        (lambda: RttSamples({"a": {"x": np.ones(5)}}).summary(1.5), "share: expected"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cluster,rtt_s\na,1\n", "got no 'site'"),
        ("cluster,site,rtt_s\na,x,1\na,x,fast\n", "line 3: rtt_s"),
        ("cluster,site,rtt_s\na,x,1\na,x,-1\n", "line 3: rtt_s: expected finite seconds"),
        ("cluster,site,rtt_s\n\na,x,1\n\na,x,fast\n", "line 5: rtt_s"),
    ],
    ids=["column", "value", "negative", "empty lines"],
)
def test_bad_csv_is_explained(tmp_path, text, message):
    file = tmp_path / "rtt.csv"
    file.write_text(text)

    with pytest.raises(ValueError, match=message):
        RttSamples.from_csv(file)
