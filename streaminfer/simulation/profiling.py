"""Profile of a model: durations by batch size, measured before traffic arrives.

*Idea.* A batcher learns the service time from live batches; a profile gives it the curve beforehand, including sizes
that no live batch has had yet. Sizes 1, 2, 4, … and the largest allowed run as the live batcher would run them:
assembled from requests, through the same threads, until the rows are back. The first batch of each size, which
compiles, allocates and loads, runs but is not counted.

*Bounded time.* The next size to run is always the one that got the least time so far. So small batches run often and
large ones seldom, and a stall of the machine does not affect only one size. The time of each size is the median of its
runs. The smallest size is measured however long it takes. A larger one is tried only if its proportional share keeps
the first runs of all sizes within half of the budget, and no repeat begins that would end after the budget. The counted
batches of a device with a steady pace therefore end within the budget. Sizes that were left out follow from the slope
of the curve.

*Result.* A monotone curve through the medians (:mod:`streaminfer.batching.service_time._isotonic_cy`), because a larger
batch that seems faster was measured wrongly.
"""

import asyncio
import functools
import itertools
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypedDict, Unpack, overload

from streaminfer._internal.validation import check_clock, check_count, check_duration, check_instance, expected
from streaminfer.batching.assembly._compatibility_cy import kind_of
from streaminfer.batching.assembly.assembler import Assembler
from streaminfer.batching.assembly.buckets import Buckets, as_buckets
from streaminfer.batching.assembly.model_calls import ModelCalls, make_assembler
from streaminfer.batching.queue._queue_cy import RequestQueue
from streaminfer.batching.queue._ticket_cy import NEVER
from streaminfer.batching.service_time._isotonic_cy import isotonic_curve
from streaminfer.batching.service_time.service_time import ServiceTime
from streaminfer.errors import BackendError
from streaminfer.protocols import Clock, adapt, is_backend, name_of
from streaminfer.request import Request

__all__ = ["profile"]

_MOST_RUNS = 25
_FIRST_RUNS_SHARE = 0.5
_SHORTEST_NS = 1


class _Options(TypedDict, total=False):
    budget_s: float
    preferred_sizes: Sequence[int] | None
    stack: bool
    clock: Clock | None


@overload
async def profile(
    inner: Any, examples: Sequence[Any], *, max_batch_size: int, buckets: None = ..., **options: Unpack[_Options]
) -> ServiceTime: ...


@overload
async def profile(
    inner: Any,
    examples: Sequence[Any],
    *,
    max_batch_size: int,
    buckets: Buckets | Sequence[int],
    **options: Unpack[_Options],
) -> dict[int, ServiceTime]: ...


async def profile(
    inner: Any,
    examples: Sequence[Any],
    *,
    max_batch_size: int,
    budget_s: float = 2.0,
    buckets: Buckets | Sequence[int] | None = None,
    preferred_sizes: Sequence[int] | None = None,
    stack: bool = True,
    clock: Clock | None = None,
) -> ServiceTime | dict[int, ServiceTime]:
    """Measure the time of a batch by its size; pass the result to ``AdaptiveBatcher(service_time=…)``.

    Run it before traffic arrives, because it needs the model for itself. It neither starts nor stops a backend, which
    runs batches off the event loop as usual. A synchronous function runs on the loop, as in the batcher; other tasks
    can run between two batches.

    Args:
        inner: the object that the batcher will wrap: a backend, or a sync or async batch function.
        examples: inputs of requests, at least one; the rows of a batch use them in turn.
        max_batch_size: as the batcher's; the largest size to measure.
        budget_s: how many seconds of batches to count, > 0; the first batch of each size is extra. A size that would
            take too much of it is left out, except the smallest. Buckets share it.
        buckets: as the batcher's; there should be examples for every bucket.
        preferred_sizes: as the batcher's; only these sizes are measured.
        stack: as the batcher's: one array (or mapping of arrays), or with ``False`` a list.
        clock: returns monotonic nanoseconds; ``None``: ``time.monotonic_ns``.

    Returns:
        A monotone curve through the median of each size; with ``buckets``, a mapping of bucket length to such a curve,
        for the buckets with examples.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range, or examples are missing or differ.
        InvalidInput: an example cannot be stacked or padded, or does not fit the model.
        BackendError: the model did not return one result per row.
        Exception: an error of the model, for the batch or for a row.
    """
    max_batch_size = check_count("max_batch_size", max_batch_size)
    budget_s = check_duration("budget_s", budget_s, positive=True)
    check_instance("stack", stack, bool, "True or False")
    clock = check_clock("clock", clock)
    expectation = "a backend (an object with infer) or a batch function"
    check_instance("inner", inner, lambda it: is_backend(it) or callable(it), expectation)
    checked_buckets = as_buckets(buckets)
    assembler = make_assembler(
        inner, stack=stack, max_batch_size=max_batch_size, buckets=checked_buckets, preferred_sizes=preferred_sizes
    )
    calls = ModelCalls(inner, stack=stack, assembler=assembler, source=name_of(inner), clock=clock or time.monotonic_ns)
    rows = _rows(examples, inner, assembler, stack)
    budget_ns = budget_s * 1e9 / len(rows)
    by_bucket: dict[int, ServiceTime] = {}
    for bucket, alike_rows in sorted(rows.items()):
        run = functools.partial(_run, calls, alike_rows)
        by_bucket[bucket] = await _measure(run, assembler.sizes_of(bucket), budget_ns)
    return (
        by_bucket[0]
        if checked_buckets is None
        else {checked_buckets.lengths[bucket]: times for bucket, times in by_bucket.items()}
    )


