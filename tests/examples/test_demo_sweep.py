"""Calibration and the series of offered loads, in virtual time, so that nothing depends on the machine."""

import pytest

import streaminfer as si
from streaminfer.testing import run

CHUNK_S = 0.032


def sweep(demo, make_stage, said=None, **options):
    services = demo("demo.services")
    ways = (services.batched(), services.Way("one by one"))

    async def main(loop):
        stage = make_stage(loop, (lambda _: None) if said is None else said.append)
        # a batch of one takes 4.5 ms
        return await demo("demo.load_sweep").sweep_loads(
            stage, ways, 1 / 0.0045, seconds=0.64, now_s=loop.time, **options
        )

    return run(main)


def test_rates_are_of_the_machine_and_sorted(demo, make_stage):
    """Two threads complete twice as many chunks as one, and the fastest way comes first."""

    async def main(loop):
        return await demo("demo.calibration").measure_rates(make_stage(loop), 0.2)

    rates = run(main)
    assert set(rates) == set(demo("demo.services").UNBATCHED)
    assert list(rates.values()) == sorted(rates.values(), reverse=True)
    fastest, rate = next(iter(rates.items()))
    assert fastest.threads == 2
    assert rate == pytest.approx(2 / 0.0045, rel=0.1)


def test_the_baseline_holds_most_chunks_on_time(demo, make_stage):
    """A high saturated rate alone does not make a way the baseline."""
    one, two, slow = (
        demo("demo.services").Way(name, threads=threads) for name, threads in (("one", 1), ("two", 2), ("slow", 1))
    )

    async def main(loop):
        # rates as if the way with one thread were faster when saturated
        rates = {one: 400.0, two: 390.0, slow: 10.0}
        return await demo("demo.calibration").choose_baseline(make_stage(loop), rates, 0.64)

    assert run(main) is two


def test_each_load_is_measured_with_both_ways_in_turn(demo, make_stage):
    """Both ways get the same microphones at each load, and which goes first alternates."""
    said = []
    found = sweep(demo, make_stage, said, loads=(0.5, 1.0, 2.0), repeats=2)
    assert [line.split(": ")[0] for line in said] == [
        *("repeat 1, batched, 0.5×", "repeat 1, one by one, 0.5×", "repeat 1, one by one, 1×", "repeat 1, batched, 1×"),
        *("repeat 1, batched, 2×", "repeat 1, one by one, 2×", "repeat 2, one by one, 0.5×", "repeat 2, batched, 0.5×"),
        *("repeat 2, batched, 1×", "repeat 2, one by one, 1×", "repeat 2, one by one, 2×", "repeat 2, batched, 2×"),
    ]
    for curve in found.curves:
        assert [[point.load for point in points] for points in curve.repeats] == [[0.5, 1.0, 2.0]] * 2
        assert [point.microphones for point in curve.repeats[0]] == [
            round(load * CHUNK_S / 0.0045) for load in (0.5, 1.0, 2.0)
        ]


async def test_a_window_that_was_disturbed_is_measured_again(demo, make_stage, loop, monkeypatch):
    """A window that misses is measured again and the better one counts, until a way has missed two loads."""
    load_sweep, findings = demo("demo.load_sweep"), demo("demo.findings")
    shares = iter((1.0, 0.5, 0.99, 0.7, 0.6, 0.4, 0.8, 0.3))
    asked = []

    async def measure(detector, clip, load, rate, seconds):
        by_hand = not isinstance(detector, si.Stack)
        asked.append(load)
        return findings.LoadPoint(load, 1, 1.0 if by_hand else next(shares), 0.01)

    monkeypatch.setattr(load_sweep, "measure_load", measure)
    services = demo("demo.services")
    ways = (services.batched(), services.Way("one by one"))
    found = await load_sweep.sweep_loads(make_stage(loop), ways, 100.0, loads=(1, 2, 3, 4, 5), repeats=1)

    assert [point.share_on_time for point in found.batched.repeats[0]] == [1.0, 0.99, 0.7, 0.8, 0.3]
    assert [asked.count(load) for load in (1, 2, 3, 4, 5)] == [2, 3, 3, 3, 2]


def test_study_finds_the_limits_of_the_machine(demo, make_stage):
    """The batched limit is several times the unbatched one: two batches of 24 chunks, or 7 single ones, fill 32 ms."""
    found = sweep(demo, make_stage, loads=(0.25, 0.5, 1.0, 2.0, 4.0, 8.0), repeats=3)
    comparison = demo("demo.comparison").compare(found)
    assert comparison.verdict is demo("demo.comparison").Verdict.RATIO
    assert all(2.0 <= limit.low <= 8.0 for limit in comparison.batched)
    assert all(0.5 <= limit.low <= 1.1 for limit in comparison.unbatched)
    assert 2.5 <= comparison.ratio <= 10.0
    for curve, limits in zip(found.curves, (comparison.batched, comparison.unbatched), strict=True):
        for points, limit in zip(curve.repeats, limits, strict=True):
            held = [point for point in points if point.load <= limit.low]
            assert all(point.share_on_time >= 0.99 and point.p99_s <= CHUNK_S for point in held[-1:])
            assert all(point.share_on_time < 0.99 for point in points if point.load > limit.high)


def test_an_overload_leaves_nothing_behind(demo, make_stage):
    """A load that is easily held is also held after a load of eight times the machine's limit."""
    found = sweep(demo, make_stage, loads=(8.0, 0.25), repeats=1)
    assert [points[-1].share_on_time for points in (found.batched.repeats[0], found.unbatched.repeats[0])] == [1.0, 1.0]


@pytest.mark.parametrize(("end_s", "repeats"), [(0.0, 3), (16.0, 4), (1e6, 7)], ids=["late", "room for one", "room"])
def test_more_repeats_begin_while_there_is_time(demo, make_stage, end_s, repeats):
    found = sweep(demo, make_stage, loads=(0.25, 0.5), end_s=end_s)
    assert len(found.batched.repeats) == len(found.unbatched.repeats) == repeats
