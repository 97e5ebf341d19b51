"""Failed batches are sent again in parts: a bad row fails alone, parts are bounded, lack of memory limits batches."""

import asyncio

import numpy as np
import pytest

import streaminfer as si
from streaminfer.batching.assembly.row_isolation import is_out_of_memory
from streaminfer.testing import ScriptedBackend

BAD = -1.0


class Picky:
    """Backend that fails batches with a bad row, or with more than ``most`` rows, and records all batch sizes."""

    def __init__(self, *, error=ValueError, duration_s=0.001, most=None):
        self.sizes = []
        self.error = error
        self.duration_s = duration_s
        self.most = most

    async def infer(self, batch):
        self.sizes.append(len(batch))
        rows = batch.inputs.copy()
        batch.inputs[:] = 0.0  # a model may write to its inputs, because the next part gets its own
        if self.duration_s:
            await asyncio.sleep(self.duration_s)
        if self.most is not None and len(rows) > self.most:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if (rows == BAD).any():
            raise self.error("bad row")
        return rows * 2


async def ask(loop, backend, values, *, timeout_s=None, **settings):
    """Send the values as one batch; return the outcome of each caller, and the statistics."""
    batcher = si.AdaptiveBatcher(**{"max_batch_size": 32, "policy": "greedy", **settings}, clock=loop.clock)
    async with si.Stack(batcher, backend, clock=loop.clock) as stack:
        calls = (stack(value, timeout_s=timeout_s) for value in values)
        answers = await asyncio.gather(*calls, return_exceptions=True)
    statistics = batcher.statistics()
    ended = statistics.succeeded + statistics.failed + statistics.deadline_exceeded + statistics.cancelled
    assert ended == statistics.submitted
    assert statistics.running == statistics.queued == statistics.running_batches == 0
    return answers, statistics


@pytest.mark.parametrize("size", [2, 3, 8, 31, 32])
@pytest.mark.parametrize("place", [0, 1, -1])
async def test_one_bad_row_fails_alone(loop, size, place):
    """A bad row fails alone, and a batch of n rows is followed by at most 2 · ⌈log2(n)⌉ parts."""
    values = [float(value) for value in range(size)]
    values[place] = BAD
    backend = Picky()

    answers, statistics = await ask(loop, backend, values)

    for value, answer in zip(values, answers, strict=True):
        if value == BAD:
            assert type(answer) is si.BackendError
            assert type(answer.__cause__) is ValueError
        else:
            assert answer == value * 2
    assert len(backend.sizes) <= 1 + 2 * (size - 1).bit_length()
    assert (statistics.failed, statistics.split_batches) == (1, 1)


@pytest.mark.parametrize("kind", ["sync", "async", "list"])
async def test_failed_function_batches_are_split(loop, kind):
    """Batch functions on the event loop are called again in parts, as backends are."""

    def sync(x):
        if BAD in x:
            raise ValueError
        return np.asarray(x) * 2

    async def asynchronous(x):
        return sync(x)

    function = asynchronous if kind == "async" else sync
    predict = si.AdaptiveBatcher(max_batch_size=8, stack=kind != "list").wrap(function)

    answers = await asyncio.gather(*map(predict, [1.0, BAD, 3.0, 4.0]), return_exceptions=True)

    assert [answer for answer in answers if not isinstance(answer, Exception)] == [2.0, 6.0, 8.0]
    assert isinstance(answers[1], si.BackendError)


async def test_parts_are_built_from_the_original_inputs(loop):
    """The parts of a failed batch have the original inputs, even if the function has changed its list of rows."""

    def predict(rows):
        for position, row in enumerate(rows):
            rows[position] = 2 * row
        if 2 * BAD in rows:
            raise ValueError
        return rows

    batched = si.AdaptiveBatcher(max_batch_size=8, stack=False).wrap(predict)

    answers = await asyncio.gather(*map(batched, [1.0, BAD, 3.0, 4.0]), return_exceptions=True)

    assert [answer for answer in answers if not isinstance(answer, Exception)] == [2.0, 6.0, 8.0]


async def test_parts_are_padded_to_preferred_sizes(loop):
    """Parts are padded to `preferred_sizes`, as whole batches are."""

    class Fixed(Picky):
        async def infer(self, batch):
            assert len(batch.inputs) in (2, 4, 8)
            return await super().infer(batch)

    answers, _ = await ask(loop, Fixed(), [1.0, 2.0, BAD, 4.0, 5.0], max_batch_size=8, preferred_sizes=(2, 4, 8))
    assert [answer for answer in answers if not isinstance(answer, Exception)] == [2.0, 4.0, 8.0, 10.0]


