"""`Stack.rows`: several rows as one request, with one deadline, all or none."""

import asyncio
import math

import numpy as np
import pytest
from sleeper import Sleeper

import streaminfer as si
from streaminfer.sync_layer import SyncLayer
from streaminfer.testing import HANG, ScriptedBackend, run

pytestmark = pytest.mark.uncompiled


def stack_of(backend, loop, **options):
    options = {"max_batch_size": 8, "policy": "greedy", **options}
    return si.Stack(si.Telemetry("t"), si.AdaptiveBatcher(**options), backend, clock=loop.clock)


def answer(then, inputs, **options):
    async def main(loop):
        async with stack_of(ScriptedBackend(then=then), loop, **options) as stack:
            return await stack.rows(inputs)

    return run(main)


@pytest.mark.parametrize("rows", [1, 3, 8, 20, 2000])
def test_rows_returns_all_rows_in_order(rows):
    """More rows than a batch, or than places in the queue, are split over batches and put together in order."""
    inputs = np.arange(rows * 6, dtype=np.float32).reshape(rows, 2, 3)
    answers = answer(lambda batch: batch.inputs * 2, inputs)
    assert answers.dtype == np.float32
    assert np.array_equal(answers, inputs * 2)


def test_a_row_is_no_task_and_ends_with_its_own_batch():
    async def main(loop):
        async with stack_of(ScriptedBackend(duration_s=0.1), loop, max_batch_size=2) as stack:
            tasks = len(asyncio.all_tasks())
            call = asyncio.ensure_future(stack.rows(np.zeros((6, 1), np.float32)))
            await asyncio.sleep(0.05)
            added = len(asyncio.all_tasks()) - tasks
            await call
            return added, stack.statistics()["Telemetry"].latency

    added, latency = run(main)
    assert added == 2  # the call, and the batch that runs
    assert (latency.count, latency.min, latency.max) == pytest.approx((6, 0.1, 0.3), rel=1e-2)


def test_mappings_and_tuples_of_arrays():
    inputs = {"a": np.arange(5.0), "b": {"c": np.ones((5, 2), np.int32)}}
    answers = answer(
        lambda batch: {"sum": batch.inputs["a"] + batch.inputs["b"]["c"][:, 0], "pair": (batch.inputs["a"],)}, inputs
    )
    assert np.array_equal(answers["sum"], np.arange(5.0) + 1)
    assert np.array_equal(answers["pair"][0], np.arange(5.0))
    assert isinstance(answers["pair"], tuple)


def test_rows_returns_a_list_if_outputs_are_no_arrays():
    assert answer(lambda batch: ["low" if one < 1 else "high" for one in batch.inputs], np.arange(2.0)) == [
        "low",
        "high",
    ]


@pytest.mark.parametrize("kind", ["U", "S"])
def test_text_of_several_lengths_is_one_array(kind):
    """Text of several lengths is one array with the dtype of the longest, although each batch has its own dtype."""
    words = np.array(["cat", "horse", "ox"], kind)
    answers = answer(lambda batch: words[batch.inputs.astype(int)].copy(), np.arange(3.0), max_batch_size=1)
    assert answers.dtype == words.dtype
    assert answers.tolist() == words.tolist()


@pytest.mark.parametrize(
    ("outputs", "says"),
    [
        ([np.ones(2), np.ones(3)], r"float64\[2\] and float64\[3\]"),
        ([np.ones(2), np.ones(2, int)], r"float64\[2\] and int64\[2\]"),
        ([{"a": 1.0}, {"b": 1.0}], "other outputs"),
        ([(1.0, 2.0), (1.0,)], "other outputs"),
    ],
    ids=["shapes", "dtypes", "names", "lengths"],
)
def test_outputs_that_cannot_form_an_array_raise(outputs, says):
    """Outputs of different shapes, dtypes or names raise an error; the kind of result must not depend on the data."""
    with pytest.raises(si.BackendError, match=f"cannot form one: .*{says}.*map"):
        answer(lambda batch: outputs, np.arange(2.0))


