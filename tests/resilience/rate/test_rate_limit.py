"""Rate limits: the rate of a tenant, the bucket that a call draws from, and the size of the table."""

import asyncio
import inspect
import threading

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import streaminfer as si
from streaminfer.request import Request
from streaminfer.resilience import Rate, RateLimit
from streaminfer.resilience.rate.buckets import Bucket, TenantBuckets
from streaminfer.testing import ScriptedBackend, run

S = 1_000_000_000
SECOND = Bucket(S, 0)


@pytest.fixture
def limit(clock):
    return RateLimit(10.0, burst=3, clock=clock)


# -- one bucket -------------------------------------------------------------------------------------------------


def test_a_burst_then_the_rate(limit, clock):
    """After a pause ``burst`` requests pass at once, then one every ``1 / per_s`` seconds."""
    assert [limit.try_acquire("a") for _ in range(4)] == [True, True, True, False]
    clock.advance(0.1)
    assert [limit.try_acquire("a") for _ in range(2)] == [True, False]
    clock.advance(60.0)
    assert [limit.try_acquire("a") for _ in range(4)] == [True, True, True, False]


def test_retry_after_s_is_exact(limit, clock):
    """``retry_after_s`` is exact: one nanosecond earlier a request is rejected, at that instant it is admitted."""
    for _ in range(3):
        limit.acquire("a")
    clock.advance(0.03)

    with pytest.raises(si.Overloaded) as rejection:
        limit.acquire("a")

    assert rejection.value.retry_after_s == limit.retry_after_s("a") == 0.07
    clock.now_ns += 70_000_000 - 1
    assert not limit.try_acquire("a")
    clock.now_ns += 1
    assert limit.retry_after_s("a") == 0.0
    assert limit.try_acquire("a")


def test_rejected_request_draws_nothing(limit, clock):
    """However often a tenant is rejected, its next request passes at the same instant."""
    for _ in range(100):
        limit.try_acquire("a")
    clock.advance(0.1)
    assert limit.try_acquire("a")


def test_the_default_burst_is_one_second(clock):
    """Without ``burst`` the requests of one second pass at once, at least one."""
    for per_s, burst in ((5.0, 5), (2.5, 2), (0.1, 1)):
        limit = RateLimit(per_s, clock=clock)
        assert [limit.try_acquire() for _ in range(burst + 1)] == [True] * burst + [False]


@settings(deadline=None, max_examples=60)
@given(
    burst=st.integers(1, 5),
    gaps=st.lists(st.integers(0, 3 * S), min_size=1, max_size=60),
)
def test_any_span_admits_at_most_burst_and_rate(burst, gaps):
    """In any span ``t`` at most ``burst + t · per_s`` requests are admitted, and ``wait_ns`` predicts each decision."""
    buckets = TenantBuckets(Bucket(S, (burst - 1) * S), {}, 10)
    now, admitted = 0, []
    for gap in gaps:
        now += gap
        foretold = buckets.wait_ns("a", now)
        assert buckets.take("a", now) == foretold
        if not foretold:
            admitted.append(now)
    for first, start in enumerate(admitted):
        for last in range(first, len(admitted)):
            assert last - first + 1 <= burst + (admitted[last] - start) / S


