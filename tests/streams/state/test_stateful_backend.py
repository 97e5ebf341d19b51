"""Steps in shared batches have the results that each stream has alone, whatever happens to other steps."""

import asyncio
import threading
from collections import Counter

import numpy as np
import pytest
from recurrent import EXAMPLE, Reference, recurrent, step

import streaminfer as si
from streaminfer.errors import BackendError, Closed, DeadlineExceeded, InvalidInput, Overloaded
from streaminfer.streams import StatefulBackend
from streaminfer.testing import HANG, FakeClock, run

pytestmark = pytest.mark.uncompiled


class BadRow(Exception):
    pass


def stateful(backend, **settings):
    return StatefulBackend(backend, state={"h": "h2"}, **settings)


def stack(loop, model, **settings):
    return si.Stack(si.AdaptiveBatcher(max_batch_size=8, **settings), model, clock=loop.clock)


def batch(*rows):
    """Return a batch of rows ``(stream, x)``."""
    requests = [si.Request({"x": np.int64(x)}, stream_id=stream) for stream, x in rows]
    return si.Batch({"x": np.array([x for _, x in rows])}, requests)


async def test_streams_share_batches(loop):
    """Streams that share batches have the results that each of them has alone."""
    model = stateful(recurrent(duration_s=0.001))
    references = [Reference() for _ in range(12)]
    async with stack(loop, model) as service:
        for number in range(6):
            order = np.random.default_rng(number).permutation(12)[: 12 - number]
            outputs = await asyncio.gather(*(service(np.int64(number + k), stream_id=int(k)) for k in order))
            assert [int(y) for y in outputs] == [references[k](number + k) for k in order]
        statistics = model.statistics()

    assert statistics.streams == 12
    assert statistics.gathers > 0
    assert model.statistics().streams == model.statistics().rows == model.statistics().bytes == 0


async def test_same_streams_copy_no_state(loop):
    """A batch of the same streams in the same order reads the outputs of the last batch, in the same memory."""
    inner = recurrent()
    model = stateful(inner)
    for x in range(4):
        await model.infer(batch(("a", x), ("b", x), ("c", x)))
    assert model.statistics().sticky_batches == 3
    assert model.statistics().rows == 0

    await model.infer(batch(("b", 4), ("a", 4), ("c", 4)))
    assert model.statistics().sticky_batches == 3
    reference = [Reference() for _ in range(3)]
    expected = [[one(x) for one in reference] for x in range(6)][-1]
    assert [int(y) for y in await model.infer(batch(("a", 5), ("b", 5), ("c", 5)))] == expected


async def test_sticky_batch_is_not_copied(loop):
    """The state input of the model is the memory of its last state output, made read-only."""
    seen = []

    def keep(batch):
        outputs = step(batch)
        seen.append((batch.inputs["h"], outputs["h2"]))
        return outputs

    model = stateful(recurrent(then=keep))
    await model.infer(batch(("a", 1), ("b", 1)))
    await model.infer(batch(("a", 2), ("b", 2)))

    assert np.shares_memory(seen[1][0], seen[0][1])
    assert not seen[1][0].flags.writeable


async def test_failed_batch_leaves_states(loop):
    """A batch that fails changes no state, so a repetition of its step has the result of a first try."""
    model = stateful(recurrent(step, ValueError("broken"), then=step))
    reference = Reference()
    assert int((await model.infer(batch(("a", 1))))[0]) == reference(1)

    with pytest.raises(ValueError, match="broken"):
        await model.infer(batch(("a", 2), ("b", 2)))
    assert model.statistics().streams == 1

    assert int((await model.infer(batch(("a", 2))))[0]) == reference(2)


async def test_failed_row_leaves_its_state(loop):
    """A row that results in an exception keeps its state; the other rows continue."""

    def fail_b(batch):
        outputs = step(batch)
        return [
            BadRow() if row.stream_id == "b" else {"y": outputs["y"][at], "h2": outputs["h2"][:, at]}
            for at, row in enumerate(batch.rows)
        ]

    model = stateful(recurrent(step, fail_b))
    a, b = Reference(), Reference()
    await model.infer(batch(("a", 1), ("b", 1)))
    a(1), b(1)

    results = await model.infer(batch(("a", 2), ("b", 2)))

    assert int(results[0]) == a(2)
    assert isinstance(results[1], BadRow)
    again = await model.infer(batch(("a", 3), ("b", 3)))
    assert [int(y) for y in again] == [a(3), b(3)]


