"""Debian's Prometheus scrapes two of our servers and computes quantiles from native histograms."""

import pytest
from servers.asgi_server import AsgiServer
from servers.prometheus_server import PrometheusServer
from telemetries import DURATIONS_S, telemetry

import streaminfer as si
from streaminfer.testing import ScriptedBackend, run

pytestmark = pytest.mark.needs("prometheus")

SCALE = 1.3  # the second server is slower
FAMILY = "streaminfer_request_duration_seconds"


@pytest.fixture(scope="module")
def services():
    """Return the same services for two servers, of which the second is slower."""
    return [
        {shape: telemetry(shape, durations_s * scale) for shape, durations_s in DURATIONS_S.items()}
        for scale in (1.0, SCALE)
    ]


@pytest.fixture(scope="module")
def session():
    """Return a session that has read a stream of which every second frame was skipped."""

    async def frames():
        for number in range(6):
            yield float(number)

    async def main(loop):
        layers = si.Telemetry("cameras"), si.AdaptiveBatcher(max_batch_size=4), ScriptedBackend(duration_s=0.010)
        async with si.Stack(*layers, clock=loop.clock) as stack:
            read = si.streams.StreamSession(stack, policy=si.streams.EveryNth(2))
            async with read(frames(), stream_id="door") as results:
                async for _ in results:
                    pass
            return read

    return run(main)


@pytest.fixture(scope="module")
def prometheus(services, session, tmp_path_factory):
    """Run Prometheus, which has stored a scrape of each server."""
    apps = [si.telemetry.metrics_app(*each.values(), session) for each in services]
    folder = tmp_path_factory.mktemp("prometheus")
    with (
        AsgiServer(apps[0]) as first,
        AsgiServer(apps[1]) as second,
        PrometheusServer(folder, [first, second]) as server,
    ):
        yield server


def test_every_scrape_is_accepted(prometheus):
    """Prometheus reports no error of a scrape, except a timeout."""
    errors = [target["lastError"] for target in prometheus.get("targets")["activeTargets"]]

    assert len(errors) == 2
    assert all("deadline exceeded" in error for error in errors if error)  # on a busy machine


@pytest.mark.parametrize("shape", DURATIONS_S)
@pytest.mark.parametrize("q", [0.5, 0.9, 0.99, 0.999])
def test_prometheus_quantile_agrees_with_ours(prometheus, services, shape, q):
    """The quantile of one server is within 0.5 % of ours."""
    series = f'{FAMILY}{{instance="{prometheus.servers[0].address}", service="{shape}"}}'

    found = prometheus.query(f"histogram_quantile({q}, {series})")[shape]

    assert found == pytest.approx(services[0][shape]._histograms[0].quantile(q), rel=0.005)


@pytest.mark.parametrize("shape", DURATIONS_S)
def test_merged_quantile_is_that_of_merged_histogram(prometheus, services, shape):
    """The p99 over both servers is within 0.5 % of the p99 of their merged histograms."""
    merged = services[0][shape]._histograms[0].copy()
    merged.merge(services[1][shape]._histograms[0])

    found = prometheus.query(f"histogram_quantile(0.99, sum by (service) ({FAMILY}))")
    counts = prometheus.query(f"histogram_count(sum by (service) ({FAMILY}))")

    assert counts[shape] == merged.count
    assert found[shape] == pytest.approx(merged.quantile(0.99), rel=0.005)


def test_classic_buckets_are_scraped_too(prometheus, services):
    """A Prometheus that stores classic histograms has them from the same scrape."""
    found = prometheus.query(
        f'sum by (service) ({FAMILY}_bucket{{le="0.05", instance="{prometheus.servers[0].address}"}})'
    )

    histogram = services[0]["lognormal"]._histograms[0]
    assert found["lognormal"] == round(histogram.share_within(0.05) * histogram.count)


def test_session_drops_are_scraped_by_reason(prometheus, session):
    """Drops of a session by reason, and the ages of its results, are series of the service that the session calls."""
    instance = f'instance="{prometheus.servers[0].address}"'
    statistics = session.statistics()

    skipped = prometheus.query(f'streaminfer_session_dropped_total{{{instance}, reason="skipped"}}')
    ages = prometheus.query(f"histogram_count(streaminfer_session_result_age_seconds{{{instance}}})")

    assert skipped == {"cameras": statistics.dropped["skipped"]}
    assert ages == {"cameras": statistics.delivered}