@settings(deadline=None, max_examples=60)
@given(
    max_tenants=st.integers(1, 3),
    calls=st.lists(st.tuples(st.integers(0, 2 * S), st.integers(0, 5)), min_size=1, max_size=60),
)
@example(max_tenants=1, calls=[(0, 0), (S // 2, 0), (0, 1), (0, 1), (0, 1), (S // 2, 1)])
def test_retry_after_s_holds_for_shared_buckets(max_tenants, calls):
    """Even with more tenants than the table has places, ``wait_ns`` predicts each decision."""
    buckets = TenantBuckets(Bucket(S, 2 * S), {}, max_tenants)
    now = 0
    for gap, tenant in calls:
        now += gap
        foretold = buckets.wait_ns(tenant, now)
        assert buckets.take(tenant, now) == foretold


# -- tenants ----------------------------------------------------------------------------------------------------


def test_tenants_do_not_draw_from_each_other(limit):
    """One tenant that sends too much costs no other tenant a request."""
    for _ in range(10):
        limit.try_acquire("a")
    assert limit.try_acquire("b")
    assert limit.try_acquire(None)


def test_a_tenant_can_have_its_own_rate_or_none(clock):
    """``tenants`` has rates of single tenants; the rate ``None`` is no limit, the key ``None`` is for no tenant."""
    limit = RateLimit(1.0, tenants={"big": Rate(2.0, burst=4), "inside": None, None: Rate(3.0)}, clock=clock)
    passed = {tenant: sum(limit.try_acquire(tenant) for _ in range(9)) for tenant in ("big", "inside", None, "other")}
    assert passed == {"big": 4, "inside": 9, None: 3, "other": 1}


def test_a_rate_can_change_while_it_runs(limit, clock):
    """``set_rate`` keeps the count of requests that the tenant has drawn, so a change allows no extra requests."""
    for _ in range(3):
        limit.acquire("a")
    limit.set_rate("a", Rate(1.0, burst=1))
    assert limit.retry_after_s("a") == 1.0
    limit.set_rate("a", None)
    assert all(limit.try_acquire("a") for _ in range(50))
    limit.set_rate("a", Rate(1.0, burst=1))
    assert [limit.try_acquire("a") for _ in range(2)] == [True, False]


def test_a_higher_rate_counts_at_once(clock):
    """Requests that were drawn at a low rate are restored at the new rate."""
    limit = RateLimit(1 / 60, burst=10, clock=clock)
    assert [limit.try_acquire("a") for _ in range(11)] == [True] * 10 + [False]
    for burst, left in ((20, 10), (40, 20)):
        limit.set_rate("a", Rate(10.0, burst=burst))
        assert sum(limit.try_acquire("a") for _ in range(50)) == left
        assert limit.retry_after_s("a") == 0.1


# -- memory -----------------------------------------------------------------------------------------------------


def test_a_full_bucket_is_forgotten():
    """A bucket that is full again leaves the table when another tenant comes."""
    buckets = TenantBuckets(SECOND, {}, 1000)
    for number in range(1000):
        buckets.take(number, number * 2 * S)
    assert buckets.tenants == 1
    assert len(buckets._heap) == 1


def test_a_bucket_in_use_is_never_forgotten():
    """A tenant cannot refill its bucket by using other names: tenants beyond the table share one bucket."""
    buckets = TenantBuckets(Bucket(S, S), {}, 3)
    assert [buckets.take("a", 0), buckets.take("a", 0)] == [0, 0]
    passed = sum(buckets.take(number, 0) == 0 for number in range(100))
    assert passed == 2 + 2  # two places were left, and the shared bucket has a burst of two
    assert buckets.tenants == 3
    assert buckets.shared == 98
    assert buckets.take("a", 0) == S
    assert buckets.wait_ns("another", 0) == S


def test_named_tenant_has_bucket_when_table_is_full():
    """A tenant with a rate of its own has a bucket even if the table is full.

    A flood of other tenants does not affect a tenant that has a rate of its own.
    """
    buckets = TenantBuckets(SECOND, {"big": SECOND}, 1)
    for number in range(10):
        buckets.take(number, 0)
    assert buckets.take("big", 0) == 0


def test_reused_buckets_keep_their_heap_entry():
    """The bucket of a busy tenant stays after its instant in the heap has passed, and has one entry there."""
    buckets = TenantBuckets(Bucket(S, 10 * S), {}, 100)
    for second in range(0, 50, 2):
        for _ in range(3):
            buckets.take("busy", second * S)
        buckets.take(second, second * S)
    assert buckets.tenants == 2
    assert len(buckets._heap) == 2
    assert buckets.wait_ns("busy", 48 * S) > 0


# -- services and functions -------------------------------------------------------------------------------------


def test_service_is_limited_by_tenant_of_each_request():
    """In a stack, a request draws from the bucket of its tenant, and the error names the tenant."""

    async def main(loop):
        limit = RateLimit(1.0, name="faces")
        async with si.Stack(limit, ScriptedBackend(), clock=loop.clock) as service:
            await service(1.0, tenant="a")
            await service(1.0, tenant="b")
            await service(1.0)
            with pytest.raises(
                si.Overloaded, match=r"^rate limit 'faces' of tenant 'a' is reached; retry after 1.000 s$"
            ):
                await service(1.0, tenant="a")
            with pytest.raises(si.Overloaded, match="of requests without a tenant is reached"):
                await service(1.0)
            await asyncio.sleep(1.0)
            await service(1.0, tenant="a")
            seen = service.statistics().layers["RateLimit"]
            assert (seen.admitted, seen.rejected, seen.tenants) == (4, 2, 3)

    run(main)


def test_admission_tells_and_takes_nothing(clock):
    """``admission`` draws nothing; it is the rejection that a call would get, or the admission of the inner service."""
    asked = []

    class Inner:
        async def call(self, request):
            return si.Response(1.0)

        def admission(self, request, now_ns):
            asked.append(request)
            return si.protocols.Admission(False, "closed")

    limit = RateLimit(1.0, clock=clock)
    limited = limit.wrap(Inner())
    request = Request(1.0, tenant="a")
    for _ in range(3):
        assert limited.admission(request, clock()).reason == "closed"
    limit.acquire("a")
    verdict = limited.admission(request, clock())
    assert (verdict.ok, verdict.reason, verdict.retry_after_s) == (False, "rate_limit", 1.0)
    assert len(asked) == 3


def test_a_layer_draws_at_the_instant_it_is_given(clock):
    """``enter`` and ``admission`` judge by their ``now_ns``, and do not read the clock again."""
    service = RateLimit(1.0, burst=1, clock=clock).wrap(_Answers())
    now_ns = clock()
    service.enter(Request(1.0), now_ns)
    assert not service.admission(Request(1.0), now_ns).ok
    service.enter(Request(1.0), now_ns + S)


def test_another_key_than_the_tenant(clock):
    """``by`` returns the key of the bucket that a request draws from."""
    limited = RateLimit(1.0, clock=clock).wrap(_Answers(), by=lambda request: request.subject)
    asyncio.run(limited.call(Request(1.0, tenant="a", subject="x")))
    asyncio.run(limited.call(Request(1.0, tenant="a", subject="y")))
    with pytest.raises(si.Overloaded, match="tenant 'x'"):
        asyncio.run(limited.call(Request(1.0, tenant="b", subject="x")))


class _Answers:
    async def call(self, request):
        return si.Response(1.0)


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_limited_function_stays_sync_or_async(clock, is_async):
    """A function has one bucket, or one for each key that ``by`` returns, and stays sync or async."""

    def plain(user, x):
        return x

    async def other(user, x):
        return x

    function = other if is_async else plain

    def call(limited, *arguments):
        result = limited(*arguments)
        return asyncio.run(result) if is_async else result

    limit = RateLimit(1.0, clock=clock)
    by_user = limit.wrap(function, by=lambda user, x: user)
    assert inspect.iscoroutinefunction(by_user) is is_async
    assert by_user.__name__ == function.__name__
    assert call(by_user, "a", 1) == 1
    assert call(by_user, "b", 2) == 2
    with pytest.raises(si.Overloaded):
        call(by_user, "a", 3)
    for_all = RateLimit(1.0, clock=clock)(function)
    assert call(for_all, "a", 1) == 1
    with pytest.raises(si.Overloaded):
        call(for_all, "b", 1)


def test_threads_get_no_more_than_the_burst(clock):
    """Threads that draw at the same time get exactly the burst in total."""
    limit = RateLimit(1.0, burst=500, clock=clock)
    passed = []

    def draw():
        passed.append(sum(limit.try_acquire("a") for _ in range(300)))

    threads = [threading.Thread(target=draw) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(passed) == 500


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RateLimit(0.0), "per_s: expected a number of requests a second"),
        (lambda: RateLimit(True), "per_s: expected a number of requests a second"),
        (lambda: RateLimit(1.0, burst=0), "burst: expected a whole number ≥ 1, got 0"),
        (lambda: RateLimit(1.0, tenants=["a"]), "tenants: expected a mapping or None"),
        (lambda: RateLimit(1.0, tenants={"a": 5.0}), r"tenants\['a'\]: expected a Rate or None, got 5.0"),
        (lambda: RateLimit(1.0).set_rate("a", 5.0), "rate: expected a Rate or None, got 5.0"),
        (lambda: RateLimit(1.0, max_tenants=0), "max_tenants: expected a whole number ≥ 1"),
        (lambda: RateLimit(1.0, name=3), "name: expected a string"),
        (lambda: RateLimit(1.0, clock=3), "clock: expected a callable or None"),
        (lambda: RateLimit(1.0).wrap(_Answers(), by=3), "by: expected a function or None"),
        (lambda: RateLimit(1.0).wrap(ScriptedBackend()), "inner: expected a service or a function"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_stack_rejects_rate_limit_inside_batcher():
    """A stack rejects a rate limit inside a batcher, because a batch has rows of several tenants."""
    with pytest.raises(TypeError, match="rows of several tenants"):
        si.Stack(si.AdaptiveBatcher(max_batch_size=2), RateLimit(1.0), ScriptedBackend())
