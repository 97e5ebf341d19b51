"""Microphones of the live demo and their measurements, in virtual time, so that nothing depends on the machine."""

import io
import itertools

import numpy as np
import pytest

import streaminfer as si
from streaminfer.testing import HANG, run

CHUNK_NS = 32_000_000


def listen(batch):
    """Return the first number of the state as the probability, and a new state that is one more than the old one."""
    states = batch.inputs["state"]
    return [{"output": states[0, row, :1], "stateN": states[:, row] + np.float32(1)} for row in range(states.shape[1])]


@pytest.fixture
def play(demo, clip, make_voice):
    """Return a function that runs some microphones and returns what they heard, their meter and the model."""

    def play(*steps, count=1, seconds=0.32, duration_s=0.001, then=listen, during=lambda loop: None):
        model, states = make_voice(*steps, then=then, duration_s=duration_s)

        async def main(loop):
            batcher = si.AdaptiveBatcher(max_batch_size=64)
            async with si.Stack(si.Telemetry(""), batcher, states, clock=loop.clock) as service:
                microphones = demo("demo.microphones").Microphones(service, clip)
                microphones.grow_to(count)
                during(loop)
                meter = await microphones.live.measure(seconds)
                await microphones.stop()
                return [np.array(heard) for heard in microphones.heard], meter, model

        return run(main)

    return play


def rows_of(model):
    """Return the stream and the chunk of each row that the model has seen."""
    return [
        (row.stream_id, chunk)
        for batch in model.batches
        for row, chunk in zip(batch.rows, batch.inputs["input"], strict=True)
    ]


def test_microphones_send_on_time_with_separate_state(play):
    """Every microphone sends its chunks on time and has its own state."""
    heard, meter, _ = play(count=7, seconds=0.64)
    assert meter.share_on_time == 1.0
    assert meter.lost == {}
    assert abs(meter.sent - 7 * 20) <= 7
    assert meter.latency.max < 0.004  # no chunk waits longer than for the previous batch
    for stream in heard:
        assert np.array_equal(stream, np.arange(len(stream)) % 10)  # the state begins again with the clip


def test_chunks_of_one_microphone_come_in_order(play):
    """Chunks come in order, each after the end of the previous chunk, which the detector reads again."""
    _, _, model = play(count=3, seconds=0.64)
    for microphone in range(3):
        chunks = [chunk for stream_id, chunk in rows_of(model) if stream_id == microphone]
        assert [int(chunk[64]) for chunk in chunks] == [number % 10 for number in range(len(chunks))]
        assert [int(chunk[0]) for chunk in chunks] == [max(0, number % 10 - 1) for number in range(len(chunks))]


def test_microphones_are_spread_over_the_period(play):
    _, _, model = play(count=32, seconds=0.64, duration_s=0.0001)
    assert max(model.batch_sizes) == 1


def test_lost_chunks_at_the_end_are_noted(play):
    """The last chunks of a microphone that gets no more responses are lost, except those that the stop ended."""
    heard, meter, model = play(listen, listen, *[ValueError("no")] * 100, count=2)
    assert len(model.batches) < 100
    assert all(np.isnan(stream).any() for stream in heard)
    assert sum(np.isnan(stream).sum() for stream in heard) == pytest.approx(sum(meter.lost.values()), abs=2)


@pytest.mark.parametrize("step", [HANG, ValueError("no"), si.Overloaded("full")], ids=["hangs", "fails", "refuses"])
def test_lost_chunk_keeps_the_last_stream_state(play, step):
    """After a lost chunk, the stream continues from its last state."""
    (stream,), meter, _ = play(listen, listen, step)
    assert sum(meter.lost.values()) == 1
    assert meter.ended - meter.on_time == 1
    assert np.array_equal(stream[:6], [0, 1, np.nan, 2, 3, 4], equal_nan=True)


def test_a_late_chunk_does_not_move_the_next_ones(play):
    """A slow response within the deadline delays no chunk: each is due 32 ms after the previous one."""
    durations = itertools.cycle([0.030, 0.001, 0.001])
    _, meter, _ = play(duration_s=lambda _: next(durations))
    assert meter.share_on_time == 1.0
    assert abs(meter.sent - 10) <= 1


def test_chunks_due_during_a_loop_stall_count_as_lost(play):
    """Each chunk that was due while the loop stalled counts as lost."""

    def stall(loop):
        loop.call_later(0.2, lambda: setattr(loop, "now_ns", loop.now_ns + 20 * CHUNK_NS))

    _, meter, _ = play(count=4, seconds=1.0, during=stall)
    assert abs(meter.sent - 4 * 31) <= 8
    assert 4 * 18 <= meter.lost["dropped"] <= 4 * 21


def test_an_error_in_the_consumer_ends_the_measurement(play):
    with pytest.raises(ValueError, match="array of size 1 to a Python scalar"):
        play(then=lambda batch: [{"output": np.zeros(2), "stateN": np.zeros((2, 128), np.float32)} for _ in batch.rows])


def hold(demo, make_stage, count):
    trials, services = demo("demo.trials"), demo("demo.services")

    async def main(loop):
        return await trials.hold(make_stage(loop), services.batched(), count, 1.0)

    return run(main)


def test_trial_within_the_limit_is_consistent(demo, make_stage):
    """All measurements of a trial within the limit agree with each other."""
    found = hold(demo, make_stage, 30)
    assert found.chunks.share_on_time >= 0.99
    assert found.seconds == pytest.approx(1.0, abs=0.1)
    assert len(found.heard) == 30
    # every chunk from the first on, those of the settling time included
    assert found.chunks.ended < found.counted.total.delivered <= found.counted.voice.requests
    assert found.pictures is None


def test_trial_beyond_the_limit_drops_chunks(demo, make_stage):
    found = hold(demo, make_stage, 100)
    assert found.chunks.share_on_time < 0.99
    assert sum(found.counted.total.dropped.values()) > 0


def test_quantiles_of_the_meter_count_lost_requests(demo):
    """Quantiles are over all requests, and a quantile that falls on a lost request is infinite."""
    meter = demo("demo.meter").Meter(1_000_000)
    for latency_ns in (500_000, 1_000_000, 1_001_000):
        meter.sent += 1
        meter.answered(latency_ns)
    meter.sent += 1
    meter.failed(si.Overloaded("full"))
    assert (meter.sent, meter.ended, meter.on_time) == (4, 4, 2)
    assert meter.share_on_time == 0.5
    assert meter.quantile_s(0.25) == pytest.approx(500e-6, rel=0.01)
    assert meter.quantile_s(0.75) == pytest.approx(1001e-6, rel=0.01)
    assert meter.quantile_s(0.76) == float("inf")
    assert demo("demo.meter").Meter(1000).quantile_s(0.5) == float("inf")


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
