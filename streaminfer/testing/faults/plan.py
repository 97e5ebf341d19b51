"""Plan of faults, and the wrappers that inject them.

Each call has a number. Whether a call gets a fault is a function of four values: the plan's seed, the fault's position
in the plan, the call's number and the call's start. No random generator is shared, so neither the order in which calls
end nor the other faults matter. The same seed gives the same faults, and a fault that is appended to the plan changes
none of the earlier faults.

Order within one call: the call waits for the sum of its delays; then it hangs; then it fails. Otherwise the inner call
runs, the call is slowed down, and the response is corrupted. Delays, hangs, errors and slowdowns are counted when the
call starts; faults of the response and killed processes are counted when they happen.

Time is the running event loop's, so it is virtual on a ``VirtualLoop``. Around a sync function outside of a loop, time
comes from the plan's ``clock`` and ``sleep``.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, overload

import numpy as np

from streaminfer._internal.forking import new_reentrant_lock
from streaminfer._internal.validation import check_clock, check_count, check_instance, expected
from streaminfer._runtime.lifecycle import start_owned, stop_all
from streaminfer._runtime.wrapped_kind import kind_of
from streaminfer.batching.assembly.unbatch import split_rows
from streaminfer.errors import BackendError
from streaminfer.protocols import Backend, Capabilities, Clock, P, R, Service, Wrapper, adapt
from streaminfer.request import Batch, Request, Response
from streaminfer.testing.faults.fault import Fault
from streaminfer.testing.faults.injection import BATCH_FAULTS, InjectedFaults, kill_workers, process_workers

__all__ = ["FaultPlan", "Faulty"]

_BACKEND_FAULTS = (*BATCH_FAULTS, "kill")
"""Faults that cannot be injected into a service."""


class FaultPlan:
    """Faults by schedule and seed, with counters of the injected faults.

    The plan's time starts with the first call, or when the faulty service or backend starts. A plan can be a layer,
    ``Stack(batcher, plan, backend)``, or an argument of :func:`Faulty`. One plan can be around several services and
    backends: their calls are numbered together.

    Args:
        *faults: made by the functions of this module.
        seed: seed of all random choices.
        clock: returns monotonic nanoseconds; ``None``: the running event loop's time, else ``time.monotonic``.
        sleep: the function with which a sync function waits; a test can pass ``FakeClock.advance``.

    Attributes:
        calls: number of calls.

    Raises:
        TypeError, ValueError: a wrong argument.

    Thread-safe.
    """

    def __init__(
        self,
        *faults: Fault,
        seed: int = 0,
        clock: Clock | None = None,
        sleep: Callable[[float], Any] = time.sleep,
    ) -> None:
        for each in faults:
            check_instance("faults", each, Fault, "faults, such as delay(0.1)")
        clock = check_clock("clock", clock)
        check_instance("sleep", sleep, callable, "a function of seconds")
        self.faults = faults
        self.seed = check_count("seed", seed, at_least=0)
        self.sleep = sleep
        self._clock = clock
        self._lock = new_reentrant_lock()  # a distribution may read the plan's counters
        self._injected: Counter[str] = Counter()
        self.calls = 0
        self._began_s: float | None = None

    @property
    def injected(self) -> Mapping[str, int]:
        """Calls with each kind of fault; for ``row_errors``, rows. 0 for kinds that were not injected."""
        with self._lock:
            return Counter(self._injected)

    def restart(self) -> None:
        """Reset the plan to call 0, time 0 and empty counters; the same calls then get the same faults."""
        with self._lock:
            self._injected.clear()
            self.calls = 0
            self._began_s = None

    @overload
    def wrap(self, inner: Service | Backend) -> Any: ...
    @overload
    def wrap(self, inner: Callable[P, R]) -> Callable[P, R]: ...
    def wrap(self, inner: Any) -> Any:
        """Return a faulty backend, service or function around an inner one, without starting or stopping the inner one.

        Raises:
            TypeError: ``inner`` is not a backend, service or function, or a fault cannot be injected into it.
        """
        return _wrap(inner, self, owns=False)

    def now_s(self) -> float:
        """Return the current instant of the plan's clock, seconds."""
        if self._clock is not None:
            return self._clock() / 1e9
        try:
            return asyncio.get_running_loop().time()
        except RuntimeError:
            return time.monotonic()

    def begin(self) -> None:
        """Start the plan's time, if it has not started."""
        with self._lock:
            if self._began_s is None:
                self._began_s = self.now_s()

    def draw(self) -> InjectedFaults:
        """Return the faults of the next call."""
        self.begin()
        now_s = self.now_s()
        with self._lock:
            number = self.calls
            self.calls += 1
            since_s = now_s - (self._began_s or 0.0)
            injected = InjectedFaults(lambda position, counter: self._uniform(position, number, counter), self.count)
            for position, fault in enumerate(self.faults):
                if fault.start_s <= since_s < fault.end_s and (fault.calls is None or number in fault.calls):
                    injected.add(position, fault, since_s)
            self._injected.update(dict.fromkeys(injected.kinds, 1))  # two faults of one kind count as one call
        return injected

    def count(self, kind: str, times: int = 1) -> None:
        """Count faults that are known only after the response."""
        with self._lock:
            self._injected[kind] += times

    def _uniform(self, position: int, number: int, counter: int) -> float:
        """Return a number in (0, 1), the same for the same seed and arguments."""
        text = f"{self.seed}/{position}/{number}/{counter}".encode()
        return (int.from_bytes(hashlib.blake2b(text, digest_size=6).digest(), "big") + 0.5) / 2**48

    def __repr__(self) -> str:
        return f"<FaultPlan: {len(self.faults)} faults, {self.calls} calls, injected {dict(self._injected)}>"


