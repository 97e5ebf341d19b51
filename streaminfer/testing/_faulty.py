"""What stands in front of a backend, a service or a function and lets the faults of a plan strike: see ``faults``."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import inspect
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from streaminfer._internal.validation import expected
from streaminfer._runtime.owners import start_owned
from streaminfer._runtime.stopping import stop_all
from streaminfer.batching.assembly.unbatch import split_rows
from streaminfer.errors import BackendError
from streaminfer.protocols import Capabilities, Clock, Wrapper, adapt, is_backend, is_service
from streaminfer.request import Batch, Request, Response

if TYPE_CHECKING:
    from streaminfer.testing.faults import Fault, FaultPlan

__all__ = ["Injury", "kill_workers", "put_in_front"]

_OF_ROWS = ("partial", "row_errors")


def kill_workers(backend: Any) -> int:
    """Sends SIGKILL to each worker process that a ``CpuBackend`` has running; returns how many that were.

    Raises:
        TypeError: ``backend`` has no worker processes.
    """
    killed = 0
    for worker in _process_workers(backend):
        process = worker._process
        # it may end by itself between the two lines, and then its process object is closed
        with contextlib.suppress(ProcessLookupError, ValueError):
            if process is not None:
                os.kill(process.pid, signal.SIGKILL)
                killed += 1
    return killed


class Injury:
    """What strikes one call."""

    def __init__(self, plan: FaultPlan, number: int, began_s: float) -> None:
        self.kinds: list[str] = []
        self.delay_s = 0.0
        self.hangs = False
        self.error: BaseException | type[BaseException] | None = None
        self.factor = 1.0
        self.kill_s: float | None = None
        self._plan = plan
        self._number = number
        self._began_s = began_s
        self._spoilt: list[tuple[int, Fault]] = []

    def add(self, place: int, fault: Fault, since_s: float) -> None:
        plan, number, kind = self._plan, self._number, fault.kind
        if kind == "row_errors":
            self._spoilt.append((place, fault))
            return
        if plan.uniform(place, number, 0) >= fault.rate:
            return
        if kind in {"partial", "wrong_shape", "garbage"}:
            self._spoilt.append((place, fault))
            return
        if kind == "kill":
            self.kill_s = fault.value
            return
        if kind == "delay":
            self.delay_s += fault.value(plan.uniform(place, number, 1)) if callable(fault.value) else fault.value
        elif kind == "hang" and fault.value is None:
            self.hangs = True
        elif kind == "hang":
            self.delay_s += fault.value
        elif kind == "error":
            self.error = self.error or fault.value
        else:
            left = max(1.0 - (since_s - fault.start_s) / fault.over_s, 0.0)
            if not left:
                return
            self.factor *= 1.0 + (fault.value - 1.0) * left
        self.kinds.append(kind)

    def raise_error(self) -> None:
        if self.error is not None:
            raise _fresh(self.error)

    def rest_s(self) -> float:
        """By how much longer an answer that is there takes."""
        return (self._plan.now_s() - self._began_s) * (self.factor - 1.0) if self.factor > 1.0 else 0.0

    def spoil_rows(self, rows: Any) -> Any:
        """What arrives of the answer to a batch."""
        if not self._spoilt:
            return rows
        rows = list(rows)
        for place, fault in self._spoilt:
            if fault.kind == "partial":
                rows = rows[: max(len(rows) - fault.value, 0)]
                self._plan.count("partial")
            elif fault.kind == "row_errors":
                struck = [
                    which for which in range(len(rows)) if self._plan.uniform(place, self._number, which) < fault.rate
                ]
                for which in struck:
                    rows[which] = _fresh(fault.value)
                self._plan.count("row_errors", len(struck))
            else:
                rows = [self._spoil(place, fault, which, row) for which, row in enumerate(rows)]
                self._plan.count(fault.kind)
        return rows

    def spoil_one(self, outputs: Any) -> Any:
        """What arrives of the answer to one request."""
        for place, fault in self._spoilt:
            if fault.kind not in _OF_ROWS:
                outputs = self._spoil(place, fault, 0, outputs)
                self._plan.count(fault.kind)
        return outputs

    def _spoil(self, place: int, fault: Fault, which: int, row: Any) -> Any:
        if isinstance(row, BaseException):
            return row
        if isinstance(row, Mapping):
            return {name: self._spoil(place, fault, which, value) for name, value in row.items()}
        array = np.asarray(row)
        if fault.kind == "wrong_shape":
            return np.stack([array, array])
        noise = np.random.default_rng(int(self._plan.uniform(place, self._number, which + 1) * 2**48))
        if array.dtype == np.bool_:
            return noise.random(array.shape) < 0.5
        if array.dtype.hasobject:
            return np.full(array.shape, None)
        return np.frombuffer(noise.bytes(array.nbytes), array.dtype).reshape(array.shape).copy()


def put_in_front(inner: Any, plan: FaultPlan, *, owns: bool) -> Any:
    """A faulty thing of the same kind; see ``faults.Faulty``.

    Args:
        inner: what it stands in front of.
        plan: what strikes it.
        owns: it starts and stops what is inside.

    Raises:
        TypeError: nothing that can be struck, or a fault that cannot strike it.
    """
    kinds = {fault.kind for fault in plan.faults}
    if "kill" in kinds:
        _process_workers(inner)
    if is_service(inner):
        if kinds.intersection(_OF_ROWS):
            raise TypeError(expected("faults", f"none of {', '.join(_OF_ROWS)} in front of a service", plan))
        return _FaultyService(inner, plan, owns)
    if is_backend(inner):
        return _FaultyBackend(inner, plan, owns)
    if not callable(inner) or isinstance(inner, type):
        raise TypeError(expected("inner", "a backend, a service or a function", inner))
    if inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(type(inner).__call__):
        return _async_function(inner, plan)
    if any(fault.kind == "hang" and fault.value is None for fault in plan.faults):
        raise TypeError(
            expected("faults", "hang(for_s=…) in front of a sync function, which cannot be cancelled", plan)
        )
    return _sync_function(inner, plan)


class _FaultyPart(Wrapper):
    """What a faulty service and a faulty backend have in common."""

    def __init__(self, inner: Any, plan: FaultPlan, owns: bool) -> None:
        super().__init__(inner)
        self.plan = plan
        self._owns = owns

    async def start(self) -> None:
        """Starts what is inside, and the plan's time."""
        if self._owns:
            await start_owned(self, self.inner)
        self.plan.begin()

    async def stop(self, *, drain: bool = True) -> None:
        """Stops what is inside."""
        if self._owns:
            await stop_all(self, [self.inner], drain=drain)

    def bind_clock(self, clock: Clock) -> None:
        """Passes the clock of a `Stack` on."""
        if self._owns:
            adapt(self.inner).bind_clock(clock)

    def __repr__(self) -> str:
        return f"{self.plan!r} in front of {self.inner!r}"


