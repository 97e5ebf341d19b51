"""The driver and the search of the live demo, in virtual time: nothing depends on the machine."""

import asyncio
import importlib
import io

import numpy as np
import pytest

import streaminfer as si
from streaminfer.testing import HANG, ScriptedBackend, run

CHUNK_NS = 32_000_000


@pytest.fixture
def demo(_examples_can_be_imported):
    return importlib.import_module


@pytest.fixture
def clip(demo):
    chunks = [np.full(576, number, np.float32) for number in range(10)]
    return demo("demo.audio").Clip("clip", np.zeros(5120, np.float32), chunks)


def listen(batch):
    """The 'probability' is the first state, and each state is one more than the one before."""
    states = batch.inputs["state"]
    return [{"output": states[0, row, :1], "stateN": states[:, row] + np.float32(1)} for row in range(states.shape[1])]


def backend(*steps, duration_s=0.001):
    return ScriptedBackend(*steps, then=listen, duration_s=duration_s, batch_axes={"state": 1})


def stack(loop, inner, **options):
    return si.Stack(si.Telemetry(""), si.AdaptiveBatcher(max_batch_size=64, **options), inner, clock=loop.clock)


def play(demo, clip, inner, count, seconds):
    """What some microphones heard in some seconds, and the meter."""

    async def main(loop):
        async with stack(loop, inner) as service:
            microphones = demo("demo.microphones").Microphones(service, clip)
            microphones.grow_to(count)
            meter = await microphones.measure(seconds)
            await microphones.stop()
            return [np.array(heard) for heard in microphones.heard], meter

    return run(main)


def test_every_microphone_sends_on_time_and_carries_its_state(demo, clip):
    inner = backend()
    heard, meter = play(demo, clip, inner, 7, 0.64)
    assert meter.share_on_time == 1.0
    assert meter.lost == {}
    assert abs(meter.sent - 7 * 20) <= 7
    assert meter.latency.max < 0.004  # nobody waits longer than the batch before
    for stream in heard:
        assert np.array_equal(stream, np.arange(len(stream)) % 10)  # the state begins anew with the clip


def test_chunks_of_one_microphone_come_in_order(demo, clip):
    inner = backend()
    play(demo, clip, inner, 3, 0.64)
    sent = [(row.stream_id, int(row.inputs["input"][0])) for batch in inner.batches for row in batch.rows]
    for microphone in range(3):
        chunks = [chunk for stream_id, chunk in sent if stream_id == microphone]
        assert chunks == [number % 10 for number in range(len(chunks))]


def test_microphones_are_spread_over_the_period(demo, clip):
    inner = backend(duration_s=0.0001)
    play(demo, clip, inner, 32, 0.64)
    assert max(inner.batch_sizes) == 1


@pytest.mark.parametrize("step", [HANG, ValueError("no"), si.Overloaded("full")], ids=["hangs", "fails", "refuses"])
def test_a_lost_chunk_leaves_the_stream_with_its_last_state(demo, clip, step):
    heard, meter = play(demo, clip, backend(listen, listen, step), 1, 0.32)
    assert sum(meter.lost.values()) == 1
    assert meter.missed == 1
    (stream,) = heard
    assert np.array_equal(stream[:6], [0, 1, np.nan, 2, 3, 4], equal_nan=True)


def test_a_late_chunk_does_not_move_the_next_ones(demo, clip):
    """A slow answer, within the deadline, costs nothing: the next chunk is still due 32 ms after the one before."""
    durations = iter([0.030, 0.001, 0.030] + [0.001] * 50)
    _, meter = play(demo, clip, backend(duration_s=lambda _: next(durations)), 1, 0.32)
    assert meter.share_on_time == 1.0
    assert abs(meter.sent - 10) <= 1


def test_a_stall_of_the_loop_is_paid_for(demo, clip):
    """Every chunk that was due while the loop stood still counts, as lost."""

    async def main(loop):
        async with stack(loop, backend()) as service:
            microphones = demo("demo.microphones").Microphones(service, clip)
            microphones.grow_to(4)
            await asyncio.sleep(0.1)
            loop.call_later(0.1, lambda: setattr(loop, "now_ns", loop.now_ns + 20 * CHUNK_NS))
            meter = await microphones.measure(1.0)
            await microphones.stop()
            return meter

    meter = run(main)
    assert abs(meter.sent - 4 * 31) <= 8
    assert 4 * 18 <= meter.lost["DeadlineExceeded"] <= 4 * 21


