"""Load of one model on a device: the model and its requests."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streaminfer._internal.validation import check_count, check_duration, check_instance
from streaminfer.batching.service_time.service_time import ServiceTime
from streaminfer.request import timeout_ns
from streaminfer.simulation.arrivals import arrivals_in_ns
from streaminfer.simulation.simulator import durations_in_ns

__all__ = ["ModelLoad", "check_loads"]


class ModelLoad:
    """A model on a device, and the requests that arrive for it.

    Args:
        arrivals_s: shape (n,), seconds ≥ 0, ascending.
        slo_s: time limit of a request, from its arrival.
        service_time: durations of batches alone on the device, by size.
        max_batch_size: the most requests in a batch.
        memory_bytes: bytes of the model in the device's memory; 0: it is always there.
        load_s: seconds to load the model, including the evictions of other models.

    Attributes:
        arrivals_ns: shape (n,), int64.
        slo_ns: the time limit in nanoseconds.
        service_time: the same.
        durations_ns: shape (max_batch_size + 1,), int64: durations of batches by size.
        max_batch_size: the same.
        memory_bytes: the same.
        load_ns: ``load_s`` in nanoseconds.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.
    """

    def __init__(
        self,
        arrivals_s: ArrayLike,
        *,
        slo_s: float,
        service_time: ServiceTime,
        max_batch_size: int,
        memory_bytes: int = 0,
        load_s: float = 0.0,
    ) -> None:
        self.arrivals_ns: NDArray[np.int64] = arrivals_in_ns(arrivals_s)
        self.slo_ns = timeout_ns(check_duration("slo_s", slo_s, positive=True))
        self.max_batch_size = check_count("max_batch_size", max_batch_size)
        self.memory_bytes = check_count("memory_bytes", memory_bytes, at_least=0)
        self.load_ns = timeout_ns(check_duration("load_s", load_s))
        self.service_time = service_time
        self.durations_ns: NDArray[np.int64] = durations_in_ns(service_time, max_batch_size)

    def __repr__(self) -> str:
        settings = f"slo_s={self.slo_ns / 1e9}, max_batch_size={self.max_batch_size}"
        return f"ModelLoad({self.arrivals_ns.size} arrivals, {settings}, {self.service_time!r})"


def check_loads(loads: Any, expectation: str) -> None:
    """Check loads by name; ``expectation`` describes them.

    Raises:
        TypeError: not a mapping of texts to `ModelLoad` objects.
    """
    check_instance("loads", loads, Mapping, expectation)
    for name, load in loads.items():
        check_instance("loads", name, str, expectation)
        check_instance("loads", load, ModelLoad, expectation)