async def test_parts_of_a_failed_batch(loop):
    """The batcher sends a failed batch again in parts; each good step counts once, and the bad step not at all."""

    def poisoned(batch):
        if 666 in batch.inputs["x"]:
            raise BadRow
        return step(batch)

    model = stateful(recurrent(then=poisoned, duration_s=0.001))
    references = [Reference() for _ in range(8)]
    async with stack(loop, model) as service:
        for number in range(4):
            bad = number * 2
            outputs = await asyncio.gather(
                *(service(np.int64(666 if k == bad else number), stream_id=k) for k in range(8)),
                return_exceptions=True,
            )
            for k, output in enumerate(outputs):
                if k == bad:
                    assert isinstance(output, BackendError)
                else:
                    assert int(output) == references[k](number)


async def test_later_step_does_not_overtake_a_retry(loop):
    """A step that waits for an earlier step runs after it, also if the batcher sends the earlier step again."""

    def poisoned(batch):
        if 666 in batch.inputs["x"]:
            raise BadRow
        return step(batch)

    model = stateful(recurrent(then=poisoned, duration_s=0.001))
    reference = Reference()
    async with stack(loop, model, max_in_flight=4) as service:
        first = [service(np.int64(1), stream_id="a"), service(np.int64(666), stream_id="b")]
        outputs = await asyncio.gather(
            *first, *(service(np.int64(x), stream_id="a") for x in (2, 3)), return_exceptions=True
        )

    assert [int(outputs[at]) for at in (0, 2, 3)] == [reference(1), reference(2), reference(3)]


async def test_cancelled_batch_leaves_states(loop):
    """A batch that is cancelled while it runs changes no state."""
    model = stateful(recurrent(step, HANG))
    reference = Reference()
    await model.infer(batch(("a", 1)))
    reference(1)
    running = asyncio.ensure_future(model.infer(batch(("a", 2))))
    await asyncio.sleep(1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert int((await model.infer(batch(("a", 3))))[0]) == reference(3)


@pytest.mark.parametrize("end", ["cancel", "deadline"])
async def test_step_whose_caller_has_left(loop, end):
    """If a caller cancels, or its deadline passes, while its batch runs, its step leaves no state and others' do."""
    model = stateful(recurrent(duration_s=1.0))
    a, b = Reference(), Reference()
    async with stack(loop, model) as service:
        staying = asyncio.ensure_future(service(np.int64(1), stream_id="a"))
        leaving = asyncio.ensure_future(service(np.int64(1), stream_id="b", timeout_s=None if end == "cancel" else 0.5))
        await asyncio.sleep(0.7)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError if end == "cancel" else DeadlineExceeded):
            await leaving
        assert int(await staying) == a(1)

        outputs = await asyncio.gather(service(np.int64(2), stream_id="a"), service(np.int64(2), stream_id="b"))
        assert [int(y) for y in outputs] == [a(2), b(2)]


@pytest.mark.parametrize("fails_first", [False, True])
async def test_deadline_between_the_step_and_its_delivery(loop, fails_first):
    """At whichever instant a deadline passes, a step leaves a state exactly if its caller gets a response."""
    now_ns = 0

    def clock():  # each reading is a later instant, so that the deadlines below pass at each of the readings
        nonlocal now_ns
        now_ns += 1_000_000
        return now_ns

    ends = Counter()
    for left_ms in range(1, 40):
        model = stateful(recurrent(*[ValueError("broken")] * fails_first, then=step))
        reference = Reference()
        async with si.Stack(si.AdaptiveBatcher(max_batch_size=8, policy="greedy"), model, clock=clock) as service:
            others = asyncio.ensure_future(service(np.int64(7), stream_id="b"))
            deadline_ns = now_ns + left_ms * 1_000_000
            try:
                request = si.Request(np.int64(5), stream_id="a", deadline_ns=deadline_ns)
                assert int((await service.call(request)).outputs) == reference(5)
                ends["met"] += 1
            except DeadlineExceeded:
                ends["missed"] += 1
            await asyncio.gather(others, return_exceptions=True)
            assert int(await service(np.int64(3), stream_id="a")) == reference(3)
    assert set(ends) == {"met", "missed"}


