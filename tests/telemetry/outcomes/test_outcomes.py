"""`Outcomes`: reports about users, joined with the route, latency and quality of their requests."""

import asyncio
import json
import math
import random
from collections import OrderedDict

import numpy as np
import pytest

import streaminfer as si
from streaminfer._runtime.response_source import fallback_source
from streaminfer.request import Response
from streaminfer.telemetry import Outcomes
from streaminfer.telemetry.outcomes.outcome_table import OutcomeCell, OutcomeTable
from streaminfer.testing import FakeClock, ScriptedBackend, run


def serve(outcomes, request_id, clock, *, source="large", degraded=False, seconds=0.02):
    """Send one request through the layer."""

    class Service:
        async def call(self, request):
            clock.advance(seconds)
            if source is None:
                raise si.Overloaded("full")
            return Response(1.0, degraded, source)

    async def main():
        with outcomes.request(request_id):
            await outcomes.wrap(Service()).call(si.Request(1.0))

    asyncio.run(main())


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def outcomes(clock):
    return Outcomes(expires_s=60.0, clock=clock)


def test_request_counts_after_time_for_reports(outcomes, clock):
    """A request is counted when the time for its reports is over."""
    serve(outcomes, "a", clock)
    serve(outcomes, "b", clock)
    assert outcomes.report("a", "corrected")
    assert (outcomes.table().pending, outcomes.table().rows) == (2, ())

    clock.advance(60.0)

    (row,) = outcomes.table().rows
    assert row.of == {"route": "large", "latency": "≤ 25 ms", "degraded": False}
    assert (row.outcome, row.requests, row.reported, row.rate.value) == ("corrected", 2, 1, 0.5)
    assert not outcomes.report("b", "corrected")
    assert outcomes.table().unknown == 1


def test_cost_of_the_small_model(outcomes, clock):
    rng = random.Random(1)
    for number in range(2000):
        degraded = number % 2 == 0
        source = fallback_source("small", "large", "overloaded") if degraded else "large"
        serve(outcomes, number, clock, source=source, degraded=degraded)
        if rng.random() < (0.2 if degraded else 0.1):
            outcomes.report(number, "corrected")
        outcomes.report(number, "watched_s", rng.gauss(20 if degraded else 30, 5))
    table = outcomes.table(settle=True)

    difference = table.difference("corrected")

    assert 0.05 < difference.low < 0.1 < difference.high < 0.15
    full, small = (row for row in table.by("degraded") if row.outcome == "watched_s")
    assert (full.of, small.of) == ({"degraded": False}, {"degraded": True})
    assert 29 < full.mean.low < 30 < full.mean.high < 31
    assert small.mean.high < 21
    assert {row.of["route"] for row in table.by("route")} == {"large", "small"}
    assert [row.requests for row in table.by()] == [2000, 2000]
    assert table.difference("corrected", "route", of="small", to="large") == difference
    assert math.isnan(table.difference("nothing").value)


def test_failed_and_slow_requests(outcomes, clock):
    with pytest.raises(si.Overloaded):
        serve(outcomes, 1, clock, source=None)
    serve(outcomes, 2, clock, seconds=3.0)
    outcomes.report(1, "left")
    rows = outcomes.table(settle=True).rows
    assert [(row.of["route"], row.of["latency"], row.reported) for row in rows] == [
        ("large", "> 1 s", 0),
        ("no response", "≤ 25 ms", 1),
    ]


def test_memory_is_bounded(clock):
    outcomes = Outcomes(max_pending=3, clock=clock)
    for number in range(10):
        serve(outcomes, number, clock)
    table = outcomes.table(settle=True)
    assert (table.evicted, table.pending) == (7, 0)
    assert not outcomes.report(0, "x")


def test_times_may_be_any_number_of_seconds(clock):
    """Requests that never expire, and a latency bound that no response exceeds, are accepted."""
    outcomes = Outcomes(expires_s=1e300, latency_buckets_s=(1.0, 1e300), clock=clock)
    serve(outcomes, "a", clock, seconds=2.0)

    clock.advance(1e8)

    assert outcomes.table().pending == 1


def test_the_oldest_request_is_found_at_once(clock):
    """Pending requests are in a linked list, with the oldest request first.

    A dict would search through the places of all requests that have been removed.
    """
    assert isinstance(Outcomes(clock=clock)._pending, OrderedDict)


