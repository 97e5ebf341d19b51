"""A cache around services and functions: the responses that it serves and stores, and their keys."""

import asyncio
import contextlib
import functools
import gc
import inspect
import sys
import threading
import time
import types
import weakref
from collections import OrderedDict, namedtuple

import numpy as np
import pytest

import streaminfer as si
from streaminfer.caching.edge_cache import EdgeCache
from streaminfer.caching.single_flight.flight_context import no_store
from streaminfer.caching.single_flight.flights import SingleFlight
from streaminfer.errors import BackendError, Closed, DeadlineExceeded, InvalidInput, Overloaded
from streaminfer.request import Request, Response
from streaminfer.testing import FakeClock, ScriptedBackend, run

pytestmark = pytest.mark.uncompiled


class Cache:
    """`EdgeCache` as a layer, with its flights as an attribute."""

    def __init__(self, clock=None, *, secret=None, **settings):
        self.table = EdgeCache(clock=clock, secret=secret, **settings)
        self.table._flights = self.flights = SingleFlight(self.table._memory.now)

    def wrap(self, inner):
        return self.table.wrap(inner)


class Model:
    """Service that responds by a script and records its requests."""

    fingerprint = "model 1"

    def __init__(self, *script, after_s=0.0):
        self.script = list(script)
        self.after_s = after_s
        self.asked = []

    async def call(self, request):
        self.asked.append(request)
        if self.after_s:
            await asyncio.sleep(self.after_s)
        step = self.script.pop(0) if self.script else np.asarray(request.inputs) * 2
        if isinstance(step, BaseException):
            raise step
        return step if isinstance(step, Response) else Response(step, False, "model")


def on_loop(scenario, **settings):
    """Run ``scenario(cache, loop)`` and check that no task, flight or error is left."""
    complaints = []

    async def main(loop):
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        cache = Cache(loop.clock, **settings)
        result = await scenario(cache, loop)
        for _ in range(4):
            await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert cache.flights.statistics().in_flight == 0
        return result

    result = run(main)
    gc.collect()
    assert complaints == []
    return result


def test_hit_has_source_cache():
    async def play(cache, loop):
        model = Model()
        service = cache.wrap(model)
        x = np.arange(3.0)
        first, second = await service.call(Request(x)), await service.call(Request(x.copy()))
        assert (first.source, first.degraded) == ("model", False)
        assert (second.source, second.degraded, second.timings) == ("cache", False, None)
        assert second.outputs.tolist() == [0.0, 2.0, 4.0]
        assert len(model.asked) == 1
        assert service.name == "Model"
        assert service.inner is model

    on_loop(play)


@pytest.mark.parametrize("how", ["first", "hit"])
def test_responses_are_read_only_and_hold_no_batch(how):
    """A response is read-only and keeps nothing else alive, such as the batch of which it was a row."""
    batches = [np.arange(12.0).reshape(4, 3)]
    left = weakref.ref(batches[0])
    Pair = namedtuple("Pair", "a b")  # noqa: PYI024

    async def play(cache, loop):
        batch = batches.pop()
        outputs = {"y": batch[0], "many": [batch[1], (batch[2], "word")], "pair": Pair(batch[3], 1)}
        service = cache.wrap(Model(OrderedDict(outputs)))
        if how == "hit":
            await service.call(Request(1))
        batch[:] = -1 if how == "hit" else batch
        got = (await service.call(Request(1))).outputs
        assert type(got) is OrderedDict
        assert type(got["pair"]) is Pair
        arrays = [got["y"], got["many"][0], got["many"][1][0], got["pair"].a]
        assert [array.tolist() for array in arrays] == np.arange(12.0).reshape(4, 3).tolist()
        for array in arrays:
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 1
            with pytest.raises(ValueError, match="WRITEABLE"):
                array.setflags(write=True)
        got["y"] = None
        got["many"].append(None)
        again = (await service.call(Request(1))).outputs
        assert again["y"].tolist() == [0.0, 1.0, 2.0]
        assert len(again["many"]) == 2
        assert again["y"] is not arrays[0]

    on_loop(play)
    gc.collect()
    assert left() is None


def test_no_store_and_stream_requests_are_not_stored():
    async def play(cache, loop):
        model = Model()
        service = cache.wrap(model)
        for request in (Request(1, stream_id="live"), Request(2, store=False)):
            for _ in range(2):
                assert (await service.call(request)).source == "model"
        assert len(cache.table) == 0
        await service.call(Request(1))
        assert (await service.call(Request(1, store=False))).source == "cache"
        assert (await service.call(Request(1, stream_id="live"))).source == "model"

    on_loop(play)


def test_degraded_responses_are_shared_but_not_stored():
    async def play(cache, loop):
        model = Model(Response(1, True, "small"), Response(2, False, "large"), after_s=1.0)
        service = cache.wrap(model)
        both = await asyncio.gather(*(service.call(Request("x")) for _ in range(2)))
        assert [(each.outputs, each.degraded, each.source) for each in both] == [(1, True, "small")] * 2
        assert len(cache.table) == 0
        assert (await service.call(Request("x"))).outputs == 2

    on_loop(play)