def Faulty(inner: Any, plan: FaultPlan) -> Any:  # noqa: N802 - named like the wrappers that it makes
    """Return a faulty backend, service or function, which starts and stops the inner one.

    Args:
        inner: a backend (``infer``), a service (``call``) or a sync or async function. If a function returns a list, a
            tuple or an array with an axis, these count as the rows of a batch.
        plan: a :class:`FaultPlan`.

    Returns:
        The same kind of object.

    Raises:
        TypeError: ``inner`` is none of these, or a fault cannot be injected into it. ``partial`` and ``row_errors``
            need rows; ``kill`` needs a ``CpuBackend`` with processes; ``hang`` without ``for_s`` needs a call that can
            be cancelled.
    """
    check_instance("plan", plan, FaultPlan, "a FaultPlan")
    return _wrap(inner, plan, owns=True)


def _wrap(inner: Any, plan: FaultPlan, *, owns: bool) -> Any:
    kinds = {fault.kind for fault in plan.faults}
    kind = kind_of(inner)
    if kind == "service":
        if kinds.intersection(_BACKEND_FAULTS):
            raise TypeError(expected("faults", f"none of {', '.join(_BACKEND_FAULTS)} in front of a service", plan))
        return _FaultyService(inner, plan, owns)
    if "kill" in kinds:
        process_workers(inner)
    if kind == "backend":
        return _FaultyBackend(inner, plan, owns)
    if kind == "async function":
        return _async_function(inner, plan)
    if any(fault.kind == "hang" and fault.value is None for fault in plan.faults):
        raise TypeError(
            expected("faults", "hang(for_s=…) in front of a sync function, which cannot be cancelled", plan)
        )
    return _sync_function(inner, plan)


class _FaultyLayer(Wrapper):
    """Life cycle of a faulty service or backend."""

    def __init__(self, inner: Any, plan: FaultPlan, owns: bool) -> None:
        super().__init__(inner)
        self.plan = plan
        self._owns = owns

    async def start(self) -> None:
        """Start the inner service or backend if it is owned, and the plan's time."""
        if self._owns:
            await start_owned(self, self.inner)
        self.plan.begin()

    async def stop(self, *, drain: bool = True) -> None:
        """Stop the inner service or backend if it is owned."""
        if self._owns:
            await stop_all(self, [self.inner], drain=drain)

    def bind_clock(self, clock: Clock) -> None:
        """Pass a `Stack`'s clock to the inner service or backend if it is owned."""
        if self._owns:
            adapt(self.inner).bind_clock(clock)

    def __repr__(self) -> str:
        return f"{self.plan!r} around {self.inner!r}"