@pytest.mark.parametrize("bad", [0, 4, 7])
async def test_parts_cost_no_more_than_batches_may(loop, bad):
    """A part of costly rows is halved if the copies that pad it would exceed the cost limit."""
    costs = [1.0, 1.0, 1.0, 1.0, 24.0, 24.0, 24.0, 24.0]
    sent = []

    def infer(batch):
        sent.append(list(batch.inputs))
        if values[bad] in batch.inputs:
            raise ValueError
        return batch.inputs

    values = [cost + number / 1000 for number, cost in enumerate(costs)]
    backend = ScriptedBackend(then=infer, duration_s=0.001)

    answers, statistics = await ask(loop, backend, values, row_cost=float, max_batch_cost=100.1, preferred_sizes=[1, 8])

    assert len(sent[0]) == 8
    assert max(map(sum, sent)) <= 100.1
    assert [type(answer) is si.BackendError for answer in answers] == [number == bad for number in range(8)]
    assert statistics.split_batches == 1


async def test_parts_take_no_more_bytes_than_batches_may(loop):
    """A part of long texts is halved if the copies that pad it would exceed `max_batch_bytes`."""
    sent = []

    def infer(batch):
        sent.append(list(batch.inputs))
        if len(sent) == 1:
            raise ValueError
        return [len(text) for text in batch.inputs]

    texts = ["a", "b", "c", "d", "e" * 24, "f" * 24, "g" * 24, "h" * 24]
    backend = ScriptedBackend(then=infer, duration_s=0.001)

    answers, _ = await ask(loop, backend, texts, max_batch_bytes=400, preferred_sizes=[1, 8])

    assert answers == [1, 1, 1, 1, 24, 24, 24, 24]
    assert len(sent[0]) == 8
    assert all(4 * sum(map(len, batch)) <= 400 for batch in sent)


async def test_a_broken_model_is_not_split_for_long(loop):
    """If no part succeeds, the rest fails at once, and the next failing batches are not split."""
    backend = Picky()
    batcher = si.AdaptiveBatcher(max_batch_size=32, policy="greedy", clock=loop.clock)
    async with si.Stack(batcher, backend, clock=loop.clock) as stack:
        for batches in (7, 8, 15, 16, 17, 24):
            answers = await asyncio.gather(*(stack(BAD) for _ in range(32)), return_exceptions=True)
            assert {type(answer) for answer in answers} == {si.BackendError}
            assert len(backend.sizes) == batches
        assert await stack(1.0) == 2.0
        answers = await asyncio.gather(*map(stack, [1.0, BAD]), return_exceptions=True)
        assert answers[0] == 2.0  # split again, because a batch has succeeded in between


async def test_the_number_of_parts_is_bounded(loop):
    """A batch of n rows, many of them bad, is sent again in at most 4 · log2(n) parts."""
    backend = Picky()
    answers, _ = await ask(loop, backend, [1.0, 2.0, 3.0, BAD] * 8)
    assert len(backend.sizes) <= 1 + 4 * 5
    for answer, value in zip(answers, [1.0, 2.0, 3.0, BAD] * 8, strict=True):
        assert isinstance(answer, si.BackendError) or answer == value * 2


async def test_parts_end_with_the_deadline(loop):
    """A request whose deadline passes while parts run gets `DeadlineExceeded`, and its row is not sent again."""
    backend = Picky(duration_s=0.010)
    answers, _ = await ask(loop, backend, [1.0, BAD, 3.0, 4.0], timeout_s=0.025)
    assert [type(answer) for answer in answers[:2]] == [si.DeadlineExceeded] * 2
    assert sum(backend.sizes) < 4 + 2 + 2 + 1 + 1
    assert loop.time() < 0.06


@pytest.mark.parametrize(
    "error",
    [si.CircuitOpen, si.Closed, si.Overloaded, si.DeadlineExceeded, ConnectionResetError, TimeoutError],
)
async def test_errors_not_caused_by_a_row_are_not_split(loop, error):
    """A batch that fails with an open circuit, a stop or a lost connection is not split: no row is the cause."""
    backend = Picky(error=error)
    answers, statistics = await ask(loop, backend, [1.0, BAD])
    assert all(isinstance(answer, Exception) for answer in answers)
    assert (backend.sizes, statistics.split_batches) == ([2], 0)