def test_key_depends_on_request_fields_and_fingerprint():
    async def play(cache, loop):
        service = cache.wrap(Model())
        other = Model()
        other.fingerprint = b"model 2"
        requests = [
            Request(np.zeros(2)),
            Request(np.zeros(2, "f4")),
            Request({"x": np.zeros(2)}),
            Request(np.zeros(2), tenant="a"),
            Request(np.zeros(2), tenant="b"),
            Request(np.zeros(2), subject="anna"),
            Request(np.zeros(2), subject="bert"),
            Request(np.zeros(2), key="a"),
            Request("a"),
        ]
        keys = [service.key_of(request) for request in requests]
        keys.append(cache.wrap(other).key_of(requests[0]))
        assert len(set(keys)) == len(keys)
        assert service.key_of(Request("other", key="a")) == service.key_of(Request(None, key="a"))
        assert cache.wrap(Model()).key_of(requests[0]) == keys[0]  # the same model by its fingerprint
        await service.call(requests[0])
        assert keys[0] in cache.table
        assert cache.wrap(Model()).key_of(requests[0]) in cache.table

    on_loop(play)


def test_keys_of_a_service_depend_on_the_secret():
    keys = {Cache(secret=secret).wrap(Model()).key_of(Request(1)) for secret in (None, b"a" * 16, b"b" * 16)}
    assert {len(key) for key in keys} == {16, 32}
    assert len(keys) == 3


def test_tags_and_subject_reach_the_entry():
    async def play(cache, loop):
        service = cache.wrap(Model())
        await service.call(Request(1, subject="anna", tags=("faces",)))
        await service.call(Request(1, subject="bert"))
        assert len(cache.table) == 2
        assert cache.table.erase(subject="bert") == 1
        assert cache.table.erase(tag="faces") == 1
        assert (await service.call(Request(1, subject="anna"))).source == "model"

    on_loop(play)


def test_result_computed_during_erasure_is_not_stored():
    """A response that is computed while its subject is erased is not stored."""

    async def play(cache, loop):
        service = cache.wrap(Model(after_s=1.0))
        asked = loop.create_task(service.call(Request(1, subject="anna")))
        await asyncio.sleep(0.5)
        cache.table.erase(subject="anna")
        assert (await asked).outputs == 2
        assert len(cache.table) == 0
        assert cache.flights.statistics().not_stored == 1

    on_loop(play)


def test_response_too_large_to_store_is_returned(caplog):
    async def play(cache, loop):
        service = cache.wrap(Model())
        assert (await service.call(Request(np.zeros(1000)))).outputs.shape == (1000,)
        assert len(cache.table) == 0
        assert cache.flights.statistics().not_stored == 1

    on_loop(play, max_bytes=100)


def test_deadline_of_cached_and_computed_requests():
    """A caller ends at its own deadline; a response in the cache is returned even after it."""

    async def play(cache, loop):
        model = Model(after_s=1.0)
        service = cache.wrap(model)
        leader = loop.create_task(service.call(Request(1)))
        await asyncio.sleep(0.25)
        with pytest.raises(DeadlineExceeded, match=r"after 0\.250000 s"):
            await service.call(Request(1, deadline_ns=loop.now_ns + 250_000_000))
        assert loop.time() == 0.5
        with pytest.raises(DeadlineExceeded, match=r"had passed 0\.100000 s before"):
            await service.call(Request(1, deadline_ns=loop.now_ns - 100_000_000))
        await leader
        assert (await service.call(Request(1, deadline_ns=0))).source == "cache"  # returned even after the deadline
        for request in (Request(2, deadline_ns=loop.now_ns + 10**8), Request(1, stream_id=1, deadline_ns=0)):
            with pytest.raises(DeadlineExceeded):
                await service.call(request)
        assert len(model.asked) == 2

    on_loop(play)


def test_stale_while_revalidate():
    async def play(cache, loop):
        model = Model("old", "new", after_s=1.0)
        service = cache.wrap(model)
        await service.call(Request(1))
        await asyncio.sleep(10.5)
        for _ in range(3):
            response = await service.call(Request(1, deadline_ns=loop.now_ns + 1))
            assert (response.outputs, response.degraded, response.source) == ("old", True, "cache")
        assert len(model.asked) == 1
        await asyncio.sleep(1.5)
        assert [request.deadline_ns for request in model.asked] == [None, 25_500_000_000]  # 4 times as long, plus 10 s
        response = await service.call(Request(1))
        assert (response.outputs, response.degraded) == ("new", False)
        assert cache.flights.statistics().refreshes == 1

    on_loop(play, ttl_s=10.0, stale_s=5.0)


def test_stale_if_error(caplog):
    async def play(cache, loop):
        model = Model("old", BackendError("down"), BackendError("down"), BackendError("gone"))
        service = cache.wrap(model)
        await service.call(Request(1))
        await asyncio.sleep(10.0)
        for _ in range(9):
            assert (await service.call(Request(1))).outputs == "old"
            await asyncio.sleep(0.2)
        assert len(model.asked) == 3  # one refresh a second
        await asyncio.sleep(4.0)
        with pytest.raises(BackendError, match="gone"):
            await service.call(Request(1))
        assert cache.flights.statistics().refresh_failures == 2

    on_loop(play, ttl_s=10.0, stale_s=5.0, negative_ttl_s=60.0)
    assert caplog.text.count("BackendError: down") >= 2


def test_stored_errors_are_copied_for_each_caller():
    """Errors are stored if `negative_ttl_s` is set, and each caller gets an error of its own."""

    async def play(cache, loop):
        cause = ValueError("why")
        failure = BackendError("broken")
        failure.__cause__ = cause
        model = Model(failure, Overloaded("full"), "fine")
        service = cache.wrap(model)
        raised = []
        for _ in range(3):
            with pytest.raises(BackendError, match="broken") as told:
                await service.call(Request(1))
            raised.append(told.value)
        assert len(model.asked) == 1
        assert len(set(map(id, raised))) == 3
        assert isinstance(raised[1].__cause__, ValueError)
        assert raised[1].__cause__.__traceback__ is None
        with pytest.raises(Overloaded):
            await service.call(Request(2))
        assert (await service.call(Request(2))).outputs == "fine"  # an overload says nothing about the next call
        await asyncio.sleep(5.0)
        assert (await service.call(Request(1))).source == "model"

    on_loop(play, negative_ttl_s=5.0)


