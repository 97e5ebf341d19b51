"""Calls whose types a type checker must know: `test_typing.py` runs mypy on this module, which never runs."""

import math
from typing import assert_type

import streaminfer as si
from streaminfer.batching import BatchedFunction, simulate
from streaminfer.batching.batched_service import BatchedService

breaker = si.CircuitBreaker()
limit = si.ConcurrencyLimit()
budget = si.RetryBudget()
hedge = si.Hedge()
cache = si.EdgeCache(maxsize=8, eviction="s3fifo")
batcher = si.AdaptiveBatcher(max_batch_size=8, policy="greedy")
backend = si.CpuBackend(abs)


@breaker
def label(text: str, *, top: int = 1) -> list[str]:
    return [text] * top


@limit
@budget
async def fetch(number: int) -> bytes:
    return bytes(number)


@hedge
async def hedged(number: int) -> bytes:
    return bytes(number)


@cache.wrap
def cached(text: str, *, top: int = 1) -> list[str]:
    return [text] * top


@si.Telemetry("t").wrap
def timed(number: int) -> str:
    return str(number)


@si.RateLimit(1.0).wrap
def limited(number: int) -> str:
    return str(number)


@si.testing.faults.FaultPlan().wrap
def faulty(number: int) -> str:
    return str(number)


@batcher.wrap
def batched(rows: list[float]) -> list[float]:
    return rows


async def calls(stack: si.Stack) -> None:
    assert_type(label("a", top=2), list[str])
    assert_type(await fetch(1), bytes)
    assert_type(await hedged(1), bytes)
    assert_type(cached("a"), list[str])
    assert_type(cached.key_of("a", top=1), bytes)
    assert_type(timed(1), str)
    assert_type(limited(1), str)
    assert_type(faulty(1), str)
    assert_type(batched, BatchedFunction)
    assert_type(batcher.wrap(backend), BatchedService)
    await batched(1.0, timeout_s=math.inf, priority=1)
    await stack.map([1.0], timeout_s=1.0, tags=("a",), concurrency=3)
    await stack.rows([1.0], priority=1)
    assert_type(await stack.call(si.Request(1.0), timeout_s=1.0), si.Response)
    stack.blocking()(1.0, timeout_s=1.0, key="k", wait=True)
    groups = [si.placement.DeviceGroup(kind="cpu", slots=4, price=1.0)]
    assert_type(si.placement.Site(name="berlin", devices=groups, regions=["eu"]).name, str)

    si.Batcher(max_batch_size=8)  # expect: attr-defined
    si.caching.Cache(maxsize=8)  # expect: attr-defined
    label(1)  # expect: arg-type
    label("a", most=2)  # expect: call-arg
    await fetch("a")  # expect: arg-type
    cached("a", top="b")  # expect: arg-type
    cached.key_of(1)  # expect: arg-type
    timed("a")  # expect: arg-type
    limited("a")  # expect: arg-type
    faulty("a")  # expect: arg-type
    await batched(1.0, timeout=1.0)  # expect: call-arg
    await stack.map([1.0], key="k")  # expect: call-arg
    await stack.rows([1.0], tenant=1)  # expect: arg-type
    stack.blocking()(1.0, timeout=1.0)  # expect: call-arg
    stack.blocking().map([1.0], wait=True)  # expect: call-arg
    batcher.reconfigure(policy="eager")  # expect: arg-type
    si.AdaptiveBatcher(max_batch_size=8, policy="fifo")  # expect: arg-type
    si.EdgeCache(maxsize=8, eviction="fifo")  # expect: arg-type
    si.CpuBackend(abs, executor="fork")  # expect: arg-type
    si.TritonBackend("http://localhost:8000", "m", protocol="soap")  # expect: arg-type
    si.OnnxBackend("m.onnx", non_finite="drop")  # expect: arg-type
    si.SLO("o", threshold_s=1.0, alerts="loud")  # expect: call-arg
    si.caching.RetentionLog().record(
        "lost",  # expect: arg-type
        where="w",
        data_class="",
        count=1,
        reason="r",
    )
    simulate([0.0], slo_s=1.0, service_time=None, max_batch_size=1, policy="fifo")  # expect: arg-type