class Unreadable:
    """Object with an ``__array__`` that fails."""

    def __array__(self, *_args, **_options):
        raise OSError


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        (1.0, "inputs: expected an array whose first axis holds the rows"),
        ([1.0, 2.0], "inputs: expected an array whose first axis"),
        (np.float64(1), "inputs: expected an array whose first axis"),
        ({}, "inputs: expected an array whose first axis"),
        ({"a": np.ones(2), "b": 1.0}, r"inputs\['b'\]: expected an array"),
        (np.ones((0, 3)), "inputs: expected at least one row"),
        ({"a": np.ones(2), "b": np.ones(3)}, r"as many rows in each array, got .*'a'.*: 2, .*'b'.*: 3"),
        ({"a": np.ones(2), "b": {"a": np.ones(3)}}, "as many rows in each array"),
        (np.ma.MaskedArray([1.0], [True]), "inputs: expected an array without a mask, got a masked array"),
        ({"a": np.ma.MaskedArray([1.0], [True])}, r"inputs\['a'\]: expected an array without a mask"),
        (Unreadable(), "inputs: expected an array whose first axis"),
    ],
    ids=[
        *("number", "list", "scalar", "no arrays", "a number among arrays", "no rows", "numbers of rows", "nested"),
        *("mask", "mask in a mapping", "unreadable"),
    ],
)
def test_inputs_without_rows_are_rejected(inputs, says):
    with pytest.raises(si.InvalidInput, match=says):
        answer(None, inputs)


def test_the_first_error_ends_the_other_rows():
    backend = ScriptedBackend(HANG, then=lambda batch: [ValueError("bad row")] * len(batch))

    async def main(loop):
        async with stack_of(backend, loop, max_batch_size=1, max_in_flight=2) as stack:
            with pytest.raises(ValueError, match="bad row"):
                await stack.rows(np.arange(5.0))
            statistics = stack.statistics()["AdaptiveBatcher"]
            assert (statistics.queued, statistics.running) == (0, 0)

    run(main)


@pytest.mark.parametrize("how", ["timeout_s", "slo_s", "plain"])
def test_rows_share_one_deadline(how):
    """All rows share the deadline of the call: 10 rows that take 10 ms each end at 55 ms, as no row has its own."""

    async def main(loop):
        slo_s = 0.055 if how == "slo_s" else None
        async with stack_of(
            ScriptedBackend(duration_s=0.01), loop, max_batch_size=1, slo_s=slo_s, max_queue_size=1
        ) as stack:
            begun = loop.now_ns
            if how == "plain":
                assert len(await stack.rows(np.arange(10.0))) == 10
                return
            with pytest.raises(si.DeadlineExceeded):
                await stack.rows(np.arange(10.0), **({"timeout_s": 0.055} if how == "timeout_s" else {}))
            assert loop.now_ns - begun == 55_000_000

    run(main)


def test_no_deadline_against_the_objective():
    async def main(loop):
        async with stack_of(ScriptedBackend(duration_s=0.1), loop, slo_s=0.05) as stack:
            assert len(await stack.rows(np.arange(10.0), timeout_s=math.inf)) == 10

    run(main)


def test_rows_share_batches_with_other_callers():
    async def main(loop):
        backend = ScriptedBackend(duration_s=0.01)
        async with stack_of(backend, loop) as stack:
            busy = asyncio.ensure_future(stack(0.0))
            await asyncio.sleep(0.001)
            rows, other = await asyncio.gather(stack.rows(np.arange(3.0)), stack(np.float64(7.0)))
            await busy
        assert backend.batch_sizes == [1, 4]
        assert (list(rows), float(other)) == ([0.0, 1.0, 2.0], 7.0)

    run(main)


def test_settings_reach_every_row_and_key_is_an_error():
    async def main(loop):
        backend = ScriptedBackend()
        async with stack_of(backend, loop) as stack:
            await stack.rows(np.arange(2.0), tenant="a", tags=("x",), priority=3)
            assert {(row.tenant, row.tags, row.priority) for batch in backend.batches for row in batch.rows} == {
                ("a", ("x",), 3)
            }
            with pytest.raises(TypeError, match="key"):
                await stack.rows(np.arange(2.0), key="k")

    run(main)