def test_an_error_in_the_driver_ends_the_measurement(demo, clip):
    with pytest.raises(KeyError, match="stateN"):
        play(demo, clip, ScriptedBackend(then=lambda batch: [{"output": np.zeros(1)}] * len(batch.rows)), 1, 0.5)


def make_stage(demo, clip, loop, said):
    """A machine that takes 4 ms a batch and 0.5 ms a chunk; it holds about 50 microphones batched, and 7 unbatched."""

    def make_service(way, _clip, slo):
        inner = backend(duration_s=lambda rows: 0.004 + 0.0005 * rows)
        workers = max(way.sessions, 1)
        batcher = si.AdaptiveBatcher(max_batch_size=way.max_batch_size, max_in_flight=workers, max_queue_size=4096)
        return si.Stack(si.Telemetry(way.name, slo=slo), batcher, inner, clock=loop.clock)

    return demo("demo.trials").Stage(clip, None, 0, said.append, make_service)


def test_the_search_finds_what_the_machine_holds(demo, clip):
    trials, services = demo("demo.trials"), demo("demo.services")
    said = []

    async def main(loop):
        stage = make_stage(demo, clip, loop, said)
        rates = await trials.rank_unbatched(stage)
        searches = [await trials.search(stage, ways, 1.0, 60.0) for ways in ([services.batched()], list(rates)[:3])]
        return rates, searches

    rates, (batched, unbatched) = run(main)
    best = unbatched.hold.way
    assert best.sessions == 2
    assert set(rates) == set(services.UNBATCHED)
    assert list(rates.values()) == sorted(rates.values(), reverse=True)
    assert rates[best] == pytest.approx(2 / 0.0045, rel=0.2)
    for search in (batched, unbatched):
        hold = search.hold
        assert hold.enough
        assert demo("demo.findings").Step(hold.microphones, hold.chunks.share_on_time, held=True) in search.steps
        held = [step for step in search.steps if step.held]
        assert hold.microphones == max(step.microphones for step in held if step.share_on_time >= 0.99)
        assert hold.microphones + 1 == min(step.microphones for step in held if step.share_on_time < 0.99)
        assert len(hold.heard) == hold.microphones
        stands = hold.budget.statistics
        assert (stands.threshold_s, stands.objective) == (0.032, 0.99)
        # every chunk from the first on, those of the settling time included
        assert hold.chunks.ended < stands.good + stands.bad <= hold.voice.requests
    # at the limit all chunks of a period share one or two batches: 32 ms = 2 * 4 ms + 0.5 ms * 48
    assert 35 <= batched.hold.microphones <= 56
    assert 10 <= unbatched.hold.microphones <= 14
    assert said[0].startswith("looking for the best baseline")


def test_a_hopeless_hold_is_given_up(demo, clip):
    trials, services = demo("demo.trials"), demo("demo.services")

    async def main(loop):
        return await trials.hold(make_stage(demo, clip, loop, []), services.batched(), 100, 5.0, give_up=True)

    hold = run(main)
    assert not hold.enough
    assert hold.seconds < 1.0
    assert hold.budget.overspent


def test_the_meter_keeps_every_batch_once(demo):
    meter = demo("demo.meter").Meter(1000)
    first, second = (si.request.Timings(0, started, started, started + 5, 2) for started in (10, 20))
    for timings, latency_ns in ((first, 900), (first, 1000), (second, 1001), (second, 5)):
        meter.sent += 1
        meter.answered(latency_ns, si.Response(None, timings=timings))
    meter.sent += 2
    meter.answered(1, si.Response(None))
    meter.failed(si.Overloaded("full"))
    assert meter.batches == [(10, 15, 2), (20, 25, 2)]
    assert (meter.sent, meter.ended, meter.on_time, meter.missed) == (6, 6, 4, 2)
    assert meter.share_on_time == pytest.approx(4 / 6)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_on_a_terminal_stays_on_its_line(demo):
    stream = Terminal()
    progress = demo("demo.progress").Progress(stream)
    for number in range(3):
        progress.say(f"step {number}")
    progress.done()
    assert "\n" not in stream.getvalue()
    assert [f"step {number}" in stream.getvalue() for number in range(3)] == [True] * 3
    assert stream.getvalue().endswith(" \r")


def test_progress_in_a_log_is_sparse(demo):
    stream = io.StringIO()
    progress = demo("demo.progress").Progress(stream, interval_s=1e9)
    for number in range(3):
        progress.say(f"step {number}")
    progress.done()
    assert stream.getvalue().count("\n") == 1
    assert "step 0" in stream.getvalue()