def test_stored_error_holds_no_frame():
    class Big:
        pass

    async def play(cache, loop):
        @cache.wrap
        async def fails(x):
            big = Big()
            left.append(weakref.ref(big))
            raise ValueError(x)

        left = []
        for _ in range(2):
            with pytest.raises(ValueError, match="a"):
                await fails("a")
        return left

    left = on_loop(play, negative_ttl_s=60.0)
    assert len(left) == 1
    assert left[0]() is None


def test_single_flight_of_a_service():
    async def play(cache, loop):
        model = Model(after_s=1.0)
        service = cache.wrap(model)
        responses = await asyncio.gather(*(service.call(Request(np.ones(2))) for _ in range(50)))
        assert len(model.asked) == 1
        assert len({id(response.outputs) for response in responses}) == 50
        assert cache.flights.statistics().collapsed == 49

    on_loop(play)


def test_deadlines_of_leader_and_waiters_in_a_stack():
    """In a stack the batcher enforces the leader's deadline, and the cache layer those of the waiters."""

    async def main(loop):
        cache = Cache(loop.clock)
        backend = ScriptedBackend(duration_s=1.0)
        batcher = si.AdaptiveBatcher(max_batch_size=4)
        async with si.Stack(cache, batcher, backend, clock=loop.clock) as stack:
            x = np.ones(2, "f4")
            asked = [loop.create_task(stack(x, timeout_s=limit)) for limit in (0.25, 0.5, 5.0)]
            ends = await asyncio.gather(*asked, return_exceptions=True)
            assert [type(end) for end in ends[:2]] == [DeadlineExceeded] * 2
            assert ends[2].tolist() == [1.0, 1.0]
            assert (await stack.call(Request(x))).source == "cache"
            assert (await stack.call(Request(x, deadline_ns=0))).source == "cache"
        assert cache.flights.statistics().in_flight == 0

    run(main)


@pytest.mark.parametrize("drain", [True, False])
def test_stopping_stack_ends_cache_computations(drain):
    """The stop of a stack ends the computations of its cache layer."""

    async def main(loop):
        cache = Cache(loop.clock, ttl_s=1.0, stale_s=60.0)
        model = Model("first", after_s=2.0)
        stack = si.Stack(cache, model, clock=loop.clock)
        await stack.start()
        assert await stack(1) == "first"
        await asyncio.sleep(1.5)
        assert await stack(1) == "first"  # and refreshes
        asked = loop.create_task(stack(2))
        streamed = loop.create_task(stack(3, stream_id="live", timeout_s=60.0))
        await asyncio.sleep(0.5)
        await stack.stop(drain=drain)
        assert loop.time() == (5.5 if drain else 4.0)
        ends = await asyncio.gather(asked, streamed, return_exceptions=True)
        if drain:
            assert ends == [4, 6]
        else:
            assert [type(end) for end in ends] == [Closed, Closed]
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(main)


# -- functions ------------------------------------------------------------------------------------------------------


def counted(calls):
    async def double(x, y=1, *, z=0):
        """Doubles."""
        calls.append((x, y, z))
        return np.asarray(x) * 2 + y + z

    return double


def test_wrapped_async_function_keeps_its_signature():
    async def play(cache, loop):
        calls = []
        double = counted(calls)
        cached = cache.wrap(double)
        assert inspect.iscoroutinefunction(cached)
        assert (cached.__name__, cached.__doc__, cached.__wrapped__) == ("double", "Doubles.", double)
        assert inspect.signature(cached) == inspect.signature(double)
        for ask in (lambda: cached(1), lambda: cached(x=1), lambda: cached(1, 1), lambda: cached(1, y=1, z=0)):
            assert await ask() == 3
        assert calls == [(1, 1, 0)]
        assert await cached(1, z=1) == 4
        with pytest.raises(TypeError, match="unexpected keyword"):
            await cached(1, w=1)
        with pytest.raises(InvalidInput, match=r"builtins\.object"):
            await cached(object())
        assert cached.key_of(1) in cache.table
        del cache.table[cached.key_of(1)]
        assert await cached(1) == 3
        assert calls == [(1, 1, 0), (1, 1, 1), (1, 1, 0)]

    on_loop(play)


def test_arguments_of_all_kinds():
    cache = Cache()
    calls = []

    @cache.wrap
    def f(a, /, b=2, *, c=3):
        calls.append((a, b, c))
        return len(calls)

    assert [f(1), f(1, 2), f(1, b=2, c=3), f(1, c=4), f(2)] == [1, 1, 1, 2, 3]

    @cache.wrap
    def g(*args, **kwargs):
        calls.append((args, kwargs))
        return len(calls)

    assert g(1, k=2, m=3) == g(1, m=3, k=2)
    assert g(1, 2) != g(1, k=2)
    assert not inspect.iscoroutinefunction(f)
    assert f.key_of(1, c=3) == f.key_of(1)
    assert g.key_of(1, k=2) != g.key_of(1, k=3)


class Scaler:
    def __init__(self, by):
        self.by = by
        self.calls = 0

    @property
    def fingerprint(self):
        return f"scaler {self.by}"