async def test_a_circuit_that_opens_ends_the_parts(loop):
    """No further part reaches the backend when a breaker between batcher and backend opens."""
    breaker = si.CircuitBreaker(minimum_calls=1, clock=loop.clock)
    batcher = si.AdaptiveBatcher(max_batch_size=32, policy="greedy", clock=loop.clock)
    backend = Picky()
    async with si.Stack(batcher, breaker, backend, clock=loop.clock) as stack:
        answers = await asyncio.gather(*(stack(BAD) for _ in range(32)), return_exceptions=True)
    assert backend.sizes == [32]
    assert {type(answer) for answer in answers} == {si.BackendError, si.CircuitOpen}


async def test_a_failed_batch_is_one_failure_of_a_breaker(loop):
    """A failed batch is one failure for a breaker; its failed parts do not count, and its other parts are successes."""
    breaker = si.CircuitBreaker(minimum_calls=5, clock=loop.clock)
    batcher = si.AdaptiveBatcher(max_batch_size=32, policy="greedy", clock=loop.clock)
    async with si.Stack(batcher, breaker, Picky(), clock=loop.clock) as stack:
        for batches in range(1, 21):
            await asyncio.gather(*map(stack, [BAD, *map(float, range(31))]), return_exceptions=True)
            statistics = breaker.statistics()
            assert (statistics.failed, statistics.succeeded) == (batches, 5 * batches)
    assert breaker.state == "closed"


async def test_a_model_that_fails_always_opens_the_circuit(loop):
    """A breaker counts each failed batch as one failure, whether or not the batch is sent again in parts."""
    breaker = si.CircuitBreaker(minimum_calls=5, clock=loop.clock)
    batcher = si.AdaptiveBatcher(max_batch_size=8, policy="greedy", clock=loop.clock)
    async with si.Stack(batcher, breaker, Picky(), clock=loop.clock) as stack:
        for batches in range(1, 6):
            assert breaker.state == "closed"
            await asyncio.gather(*(stack(BAD) for _ in range(8)), return_exceptions=True)
            assert breaker.statistics().failures == batches
    assert breaker.state == "open"


async def test_breaker_around_the_batcher_counts_requests(loop):
    """A circuit breaker around the batcher counts requests, not batches.

    If a batch has one bad row, the request of that row is a failure, and the others are successes.
    """
    breaker = si.CircuitBreaker(minimum_calls=100, clock=loop.clock)
    batcher = si.AdaptiveBatcher(max_batch_size=32, policy="greedy", clock=loop.clock)
    async with si.Stack(breaker, batcher, Picky(), clock=loop.clock) as stack:
        await asyncio.gather(*map(stack, [BAD, *map(float, range(31))]), return_exceptions=True)
    assert (breaker.statistics().failed, breaker.statistics().succeeded) == (1, 31)


async def test_a_backend_that_isolates_rows_gets_no_parts(loop):
    """A backend with `isolates_rows` gets no parts of a failed batch."""
    backend = Picky()
    backend.isolates_rows = True
    _, statistics = await ask(loop, backend, [1.0, BAD])
    assert (backend.sizes, statistics.split_batches) == ([2], 0)


async def test_a_request_cancelled_while_parts_run(loop):
    """If a request is cancelled while parts run, later parts leave it out, and the others get their results."""
    backend = Picky(duration_s=0.010)
    service = si.AdaptiveBatcher(max_batch_size=8, policy="greedy", clock=loop.clock).wrap(backend)
    calls = [asyncio.ensure_future(service.call(si.Request(value))) for value in (1.0, BAD, 3.0)]
    await asyncio.sleep(0.015)
    calls[1].cancel()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(answers[1], asyncio.CancelledError)
    assert [answer.outputs for answer in (answers[0], answers[2])] == [2.0, 6.0]
    assert backend.sizes == [3, 2, 1, 1]  # no part with the bad row alone


async def test_rows_without_a_caller_are_not_sent_again(loop):
    """The later parts of a failed batch leave out the rows of requests whose deadlines have passed."""
    backend = Picky(duration_s=0.1)
    batcher = si.AdaptiveBatcher(max_batch_size=4, policy="greedy", clock=loop.clock)
    async with si.Stack(batcher, backend, clock=loop.clock) as stack:
        calls = [stack(BAD), stack(1.0, timeout_s=0.15), stack(2.0, timeout_s=0.15), stack(3.0)]
        bad, *late, good = await asyncio.gather(*calls, return_exceptions=True)

    assert type(bad) is si.BackendError
    assert {type(one) for one in late} == {si.DeadlineExceeded}
    assert good == 6.0
    assert backend.sizes == [4, 2, 1, 1]


