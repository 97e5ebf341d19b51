"""Batchers of the peers, each around an async batch function, and the settings that are tried for each.

Each maker returns ``(call, stop)``: an async callable of one item, and a function that stops the batcher. The batchers
differ as follows:

* *BentoML's CorkDispatcher* has a latency setting and cancels items that it expects to exceed it; it polls once per
  millisecond while items are queued. It ignores a caller's cancellation and runs the item, so its callers do not
  cancel here.
* *async-batcher* rejects items when its queue is full, if a size is set. One cancelled request leaves its whole batch
  without a response, so its callers must not cancel.
* *batched.aio* leaves out cancelled items at their turn; it polls at its timeout while idle.
* *Ray's serve.batch* forms batches without checking whether one runs, and leaves out cancelled items when a batch runs.
  It reads its settings from its replica: here the replica is a stand-in, so no cluster is needed.
* *smartbatch* waits up to its time for further items, forms no batch while one runs, rejects items that it expects to
  wait longer than one and a half times its targets, and bypasses a full queue after a second. It uses the wall clock.
  It does not leave out cancelled items when a batch runs, so its callers do not cancel here.

None of them takes a priority or a deadline per request. None uses a thread when the batch function is async.
"""

import itertools
import time
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from unittest import mock

from _lib.workload import BATCH, Contestant

REFUSED = object()


def minimal(infer, *, max_batch_size=BATCH):
    from _lib.floor import MinimalGreedy

    return MinimalGreedy(infer, max_batch_size), None


def bentoml_cork(infer, *, max_batch_size=100, max_latency_ms=60_000):
    from bentoml._internal.marshal.dispatcher import CorkDispatcher

    dispatcher = CorkDispatcher(
        max_latency_in_ms=max_latency_ms,
        max_batch_size=max_batch_size,
        fallback=lambda: REFUSED,
        get_batch_size=lambda _: 1,
    )
    return dispatcher(infer), dispatcher.shutdown


def async_batcher(infer, **settings):
    from async_batcher.batcher import AsyncBatcher

    class Batcher(AsyncBatcher):
        async def process_batch(self, batch):
            return await infer(batch)

    batcher = Batcher(**settings)
    return batcher.process, lambda: batcher.stop(force=True)


def batched_aio(infer, **settings):
    from batched import aio

    processor = aio.AsyncBatchProcessor(infer, **settings)
    return processor, processor.__del__


def ray_serve_batch(infer, **settings):
    from ray import serve

    _pretend_replica()

    @serve.batch(**settings)
    async def batch(items):
        return await infer(items)

    return batch, None


def smartbatch(infer, **settings):
    import logging

    from smartbatch import decorator

    logging.getLogger().setLevel(logging.WARNING)  # importing smartbatch shows all that is logged
    logging.getLogger("smartbatch").setLevel(logging.CRITICAL)  # it warns of each full queue

    async def run(items):  # smartbatch reads the signature of its function
        return await infer(items)

    batcher = decorator.Batcher(run, **settings)
    return batcher.process_single, batcher.stop


def _pretend_replica():
    from ray.serve import context

    context._INTERNAL_REPLICA_CONTEXT = SimpleNamespace(
        app_name="bench",
        deployment="bench",
        replica_tag="bench",
        _deployment_config=SimpleNamespace(max_ongoing_requests=10**6),
    )


@contextmanager
def virtual_clocks(loop):
    """Replace the clocks of the module `time`, which peers read, by the loop's time; a reading takes a nanosecond.

    Ray polls the clock until an instant, which a clock that stands still would never reach.
    """

    def read():
        loop.now_ns += 1
        return loop.now_ns / 1e9

    with ExitStack() as patches:
        for name in ("time", "monotonic", "perf_counter"):
            patches.enter_context(mock.patch.object(time, name, read))
        yield