def test_methods_are_keyed_by_fingerprint_of_object():
    cache = Cache()

    class Doubler(Scaler):
        @cache.wrap
        def scale(self, x):
            self.calls += 1
            return x * self.by

    class Bare:
        @cache.wrap
        def scale(self, x):
            return x

    two, also_two, three = Doubler(2), Doubler(2), Doubler(3)
    assert [two.scale(5), also_two.scale(5), three.scale(5), two.scale(5)] == [10, 10, 15, 10]
    assert [two.calls, also_two.calls, three.calls] == [1, 0, 1]
    with pytest.raises(InvalidInput, match="give its class a `fingerprint`"):
        Bare().scale(1)


def module_level(x):
    return x


def test_wrapped_function_is_part_of_the_key():
    cache = Cache()

    def make(by):
        def scale(x):
            return x * by

        return scale

    two, three = make(2), make(3)
    assert [cache.wrap(two)(5), cache.wrap(three)(5)] == [10, 15]
    assert cache.wrap(two).key_of(5) == cache.wrap(two).key_of(5)
    others = [
        two,
        three,
        module_level,
        functools.wraps(module_level)(lambda x: -x),
        functools.partial(module_level),
        Callable(1),
        Callable(2),
        Callable(1).method,
        lambda x: x,
    ]
    keys = {cache.wrap(each).key_of(5) for each in others}
    assert len(keys) == len(others)
    one = Callable(1)
    assert cache.wrap(one.method).key_of(5) == cache.wrap(one.method).key_of(5)
    # a function that its module defines has the same key in every process
    assert cache.wrap(module_level).key_of(5) == Cache().wrap(module_level).key_of(5)


class Callable:
    def __init__(self, by):
        self.by = by

    def __call__(self, x):
        return x * self.by

    def method(self, x):
        return x


def test_redefined_notebook_function_has_its_own_key(monkeypatch):
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    session = {"__name__": "__main__"}
    cache = Cache()
    answers = []
    for body in ("x + 1", "x + 2"):
        exec(f"def f(x): return {body}", session)  # noqa: S102 - a cell of a notebook
        answers.append(cache.wrap(session["f"])(1))
    assert answers == [2, 3]


def test_identity_tokens_are_freed_with_their_objects():
    from streaminfer.caching.wrapping import wrapped_identity as identity

    before = len(identity._TOKENS)
    for number in range(50):
        Cache().wrap(Callable(number))
    gc.collect()
    assert len(identity._TOKENS) <= before


@pytest.mark.parametrize("wrong", [3, None, int, ScriptedBackend()])
def test_wrapping_a_non_service_is_rejected(wrong):
    with pytest.raises(TypeError, match="inner: expected a service"):
        Cache().wrap(wrong)


def test_iterators_and_generators_are_rejected():
    cache = Cache()
    with pytest.raises(TypeError, match="more than once"):
        cache.wrap(lambda x: iter((x,)))(1)
    with pytest.raises(TypeError, match="not a generator"):

        @cache.wrap
        def generate():
            yield 1


def test_no_store_prevents_storing_a_response():
    """The response of a computation that calls `no_store` is shared with its waiters and not stored."""

    async def play(cache, loop):
        calls = []

        @cache.wrap
        async def f(x):
            calls.append(x)
            await asyncio.sleep(1)
            no_store()
            return x

        assert await asyncio.gather(f(1), f(1)) == [1, 1]
        assert len(calls) == 1
        await f(1)
        assert len(calls) == 2

    on_loop(play)


def test_none_is_stored_as_a_response():
    cache = Cache()
    calls = []
    f = cache.wrap(calls.append)
    assert [f(1), f(1)] == [None, None]
    assert calls == [1]


def test_two_wraps_of_one_function_share_flights():
    async def play(cache, loop):
        calls = []
        double = counted(calls)

        async def slow(x):
            await asyncio.sleep(1)
            return await double(x)

        await asyncio.gather(cache.wrap(slow)(1), cache.wrap(slow)(1))
        assert len(calls) == 1

    on_loop(play)


def test_sync_function_refreshes_behind_stale_result(caplog):
    """A sync function returns its stale result while a thread refreshes it, again after a failure."""
    clock = FakeClock()
    cache = Cache(clock, ttl_s=10.0, stale_s=10.0)
    refreshed = threading.Event()
    answers = ["old", OSError("down"), "new"]

    @cache.wrap
    def f(x):
        step = answers.pop(0)
        if step != "old":
            refreshed.set()
        if isinstance(step, Exception):
            raise step
        return step

    def wait_for_the_end():
        assert refreshed.wait(30.0)
        refreshed.clear()
        for thread in threading.enumerate():
            if thread.name == "streaminfer-cache-refresh":
                thread.join(30.0)

    assert f(1) == "old"
    clock.advance(10.0)
    assert f(1) == "old"
    wait_for_the_end()
    assert "OSError: down" in caplog.text
    clock.advance(1.0)
    assert f(1) == "old"
    wait_for_the_end()
    assert f(1) == "new"
    assert answers == []


def test_errors_of_a_sync_function_are_stored():
    clock = FakeClock()
    cache = Cache(clock, negative_ttl_s=1.0)
    calls = []

    @cache.wrap
    def f(x):
        calls.append(x)
        raise KeyError(x)

    for _ in range(3):
        with pytest.raises(KeyError):
            f(1)
    clock.advance(1.0)
    with pytest.raises(KeyError):
        f(1)
    assert len(calls) == 2


def test_re_entrant_functions_raise():
    cache = Cache()

    @cache.wrap
    def f(x):
        return f(x) if x < 0 else f(x - 1) if x else 0

    assert f(3) == 0
    with pytest.raises(RuntimeError, match="re-entrant"):
        f(-1)

    async def play(cache, loop):
        @cache.wrap
        async def g(x):
            return await g(x)

        with pytest.raises(RuntimeError, match="re-entrant"):
            await g(1)

    on_loop(play)