async def test_out_of_memory_makes_batches_smaller(loop):
    """Batches that exceed the memory lower the limit of rows until later batches fit, and each request succeeds."""
    backend = Picky(most=5)
    batcher = si.AdaptiveBatcher(max_batch_size=32, policy="greedy", max_queue_size=256, clock=loop.clock)
    async with si.Stack(batcher, backend, clock=loop.clock) as stack:
        for _ in range(3):
            values = [float(value) for value in range(64)]
            assert await asyncio.gather(*map(stack, values)) == [value * 2 for value in values]
        assert batcher.statistics().memory_limits == {0: 4}
        assert sum(size > 5 for size in backend.sizes) <= 7
        batcher.reconfigure(max_batch_size=16)
        assert batcher.statistics().memory_limits == {}


async def test_a_whole_batch_teaches_the_memory_limit(loop):
    """If a batch exceeds the memory and both halves succeed, later batches are no larger than a half."""
    backend = Picky(most=16)
    batcher = si.AdaptiveBatcher(max_batch_size=32, policy="greedy", clock=loop.clock)
    async with si.Stack(batcher, backend, clock=loop.clock) as stack:
        for _ in range(2):
            await asyncio.gather(*map(stack, range(32)))

    assert backend.sizes == [32, 16, 16, 16, 16]


async def test_the_planner_knows_the_memory_limit(loop):
    """Predictions count as many batches as the memory limit requires, and the planner tries no larger batch again."""
    backend = Picky(most=5, duration_s=0.010)
    known = si.batching.ServiceTime.affine(0.010, 1e-9)
    batcher = si.AdaptiveBatcher(max_batch_size=32, service_time=known, max_queue_size=256, clock=loop.clock)
    async with si.Stack(batcher, backend, clock=loop.clock) as stack:
        assert await asyncio.gather(*map(stack, range(32))) == [value * 2 for value in range(32)]
        assert batcher.statistics().memory_limits == {0: 4}
        tried = len(backend.sizes)

        began_ns = loop.now_ns
        calls = [asyncio.ensure_future(stack(float(value), timeout_s=10.0)) for value in range(64)]
        await asyncio.sleep(0)
        finish_ns = stack.admission(si.Request(1.0), began_ns).predicted_finish_ns
        await asyncio.gather(*calls)

    assert finish_ns - began_ns == pytest.approx(170e6, rel=0.1)  # behind 16 batches of 4, and not 2 of 32
    assert set(backend.sizes[tried:]) == {4}


async def test_queue_delay_ends_at_the_memory_limit(loop):
    """With a queue delay, a batch of as many rows as the memory holds is full, and is not held back."""
    backend = Picky(most=5, duration_s=0.001)
    settings = {"policy": "greedy", "max_queue_delay_s": 1.0, "max_batch_size": 32}
    batcher = si.AdaptiveBatcher(**settings, clock=loop.clock)
    async with si.Stack(batcher, backend, clock=loop.clock) as stack:
        await asyncio.gather(*map(stack, range(32)))
        before_s = loop.time()
        await asyncio.gather(*map(stack, range(4)))

    assert loop.time() - before_s < 0.5


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (MemoryError(), True),
        (RuntimeError("CUDA out of memory. Tried to allocate"), True),
        (RuntimeError("BFCArena: Failed to allocate memory for requested buffer of size 4096"), True),
        (type("OutOfMemoryError", (RuntimeError,), {})(), True),
        (ValueError("out of range"), False),
    ],
)
def test_is_out_of_memory(error, is_one):
    """Memory errors of NumPy, PyTorch, CUDA and onnxruntime are recognized, also as the cause of another error."""
    assert is_out_of_memory(error) is is_one
    wrapped = si.BackendError("the model failed")
    wrapped.__cause__ = error
    assert is_out_of_memory(wrapped) is is_one


@pytest.mark.parametrize("delay_s", [0.0, 0.010])
async def test_a_memory_limit_applies_to_its_bucket_only(loop, delay_s):
    """The memory limit of a longer bucket does not limit batches of shorter rows, even if both are queued in turn."""

    def fits(batch):
        if batch.inputs.shape[1] == 8 and len(batch) > 2:
            raise MemoryError
        return [0] * len(batch)

    model = ScriptedBackend(then=fits)
    batcher = si.AdaptiveBatcher(max_batch_size=8, policy="greedy", max_queue_delay_s=delay_s, buckets=(2, 8))
    async with si.Stack(batcher, model, clock=loop.clock) as service:
        await asyncio.gather(*(service(np.zeros(8)) for _ in range(4)))
        assert batcher.statistics().memory_limits == {1: 2}
        model.batches.clear()

        await asyncio.gather(*(service(np.zeros(2 if number % 4 else 8)) for number in range(1, 17)))
        assert sorted(batch.inputs.shape for batch in model.batches) == [(2, 8), (2, 8), (6, 2), (6, 2)]
