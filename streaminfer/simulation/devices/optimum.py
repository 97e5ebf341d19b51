"""Joint clairvoyant optimum: the most requests of two models that any schedule of one device serves on time.

The problem is that of :mod:`~streaminfer.simulation.offline_optimum` for two models: a batch has requests of one model
only, and the device runs one batch at a time.

*Contiguous batches suffice* for each model separately. The exchange argument there swaps requests within two batches of
one model, or within one batch. Sizes and times of batches stay, so the batches of the other model do not change.

*One model* is the case of two in which the second has no requests.

*The program.* ``F[i, j](k)`` is the earliest instant at which the device is free, after the first i requests of one
model and the first j of the other were handled and k of them served. A pair of prefixes follows from a shorter pair by
a drop, which takes no time, or by a batch of either model.

*Loads.* If the memory has room for one model only, there is a program for each model that may be in it, and a load
leads from one program to the other. A load may begin before the requests arrive for which it is done.

*Pairs.* A request need not be dropped before it has arrived, nor kept after its deadline. So (i, j) matters only if
there is an instant by which both prefixes have arrived, and before which no deadline of a later request has passed. For
each i, the remaining j are those whose requests arrive within both time limits of it. Fronts are pruned as for one
model.

*Complexity.* With n requests of the first model, W of the second within both limits, batches of B and fronts of V
entries: O(n · W · B · V) time and O(B · W · V) memory. Thousands of requests take seconds.
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streaminfer import _compiled_kernels
from streaminfer._internal.validation import check_count, expected
from streaminfer.simulation.devices.model_load import ModelLoad, check_loads

__all__ = ["device_optimum", "load_kernel", "most_on_time"]

_MODELS = 2


def device_optimum(loads: Mapping[str, ModelLoad], *, memory_bytes: int | None = None) -> int:
    """Return the most requests that any schedule of two models on one device could serve within their SLOs.

    Thread-safe; runs without the interpreter lock. If no kernels were compiled ahead of time, the first call on a
    machine compiles them, which takes some seconds.

    Args:
        loads: loads of two models, by name.
        memory_bytes: memory of the device, empty at first if it has no room for both models; ``None``: both are loaded.

    Returns:
        The number of requests of both models.

    Raises:
        TypeError, ValueError: there are not two models, or one alone does not fit.
    """
    expectation = "a mapping of two names to ModelLoad"
    check_loads(loads, expectation)
    if len(loads) != _MODELS:
        raise ValueError(expected("loads", expectation, sorted(loads)))
    first, second = loads.values()
    if memory_bytes is not None and check_count("memory_bytes", memory_bytes, at_least=0) < max(
        first.memory_bytes, second.memory_bytes
    ):
        raise ValueError(expected("memory_bytes", "room for each model alone", memory_bytes))
    is_short = memory_bytes is not None and memory_bytes < first.memory_bytes + second.memory_bytes
    loads_ns = (load.load_ns * is_short for load in (first, second))
    return int(load_kernel()(*_instants_of(first), *_instants_of(second), *loads_ns))


def most_on_time(load: ModelLoad) -> int:
    """Return the most requests that any schedule of one model could serve within its SLO."""
    nothing = np.zeros(0, np.int64)
    return int(load_kernel()(*_instants_of(load), nothing, nothing, np.zeros(1, np.int64), 0, 0))


def _instants_of(load: ModelLoad) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return arrivals, deadlines, and durations by size, without sizes above the number of requests."""
    return load.arrivals_ns, load.arrivals_ns + load.slo_ns, load.durations_ns[: load.arrivals_ns.size + 1]


@cache
def load_kernel() -> Callable[..., Any]:
    """Load the kernel: compiled ahead of time, or by Numba, which takes some seconds.

    Numba stores compiled code on disk, so later processes only load it.
    """
    compiled = _compiled_kernels.load()
    if compiled is not None:
        return compiled.checked("most_of_two")
    from streaminfer._internal.loading.numba_jit import compile_exports  # noqa: PLC0415 - imports Numba
    from streaminfer.simulation.devices import optimum_kernels  # noqa: PLC0415

    compile_exports(optimum_kernels.EXPORTS)
    return optimum_kernels.most_of_two