async def test_steps_of_a_stream_run_in_order(loop):
    """With many batches in flight, steps of one stream run one at a time, in the order of their calls."""
    durations = iter([0.5, 0.1, 0.3, 0.2] * 50)
    running = []

    def check(batch):
        names = {row.stream_id for row in batch.rows}
        assert len(names) == len(batch.rows)
        return step(batch)

    inner = recurrent(then=check, duration_s=lambda size: next(durations))
    model = stateful(inner)
    references = {k: Reference() for k in range(3)}
    async with stack(loop, model, max_in_flight=4) as service:
        calls = [(k, x) for x in range(8) for k in range(3)]
        running = [asyncio.ensure_future(service(np.int64(x), stream_id=k)) for k, x in calls]
        outputs = [int(y) for y in await asyncio.gather(*running)]

    assert outputs == [references[k](x) for k, x in calls]


async def test_twice_in_one_batch(loop):
    """A batch with several steps of a stream is split, and the steps run in their order."""
    inner = recurrent()
    model = stateful(inner)
    a, b = Reference(), Reference()

    outputs = await model.infer(batch(("a", 1), ("b", 2), ("a", 3), ("a", 4), ("b", 5)))

    assert [int(y) for y in outputs] == [a(1), b(2), a(3), a(4), b(5)]
    assert inner.batch_sizes == [2, 2, 1]


async def test_failed_step_of_a_split_batch(loop):
    """If a batch is split, a step that fails does not fail the other steps."""
    model = stateful(recurrent(step, BadRow("second"), step))
    a, b = Reference(), Reference()

    outputs = await model.infer(batch(("a", 1), ("b", 2), ("a", 3), ("a", 4)))

    assert [int(y) for y in outputs[:2]] == [a(1), b(2)]
    assert isinstance(outputs[2], BackendError)
    assert int(outputs[3]) == a(4)


async def test_batches_of_one_stream_take_turns(loop):
    """Without a batcher, concurrent calls of one stream run in the order of the calls, without the cancelled one."""
    model = stateful(recurrent(duration_s=1.0))
    reference = Reference()
    calls = [asyncio.ensure_future(model.infer(batch(("a", x)))) for x in range(4)]
    await asyncio.sleep(0.5)
    calls[1].cancel()
    await asyncio.sleep(0)
    results = await asyncio.gather(*calls, return_exceptions=True)

    assert [int(results[at][0]) for at in (0, 2, 3)] == [reference(0), reference(2), reference(3)]
    assert loop.time() == pytest.approx(3.0)


async def test_no_stream_is_rejected(loop):
    """A request without a stream gets InvalidInput; the others in its batch get their results."""
    model = stateful(recurrent())
    reference = Reference()

    results = await model.infer(batch(("a", 1), (None, 2)))

    assert int(results[0]) == reference(1)
    assert isinstance(results[1], InvalidInput)
    assert "stream_id" in str(results[1])
    assert model.statistics().rejected == 1


async def test_streams_beyond_max_streams_are_rejected(loop):
    """A stream beyond max_streams is rejected until another one ends."""
    model = stateful(recurrent(), max_streams=2)
    await model.infer(batch(("a", 1), ("b", 1)))

    (result,) = await model.infer(batch(("c", 1)))
    assert isinstance(result, Overloaded)
    assert "max_streams=2" in str(result)
    exported = model.export_state("a")
    with pytest.raises(Overloaded):
        model.import_state("c", exported)

    model.end_stream("a")
    assert int((await model.infer(batch(("c", 1))))[0]) == Reference()(1)


async def test_first_steps_that_fail_take_no_place(loop):
    """Streams whose first step fails take no place of max_streams."""
    model = stateful(recurrent(ValueError("broken"), ValueError("broken")), max_streams=2)
    for stream in "ab":
        with pytest.raises(ValueError, match="broken"):
            await model.infer(batch((stream, 1)))
    assert model.statistics().streams == 0


async def test_idle_streams_expire(loop):
    """A stream without a request for idle_ttl_s expires and starts again, also if no other request arrives."""
    model = stateful(recurrent(), idle_ttl_s=10.0)
    async with stack(loop, model) as service:
        await service(np.int64(1), stream_id="a")
        await asyncio.sleep(6)
        await service(np.int64(1), stream_id="b")
        assert model.statistics().streams == 2
        await asyncio.sleep(5)
        assert model.statistics().streams == 1
        assert model.statistics().expired == 1
        assert int(await service(np.int64(5), stream_id="a")) == Reference()(5)
        await asyncio.sleep(30)
        assert model.statistics().streams == 0


