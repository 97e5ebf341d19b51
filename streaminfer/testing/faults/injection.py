"""Faults of one call, and the termination of worker processes."""

import contextlib
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streaminfer._internal.validation import check_duration, expected
from streaminfer.errors import copy_error
from streaminfer.protocols import adapt
from streaminfer.testing.faults.fault import Fault

__all__ = ["BATCH_FAULTS", "InjectedFaults", "kill_workers", "process_workers"]

BATCH_FAULTS = ("partial", "row_errors")
"""Faults of a batch's rows; a service has no rows."""

_CHARACTERS = 0xD800  # below the surrogates, which UTF-8 cannot encode
_CORRUPTIONS = (*BATCH_FAULTS, "wrong_shape", "garbage")


class InjectedFaults:
    """Faults of one call.

    Args:
        uniform: returns a number in (0, 1) for a fault's position in the plan and a counter; the same in each run.
        count: adds to the plan's counters the faults that are counted only after the response.

    Attributes:
        kinds: the faults that are counted when the call starts.
        delay_s: seconds to wait before the inner call.
        hangs: whether the call then waits until it is cancelled.
        error: the exception with which the call then fails; ``None``: the call does not fail.
        factor: the call takes so many times as long.
        kill_s: seconds until the worker processes are killed; ``None``: they are not killed.
    """

    def __init__(self, uniform: Callable[[int, int], float], count: Callable[[str, int], None]) -> None:
        self.kinds: list[str] = []
        self.delay_s = 0.0
        self.hangs = False
        self.error: BaseException | type[BaseException] | None = None
        self.factor = 1.0
        self.kill_s: float | None = None
        self._uniform = uniform
        self._count = count
        self._corruptions: list[tuple[int, Fault]] = []

    def add(self, position: int, fault: Fault, since_s: float) -> None:
        """Add a fault of the plan, if the call's random number is below the fault's rate.

        Args:
            position: the position of the fault in the plan.
            fault: the fault.
            since_s: seconds since the plan's start.
        """
        kind = fault.kind
        if kind != "row_errors" and self._uniform(position, 0) >= fault.rate:
            return
        if kind in _CORRUPTIONS:
            self._corruptions.append((position, fault))
            return
        if kind == "kill":
            self.kill_s = fault.value
            return
        if kind == "hang" and fault.value is None:
            self.hangs = True
        elif kind in {"delay", "hang"}:
            seconds = fault.value
            if callable(seconds):
                seconds = check_duration("delay(seconds)", seconds(self._uniform(position, 1)))
            self.delay_s += seconds
        elif kind == "error":
            self.error = self.error or fault.value
        else:
            remaining = max(1.0 - (since_s - fault.start_s) / fault.over_s, 0.0)
            if not remaining:
                return
            self.factor *= 1.0 + (fault.value - 1.0) * remaining
        self.kinds.append(kind)

    def raise_error(self) -> None:
        """Raise the injected error, if there is one."""
        if self.error is not None:
            raise _new_exception(self.error)

    def corrupt_results(self, results: Any) -> Any:
        """Return the results of a batch with the faults of its rows."""
        if not self._corruptions:
            return results
        original, results = results, list(results)
        for position, fault in self._corruptions:
            if fault.kind == "partial":
                results = results[: max(len(results) - fault.value, 0)]
            elif fault.kind == "row_errors":
                failed = [row for row in range(len(results)) if self._uniform(position, row) < fault.rate]
                for row in failed:
                    results[row] = _new_exception(fault.value)
                self._count("row_errors", len(failed))
            else:
                results = [self._corrupt(position, fault, row, result) for row, result in enumerate(results)]
        self._count_corruptions(excluded=("row_errors",))
        is_array = isinstance(original, np.ndarray) and not original.dtype.hasobject
        if is_array and results and not any(isinstance(row, BaseException) for row in results):
            return np.stack(results)  # an array stays an array
        return results

    def corrupt_outputs(self, outputs: Any) -> Any:
        """Return the outputs of one request with the faults of its arrays."""
        for position, fault in self._corruptions:
            if fault.kind not in BATCH_FAULTS:
                outputs = self._corrupt(position, fault, 0, outputs)
        self._count_corruptions(excluded=BATCH_FAULTS)
        return outputs

    def _count_corruptions(self, excluded: Sequence[str]) -> None:
        """Count the call once for each kind of fault in its response."""
        for kind in dict.fromkeys(fault.kind for _, fault in self._corruptions):
            if kind not in excluded:
                self._count(kind, 1)

    def _corrupt(self, position: int, fault: Fault, row: int, outputs: Any) -> Any:
        if isinstance(outputs, BaseException):
            return outputs
        if isinstance(outputs, Mapping):
            return {name: self._corrupt(position, fault, row, value) for name, value in outputs.items()}
        array = np.asarray(outputs)
        if fault.kind == "wrong_shape":
            return np.stack([array, array])
        return _garbage_like(array, np.random.default_rng(int(self._uniform(position, row + 1) * 2**48)))


def _garbage_like(array: NDArray[Any], noise: np.random.Generator) -> NDArray[Any]:
    """Return random contents of the same shape and dtype."""
    if array.dtype == np.bool_:
        return noise.random(array.shape) < 0.5
    if array.dtype.hasobject:
        return np.full(array.shape, None)
    if array.dtype.kind == "U":  # random bytes would not be valid text
        characters = noise.integers(1, _CHARACTERS, (*array.shape, array.dtype.itemsize // 4), np.uint32)
        return characters.view(f"U{characters.shape[-1]}")[..., 0]
    return np.frombuffer(noise.bytes(array.nbytes), array.dtype).reshape(array.shape).copy()


def kill_workers(backend: Any) -> int:
    """Send SIGKILL to each running worker process of a ``CpuBackend``; return their number.

    Raises:
        TypeError: ``backend`` has no worker processes.
    """
    killed = 0
    for worker in process_workers(backend):
        process = worker._process
        # the process may end between these two lines, and its object is then closed
        with contextlib.suppress(ProcessLookupError, ValueError):
            if process is not None:
                os.kill(process.pid, signal.SIGKILL)
                killed += 1
    return killed


def process_workers(backend: Any) -> Sequence[Any]:
    """Return the workers of a ``CpuBackend`` with processes.

    Raises:
        TypeError: the backend has no worker processes.
    """
    from streaminfer.backends.cpu.backend import CpuBackend  # noqa: PLC0415 - only where a fault kills workers
    from streaminfer.backends.cpu.processes import ProcessWorker  # noqa: PLC0415 - the same

    inner = backend
    while inner is not None and not isinstance(inner, CpuBackend):
        inner = adapt(inner).children.get("inner")
    workers: Sequence[Any] = () if inner is None or inner._threads is None else inner._threads._workers
    if not workers or not isinstance(workers[0], ProcessWorker):
        raise TypeError(expected("inner", "a CpuBackend with executor='process', whose workers can be killed", backend))
    return workers


def _new_exception(error: BaseException | type[BaseException]) -> BaseException:
    """Return a separate exception for each call, because raising adds to the exception's traceback."""
    return error("injected") if isinstance(error, type) else copy_error(error).with_traceback(None)