def test_request_after_pause_does_not_count_all(outcomes, clock):
    """After a pause, no single request counts all the requests whose time is over.

    A request counts a few of them, and the table counts all. A request whose time is over gets no report and is not
    evicted.
    """
    for number in range(100):
        serve(outcomes, number, clock, seconds=0.0)
    assert outcomes.report(98, "corrected")
    clock.advance(60.0)

    serve(outcomes, 99, clock)
    assert 80 <= len(outcomes._pending) < 100
    assert not outcomes.report(98, "corrected again")

    (row,) = outcomes.table().rows
    assert (row.requests, row.reported) == (100, 1)
    assert (outcomes.table().pending, outcomes.unknown, outcomes.evicted) == (1, 1, 0)


def test_last_request_and_last_report_count(outcomes, clock):
    """Of several requests with one id the last one counts, and of several reports of one outcome the last one."""
    serve(outcomes, 1, clock, source="small")
    serve(outcomes, 1, clock, source="large")
    outcomes.report(1, "watched_s", 1.0)
    outcomes.report(1, "watched_s", 3.0)
    (row,) = outcomes.table(settle=True).rows
    assert (row.of["route"], row.requests, row.mean.value) == ("large", 1, 3.0)
    assert math.isnan(row.mean.low)


def test_replaced_request_is_counted_as_evicted(outcomes, clock):
    """A request that is replaced by another one of the same id is counted as evicted."""
    for _ in range(3):
        serve(outcomes, "camera", clock)
    assert (outcomes.table().evicted, outcomes.table().pending) == (2, 1)


def test_equal_ids_of_nested_outcomes_are_separate(outcomes, clock):
    inner = Outcomes(clock=clock)

    class Service:
        async def call(self, request):
            return Response(1.0, False, "inner")

    async def main():
        with outcomes.request("a"):
            await outcomes.wrap(inner.wrap(Service())).call(si.Request(1.0))

    asyncio.run(main())
    assert (outcomes.table().pending, inner.table().pending) == (1, 0)


def test_latency_rows_are_sorted(outcomes, clock):
    for number, seconds in enumerate((2.0, 0.08, 0.2, 0.005, 0.9)):
        serve(outcomes, number, clock, seconds=seconds)
        outcomes.report(number, "x")
    table = outcomes.table(settle=True)
    expected = ["≤ 10 ms", "≤ 100 ms", "≤ 250 ms", "≤ 1 s", "> 1 s"]
    assert [row.of["latency"] for row in table.rows] == [row.of["latency"] for row in table.by("latency")] == expected


def test_cells_beyond_bound_are_other(outcomes, clock):
    """Cells beyond the bound are `other` in each column, neither full quality nor degraded."""
    for number in range(1100):
        serve(outcomes, number, clock, source=f"model-{number}")
    outcomes.report(1099, "x")
    table = outcomes.table(settle=True)
    assert table.rows[-1].of == {"route": "other", "latency": "other", "degraded": "other"}
    assert "other  other  other  x  1 of 76" in repr(table)


def test_outcome_names_beyond_the_bound_are_other(outcomes, clock):
    for number in range(300):
        serve(outcomes, number, clock)
        outcomes.report(number, f"made up {number}")
        outcomes.report(number, "made up 0", 1.0)  # known names stay

    rows = {row.outcome: row.reported for row in outcomes.table(settle=True).rows}
    assert len(rows) == 257
    assert (rows["made up 0"], rows["made up 255"], rows["other"]) == (300, 1, 44)


def test_confidence_interval_of_large_values(outcomes, clock):
    for number in range(100):
        serve(outcomes, number, clock)
        outcomes.report(number, "at_s", 1.7e9 + number % 2)
    (row,) = outcomes.table(settle=True).rows
    assert row.mean.value - 1.7e9 == pytest.approx(0.5, abs=1e-6)
    assert row.mean.high - row.mean.value == pytest.approx(1.984 * 0.05025, rel=1e-3)


def test_confidence_interval_of_few_values():
    """The interval of few values covers the true mean in 95 % of cases, which needs Student's distribution."""
    rng, covered = np.random.default_rng(0), {2: 0, 3: 0, 8: 0}
    for values in covered:
        for _ in range(1000):
            cell = OutcomeCell()
            for value in rng.normal(20.0, 5.0, values).tolist():
                cell.settle({"watched_s": value})
            (row,) = OutcomeTable.of([(("m", "≤ 1 s", False), cell)], (), pending=0, unknown=0, evicted=0).rows
            covered[values] += row.mean.low <= 20.0 <= row.mean.high

    assert all(930 <= count <= 970 for count in covered.values())


