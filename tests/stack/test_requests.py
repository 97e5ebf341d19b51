"""Regression tests: calls that never end, responses that depend on other requests, misuse without a clear error."""

import asyncio
import contextlib
import contextvars
import enum
import functools
import gc
import os
import signal
import threading
import weakref
from collections.abc import Awaitable

import numpy as np
import pytest
from waiting import until

import streaminfer as si
from streaminfer.errors import for_caller
from streaminfer.testing import HANG, FakeClock, ScriptedBackend, run


class ModelError(si.StreamInferError):
    def __init__(self, code, detail):
        super().__init__(f"{code}: {detail}")


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("no text")


@pytest.mark.parametrize("error", [ModelError(5, "memory"), Unprintable()], ids=["uncopyable", "unprintable"])
@pytest.mark.parametrize("inline", [True, False])
def test_every_caller_gets_an_uncopyable_error(error, inline):
    """Each caller of a batch gets an error, even if the model's error cannot be copied or printed."""

    def explode(x):
        raise error

    async def main(loop):
        batcher = si.AdaptiveBatcher(max_batch_size=4, clock=loop.clock)
        wrapped = batcher.wrap(
            explode if inline else ScriptedBackend(*[error] * 8)
        )  # a failed batch is sent again in parts
        calls = [wrapped(1.0) if inline else wrapped.call(si.Request(1.0)) for _ in range(3)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(result, si.StreamInferError) for result in results)
        assert batcher.statistics().failed == 3

    run(main)


def test_base_exception_does_not_strand_next_batch():
    """A base exception in one inline batch does not strand the next batch."""
    answers = [asyncio.CancelledError(), None]

    def f(x):
        step = answers.pop(0)
        if step is not None:
            raise step
        return x

    async def main(loop):
        loop.set_exception_handler(lambda loop, context: None)
        batcher = si.AdaptiveBatcher(max_batch_size=1, clock=loop.clock)
        first, second = await asyncio.gather(*map(batcher.wrap(f), [1.0, 2.0]), return_exceptions=True)
        assert isinstance(first, si.BackendError)
        assert second == 2.0

    run(main)


def test_base_exception_in_sync_infer_frees_worker():
    """A synchronous `infer` that raises a base exception fails its request and frees its worker."""

    class Blunt:
        def infer(self, batch) -> Awaitable:
            raise asyncio.CancelledError

    async def main(loop):
        loop.set_exception_handler(lambda loop, context: None)
        service = si.AdaptiveBatcher(max_batch_size=1, clock=loop.clock).wrap(Blunt())
        with pytest.raises(si.BackendError):
            await service.call(si.Request(1.0))

    run(main)


@pytest.mark.parametrize("kind", ["inline", "backend", "alarm"])
def test_a_batch_does_not_see_its_callers_context(kind):
    tenant = contextvars.ContextVar("tenant", default=None)
    seen = []

    async def main(loop):
        class Backend:
            async def infer(self, batch):
                seen.append(tenant.get())
                return [1.0] * len(batch)

        options = {"policy": "greedy", "max_queue_delay_s": 0.01} if kind == "alarm" else {}
        batcher = si.AdaptiveBatcher(max_batch_size=4, clock=loop.clock, **options)
        wrapped = batcher.wrap((lambda x: seen.append(tenant.get()) or x) if kind == "inline" else Backend())

        async def ask():
            tenant.set("alice")
            await (wrapped(1.0) if kind == "inline" else wrapped.call(si.Request(1.0)))

        await asyncio.create_task(ask())

    run(main)
    assert seen == [None]


def test_two_draining_stops_both_end():
    async def main(loop):
        batcher = si.AdaptiveBatcher(max_batch_size=4, clock=loop.clock)
        service = batcher.wrap(ScriptedBackend(duration_s=0.1))
        call = asyncio.ensure_future(service.call(si.Request(1.0)))
        await asyncio.sleep(0.01)
        await asyncio.gather(batcher.stop(), batcher.stop())
        assert (await call).outputs == 1.0

    run(main)


def test_cancelled_stop_stops_parts_and_ends_calls():
    """A stop that is cancelled still stops the parts, without drain, and ends the calls with `Closed`."""
    stopped = []

    class Hangs:
        async def call(self, request):
            await asyncio.Event().wait()

        async def stop(self, *, drain):
            stopped.append(drain)

    async def main(loop):
        stack = si.Stack(Hangs(), clock=loop.clock)
        await stack.start()
        call = asyncio.ensure_future(stack(1.0))
        await asyncio.sleep(0.01)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await stack.stop()
        with pytest.raises(si.Closed):
            await call

    run(main)
    assert stopped == [False]


def test_stop_without_drain_waits_for_calls_to_end():
    """A stop without drain returns only after the calls in flight have ended."""

    async def main(loop):
        ended = []

        class Slow:
            async def call(self, request):
                try:
                    await asyncio.Event().wait()
                finally:
                    await asyncio.sleep(0.05)
                    ended.append(1)

        stack = si.Stack(Slow(), clock=loop.clock)
        await stack.start()
        call = asyncio.ensure_future(stack(1.0))
        await asyncio.sleep(0.01)
        await stack.stop(drain=False)
        assert ended == [1]
        await asyncio.gather(call, return_exceptions=True)

    run(main)


