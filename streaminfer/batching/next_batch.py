"""When the next batch can begin, and how many more requests it takes: what live streams wait for."""

from streaminfer.batching.dispatcher import Dispatcher
from streaminfer.batching.queue._queue_cy import RequestQueue
from streaminfer.capabilities import NextBatch

__all__ = ["expected_next_batch"]


def expected_next_batch(dispatcher: Dispatcher, queue: RequestQueue, now_ns: int) -> NextBatch:
    """Return when a worker is expected to be free, and how many requests it would start then beside those queued.

    A worker that is free has room for one at least: what is queued may be waiting for more. While another model has the
    device, what is not queued has no turn behind that: a worker that only waits for its turn counts as free.

    Args:
        dispatcher: of the batches.
        queue: the requests.
        now_ns: the present instant.
    """
    if dispatcher.can_start:
        return NextBatch(now_ns, max(1, dispatcher.full_at * dispatcher.free - queue.queued))
    at_ns = now_ns if dispatcher.free else _worker_free_at_ns(dispatcher, now_ns)
    return NextBatch(at_ns, max(0, dispatcher.full_at - queue.queued))


def _worker_free_at_ns(dispatcher: Dispatcher, now_ns: int) -> int:
    early = dispatcher.pipeline.batch
    ends_ns = (
        batch.effective_start_ns + dispatcher.expected_ns(batch)
        for batch in dispatcher.runner.batches
        if batch is not early
    )
    at_ns = max(now_ns, min(ends_ns, default=now_ns))
    return at_ns if early is None else at_ns + dispatcher.expected_ns(early)
