"""`HealthCheck`: probes each replica every few seconds, with or without requests.

*Design.* Ejection learns from requests, so it costs some of them. A probe costs no request, also tests a replica
without traffic, and can check what requests do not show (a model that is being loaded, a full disk).
``unhealthy_after`` consecutive failures eject the replica. After ``healthy_after`` consecutive successes it returns as
after any ejection: first probing, then starting slowly. When all replicas are ejected, they still get requests, because
a wrong probe must not end the service.

Each replica has its own task, which ends when the replica leaves or when `Replicas` stops. A probe that does not end
within its time has failed; it is cancelled, and its task does not wait for it.
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import numpy as np

from streaminfer._internal.error_log import Log
from streaminfer._internal.units import NEVER_NS
from streaminfer._internal.validation import check_count, check_duration, check_instance, field_check
from streaminfer._runtime.lifecycle import keep_running
from streaminfer._runtime.pending_calls import DeadlineCalls
from streaminfer._runtime.wrapped_kind import is_async
from streaminfer.protocols import Clock
from streaminfer.routing.replicas._p2c_cy import P2CBalancer
from streaminfer.routing.replicas.replica import Replica, ReplicaHandle

__all__ = ["HealthCheck", "ReplicaProbes"]

_log = Log("streaminfer.routing")


@attrs.frozen
class HealthCheck:
    """Settings of the probes of replicas.

    Args:
        probe: an async function of a `Replica`, which tests whether the replica can serve. The probe fails if it
            raises, returns ``False`` (NumPy's too), or does not end within ``timeout_s``.
        interval_s: seconds from one probe of a replica to the next. The first one comes within that time, at a random
            instant, so that replicas are not all probed at once.
        timeout_s: seconds that a probe may take.
        unhealthy_after: failures in a row that eject a replica.
        healthy_after: successes in a row that end this ejection.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.
    """

    probe: Callable[[Replica], Awaitable[Any]] = attrs.field(
        validator=field_check(check_instance, is_async, "an async function of a Replica")
    )
    interval_s: float = attrs.field(default=5.0, kw_only=True, validator=field_check(check_duration, positive=True))
    timeout_s: float = attrs.field(default=1.0, kw_only=True, validator=field_check(check_duration, positive=True))
    unhealthy_after: int = attrs.field(default=3, kw_only=True, validator=field_check(check_count))
    healthy_after: int = attrs.field(default=2, kw_only=True, validator=field_check(check_count))


class ReplicaProbes:
    """The probes of a fleet: one task for each replica.

    Args:
        check: settings of the probes.
        balancer: chooses among the replicas.
        clock: returns monotonic nanoseconds.
        seed: seed of the instants of the first probes.

    Attributes:
        failed: probes that failed.
        sent: probes that were sent.
    """

    def __init__(self, check: HealthCheck, balancer: P2CBalancer, clock: Clock, seed: int | None) -> None:
        self._check = check
        self._balancer = balancer
        self._clock = clock
        self._random = random.Random(seed)  # noqa: S311 - spreads probes, keeps no secret
        self._tasks: dict[ReplicaHandle, asyncio.Task[None]] = {}
        self._calls = DeadlineCalls()
        self.sent = 0
        self.failed = 0

    def watch(self, handle: ReplicaHandle) -> None:
        """Probe a replica from now on."""
        task = self._tasks.get(handle)
        if task is None or task.get_loop().is_closed():  # a task of a closed loop has ended without a stop
            delay_s = self._random.random() * self._check.interval_s
            work = functools.partial(self._probe_regularly, handle, delay_s)
            self._tasks[handle] = keep_running(work, f"the health check of replica {handle.replica.name!r}", _log.name)

    def forget(self, handle: ReplicaHandle) -> None:
        """Probe a replica no more."""
        task = self._tasks.pop(handle, None)
        if task is not None:
            task.cancel()

    def cancel(self) -> list[asyncio.Future[Any]]:
        """Stop all probes; return the cancelled tasks."""
        ending = [*self._tasks.values(), *self._calls]
        self._tasks.clear()
        for task in ending:
            task.cancel()
        return ending

    async def _probe_regularly(self, handle: ReplicaHandle, delay_s: float) -> None:
        is_out = self._balancer.slot(handle.slot).until_ns == NEVER_NS  # since before an earlier stop
        healthy, in_a_row = not is_out, 0  # probes in a row with the opposite result
        loop = asyncio.get_running_loop()
        due_s = loop.time() + delay_s
        while True:
            await asyncio.sleep(due_s - loop.time())
            failure = await self._failure_of(handle.replica)
            ok = failure is None
            in_a_row = 0 if ok is healthy else in_a_row + 1
            if in_a_row >= (self._check.healthy_after if ok else self._check.unhealthy_after):
                healthy, in_a_row = ok, 0
                self._apply_health(handle, healthy, failure)
            due_s = max(due_s + self._check.interval_s, loop.time())

    async def _failure_of(self, replica: Replica) -> BaseException | None:
        """Return why the probe of a replica failed; ``None``: it did not."""
        self.sent += 1
        try:
            result: Any = await self._calls.end_within(
                self._check.timeout_s, self._check.probe(replica), f"the probe of replica {replica.name!r}"
            )
        except Exception as error:  # noqa: BLE001 - what it raised is the outcome of the probe
            self.failed += 1
            return error
        if isinstance(result, (bool, np.bool_)) and not result:
            self.failed += 1
            return ValueError("the probe returned False")
        return None

    def _apply_health(self, handle: ReplicaHandle, healthy: bool, failure: BaseException | None) -> None:
        name = handle.replica.name
        if healthy:
            self._balancer.end_forced_ejection(handle.slot, self._clock())
            _log.info("replica %r is healthy again", name)
        else:
            self._balancer.force_eject(handle.slot)
            text = "replica %r is unhealthy and ejected: its last probe failed with %r"
            _log.warning(text, name, failure, exc_info=failure)