def test_blocking_call_in_forked_process_raises():
    """A blocking call in a forked process raises an error that says that the stack runs in another process."""
    with si.Stack(ScriptedBackend()).blocking() as infer:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(5)
                infer(1.0)
            except RuntimeError as error:
                os.write(writing, str(error).encode())
            finally:
                os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            assert "another process" in pipe.read()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_dead_loop_stops_stack_and_leaves_block():
    """If the event loop dies, the stack is stopped without drain and the `with` block ends cleanly."""
    stopped = []

    class Exits(ScriptedBackend):
        async def infer(self, batch):
            raise SystemExit(3)

        async def stop(self, *, drain):
            stopped.append(drain)

    blocking = si.Stack(si.AdaptiveBatcher(max_batch_size=1), Exits()).blocking()
    with blocking as infer, pytest.raises(si.Closed):
        infer(1.0)
    assert stopped == [False]
    with blocking:
        pass


def test_only_one_thread_enters():
    class Slow(ScriptedBackend):
        async def start(self):
            entering.wait(5)

    entering = threading.Event()
    blocking = si.Stack(Slow()).blocking()
    outcomes = []

    def use():
        try:
            with blocking as infer:
                outcomes.append(infer(1.0))
        except RuntimeError as error:
            outcomes.append(str(error))
            entering.set()

    threads = [threading.Thread(target=use) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(map(str, outcomes)) == ["1.0", "this blocking stack runs already"]


def test_stack_of_closed_loop_can_start_again():
    """A stack whose event loop is closed can be started again on another loop."""
    stack = si.Stack(ScriptedBackend())
    asyncio.run(stack.start())

    async def again():
        async with stack:
            return await stack(1.0)

    assert asyncio.run(again()) == 1.0


@pytest.mark.parametrize("late", [True, False])
def test_deadlines_hold_with_eager_tasks(late):
    async def main(loop):
        if hasattr(asyncio, "eager_task_factory"):  # from Python 3.12 on; the same must hold without it
            loop.set_task_factory(asyncio.eager_task_factory)

        class Backend:
            async def infer(self, batch):  # never suspends
                loop.now_ns += 50_000_000 * late
                return batch.inputs

        batcher = si.AdaptiveBatcher(max_batch_size=4, slo_s=0.02, clock=loop.clock)
        service = batcher.wrap(Backend())
        results = await asyncio.gather(*(service.call(si.Request(1.0)) for _ in range(3)), return_exceptions=True)
        assert [isinstance(result, si.DeadlineExceeded) for result in results] == [late] * 3
        assert batcher.statistics().running_batches == 0
        await batcher.stop()

    run(main)


def test_an_own_clock_is_kept_under_two_stacks():
    own = FakeClock()
    batcher = si.AdaptiveBatcher(max_batch_size=1, clock=own)
    inner = si.Stack(batcher, ScriptedBackend())
    si.Stack(inner, clock=FakeClock())
    assert batcher._service.clock is own


def test_batch_of_closed_loop_frees_no_worker_twice():
    """A batch that is left behind on a closed event loop does not free a worker twice."""
    backend = ScriptedBackend(HANG, duration_s=0.01)
    service = si.AdaptiveBatcher(max_batch_size=1).wrap(backend)
    dead = asyncio.new_event_loop()
    left = dead.create_task(service.call(si.Request(1.0)))
    dead.run_until_complete(until(lambda: backend.running))
    dead.close()
    left._log_destroy_pending = False
    for run_ in service._dispatcher.runner.batches:
        run_.task._log_destroy_pending = False
    del left, run_

    async def main():
        call = asyncio.ensure_future(service.call(si.Request(2.0)))
        await asyncio.sleep(0)
        gc.collect()
        await call

    asyncio.run(main())
    assert service._dispatcher.free == 1


def test_layers_under_the_batcher_keep_the_batch_axes():
    class Wrapped:
        def __init__(self, inner):
            self.inner = inner

        async def infer(self, batch):
            return await self.inner.infer(batch)

    backend = ScriptedBackend(batch_axes={"state": 1})

    async def main(loop):
        service = si.AdaptiveBatcher(max_batch_size=4, clock=loop.clock).wrap(Wrapped(backend))
        await asyncio.gather(*(service.call(si.Request({"state": np.zeros((2, 3))})) for _ in range(4)))

    run(main)
    assert backend.batches[0].inputs["state"].shape == (2, 4, 3)


class Tensor:
    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("requires grad")


def test_unreadable_inputs_are_invalid_and_counted():
    """Inputs that NumPy cannot read raise `InvalidInput` and count as failed."""

    async def main(loop):
        batcher = si.AdaptiveBatcher(max_batch_size=4, clock=loop.clock)
        with pytest.raises(si.InvalidInput, match="requires grad"):
            await batcher.wrap(lambda x: x)(Tensor())
        s = batcher.statistics()
        assert (s.submitted, s.failed) == (1, 1)

    run(main)


def test_response_is_independent_of_the_batch():
    async def main(loop):
        predict = si.AdaptiveBatcher(max_batch_size=4, clock=loop.clock).wrap(list)
        small, large = await asyncio.gather(predict(1), predict(2**63), return_exceptions=True)
        assert type(small) is np.int64
        assert isinstance(large, si.InvalidInput)
        for text in (b"abc\0", "abc\0", b"a\0bc"):
            assert (await predict(text)) == text

    run(main)


def test_name_may_be_an_enumeration():
    class Name(enum.StrEnum):
        FACES = "faces"

    backend = ScriptedBackend()
    backend.name = Name.FACES

    async def main(loop):
        service = si.AdaptiveBatcher(max_batch_size=1, clock=loop.clock).wrap(backend)
        assert (await service.call(si.Request(1.0))).source == "faces"

    run(main)


def test_sizes_beyond_c_integers_are_rejected():
    with pytest.raises(ValueError, match="max_batch_size"):
        si.AdaptiveBatcher(max_batch_size=2**63)


def test_async_callable_is_recorded_until_completed():
    """A call of an async callable object is recorded until it completes."""
    clock = FakeClock()

    class Model:
        async def __call__(self):
            clock.advance(1.0)
            raise KeyError

    telemetry = si.Telemetry(clock=clock)
    with pytest.raises(KeyError):
        asyncio.run(telemetry.wrap(Model())())
    assert telemetry.statistics().outcomes == {"KeyError": 1}


def test_notes_of_one_caller_are_not_seen_by_another():
    error = si.Overloaded("full")
    error.add_note("from the model")
    one, two = for_caller(error, ""), for_caller(error, "")
    one.add_note("mine")
    assert two.__notes__ == ["from the model"]


def test_set_is_rejected_as_a_sequence_of_rows():
    async def main(loop):
        predict = si.AdaptiveBatcher(max_batch_size=4, clock=loop.clock).wrap(lambda x: {"b", "a"})
        assert isinstance(
            (await asyncio.gather(predict(1.0), predict(2.0), return_exceptions=True))[0], si.BackendError
        )

    run(main)


@pytest.mark.parametrize(
    "fields", [{"tags": 5}, {"tags": [1]}, {"tenant": 5}, {"subject": b"x"}, {"store": "no"}, {"stream_id": [1]}]
)
def test_fields_of_the_wrong_type_are_named(fields):
    with pytest.raises(si.InvalidInput, match=next(iter(fields))):
        si.Request(1.0, **fields)


@pytest.mark.parametrize("where", ["batch", "stack", "blocking"])
def test_a_failure_keeps_no_inputs_alive_in_a_cycle(where):
    class Image(np.ndarray):
        pass

    class Fails:
        async def infer(self, batch):
            await asyncio.sleep(0)
            raise ValueError

    class FailsService:
        async def call(self, request):
            raise ValueError

    image = np.zeros(4).view(Image)
    gone = weakref.ref(image)
    gc.collect()
    gc.disable()
    try:
        if where == "blocking":
            with si.Stack(FailsService()).blocking() as infer, pytest.raises(ValueError):
                infer(image)
        else:
            layers = (
                (si.AdaptiveBatcher(max_batch_size=1, stack=False), Fails()) if where == "batch" else (FailsService(),)
            )

            async def main(loop, holder):
                async with si.Stack(*layers, clock=loop.clock) as stack:
                    with contextlib.suppress(si.BackendError, ValueError):
                        await stack(holder.pop())

            holder = [image]
            run(functools.partial(main, holder=holder))
        del image
        assert gone() is None
    finally:
        gc.enable()


ENDS = {
    "response": lambda rows: [1.0] * rows,
    "error": lambda _: (_ for _ in ()).throw(ConnectionError("broken")),
    "row": lambda rows: [ValueError("bad")] * rows,
    "deadline": lambda rows: [1.0] * rows,
}
CALLS = {
    "call": lambda stack, x, **how: stack(x, **how),
    "wait": lambda stack, x, **how: stack(x, wait=True, **how),
    "rows": lambda stack, x, **how: stack.rows(x[np.newaxis], **how),
    "map": lambda stack, x, **how: stack.map([x], **how),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("call", CALLS)
async def test_inputs_are_freed_without_the_collector(loop, call, end):
    """Whatever its outcome, a request leaves its inputs in no cycle: in overload they would be most of the memory."""

    class Backend:
        async def infer(self, batch):
            await asyncio.sleep(0.01)
            return ENDS[end](len(batch.inputs))

    how = {"timeout_s": 0.005} if end == "deadline" else {}
    async with si.Stack(si.Telemetry("t"), si.AdaptiveBatcher(max_batch_size=4), Backend(), clock=loop.clock) as stack:
        inputs = np.zeros(4)
        freed = weakref.ref(inputs)
        gc.collect()
        gc.disable()
        try:
            with contextlib.suppress(si.StreamInferError, ValueError):
                await CALLS[call](stack, inputs, **how)
            del inputs
            await asyncio.sleep(0.1)
            assert freed() is None
        finally:
            gc.enable()