async def test_imported_streams_expire(loop):
    """An imported stream expires even if no request follows, for example if its call ended during a restart."""
    model = stateful(recurrent(), idle_ttl_s=10.0)
    async with stack(loop, model):
        await model.infer(batch(("a", 1)))
        record = model.export_state("a")
        await asyncio.sleep(11.0)
        assert model.statistics().streams == 0

        model.import_state("b", record)
        await asyncio.sleep(9.0)
        assert model.statistics().streams == 1
        await asyncio.sleep(2.0)
        assert (model.statistics().streams, model.statistics().bytes) == (0, 0)


def test_a_state_can_be_imported_without_a_loop():
    """Outside an event loop, an import sets no timer."""
    model = stateful(recurrent(), idle_ttl_s=10.0)
    record = run(lambda _: exported(model))
    model.import_state("b", record)
    assert model.statistics().streams == 1


async def exported(model):
    await model.infer(batch(("a", 1)))
    record = model.export_state("a")
    await model.stop()
    return record


@pytest.mark.parametrize("idle_ttl_s", [1e10, 1e300])
async def test_huge_idle_ttl_never_expires(loop, idle_ttl_s):
    model = stateful(recurrent(), idle_ttl_s=idle_ttl_s)
    async with stack(loop, model) as service:
        assert int(await service(np.int64(5), stream_id="a")) == Reference()(5)

    assert model.statistics().expired == 0


async def test_given_clock_decides_expiry(loop):
    """``clock=`` decides which stream is idle."""
    clock = FakeClock(5)
    model = stateful(recurrent(), idle_ttl_s=10.0, clock=clock)
    await model.infer(batch(("a", 1)))
    clock.advance(10.0)
    assert int((await model.infer(batch(("a", 2))))[0]) == Reference()(2)


async def test_reset_and_end(loop):
    """A stream that was reset or ended starts again, also if one of its steps runs meanwhile."""
    model = stateful(recurrent(duration_s=1.0))
    for forget in (model.reset_stream, model.end_stream):
        reference = Reference()
        await model.infer(batch(("a", 1)))
        running = asyncio.ensure_future(model.infer(batch(("a", 2), ("b", 2))))
        await asyncio.sleep(0.5)
        forget("a")
        reference(1)
        assert int((await running)[0]) == reference(2)
        assert int((await model.infer(batch(("a", 3))))[0]) == Reference()(3)
        forget("a")
        forget("never seen")
        model.end_stream("b")
    model.end_stream("a")
    assert model.statistics().streams == 0


async def test_imported_state_counts_as_memory(loop):
    """An imported state counts as memory before and after its first step, but not after a reset of its stream."""
    model = stateful(recurrent())
    await model.infer(batch(("a", 1)))
    record = model.export_state("a")
    model.end_stream("a")
    assert model.statistics().bytes == 0

    model.import_state("b", record)
    assert model.statistics().bytes == EXAMPLE["h"].nbytes
    await model.infer(batch(("b", 2)))
    assert model.statistics().bytes == EXAMPLE["h"].nbytes
    model.import_state("b", record)
    model.reset_stream("b")
    assert model.statistics().bytes == 0


async def test_stop_clears_all_states(loop):
    """A stop clears all states; a step that still runs does not bring one back."""
    model = stateful(recurrent(step, HANG))
    await model.infer(batch(("a", 1)))
    running = asyncio.ensure_future(model.infer(batch(("b", 1))))
    await asyncio.sleep(0)

    await model.stop()

    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert model.statistics().streams == model.statistics().bytes == 0


async def test_initial_state(loop):
    """A stream starts from the given array, or from the array that the given function returns for the stream."""
    ones = np.ones((2, 3), np.int64)
    for initial in (ones, lambda stream: ones * stream):
        model = stateful(recurrent(), initial={"h": initial})
        outputs = await model.infer(batch((1, 0), (1, 0)))
        assert [int(y) for y in outputs] == [6 * 31, 6 * 31 * 31]
    assert int((await model.infer(batch((2, 0))))[0]) == 12 * 31

    wrong = stateful(recurrent(), initial={"h": lambda stream: np.ones(4)})
    with pytest.raises(ValueError, match=r"initial\['h'\]: expected int64\[2, 3\]"):
        await wrong.infer(batch((1, 0)))