def test_batched_function_takes_options_of_a_service():
    """A cached batched function takes a time limit, a priority and a tenant, as a service does."""

    async def main(loop):
        cache = Cache(loop.clock)
        batches = []

        async def double(batch):
            batches.append(len(batch))
            await asyncio.sleep(1.0)
            return batch * 2

        batched = si.AdaptiveBatcher(max_batch_size=8, clock=loop.clock).wrap(double)
        cached = cache.wrap(batched)
        assert inspect.signature(cached).parameters.keys() == inspect.signature(batched).parameters.keys()
        x = np.ones(2)
        ends = await asyncio.gather(
            cached(x), cached(x, timeout_s=0.5), cached(x, priority=3), cached(x, tenant="t"), return_exceptions=True
        )
        assert isinstance(ends[1], DeadlineExceeded)
        assert [end.tolist() for end in (ends[0], ends[2], ends[3])] == [[2.0, 2.0]] * 3
        assert sum(batches) == 3  # one of each tenant and priority
        assert (await cached(x, timeout_s=0.0)).tolist() == [2.0, 2.0]
        assert sum(batches) == 3
        await cached(x, stream_id="live")
        assert sum(batches) == 4
        assert cached.key_of(x) in cache.table
        assert cached.key_of(x, tenant="t") in cache.table

    run(main)


def test_flight_statistics_of_a_sync_function():
    cache = Cache()
    f = cache.wrap(module_level)
    f(1)
    f(1)
    statistics = cache.flights.statistics()
    assert (statistics.computations, statistics.collapsed, statistics.failures) == (1, 0, 0)
    assert cache.table.statistics().hits == 1


def test_uncopyable_error_is_stored_as_runtime_error():
    """An error that cannot be copied is raised unchanged; the cache stores a `RuntimeError` that describes it."""

    class Stubborn(Exception):
        def __init__(self, one, two):
            super().__init__(f"{one} {two}")

    cache = Cache(FakeClock(), negative_ttl_s=1.0)

    @cache.wrap
    def f(x):
        raise Stubborn("a", "b")

    with pytest.raises(Stubborn, match="a b"):
        f(1)
    with pytest.raises(RuntimeError, match=r"Stubborn: a b \(stored by an earlier call"):
        f(1)


# -- a fingerprint that changes --------------------------------------------------------------------------------------


class Versioned(Model):
    """Model that another version may replace while it serves."""

    changes = 0

    def become(self, fingerprint):
        self.fingerprint = fingerprint
        self.changes += 1

    def fingerprint_changes(self):
        return self.changes


def test_other_versions_have_other_keys():
    async def scenario(cache, loop):
        model = Versioned()
        cached = cache.wrap(model)
        first = cached.key_of(Request(1.0))
        assert (await cached.call(Request(1.0))).source == "model"
        assert (await cached.call(Request(1.0))).source == "cache"
        model.become("model 2")
        assert cached.key_of(Request(1.0)) != first
        assert (await cached.call(Request(1.0))).source == "model"
        model.become("model 1")
        assert (await cached.call(Request(1.0))).source == "cache"

    on_loop(scenario)


@pytest.mark.parametrize("fails", [False, True])
def test_response_across_version_change_is_not_stored(fails):
    """A response to a call in which the model changes is not stored, because version 2 may have computed it."""

    class Changing(Versioned):
        async def call(self, request):
            self.become("model 2")
            return await super().call(request)

    async def scenario(cache, loop):
        model = Changing(*[BackendError("no")] * 2) if fails else Changing()
        cached = cache.wrap(model)
        for _ in range(2):
            model.become("model 1")
            if fails:
                with pytest.raises(BackendError):
                    await cached.call(Request(1.0))
            else:
                assert (await cached.call(Request(1.0))).source == "model"
        assert len(model.asked) == 2

    on_loop(scenario, negative_ttl_s=10.0)


def test_callers_with_other_tags_do_not_share_an_entry():
    """Callers with other tags have separate entries, each bounded by the class of its tags and erased by its tags."""

    async def play(cache, loop):
        model = Model()
        service = cache.wrap(model)
        await service.call(Request(1))
        await service.call(Request(1, tags=("face", "b")))
        assert (await service.call(Request(1, tags=("b", "face", "b")))).source == "cache"
        assert len(model.asked) == 2

        await asyncio.sleep(100.0)
        assert (await service.call(Request(1))).source == "cache"
        assert (await service.call(Request(1, tags=("face", "b")))).source == "model"
        assert cache.table.erase(tag="face") == 1

    on_loop(play, retention=si.Retention(1000.0, classes={"face": si.Retention(1.0)}))


def test_waiters_with_other_tags_do_not_join():
    """Callers share a computation only if they have the same tags, because the response is stored under the tags."""

    async def play(cache, loop):
        service = cache.wrap(Model(after_s=1.0))
        await asyncio.gather(service.call(Request(1)), service.call(Request(1, tags=("face",))))
        assert cache.flights.statistics().collapsed == 0
        assert cache.table.erase(tag="face") == 1

    on_loop(play)


