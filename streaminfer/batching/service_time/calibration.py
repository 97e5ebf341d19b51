"""Calibration: batches of example inputs before a batcher accepts requests, to warm and measure the model.

*Design.* A second `BatchedService` around the same backend, with the assembler of the first, gets requests in batches
of the sizes that the model will see. They therefore pass all parts that a live batch passes, from the queue to the
worker thread and back, and the policy gets measurements like those of live batches. The counters and the events belong
to the second service, and are discarded with it.

The first batch of a size is discarded, because runtimes plan and allocate in it. Sizes double until one takes longer
than twice the latency objective, because a planner does not use those, or until one fails. If it fails for lack of
memory, live batches are no larger than the size before. Batches are measured one at a time, even if several workers
share the cores: too short a service time is corrected by the next batches, one that is too long rejects requests that
could be on time. Unlike a live batch, a batch that fails is not sent again in parts, because the parts would hide that
its size fails.

*Open sizes.* A model may leave sizes of its inputs open, and zeros then do not show how long a real request takes.
Length buckets define the size of their axis. Other open sizes are doubled until the model accepts them; these batches
only warm the model, and the policy gets no measurements.
"""

import asyncio
import contextlib
import math
import weakref
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from streaminfer._internal.display.html_table import html_table
from streaminfer._internal.error_log import Log
from streaminfer._internal.snapshot import Snapshot
from streaminfer._internal.units import format_duration
from streaminfer._internal.validation import expected
from streaminfer.batching.assembly.row_isolation import is_out_of_memory
from streaminfer.batching.service_time.calibration_bench import CalibrationBench, Learn, Observation
from streaminfer.errors import BackendError, InvalidInput
from streaminfer.protocols import ExampleInputs
from streaminfer.request import Request

if TYPE_CHECKING:
    from streaminfer.batching.assembly.buckets import Buckets

__all__ = ["Calibration", "CalibrationStatistics"]

BUDGET_NS = 2_000_000_000
"""Time for all measured batches, except the first one of each size."""
REPEATS = 4
"""Measured batches of each size, as far as the budget allows: their median ignores a disturbed one."""
OPEN_SIZES = tuple(1 << power for power in range(11))
"""Sizes to try for axes that a model leaves open."""

_Run = Callable[[Any, int], Awaitable[list[Observation]]]

_OPEN = "the model leaves sizes open, so its first batches teach; example= says what a request brings"
_NO_MEMORY = "needs more memory than there is"
_LOGGER = Log("streaminfer")


@attrs.frozen
class CalibrationStatistics(Snapshot):
    """Measurements of a batcher's start.

    Attributes:
        duration_s: seconds of the calibration, including discarded batches.
        durations_s: by length of a bucket (0 without buckets) and batch size, the median seconds of a batch.
        skipped: by length of a bucket, the sizes that were left out because they would take too long.
        note: the reason why nothing, or not all, was measured; empty if all was.
    """

    duration_s: float = 0.0
    durations_s: Mapping[int, Mapping[int, float]] = attrs.field(factory=dict)
    skipped: Mapping[int, tuple[int, ...]] = attrs.field(factory=dict)
    note: str = ""

    def __str__(self) -> str:
        parts = []
        for length, durations in self.durations_s.items():
            sizes = sorted(durations)
            bucket = f" of length {length}" if length else ""
            span = " to ".join(format_duration(durations[size]) for size in sizes[:1] + sizes[1:][-1:])
            parts.append(f"batches{bucket} of {', '.join(map(str, sizes))} take {span}")
            if self.skipped.get(length):
                parts[-1] += f" (without {', '.join(map(str, self.skipped[length]))}, which take too long)"
        return "; ".join([*parts, self.note] if self.note else parts)

    def _repr_html_(self) -> str:
        rows = [
            (length or "", size, format_duration(duration_s))
            for length, durations in self.durations_s.items()
            for size, duration_s in sorted(durations.items())
        ]
        caption = f"calibration: {format_duration(self.duration_s)} {self.note}"
        return html_table(rows, head=("bucket", "batch size", "median"), caption=caption)


@attrs.define(eq=False)
class _Bucket:
    """Measurements of one length bucket.

    Attributes:
        number: number of the bucket.
        length: length of the bucket; 0 without buckets.
        times_s: seconds by size.
        warmed: sizes that ran.
        ended: the last size, and the limit that it exceeded; ``None``: none has.
        failed: the first size that failed, and its error; ``None``: none has.
        max_size: the largest batch within the limits of bytes and costs; infinite: no size has exceeded them so far.
    """

    number: int
    length: int
    times_s: dict[int, float] = attrs.field(factory=dict)
    warmed: set[int] = attrs.field(factory=set)
    ended: tuple[int, int] | None = None
    failed: tuple[int, str] | None = None
    max_size: float = math.inf

    def learn_limit(self) -> None:
        """Note the largest batch, if the batcher split the last size into several batches."""
        if self.ended is not None and self.failed is None and self.ended[0] not in self.times_s:
            self.max_size = max(self.times_s)