@pytest.mark.parametrize("initial", [np.array(4.0), lambda _: np.array(4.0), None], ids=["array", "function", "zeros"])
async def test_a_state_can_be_a_number(loop, initial):
    """A state without axes is one number per row of a batch, here the number of steps."""

    def count(inputs):
        return {"y": inputs["x"] + inputs["steps"], "steps_after": inputs["steps"] + 1}

    inner = si.CpuBackend(count, example={"x": np.float64(0), "steps": np.float64(0)}, executor="inline")
    settings = {} if initial is None else {"initial": {"steps": initial}}
    model = StatefulBackend(inner, state={"steps": "steps_after"}, **settings)
    first = 0.0 if initial is None else 4.0
    async with stack(loop, model) as service:
        outputs = await asyncio.gather(*(service(np.float64(0), stream_id=stream) for stream in "aab"))
        record = model.export_state("a")
        model.import_state("c", record)
        outputs.append(await service(np.float64(0), stream_id="c"))

    assert [float(y) for y in outputs] == [first, first + 1, first, first + 2]


async def test_a_state_of_one_row_can_be_a_number(loop):
    """A state without axes is a NumPy scalar if the model returns a mapping for each row."""

    def count(inputs):
        return [
            {"y": x + steps, "steps_after": steps + 1} for x, steps in zip(inputs["x"], inputs["steps"], strict=True)
        ]

    inner = si.CpuBackend(count, example={"x": np.float64(0), "steps": np.float64(0)}, executor="inline")
    async with stack(loop, StatefulBackend(inner, state={"steps": "steps_after"})) as service:
        outputs = await asyncio.gather(*(service(np.float64(0), stream_id=stream) for stream in "aab"))

    assert [float(y) for y in outputs] == [0.0, 1.0, 0.0]


def test_the_initial_state_of_a_number_is_checked():
    inner = si.CpuBackend(lambda inputs: inputs, example={"x": np.float64(0), "h": np.float64(0)}, executor="inline")
    with pytest.raises(ValueError, match=r"initial\['h'\]: expected float64\[\], got float64\[2\]"):
        stateful(inner, initial={"h": np.zeros(2)})


async def test_padded_batches(loop):
    """Batches that are padded to preferred sizes have the same results, sticky batches included."""
    model = stateful(recurrent(duration_s=0.01))
    references = [Reference() for _ in range(5)]
    async with stack(loop, model, preferred_sizes=[4, 8]) as service:
        for number in range(6):
            count = 3 if number < 4 else 5
            outputs = await asyncio.gather(*(service(np.int64(number), stream_id=k) for k in range(count)))
            assert [int(y) for y in outputs] == [references[k](number) for k in range(count)]
    assert model.statistics().sticky_batches >= 3


async def test_many_groups_are_written_back(loop):
    """States of streams that are not in the latest batches are written to the arena and read from there."""
    model = stateful(recurrent())
    references = [Reference() for _ in range(40)]
    for number in range(3):
        for first in range(0, 40, 4):
            rows = [(k, number * k) for k in range(first, first + 4)]
            outputs = await model.infer(batch(*rows))
            assert [int(y) for y in outputs] == [references[k](x) for k, x in rows]
    assert model.statistics().rows >= 24
    for k in range(40):
        model.end_stream(k)
    assert model.statistics().rows == 0


@pytest.mark.parametrize(
    "initial", [{}, {"h": lambda stream: np.ones((2, 3), np.int64) * stream}], ids=["zeros", "function"]
)
async def test_calibration_touches_no_state(loop, initial):
    """Calibration batches belong to no stream: they call no ``initial`` function and leave no state."""
    inner = recurrent(duration_s=0.001)
    model = stateful(inner, initial=initial)
    async with stack(loop, model):
        assert inner.calibration_sizes
        assert model.statistics().streams == 0


async def test_model_that_reuses_its_outputs(loop):
    """The state of a model that writes its outputs to the same memory each time is copied."""
    memory = np.zeros((2, 1, 3), np.int64)

    def reuse(batch):
        outputs = step(batch)
        memory[...] = outputs["h2"]
        return {"y": outputs["y"], "h2": memory}

    inner = recurrent(then=reuse)
    inner.returns_new_arrays = False
    model = stateful(inner)
    a, b = Reference(), Reference()
    for x in range(3):
        assert int((await model.infer(batch(("a", x))))[0]) == a(x)
        assert int((await model.infer(batch(("b", x + 7))))[0]) == b(x + 7)