class _FaultyService(_FaultyPart):
    """A service whose calls are struck."""

    def capabilities(self) -> Capabilities:
        """What is inside offers; but a delay and a hang happen out here, whatever it says of deadlines."""
        return super().capabilities()._replace(enforces_deadline=False)

    async def call(self, request: Request) -> Response:
        """What is inside answers, unless a fault strikes."""
        injury = self.plan.draw()
        await _suffer(injury)
        response: Response = await self.inner.call(request)
        await _wait(injury.rest_s())
        outputs = injury.spoil_one(response.outputs)
        if outputs is response.outputs:
            return response
        return Response(outputs, response.degraded, response.source, response.timings)


class _FaultyBackend(_FaultyPart):
    """A backend whose batches are struck."""

    async def infer(self, batch: Batch) -> Sequence[Any]:
        """What is inside answers, unless a fault strikes."""
        injury = self.plan.draw()
        await _suffer(injury)
        if injury.kill_s is None:
            rows = await self.inner.infer(batch)
        else:
            killing = asyncio.get_running_loop().call_later(injury.kill_s, self._kill)
            try:
                rows = await self.inner.infer(batch)
            finally:
                killing.cancel()
        await _wait(injury.rest_s())
        if isinstance(rows, (tuple, Mapping)):
            rows = _rows_of(rows, len(batch), batch.size)
        spoilt: Sequence[Any] = injury.spoil_rows(rows)
        return spoilt

    def _kill(self) -> None:
        if kill_workers(self.inner):
            self.plan.count("kill")


def _async_function(inner: Callable[..., Any], plan: FaultPlan) -> Callable[..., Any]:
    @functools.wraps(inner)
    async def faulty(*args: Any, **kwargs: Any) -> Any:
        injury = plan.draw()
        await _suffer(injury)
        result = await inner(*args, **kwargs)
        await _wait(injury.rest_s())
        return _spoil_result(injury, result)

    return faulty


def _sync_function(inner: Callable[..., Any], plan: FaultPlan) -> Callable[..., Any]:
    @functools.wraps(inner)
    def faulty(*args: Any, **kwargs: Any) -> Any:
        injury = plan.draw()
        if injury.delay_s:
            plan.sleep(injury.delay_s)
        injury.raise_error()
        result = inner(*args, **kwargs)
        rest_s = injury.rest_s()
        if rest_s:
            plan.sleep(rest_s)
        return _spoil_result(injury, result)

    return faulty


async def _suffer(injury: Injury) -> None:
    """What strikes before the inner one is asked."""
    await _wait(injury.delay_s)
    if injury.hangs:
        await asyncio.Event().wait()
    injury.raise_error()


async def _wait(seconds: float) -> None:
    if seconds > 0.0:
        await asyncio.sleep(seconds)


def _rows_of(outputs: Any, count: int, padded: int) -> Any:
    """Several outputs row by row; unchanged where they cannot be cut, which the batcher then tells."""
    rows = split_rows(outputs, count, "", padded)
    return outputs if isinstance(rows, BackendError) else rows


def _spoil_result(injury: Injury, result: Any) -> Any:
    if isinstance(result, tuple) and result and isinstance(result[0], np.ndarray) and result[0].ndim:
        result = _rows_of(result, len(result[0]), 0)  # outputs of a batch function
    has_rows = isinstance(result, (list, tuple)) or (isinstance(result, np.ndarray) and result.ndim > 0)
    return injury.spoil_rows(result) if has_rows else injury.spoil_one(result)


def _process_workers(backend: Any) -> Sequence[Any]:
    from streaminfer.backends.cpu.backend import CpuBackend  # noqa: PLC0415 - only where a fault kills workers
    from streaminfer.backends.cpu.processes import ProcessWorker  # noqa: PLC0415

    found = backend
    while found is not None and not isinstance(found, CpuBackend):
        found = adapt(found).children.get("inner")
    workers: Sequence[Any] = () if found is None or found._threads is None else found._threads._workers
    if not workers or not isinstance(workers[0], ProcessWorker):
        raise TypeError(expected("inner", "a CpuBackend with executor='process', whose workers can be killed", backend))
    return workers


def _fresh(error: BaseException | type[BaseException]) -> BaseException:
    """One caller's own exception: what one adds to a traceback is not seen by the others."""
    return error("injected") if isinstance(error, type) else copy.copy(error)