def module_with(source, monkeypatch, name="a_model"):
    """Return a module of this source, as an import or a reload makes it."""
    module = sys.modules.get(name)
    if module is None:
        module = types.ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
    exec(source, vars(module))  # noqa: S102 - the source is the test's
    return module


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("def f(x): return x + 1", "def f(x): return x + 2"),
        ("def f(x): return x + 1", "def f(x): return x - 1"),
        ("def f(x): return x.real", "def f(x): return x.imag"),
        ("def f(x): return [y + 1 for y in (x,)]", "def f(x): return [y + 2 for y in (x,)]"),
        ("def f(*x, k=1): return k", "def f(*x, k=2): return k"),
        ("def f(*x, k=1): return k", "def f(*x, k=1.0): return k"),
        ("def f(x): return x in {'a', 'b'}", "def f(x): return x in {'a', 'c'}"),
    ],
    ids=["constant", "operation", "name", "nested", "default", "type", "set"],
)
def test_changed_code_has_other_keys(first, second, monkeypatch):
    """A function that was changed, by a reload or a redeploy, has other keys than the function before."""
    cache = Cache()
    keys = [cache.wrap(module_with(source, monkeypatch).f).key_of(1) for source in (first, second, first)]
    assert keys[0] == keys[2] != keys[1]


def test_functions_of_one_name_do_not_share_entries(monkeypatch):
    """Two functions of one name in one module have separate entries."""
    cache = Cache()
    source = "def _(x): return x + 1\nfirst = _\ndef _(x): return x + 2\nsecond = _"
    module = module_with(source, monkeypatch)
    assert (cache.wrap(module.first)(1), cache.wrap(module.second)(1)) == (2, 3)


def test_same_code_with_other_globals_has_other_keys(monkeypatch):
    """Functions that `exec` makes of the same code in other namespaces have separate entries."""
    cache = Cache()
    module_with("", monkeypatch)
    spaces = [{"__name__": "a_model", "K": number} for number in (1, 2)]
    for space in spaces:
        exec("def f(x): return x + K", space)  # noqa: S102 - the same
    assert [cache.wrap(space["f"])(1) for space in spaces] == [2, 3]


def test_no_caller_changes_the_mask_of_a_cached_array():
    """The mask and the fill value of a masked array are each caller's own or read-only, as its elements are."""

    async def play(cache, loop):
        answer = np.ma.array([1.0, 2.0, 3.0], mask=[False, True, False], fill_value=7.0)
        service = cache.wrap(Model(answer))
        for _ in range(2):  # a write fails or changes the caller's own array: no other caller sees it
            got = (await service.call(Request(1))).outputs
            with contextlib.suppress(ValueError):
                got[0] = np.ma.masked
            with contextlib.suppress(ValueError):
                got.mask[2] = True
            with contextlib.suppress(ValueError):
                got.fill_value = 9.0
        answer.mask[0] = True
        again = (await service.call(Request(1))).outputs
        assert (again.mask.tolist(), again.fill_value) == ([False, True, False], 7.0)

    on_loop(play)


def test_a_tuple_without_arrays_keeps_its_class():
    """A tuple without arrays keeps its class, such as that of the time module, whose fields are attributes."""
    cached = EdgeCache().wrap(time.gmtime)

    assert [cached(0).tm_year, cached(0).tm_year] == [1970, 1970]


@pytest.mark.parametrize("kind", [np.ndarray, np.recarray])
def test_record_of_an_array_is_copied(kind):
    """A row of an array of records, which is a view of the array, is copied, and no caller can change the copy."""
    rows = np.zeros(2, [("a", "i4"), ("b", "f8")]).view(kind)
    cached = EdgeCache().wrap(lambda: {"row": rows[0]})
    cached()
    rows[0] = (7, 7.0)

    got = cached()["row"]

    assert (type(got), got.tolist()) == (type(rows[0]), (0, 0.0))
    with pytest.raises(ValueError, match="read-only"):
        got["a"] = 1


def test_arrays_within_an_array_are_read_only():
    """No caller can change an array inside an array of objects."""

    async def play(cache, loop):
        answer = np.empty(1, object)
        answer[0] = np.arange(3.0)
        service = cache.wrap(Model(answer))
        got = (await service.call(Request(1))).outputs
        with pytest.raises(ValueError, match="read-only"):
            got[0][0] = 5.0
        answer[0][0] = 5.0
        assert (await service.call(Request(1))).outputs[0].tolist() == [0.0, 1.0, 2.0]

    on_loop(play)


@pytest.mark.parametrize("masked", [False, True], ids=["array", "masked array"])
def test_lists_within_an_array_are_the_callers_own(masked):
    """A caller that changes a list or array inside an array of objects changes no other caller's response."""

    def split(text):
        parts = np.empty((2, 1), object)
        parts[:, 0] = [text, [[text]]], {"text": [text]}
        return np.ma.array(parts, mask=[[False], [True]]) if masked else parts

    cached = EdgeCache().wrap(split)
    for _ in range(2):
        got = np.asarray(cached("a"))
        got[0, 0][1][0].append("mine")
        got[1, 0]["text"].append("mine")

    again = cached("a")

    assert (type(again), np.asarray(again).tolist()) == (type(split("a")), [[["a", [["a"]]]], [{"text": ["a"]}]])
    with pytest.raises(ValueError, match="read-only"):
        again[0, 0] = "mine"


@pytest.mark.parametrize("kind", ["array", "recarray", "masked array", "record"])
def test_objects_in_records_are_the_callers_own(kind):
    """A caller that changes an object in the field of a record changes no other caller's response."""
    first = np.arange(3.0)

    def table(text):
        rows = np.zeros(2, [("n", "i4"), ("x", object), ("inner", [("y", object, 2)])])
        rows["x"] = [first, [text]]
        rows["inner"]["y"][:] = {"text": text}, None
        if kind == "record":
            return rows[0]
        if kind == "masked array":
            return np.ma.array(rows)
        return rows.view(np.recarray) if kind == "recarray" else rows

    cached = EdgeCache().wrap(table)
    for _ in range(3):
        got = np.asarray(cached("a"))
        rows = got.reshape(-1)
        assert rows["x"][0].tolist() == [0.0, 1.0, 2.0]
        assert rows["inner"]["y"][0].tolist() == [{"text": "a"}, None]
        with pytest.raises(ValueError, match="read-only"):
            rows["x"][0][0] = 7.0
        with pytest.raises(ValueError, match="read-only"):
            got["n"] = 7
        rows["inner"]["y"][0][0]["text"] = "mine"
        first[0] = 7.0

    assert type(cached("a")) is type(table("a"))