class Calibration:
    """Measures a backend through a separate service; one per batcher, used again at each start.

    Not thread-safe: it belongs to the event loop of its batcher.

    Args:
        name: name of the backend, for messages.

    Attributes:
        progress: the step in progress, for the log; empty if there is none.
    """

    def __init__(self, name: str) -> None:
        self.progress = ""
        self._name = name
        self._buckets: list[_Bucket] = []

    async def run(self, bench: CalibrationBench) -> CalibrationStatistics:
        """Run the batches that no earlier start has measured, and tell the policy their durations.

        Args:
            bench: runs the batches; its service is stopped at the end in every case.

        Returns:
            All measurements, including those of earlier starts.

        Raises:
            BackendError: inputs that the user gave failed in the smallest batch.
            ValueError: they do not fit the model.
        """
        try:
            # only one calibration may run: models that are measured at the same time slow each other down
            lock = _LOCKS.setdefault(asyncio.get_running_loop(), asyncio.Lock())
            async with lock if bench.example.exclusive else contextlib.nullcontext():
                return await self._run(bench)
        finally:
            self.progress = ""
            await bench.service.stop(drain=False)

    async def _run(self, bench: CalibrationBench) -> CalibrationStatistics:
        assembler, example, clock = bench.assembler, bench.example, bench.service.clock
        started_ns = clock()
        note = ""
        skipped: dict[int, tuple[int, ...]] = {}
        try:
            buckets = assembler.buckets
            lengths = (0,) if buckets is None else buckets.lengths
            if example.resize is None and _is_open(example, buckets):
                return CalibrationStatistics(note=_OPEN)
            self._buckets = self._buckets or [_Bucket(number, length) for number, length in enumerate(lengths)]
            for bucket in self._buckets:
                remaining, is_guess = await self._run_bucket(bench, bucket)
                if is_guess:
                    note = _OPEN
                failed, how = bucket.failed or (math.inf, "")
                skipped[bucket.length] = tuple(size for size in remaining if size < failed)
                if how == _NO_MEMORY:
                    bench.limit(bucket.number, max(size for size in assembler.sizes_of(bucket.number) if size < failed))
        except (BackendError, InvalidInput) as error:
            if example.is_given:
                raise BackendError(
                    f"backend {self._name!r} failed on a calibration batch of its example=: {error}"
                ) from error
            note = (
                f"backend {self._name!r} failed on a calibration batch of zeros, so its first batches teach; "
                f"example= says what a request brings ({error})"
            )
            _LOGGER.warning(note)
        for bucket in self._buckets:
            if bucket.failed is None:
                continue
            size, how = bucket.failed
            failure = f"a batch of {size}{f' of length {bucket.length}' if bucket.length else ''} {how}"
            note += f"{note and '; '}{failure}"
            then = "have fewer rows" if how == _NO_MEMORY else "of this size are sent again in parts"
            _LOGGER.warning("backend %r: %s; live batches %s", self._name, failure, then)
        return CalibrationStatistics(
            (clock() - started_ns) / 1e9,
            {it.length: dict(it.times_s) for it in self._buckets if it.times_s},
            {length: sizes for length, sizes in skipped.items() if sizes},
            note,
        )

    async def _run_bucket(self, bench: CalibrationBench, bucket: _Bucket) -> tuple[list[int], bool]:
        """Return the sizes that did not run completely, and whether inputs are guessed."""
        sizes = [size for size in bench.assembler.sizes_of(bucket.number) if size <= bucket.max_size]
        row, is_guess = await self._row(bench, bucket.number, sizes[0])
        bucket.failed = None  # it may succeed this time
        last, limit_ns = bucket.ended or (sizes[-1], bench.limit_ns)
        tried = [size for size in sizes if size <= last or limit_ns < bench.limit_ns]
        done: Collection[int] = bucket.times_s
        if bench.learn is None or is_guess:
            cold = [size for size in tried if size not in bucket.warmed]
            await self._warm(bench, row, bucket, cold or sizes[:1])
            done = bucket.warmed
        elif missing := [size for size in tried if size not in bucket.times_s]:
            await self._measure(bench, row, bucket, missing, bench.learn)
            bucket.learn_limit()
        else:  # the workers may be new
            await bench.run_on_each(row, sizes[0])
        return [size for size in sizes if size <= bucket.max_size and size not in done], is_guess

    async def _row(self, bench: CalibrationBench, bucket: int, size: int) -> tuple[Any, bool]:
        """Return the inputs of a request of a bucket, and whether sizes of them are guessed."""
        example, buckets = bench.example, bench.assembler.buckets
        is_open = _is_open(example, buckets)
        failure: BaseException | None = None
        for open_size in OPEN_SIZES if is_open and example.resize is not None else (0,):
            inputs = example.resize(open_size) if open_size and example.resize is not None else example.inputs
            row = inputs if buckets is None else _fit(inputs, buckets, bucket)
            if bench.validate is not None:
                try:
                    bench.validate(Request(row))
                except InvalidInput as error:
                    if not example.is_given:
                        raise
                    cause = "free_axes=, or the model, must let that axis vary"
                    padded = "" if buckets is None else f", padded along axis {buckets.axis} by buckets= ({cause})"
                    raise ValueError(f"example{padded}: {error}") from error
            if not is_open:
                return row, False
            self.progress = f"looking for a size that the model accepts: {open_size}"
            try:
                await bench.run(row, size)
            except BackendError as error:
                failure = error
            else:
                return row, True
        assert failure is not None  # noqa: S101 - at least one size was tried
        raise failure

    async def _warm(self, bench: CalibrationBench, row: Any, bucket: _Bucket, sizes: list[int]) -> None:
        """Run each size once, up to one that takes too long."""
        for size in sizes:
            self.progress = f"warming up with a batch of {size}"
            observations = await self._try(bench, bench.run_on_each, row, bucket, size)
            if not observations:
                return
            bucket.warmed.add(size)
            if max(one.duration_ns for one in observations) > bench.limit_ns:
                bucket.ended = size, bench.limit_ns
                return

    async def _try(self, bench: CalibrationBench, run: _Run, row: Any, bucket: _Bucket, size: int) -> list[Observation]:
        """Run batches of a size; return an empty result if they fail, unless it is the first size."""
        try:
            return await run(row, size)
        except (BackendError, InvalidInput) as error:
            if size == bench.assembler.sizes_of(bucket.number)[0]:
                raise
            failed = size, _NO_MEMORY if is_out_of_memory(error) else f"failed: {error}"
            bucket.failed = min(failed, bucket.failed or failed)
            return []

    async def _measure(
        self, bench: CalibrationBench, row: Any, bucket: _Bucket, sizes: list[int], learn: Learn
    ) -> None:
        budget_ns = BUDGET_NS // len(bench.assembler.caps)
        runs: dict[int, list[int]] = {}
        spent_ns = 0

        async def measure(size: int) -> None:
            nonlocal spent_ns
            for observation in await self._try(bench, bench.run, row, bucket, size):
                learn(observation.size, observation.duration_ns, observation.now_ns, False, bucket.number)
                runs.setdefault(observation.size, []).append(observation.duration_ns)
                spent_ns += observation.duration_ns

        for size in sizes:
            self.progress = f"measuring batches of {size}"
            if not await self._try(bench, bench.run_on_each, row, bucket, size):
                break
            await measure(size)
            if size in runs and runs[size][0] > bench.limit_ns:
                await measure(size)  # it may have been disturbed
            if size not in runs or min(runs[size]) > bench.limit_ns or spent_ns > budget_ns:
                bucket.ended = size, bench.limit_ns
                break
        for _ in range(REPEATS - 1):
            for size in reversed(tuple(runs)):  # small last: caches then have its data for the first request
                if spent_ns + runs[size][0] <= budget_ns:
                    await measure(size)
        bucket.times_s |= {size: float(np.median(durations_ns)) / 1e9 for size, durations_ns in runs.items()}


