"""How long an answer is used: a time that its computation says, jitter, and what is stale."""

import asyncio
import types

import pytest

import streaminfer as si
from streaminfer.caching import fresh_for
from streaminfer.caching.retention import Retention
from streaminfer.testing import ScriptedBackend, run

pytestmark = pytest.mark.uncompiled


def answers_until_s(cache, loop, function, *arguments, every_s=1.0, most=100):
    """How many seconds an answer is given before the function is called again."""

    async def count():
        wrapped = cache.wrap(function)
        first = await wrapped(*arguments)
        for seconds in range(1, most):
            await asyncio.sleep(every_s)
            if await wrapped(*arguments) != first:
                return seconds * every_s
        return None

    return count()


class Counting:
    """A function whose answers differ; it says how long they are fresh."""

    fingerprint = "counting"

    def __init__(self, *said):
        self.said = said
        self.called = 0

    async def __call__(self, _):
        self.called += 1
        for seconds in self.said:
            fresh_for(seconds)
        return self.called


@pytest.mark.parametrize(
    ("ttl_s", "said", "lasts_s"),
    [(30.0, (), 30), (30.0, (5.0,), 5), (30.0, (7.0, 5.0, 9.0), 5), (30.0, (60.0,), 30), (None, (5.0,), 5)],
    ids=["nothing", "less", "shortest of several", "more than ttl_s", "no ttl_s"],
)
def test_fresh_for_bounds_an_answer(ttl_s, said, lasts_s):
    """An answer is fresh as long as its computation says, and at most ``ttl_s``."""

    async def main(loop):
        cache = si.EdgeCache(ttl_s=ttl_s, clock=loop.clock)
        assert await answers_until_s(cache, loop, Counting(*said), 1) == lasts_s

    run(main)


def test_fresh_for_of_a_sync_function():
    """A synchronous function says it the same way."""
    seconds = 0
    cache = si.EdgeCache(ttl_s=30.0, clock=lambda: seconds * 10**9)
    called = []

    @cache.wrap
    def double(x):
        called.append(x)
        fresh_for(5.0)
        return 2 * x

    for seconds in range(11):  # noqa: B007 - read by the clock
        assert double(1) == 2
    assert called == [1, 1, 1]


def test_fresh_for_a_service_around_a_batcher():
    """A layer behind the cache says it from the response, whatever computes in batches behind it."""

    class ByScore:
        def wrap(self, inner):
            async def scored(request):
                response = await inner.call(request)
                fresh_for(1.0 if response.outputs < 0 else 60.0)
                return response

            return types.SimpleNamespace(call=scored)

    async def main(loop):
        layers = si.EdgeCache(ttl_s=60.0), ByScore(), si.AdaptiveBatcher(max_batch_size=4)
        async with si.Stack(*layers, ScriptedBackend(duration_s=0.01), clock=loop.clock) as service:
            for x in (-1.0, 1.0):
                await service.call(si.Request(x))
            await asyncio.sleep(2.0)
            sources = [(await service.call(si.Request(x))).source for x in (-1.0, 1.0)]
            assert sources[1] == "cache"
            assert sources[0] != "cache"

    run(main)


def test_fresh_for_within_the_policy():
    """A retention policy's maximum age holds whatever a computation says."""

    async def main(loop):
        cache = si.EdgeCache(retention=Retention(10.0), clock=loop.clock)
        assert await answers_until_s(cache, loop, Counting(60.0), 1) == 10

    run(main)


def test_fresh_for_refuses_what_is_no_time():
    """Its argument is checked inside and outside of a computation."""
    with pytest.raises(ValueError, match="seconds: expected a finite number of seconds ≥ 0, got -1"):
        fresh_for(-1.0)


def spread(seed, share=0.5, **settings):
    """Seconds for which each of twenty answers of one moment is fresh."""

    async def main(loop):
        cache = si.EdgeCache(ttl_s=100.0, ttl_jitter=share, seed=seed, clock=loop.clock, **settings)
        calls = [answers_until_s(cache, loop, Counting(), n, every_s=0.5, most=300) for n in range(20)]
        return await asyncio.gather(*calls)

    return run(main)


def test_jitter_spreads_the_ends():
    """Answers of one moment end at different times, none later than ``ttl_s`` or earlier than its share less."""
    lasted_s = spread(seed=1)

    assert len(set(lasted_s)) > 15
    assert 50.0 <= min(lasted_s) <= 60.0
    assert 90.0 <= max(lasted_s) <= 100.0


def test_jitter_replays_with_a_seed():
    """The same seed draws the same times."""
    assert spread(seed=1) == spread(seed=1) != spread(seed=2)


def test_jitter_of_the_policy_time():
    """A time that a policy cuts is spread as well."""
    assert len(set(spread(seed=1, retention=Retention(80.0)))) > 15


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_jitter_is_a_share(share):
    """A share is at least 0 and less than 1."""
    with pytest.raises(ValueError, match="ttl_jitter: expected a share ≥ 0 and < 1"):
        si.EdgeCache(ttl_jitter=share)