async def _measure(run: Callable[[int], Awaitable[int]], sizes: list[int], budget_ns: float) -> ServiceTime:
    """Return the curve of one kind of rows."""
    runs: dict[int, list[int]] = {}
    spent_ns = 0
    for size in sizes:
        if runs:
            last = max(runs)
            if spent_ns + runs[last][0] * size / last > _FIRST_RUNS_SHARE * budget_ns:
                break
        await run(size)
        runs[size] = [await run(size)]
        spent_ns += runs[size][0]
    while True:
        fits = [
            size
            for size, durations_ns in runs.items()
            if len(durations_ns) < _MOST_RUNS and spent_ns + statistics.median_low(durations_ns) <= budget_ns
        ]
        if not fits:
            break
        size = min(fits, key=lambda one: sum(runs[one]))
        duration_ns = await run(size)
        runs[size].append(duration_ns)
        spent_ns += duration_ns
    medians_s = [statistics.median_low(durations_ns) / 1e9 for durations_ns in runs.values()]
    times_s = isotonic_curve(medians_s, [len(durations_ns) for durations_ns in runs.values()])
    return ServiceTime.table(dict(zip(runs, times_s, strict=True)))


async def _run(calls: ModelCalls, rows: list[Any], size: int) -> int:
    """Return the nanoseconds of one batch of compatible rows, from requests to rows."""
    queue, future = RequestQueue(size), asyncio.get_running_loop().create_future()  # of a caller that waits
    for row in itertools.islice(itertools.cycle(rows), size):
        queue.admit(Request(row), row, future, 0, NEVER, 0)
    batch = queue.take(queue.first(size), 0, "full")
    if calls.infer is None:
        await asyncio.sleep(0)  # the function runs on the event loop: let other tasks run first
    started_ns = calls.clock()
    outputs, _ = await calls.send(batch)
    duration_ns = calls.clock() - started_ns
    if isinstance(outputs, BackendError):
        raise outputs
    for row in outputs:
        if isinstance(row, BaseException):
            raise row
    return max(duration_ns, _SHORTEST_NS)


def _rows(examples: Sequence[Any], inner: Any, assembler: Assembler, stack: bool) -> dict[int, list[Any]]:
    """Return the example inputs by bucket, checked against the model and each other."""
    expectation = "a list or tuple of what requests bring, at least one"
    check_instance("examples", examples, list | tuple, expectation)
    if not examples:
        raise ValueError(expected("examples", expectation, examples))
    validate = adapt(inner).capabilities().validate
    rows: dict[int, list[Any]] = {}
    for number, example in enumerate(examples):
        row = assembler.prepare(example)
        padded = assembler.as_padded(row)
        if validate is not None:
            validate(Request(padded))
        alike_rows = rows.setdefault(assembler.bucket_of(row), [])
        if alike_rows and stack and kind_of(assembler.as_padded(alike_rows[0])) != kind_of(padded):
            raise ValueError(expected(f"examples[{number}]", "one that can be stacked with the others", example))
        alike_rows.append(row)
    return rows