# a lock that was waited for refers to its loop, so only the calibrations that use it store it
_LOCKS: "weakref.WeakValueDictionary[asyncio.AbstractEventLoop, asyncio.Lock]" = weakref.WeakValueDictionary()


def _is_open(example: ExampleInputs, buckets: "Buckets | None") -> bool:
    """Return whether the size of an axis of guessed inputs is unknown."""
    if buckets is None:
        return bool(example.free_axes)
    for name in example.free_axes.keys() - {buckets.mask}:
        value = example.inputs[name] if isinstance(example.inputs, Mapping) else example.inputs
        known = {buckets.axis % value.ndim} if buckets.is_ragged(name, value) else set()
        if not known.issuperset(example.free_axes[name]):
            return True
    return False


def _fit(inputs: Any, buckets: "Buckets", bucket: int) -> Any:
    """Return the inputs, repeated or cut along the ragged axis so that they are padded to a bucket's length."""
    shorter = buckets.lengths[bucket - 1] if bucket else 0
    length = max(buckets.lengths[bucket] - 1, shorter + 1)

    def fit(name: str | None, value: Any) -> Any:
        value = np.asarray(value)
        if not buckets.is_ragged(name, value):
            return value
        if not value.shape[buckets.axis]:
            expectation = f"one that is not empty along axis {buckets.axis}, the length of the buckets"
            raise ValueError(expected("example", expectation, value.shape))
        return np.take(value, np.arange(length) % value.shape[buckets.axis], axis=buckets.axis)

    if isinstance(inputs, Mapping):
        return {name: fit(name, value) for name, value in inputs.items() if name != buckets.mask}
    return fit(None, inputs)