def test_rows_of_a_blocking_stack_and_after_the_stop():
    stack = si.Stack(si.CpuBackend(np.negative))
    with stack.blocking() as infer:
        assert np.array_equal(infer.rows(np.arange(4.0)), -np.arange(4.0))
    with pytest.raises(si.Closed):
        asyncio.run(stack.rows(np.arange(2.0)))


def test_tags_of_an_iterator_reach_every_row():
    backend = ScriptedBackend()

    async def main(loop):
        async with stack_of(backend, loop) as stack:
            await stack.rows(np.arange(3.0), tags=iter(("a", "b")))

    run(main)
    assert [row.tags for batch in backend.batches for row in batch.rows] == [("a", "b")] * 3


def test_shed_rows_do_not_add_to_the_rows_in_flight():
    """A row that was shed for a more urgent request is sent again in place of the next row, not beside it."""

    async def main(loop):
        backend = ScriptedBackend(duration_s=0.01)
        async with stack_of(backend, loop, max_batch_size=2, max_queue_size=100) as stack:
            call = asyncio.ensure_future(stack.rows(np.zeros(300), priority=5))
            urgent, most = [], 0
            for _ in range(20):
                await asyncio.sleep(0.005)
                urgent += [asyncio.ensure_future(stack(1.0, priority=-1)) for _ in range(100)]
                await asyncio.sleep(0.005)
                waiting = [one for one in asyncio.all_tasks() if one.get_coro().__qualname__ == "PlaceQueue.call"]
                most = max(most, len(waiting))
            await asyncio.gather(*urgent, return_exceptions=True)
            return most, stack.statistics()["AdaptiveBatcher"].rejected["shed"], len(await call)

    most, shed, rows = run(main)
    assert shed >= 60
    assert most <= 64
    assert rows == 300


@pytest.mark.parametrize("rejects", ["model", "layer"])
def test_rejected_row_is_sent_again_after_retry_after(rejects):
    """A row that was rejected is sent again after the `retry_after_s` of the error.

    An input of `map` behaves so too: a server that says when to retry gets no row earlier. A deadline ends the wait.
    """
    sent_s = []

    async def main(loop):
        def reject(*_):
            sent_s.append(loop.time())
            if len(sent_s) <= 3:
                raise si.Overloaded("full", retry_after_s=2.0)

        class Full(SyncLayer):
            def enter(self, request, now_ns):
                reject()

        def model(batch):
            if rejects == "model":
                reject()
            return list(batch.inputs)

        layers = [Full()] if rejects == "layer" else []
        batcher = si.AdaptiveBatcher(max_batch_size=3)
        async with si.Stack(*layers, batcher, ScriptedBackend(then=model), clock=loop.clock) as stack:
            began_s = loop.time()
            assert len(await stack.rows(np.arange(3.0))) == 3
            waits_s = [at_s - began_s for at_s in sent_s]
            sent_s.clear()
            with pytest.raises(si.DeadlineExceeded):
                await stack.rows(np.arange(3.0), timeout_s=0.5)
            return waits_s

    waits_s = run(main)
    first = 1 if rejects == "model" else 3
    assert waits_s[:first] == [0.0] * first
    assert min(waits_s[first:]) >= 2.0


def test_a_cancelled_caller_ends_its_rows_in_order():
    """A cancelled caller cancels its rows in order, not by memory address, so that runs in virtual time repeat."""
    service = Sleeper()

    async def main(loop):
        async with si.Stack(service, clock=loop.clock) as stack:
            calls = asyncio.ensure_future(stack.rows(np.arange(1.0, 21.0)))
            await asyncio.sleep(0.5)
            calls.cancel()
            await asyncio.wait([calls])

    run(main)

    assert service.cancelled == list(range(1, 21))