def test_custom_ids_in_a_stack():
    async def main(loop):
        outcomes = Outcomes(expires_s=10.0, id_of=lambda request: request.stream_id)
        layers = (outcomes, si.AdaptiveBatcher(max_batch_size=4), ScriptedBackend(duration_s=0.2))
        async with si.Stack(*layers, clock=loop.clock) as stack:
            await asyncio.gather(stack(1.0, stream_id="a"), stack(2.0))
            assert outcomes.report("a", "done")
            await asyncio.sleep(10.0)
            return stack.statistics()["Outcomes"]

    (row,) = run(main).rows
    assert row.of == {"route": "ScriptedBackend", "latency": "≤ 250 ms", "degraded": False}
    assert row.rate.value == 1.0


def test_tasks_have_their_own_ids(outcomes, clock):
    class Service:
        async def call(self, request):
            await asyncio.sleep(0)
            return Response(1.0, False, str(request.inputs))

    async def main():
        service = outcomes.wrap(Service())

        async def one(number):
            with outcomes.request(number):
                await service.call(si.Request(number))

        await asyncio.gather(*(one(number) for number in range(5)))
        await service.call(si.Request(9))

    asyncio.run(main())
    outcomes.report(3, "x")
    rows = outcomes.table(settle=True).rows
    assert [(row.of["route"], row.reported) for row in rows] == [("0", 0), ("1", 0), ("2", 0), ("3", 1), ("4", 0)]


def test_the_table_as_text_html_and_json(outcomes, clock):
    serve(outcomes, 1, clock, source="<b>")
    outcomes.report(1, "watched_s", 2.5)
    table = outcomes.table(settle=True)
    assert repr(table).endswith("<b>  ≤ 25 ms  full  watched_s  1 of 1  100.00% (20.65% to 100.00%)  2.5")
    assert "&lt;b&gt;" in table._repr_html_()
    assert outcomes._repr_html_() == table._repr_html_()
    plain = json.loads(json.dumps(table.to_dict()))
    assert plain["rows"][0]["mean"] == {"value": 2.5, "low": None, "high": None}


def test_an_id_that_cannot_be_hashed_harms_no_request(caplog, clock):
    outcomes = Outcomes(id_of=lambda request: [], clock=clock)
    serve(outcomes, None, clock)
    assert "unhashable" in caplog.text


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: Outcomes(expires_s=0), ValueError, "expires_s: expected"),
        (lambda: Outcomes(max_pending=0), ValueError, "max_pending: expected"),
        (lambda: Outcomes(latency_buckets_s=(1.0, 1.0)), ValueError, "latency_buckets_s: expected ascending bounds"),
        (lambda: Outcomes(latency_buckets_s=()), ValueError, "latency_buckets_s: expected ascending bounds"),
        (lambda: Outcomes(latency_buckets_s=0.1), TypeError, "latency_buckets_s: expected ascending bounds"),
        (lambda: Outcomes(id_of=3), TypeError, "id_of: expected a function or None"),
        (lambda: Outcomes(clock=3), TypeError, "clock: expected a callable or None"),
        (lambda: Outcomes().report("a", 3), TypeError, "outcome: expected a string"),
        (lambda: Outcomes().report("a", "x", math.nan), ValueError, "value: expected a finite number or None"),
        (lambda: Outcomes().wrap(ScriptedBackend()), TypeError, "inner: expected a service"),
        (lambda: Outcomes().table().by("colour"), ValueError, "fields: expected some of"),
    ],
)
def test_bad_arguments(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_wilson_against_published_figures():
    """Newcombe's example has its published interval: 56 of 70 and 48 of 80, difference 0.2 from 0.0524 to 0.3339."""
    clock = FakeClock()
    outcomes = Outcomes(clock=clock)
    for number in range(150):
        degraded = number < 70
        serve(outcomes, number, clock, degraded=degraded)
        if number < 56 or 70 <= number < 118:
            outcomes.report(number, "x")
    value, low, high = outcomes.table(settle=True).difference("x")
    assert (value, low, high) == (pytest.approx(0.2), pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5))