class Hanging:
    """A service whose second call never ends."""

    fingerprint = "hanging"

    def __init__(self, after_s):
        self.after_s = after_s
        self.asked = []

    async def call(self, request):
        self.asked.append(request)
        number = len(self.asked)
        await (asyncio.Event().wait() if number == 2 else asyncio.sleep(self.after_s))
        return Response(number, False, "model")


@pytest.mark.parametrize(("after_s", "limit_s"), [(0.1, 1.0), (2.0, 8.0)])
def test_hanging_refresh_of_a_service_is_cancelled(after_s, limit_s, caplog):
    """A late refresh does not block the next refresh, and has the instant of its cancellation as its deadline."""

    async def play(cache, loop):
        model = Hanging(after_s)
        service = cache.wrap(model)
        await service.call(Request(1))
        await asyncio.sleep(1.0)
        assert (await service.call(Request(1, deadline_ns=loop.now_ns + 1))).degraded
        await asyncio.sleep(0)
        assert model.asked[1].deadline_ns == loop.now_ns + round((limit_s + 10.0) * 1e9)

        await asyncio.sleep(limit_s)
        assert cache.flights.statistics().refresh_failures == 1
        assert (await service.call(Request(1))).degraded
        await asyncio.sleep(after_s + 0.1)
        assert (await service.call(Request(1))).outputs == 3
        await asyncio.sleep(10.0)  # a late refresh may run for 10 s

    on_loop(play, ttl_s=1.0, stale_s=100.0)
    assert f"a refresh took longer than {limit_s:g} s" in caplog.text


def test_hanging_refresh_of_a_function_is_cancelled(caplog):
    """A late refresh of an async function does not block the next refresh, and is cancelled."""

    async def play(cache, loop):
        calls = []

        async def double(x):
            calls.append(x)
            await (asyncio.Event().wait() if len(calls) == 2 else asyncio.sleep(0.1))
            return 2 * x

        cached = cache.wrap(double)
        await cached(1)
        await asyncio.sleep(1.0)
        assert await cached(1) == 2
        await asyncio.sleep(1.0)
        assert await cached(1) == 2
        await asyncio.sleep(0.2)
        assert len(calls) == 3
        await asyncio.sleep(10.0)

    on_loop(play, ttl_s=1.0, stale_s=100.0)
    assert "a refresh took longer than 1 s" in caplog.text


def test_deletion_does_not_affect_other_keys():
    """A response that is computed while other keys are deleted is stored."""

    async def play(cache, loop):
        model = Model(after_s=0.1)
        service = cache.wrap(model)
        for number in range(20):
            cache.table[f"other {number}"] = 1
            asked = asyncio.ensure_future(service.call(Request(number)))
            await asyncio.sleep(0.05)
            assert cache.table.pop(f"other {number}") == 1
            await asked
        assert cache.flights.statistics().not_stored == 0
        for number in range(20):
            assert (await service.call(Request(number))).source == "cache"

    on_loop(play)


def pop(cache, key):
    cache.pop(key, None)


def delete(cache, key):
    with pytest.raises(KeyError):
        del cache[key]


def pop_item(cache, key):
    cache[key] = "old"
    assert cache.popitem() == (key, "old")


def put_too_large(cache, key):
    cache[key] = "old"
    assert not cache.put(key, "new", size=2000)


@pytest.mark.parametrize("take", [pop, delete, pop_item, put_too_large])
def test_key_deleted_while_computed_is_not_stored(take):
    """If a key is deleted, with an entry or without, the result of its running computation is not stored."""

    async def play(cache, loop):
        service = cache.wrap(Model(after_s=0.1))
        key = service.key_of(Request(1))
        asked = asyncio.ensure_future(service.call(Request(1)))
        await asyncio.sleep(0.05)
        take(cache.table, key)
        await asked
        assert cache.flights.statistics().not_stored == 1
        assert key not in cache.table

    on_loop(play, max_bytes=1000)


def test_too_many_deletions_count_for_all_keys():
    """The cache knows up to 4,096 deletions by key; one more makes all of them count for every key."""
    cache = EdgeCache()
    before = cache._memory.erasures
    cache.pop("a", None)
    for number in range(4095):
        cache.pop(number, None)
        assert not cache._memory.erased_since("b", None, before)
        assert cache._memory.erased_since("a", None, before)
        assert cache._memory.erased_since(number, None, cache._memory.erasures - 1)
        assert not cache._memory.erased_since(number, None, cache._memory.erasures)
    cache.pop("another", None)
    assert cache._memory.erased_since("b", None, cache._memory.erasures - 1)
    assert not cache._memory.erased_since("b", None, cache._memory.erasures)
    cache.clear()
    assert cache._memory.erased_since("b", None, cache._memory.erasures - 1)
    assert not cache._memory.erased_since("b", None, cache._memory.erasures)


class Switched:
    """Service that responds, fails, hangs or swallows its cancellation, by its ``state``."""

    fingerprint = "switched"

    def __init__(self):
        self.state = "well"
        self.after_s = 0.0
        self.calls = 0
        self.swallowed = asyncio.Event()

    async def call(self, request):
        self.calls += 1
        if self.state == "down":
            raise BackendError("down")
        if self.state == "hangs":
            await asyncio.Event().wait()
        if self.state == "swallows":
            while not self.swallowed.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await self.swallowed.wait()
        await asyncio.sleep(self.after_s)
        return Response(request.inputs, False, "model")