def contestant(make, *, cancels=False, **settings):
    """Return a peer with settings, for a virtual clock; it is warmed up, so that its start is not measured."""

    def start(_loop, infer):
        call, _ = make(infer, **settings)
        return lambda number, _deadline_ns, _priority: call(number)

    words = ", ".join(
        f"{name}={value}" for name, value in settings.items() if name not in {"max_batch_size", "batch_size"}
    )
    return Contestant(
        start,
        settings=words + (", callers cancel" if cancels else ""),
        rejections=rejections(make),
        cancels=cancels,
        warm_up=True,
        patches=virtual_clocks,
    )


def rejections(make):
    """Return the exceptions that a peer raises for requests that it rejects."""
    if make is async_batcher:
        from async_batcher.exceptions import QueueFullException

        return (QueueFullException,)
    if make is smartbatch:
        from smartbatch.exceptions import OverloadedError

        return (OverloadedError,)
    return ()


def grid(make, *, cancels=False, **choices):
    """Return a contestant for each combination of settings."""
    return [
        contestant(make, cancels=cancels, **dict(zip(choices, values, strict=True)))
        for values in itertools.product(*choices.values())
    ]


# the device takes at most 64 rows per batch, so larger defaults (100; no limit) are replaced
DEFAULTS = {
    "minimal greedy": lambda: contestant(minimal),
    "BentoML CorkDispatcher": lambda: contestant(bentoml_cork, max_batch_size=BATCH),
    "async-batcher": lambda: contestant(async_batcher, max_batch_size=BATCH),
    "batched.aio": lambda: contestant(batched_aio),
    "Ray serve.batch": lambda: contestant(ray_serve_batch),
    "smartbatch": lambda: contestant(smartbatch, max_batch_size=BATCH, max_wait_time=0.01),
}
LATENCIES_MS = (25, 32, 36, 40, 45, 50, 60, 75, 100, 150, 200, 60_000)
QUEUE_SIZES = (-1, 16, 24, 32, 40, 48, 56, 64, 96, 128)
TARGETS_S = (0.01, 0.02, 0.03, 0.05, 0.1)
WAITS_S = (0.008, 0.01, 0.0125, 0.015, 0.02, 0.025)
TUNED = {
    "minimal greedy": lambda: grid(minimal),
    "BentoML CorkDispatcher": lambda: grid(bentoml_cork, max_batch_size=(BATCH,), max_latency_ms=LATENCIES_MS),
    "async-batcher": lambda: grid(
        async_batcher, max_batch_size=(BATCH,), max_queue_time=(0.0,), max_queue_size=QUEUE_SIZES
    ),
    "batched.aio": lambda: grid(batched_aio, cancels=True, batch_size=(BATCH,), timeout_ms=(0.1, 0.5, 1.0)),
    "Ray serve.batch": lambda: grid(
        ray_serve_batch, cancels=True, max_batch_size=(BATCH,), batch_wait_timeout_s=WAITS_S
    ),
    "smartbatch": lambda: grid(
        smartbatch,
        max_batch_size=(BATCH,),
        max_wait_time=(0.0, 0.002),
        max_queue_size=(128, 1024),
        target_latency=TARGETS_S,
    ),
}

# settings for SLO 50 ms in real time, near the best ones on the virtual clock
REAL_TIME = {
    "BentoML CorkDispatcher": (bentoml_cork, {"max_batch_size": BATCH, "max_latency_ms": 75}),
    "async-batcher": (async_batcher, {"max_batch_size": BATCH, "max_queue_time": 0.0, "max_queue_size": BATCH}),
    "batched.aio": (batched_aio, {"batch_size": BATCH, "timeout_ms": 0.1}),
    "Ray serve.batch": (ray_serve_batch, {"max_batch_size": BATCH, "batch_wait_timeout_s": 0.02}),
    "smartbatch": (
        smartbatch,
        {"max_batch_size": BATCH, "max_wait_time": 0.0, "max_queue_size": 1024, "target_latency": 0.03},
    ),
}
CANCELS = ("batched.aio", "Ray serve.batch")