class _FaultyService(_FaultyLayer):
    """Service that injects the faults of a plan into its calls."""

    def capabilities(self) -> Capabilities:
        """Return the inner capabilities, without ``enforces_deadline``: delays and hangs happen outside ``inner``."""
        return super().capabilities()._replace(enforces_deadline=False)

    async def call(self, request: Request) -> Response:
        """Return the inner response, with the faults of this call."""
        response: Response
        response, injected = await _call_with_faults(self.plan, lambda _: self.inner.call(request))
        outputs = injected.corrupt_outputs(response.outputs)
        if outputs is response.outputs:
            return response
        return Response(outputs, response.degraded, response.source, response.timings)


class _FaultyBackend(_FaultyLayer):
    """Backend that injects the faults of a plan into its batches."""

    async def infer(self, batch: Batch) -> Sequence[Any]:
        """Return the inner results, with the faults of this call."""
        results, injected = await _call_with_faults(self.plan, functools.partial(self._infer, batch))
        if isinstance(results, (tuple, Mapping)):
            results = _split_rows(results, len(batch), batch.size)
        corrupted: Sequence[Any] = injected.corrupt_results(results)
        return corrupted

    async def _infer(self, batch: Batch, injected: InjectedFaults) -> Any:
        if injected.kill_s is None:
            return await self.inner.infer(batch)
        timer = asyncio.get_running_loop().call_later(injected.kill_s, self._kill)
        try:
            return await self.inner.infer(batch)
        finally:
            timer.cancel()

    def _kill(self) -> None:
        if kill_workers(self.inner):
            self.plan.count("kill")


def _async_function(inner: Callable[..., Any], plan: FaultPlan) -> Callable[..., Any]:
    @functools.wraps(inner)
    async def faulty(*args: Any, **kwargs: Any) -> Any:
        result, injected = await _call_with_faults(plan, lambda _: inner(*args, **kwargs))
        return _corrupt_result(injected, result)

    return faulty


def _sync_function(inner: Callable[..., Any], plan: FaultPlan) -> Callable[..., Any]:
    @functools.wraps(inner)
    def faulty(*args: Any, **kwargs: Any) -> Any:
        started_s = plan.now_s()
        injected = plan.draw()
        if injected.delay_s:
            plan.sleep(injected.delay_s)
        injected.raise_error()
        result = inner(*args, **kwargs)
        if extra_s := _extra_s(plan, injected, started_s):
            plan.sleep(extra_s)
        return _corrupt_result(injected, result)

    return faulty


async def _call_with_faults(
    plan: FaultPlan, call: Callable[[InjectedFaults], Awaitable[Any]]
) -> tuple[Any, InjectedFaults]:
    """Wait, hang or fail, as injected; otherwise make the inner call, and slow it down.

    Returns:
        The inner result and the call's faults; the caller injects the faults of the response.
    """
    started_s = plan.now_s()
    injected = plan.draw()
    await _wait(injected.delay_s)
    if injected.hangs:
        await asyncio.Event().wait()
    injected.raise_error()
    result = await call(injected)
    await _wait(_extra_s(plan, injected, started_s))
    return result, injected


def _extra_s(plan: FaultPlan, injected: InjectedFaults, started_s: float) -> float:
    """Return the seconds by which a slowdown delays a response that is ready."""
    return (plan.now_s() - started_s) * (injected.factor - 1.0) if injected.factor > 1.0 else 0.0


async def _wait(seconds: float) -> None:
    if seconds > 0.0:
        await asyncio.sleep(seconds)


def _split_rows(outputs: Any, count: int, padded: int) -> Any:
    """Split outputs into results; return them unchanged if they cannot be split, which the batcher reports."""
    rows = split_rows(outputs, count, "", padded)
    return outputs if isinstance(rows, BackendError) else rows


def _corrupt_result(injected: InjectedFaults, result: Any) -> Any:
    if isinstance(result, tuple) and result and isinstance(result[0], np.ndarray) and result[0].ndim:
        result = _split_rows(result, len(result[0]), 0)  # the outputs of a function that takes a batch
    has_rows = isinstance(result, (list, tuple)) or (isinstance(result, np.ndarray) and result.ndim > 0)
    return injected.corrupt_results(result) if has_rows else injected.corrupt_outputs(result)