async def ask_all(service, keys, loop, until_ns):
    """Request every key again and again, until an instant; return how many of the last responses were fresh."""
    fresh = 0
    while loop.now_ns < until_ns:
        answers = [await service.call(Request(key)) for key in range(keys)]
        fresh = sum(not answer.degraded for answer in answers)
        await asyncio.sleep(0.05)
    return fresh


@pytest.mark.parametrize(("state", "keys"), [("down", 600), ("hangs", 200), ("swallows", 20)])
def test_failed_refreshes_recover_within_a_second(state, keys, caplog):
    """Keys whose refreshes fail or hang recover within a second after the model has recovered.

    A dead model gets at most 256 refreshes a second, with one traceback; after it recovers, every key is refreshed.
    """

    async def play(cache, loop):
        model = Switched()
        model.after_s = 0.001
        service = cache.wrap(model)
        await ask_all(service, keys, loop, loop.now_ns + 1)
        await asyncio.sleep(10.0)
        model.state, model.calls = state, 0
        assert await ask_all(service, keys, loop, loop.now_ns + 500_000_000) == 0
        assert model.calls <= 256
        assert len(caplog.records) == (1 if state == "down" else 0)
        assert await ask_all(service, keys, loop, loop.now_ns + 3_000_000_000) == 0
        assert len(caplog.records) == 1
        model.state = "well"
        assert await ask_all(service, keys, loop, loop.now_ns + 1_030_000_000) == keys
        model.swallowed.set()
        await asyncio.sleep(10.0)

    on_loop(play, ttl_s=10.0, stale_s=3600.0)


def test_late_refresh_reveals_a_slower_model():
    """A late refresh may run for 10 s more; its response is stored, and the next one gets a longer limit."""

    async def play(cache, loop):
        model = Switched()
        model.after_s = 0.1
        service = cache.wrap(model)
        await service.call(Request(1))
        await asyncio.sleep(20.0)
        model.after_s = 3.0
        assert (await service.call(Request(1))).degraded
        await asyncio.sleep(3.1)
        assert not (await service.call(Request(1))).degraded
        await asyncio.sleep(20.0)
        await service.call(Request(1))
        await asyncio.sleep(3.1)
        statistics = cache.flights.statistics()
        assert (statistics.refreshes, statistics.refresh_failures) == (2, 1)

    on_loop(play, ttl_s=20.0, stale_s=3600.0)


@pytest.mark.parametrize("drain", [True, False])
def test_stop_ends_despite_swallowed_cancellation(drain, caplog):
    """If a computation swallows its cancellation, a stop ends after 1 s with a warning, and waiters get ``Closed``."""

    async def play(cache, loop):
        model = Switched()
        model.after_s = 0.001
        service = cache.wrap(model)
        await service.call(Request(1))
        await asyncio.sleep(2.0)
        model.state = "swallows"
        await service.call(Request(1))
        await asyncio.sleep(1.5)
        waiting = [] if drain else [asyncio.ensure_future(service.call(Request(2))) for _ in range(3)]
        await asyncio.sleep(0.1)
        begun_ns = loop.now_ns
        await service.stop(drain=drain)
        assert loop.now_ns - begun_ns == 1_000_000_000
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [Closed] * len(waiting)
        model.swallowed.set()
        await asyncio.sleep(0.1)

    on_loop(play, ttl_s=2.0, stale_s=3600.0)
    assert "a computation runs 1 s after it was cancelled" in caplog.text


def test_refresh_outliving_a_stop_raises_no_error():
    """A refresh that continues after a stop cancelled it passes its limit without an error."""

    async def play(cache, loop):
        model = Switched()
        service = cache.wrap(model)
        await service.call(Request(1))
        await asyncio.sleep(2.0)
        model.state = "swallows"
        await service.call(Request(1))
        await asyncio.sleep(0.1)
        await service.stop(drain=False)
        await asyncio.sleep(20.0)
        model.swallowed.set()
        await asyncio.sleep(0.1)

    on_loop(play, ttl_s=2.0, stale_s=3600.0)


def test_erased_response_is_not_held_by_its_context():
    """A task that a computation began holds the context of the computation, which does not hold an erased response."""

    async def play(cache, loop):
        lasting = asyncio.Event()
        begun = []

        class Beginning:
            async def call(self, request):
                begun.append(asyncio.ensure_future(lasting.wait()))
                return Response(np.zeros(4), False, "model")

        service = cache.wrap(Beginning())
        await service.call(Request(1, subject="anna"))
        left = weakref.ref(cache.table[service.key_of(Request(1, subject="anna"))])
        assert cache.table.erase(subject="anna") == 1
        await asyncio.sleep(0)
        gc.collect()
        assert left() is None
        lasting.set()
        await asyncio.sleep(0.1)

    on_loop(play)


def test_unweighable_results_are_returned_unstored(caplog):
    """Results that cannot be weighed are returned, not stored, and logged once."""

    class Odd:
        def __sizeof__(self):
            raise RuntimeError("no size")

    cache = si.EdgeCache(max_bytes=1000)
    compute = cache.wrap(lambda _: Odd())
    assert [type(compute(n)) for n in range(5)] == [Odd] * 5
    assert (len(cache), cache.statistics().flights.not_stored) == (0, 5)
    [record] = caplog.records
    assert record.message.startswith("storing a result failed: RuntimeError: no size")