@pytest.mark.parametrize(
    ("results", "words"),
    [
        ({"y": np.zeros(1), "h2": np.zeros((2, 1, 4), np.int64)}, "output 'h2': expected int64"),
        ({"y": np.zeros(1), "h2": np.zeros((2, 1, 3))}, "output 'h2': expected int64"),
        ({"y": np.zeros(1)}, "output 'h2'"),
        ({"y": np.zeros(3), "h2": np.zeros((2, 1, 3), np.int64)}, "output 'y': expected 1 rows"),
        ({"y": np.array(3), "h2": np.zeros((2, 1, 3), np.int64)}, "output 'y': expected 1 rows .* got ndarray"),
        ([np.zeros(3)], "expected a mapping of outputs for each row"),
        ([{"y": 1, "h2": np.zeros(3)}], "output 'h2'"),
        (np.zeros(3), "expected a mapping of outputs"),
    ],
    ids=["shape", "dtype", "missing", "rows", "no axis", "no mapping", "row", "array"],
)
async def test_results_without_a_fitting_state_are_an_error(loop, results, words):
    """Results without a fitting state are an error, and the stream keeps its last state."""
    model = stateful(recurrent(step, results, step))
    reference = Reference()
    await model.infer(batch(("a", 1)))
    reference(1)
    with pytest.raises(BackendError, match=words):
        await model.infer(batch(("a", 2)))
    assert int((await model.infer(batch(("a", 3))))[0]) == reference(3)


async def test_backend_that_ignores_its_inputs_is_an_error(loop):
    """A backend that responds without reading its inputs has no state to continue from."""

    class Deaf:
        def __init__(self):
            self.batch_axes = {"h": 1}

        async def infer(self, batch):
            return {"y": np.zeros(1), "h2": np.zeros((2, 1, 3), np.int64)}

    model = stateful(Deaf(), initial={"h": EXAMPLE["h"]})
    with pytest.raises(BackendError, match=r"reads batch\.inputs"):
        await model.infer(batch(("a", 1)))


async def test_input_named_like_a_state_is_rejected(loop):
    """A request with an input named like a state is rejected, and so is a request without a stream."""
    inner = recurrent()
    inner.validate = lambda request: None
    model = stateful(inner)
    async with stack(loop, model) as service:
        with pytest.raises(InvalidInput, match="'h': expected no state"):
            await service({"x": np.int64(1), "h": EXAMPLE["h"]}, stream_id="a")
        with pytest.raises(InvalidInput, match="stream_id"):
            await service(np.int64(1))


async def test_bare_array_without_an_input_name_is_an_error(loop):
    """A bare array is an error of its caller if the backend does not name its only input."""

    class Sums:
        returns_new_arrays = True

        async def infer(self, batch):
            total = batch.inputs["h"] + batch.inputs["x"]
            return {"y": total, "h2": total}

    model = stateful(Sums(), initial={"h": np.zeros(())})
    batcher = si.AdaptiveBatcher(max_batch_size=8)
    async with si.Stack(batcher, model, clock=loop.clock) as service:
        with pytest.raises(
            InvalidInput, match=r"inputs: expected a mapping of input name to array, got 1\.0 \(float\)"
        ):
            await service(1.0, stream_id="a")
        assert await service({"x": 1.0}, stream_id="a") == 1.0
    assert batcher.statistics().submitted == 1


async def test_model_reload_resets_states(loop):
    """A reload starts all streams again, also if a batch runs during the reload, unless ``keep_on_reload`` is set."""
    changes = 0

    def replace(batch):
        nonlocal changes
        changes += 1
        return step(batch)

    for keep in (False, True):
        inner = recurrent(step, replace, step, step)
        inner.fingerprint_changes = lambda: changes
        model = stateful(inner, keep_on_reload=keep)
        reference = Reference()
        await model.infer(batch(("a", 1)))
        if keep:
            reference(1)
        assert int((await model.infer(batch(("a", 2))))[0]) == reference(2)
        assert int((await model.infer(batch(("a", 3))))[0]) == reference(3)
        assert model.statistics().restarts == (0 if keep else 1)


async def test_backend_error_passes_and_the_stream_continues(loop):
    """An error of the backend reaches the caller, and the next step of the stream runs."""
    model = stateful(recurrent(Closed("over"), step))
    with pytest.raises(Closed, match="over"):
        await model.infer(batch(("a", 1)))
    assert int((await model.infer(batch(("a", 1))))[0]) == Reference()(1)


