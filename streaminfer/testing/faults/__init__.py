"""Fault injection for tests: a seeded plan of faults, around a backend, a service or a function.

::

    plan = FaultPlan(
        delay(lognormal(median_s=0.010, sigma=0.3)),
        error(OSError("device lost"), rate=0.05).between(2.0, 4.0),
        hang().on(17),
        seed=1,
    )
    async with Stack(batcher, Faulty(backend, plan), clock=loop.clock) as service:
        ...
    assert plan.injected["hang"] == 1
"""

from streaminfer.testing.faults.fault import (
    Fault,
    delay,
    error,
    garbage,
    hang,
    kill,
    lognormal,
    partial,
    row_errors,
    slow_start,
    slowdown,
    wrong_shape,
)
from streaminfer.testing.faults.injection import kill_workers
from streaminfer.testing.faults.plan import FaultPlan, Faulty

__all__ = [
    "Fault",
    "FaultPlan",
    "Faulty",
    "delay",
    "error",
    "garbage",
    "hang",
    "kill",
    "kill_workers",
    "lognormal",
    "partial",
    "row_errors",
    "slow_start",
    "slowdown",
    "wrong_shape",
]