async def test_a_thousand_streams_leave_nothing(loop):
    """Streams that open, step, fail and close at random leave no row."""
    rng = np.random.default_rng(1)

    def sometimes(batch):
        if rng.random() < 0.1:
            raise BadRow
        return step(batch)

    model = stateful(recurrent(then=sometimes, duration_s=0.001), max_streams=1000)
    async with stack(loop, model, max_in_flight=3) as service:

        async def live(k):
            for x in range(int(rng.integers(1, 6))):
                call = asyncio.ensure_future(service(np.int64(x), stream_id=k))
                if rng.random() < 0.1:
                    await asyncio.sleep(0.0005)
                    call.cancel()
                await asyncio.wait({call})
                call.cancelled() or call.exception()
            model.end_stream(k)

        await asyncio.gather(*(live(k) for k in range(1000)))
        statistics = model.statistics()
    assert (statistics.streams, statistics.rows, statistics.bytes) == (0, 0, 0)


def test_invalid_arguments_are_named():
    """The error of an invalid argument names the argument."""
    inner = recurrent()
    for error, words, settings in [
        (TypeError, "state: expected a mapping", {"state": ["h"]}),
        (TypeError, "state: expected a mapping", {"state": {"h": 1}}),
        (ValueError, "state: expected", {"state": {}}),
        (ValueError, "state: expected .* each once", {"state": {"h": "y", "x": "y"}}),
        (ValueError, "initial: expected an array for state 'k', got none", {"state": {"k": "y"}}),
        (ValueError, "initial: expected states", {"initial": {"x": 1}}),
        (ValueError, r"initial\['h'\]: expected int64\[2, 3\]", {"initial": {"h": np.zeros(3)}}),
        (TypeError, r"initial\['h'\]: expected an array, or a function", {"initial": {"h": 1}}),
        (ValueError, "max_streams", {"max_streams": 0}),
        (ValueError, "max_streams: expected states that fit into memory", {"max_streams": 1 << 55}),
        (ValueError, "max_streams: expected a whole number", {"max_streams": 1 << 63}),
        (ValueError, "idle_ttl_s", {"idle_ttl_s": 0}),
        (TypeError, "keep_on_reload", {"keep_on_reload": 1}),
        (TypeError, "clock", {"clock": 1}),
        (ValueError, "context: expected inputs that are no state", {"context": {"h": 1}}),
        (ValueError, r"context\['z'\]", {"context": {"z": 1}}),
        (ValueError, r"context\['x'\]", {"context": {"x": 1}}),
        (TypeError, r"growing\['h'\]: expected a Growing", {"growing": {"h": 1}}),
        (ValueError, "growing: expected states", {"growing": {"x": si.streams.Growing(0, 1)}}),
        (ValueError, r"growing\['h'\]: expected an axis", {"growing": {"h": si.streams.Growing(2, 1)}}),
    ]:
        with pytest.raises(error, match=words):
            StatefulBackend(inner, **{"state": {"h": "h2"}, **settings})
    with pytest.raises(TypeError, match="backend: expected a backend"):
        StatefulBackend(print, state={"h": "h2"})
    with pytest.raises(ValueError, match="max_length"):
        si.streams.Growing(0, 0)
    assert "StatefulBackend(" in repr(stateful(inner))


def test_threads_share_the_states():
    """Event loops of several threads run steps of the same streams: each step counts once."""

    def add(batch):
        state = batch.inputs["h"] + batch.inputs["x"][None, :, None]
        return {"y": state.sum(axis=(0, 2)), "h2": state}

    model = stateful(recurrent(then=add))
    count, streams = 150, 12

    def drive(seed):
        rng = np.random.default_rng(seed)

        async def main():
            for _ in range(count):
                chosen = [int(k) for k in rng.permutation(streams)[:5]]
                steps = [model.infer(batch(*((k, 1) for k in chosen[at::2]))) for at in (0, 1)]
                await asyncio.gather(*steps)
                sent[seed].update(chosen)

        asyncio.run(main())

    sent = [Counter() for _ in range(3)]
    threads = [threading.Thread(target=drive, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    total = sum(sent, Counter())
    for k in range(streams):
        (y,) = asyncio.run(model.infer(batch((k, 0))))
        assert int(y) == 6 * total[k]
