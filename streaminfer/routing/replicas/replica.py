"""One replica: its description, and the handle by which `Replicas` calls, starts and stops it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import attrs

from streaminfer._internal.validation import check_instance, check_number, field_check
from streaminfer._runtime.lifecycle import end_tasks, seconds_left, start_owned, stop_all
from streaminfer._runtime.pending_calls import DeadlineCalls
from streaminfer._runtime.waiters import IdleWaiters
from streaminfer.protocols import Clock, adapt, is_service
from streaminfer.request import Request, Response, time_left_s
from streaminfer.routing.replicas._p2c_cy import P2CBalancer

__all__ = ["Replica", "ReplicaHandle"]


_check_name = field_check(check_instance, str, "a string")
_check_service = field_check(check_instance, is_service, "a service (an object with call, such as a Stack)")
_check_weight = field_check(check_number, "a finite number above 0", lambda it: 0.0 < it < math.inf)


@attrs.frozen
class Replica:
    """One place where the model is served.

    Args:
        name: name, unique among the replicas; it also decides which streams the replica gets.
        service: a `Stack`, or any other service.
        zone: zone of the replica; `Replicas` prefers its own zone.
        weight: factor, relative to a replica of weight 1, by which this one is drawn more often and may be expected to
            take longer and still be called. While few requests are in flight, a large weight gets nearly all of them.
            Speed and capacity need no weight, because they are measured.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.
    """

    name: str = attrs.field(validator=_check_name)
    service: Any = attrs.field(validator=_check_service)
    zone: str = attrs.field(default="", kw_only=True, validator=_check_name)
    weight: float = attrs.field(default=1.0, kw_only=True, validator=_check_weight)


class ReplicaHandle:
    """A replica in its slot of the balancer.

    Args:
        replica: the description.
        balancer: knows what is in flight.
        clock: returns monotonic nanoseconds.
        on_drained: called with the handle once the last request of a removed replica has ended.

    Attributes:
        replica: the description.
        slot: its number in the balancer; -1: none yet, or none left, because another replica may have the number.
        is_started: its service was started, and no stop of it has begun since.
        is_removed: the replica is removed; it keeps its slot until its last request has ended.
        is_draining: each request that ends calls :meth:`check_drained`.
        validate: checks a request's inputs; ``None``: no check.
        slo: the latency objective of the service; ``None``: no objective.
        admission: ``admission`` of the service; ``None``: the service accepts everything.
        call: ``call`` of the service, which ends at the request's deadline.
        is_idempotent: the replica may get a request a second time.
        changes: returns how often its model has changed; ``None``: the model never changes.
        states: stream states of the service, if its model is recurrent.
    """

    def __init__(
        self,
        replica: Replica,
        balancer: P2CBalancer,
        clock: Clock,
        on_drained: Callable[[ReplicaHandle], None],
    ) -> None:
        self.replica = replica
        self.slot = -1
        self.is_started = False
        self.is_removed = False
        self.is_draining = False
        offered = adapt(replica.service).capabilities()
        self.validate, self.slo = offered.validate, offered.slo
        self.admission: Any = offered.admission
        self.is_idempotent = offered.idempotent is not False
        self.changes, self.states = offered.fingerprint_changes, offered.stream_states
        self._balancer = balancer
        self._clock = clock
        self._on_drained = on_drained
        self._tasks = DeadlineCalls()
        self._idle = IdleWaiters()
        # a service that does not enforce deadlines runs in a task that can be abandoned
        self.call: Any = replica.service.call if offered.enforces_deadline else self._call_until_deadline

    async def start(self) -> None:
        """Start the service."""
        await start_owned(self, self.replica.service)
        self.is_started = True

    async def stop(self, *, drain: bool) -> None:
        """Stop the service, also if the wait for its requests is cancelled."""
        self.is_started = False
        try:
            if drain:
                await self.drained()
        except BaseException:
            drain = False
            raise
        finally:
            try:
                await end_tasks(self._tasks)
            finally:
                await stop_all(self, [self.replica.service], drain=drain)

    async def drained(self) -> None:
        """Wait until the replica has no request in flight, or until the limit of the stop."""
        if self._has_requests():
            self.is_draining = True
            await self._idle.wait(seconds_left())

    def remove(self) -> None:
        """Send no more requests; keep the slot until the requests in flight have ended."""
        self._balancer.drain(self.slot)
        self.is_removed = self.is_draining = True

    def check_drained(self) -> None:
        """Wake the waiters if no request is in flight, and then free the slot of a removed replica."""
        if self._has_requests():
            return
        self._idle.wake()
        self.is_draining = False
        if self.is_removed and self.slot >= 0:
            self._balancer.remove(self.slot)
            self._on_drained(self)
            self.slot = -1

    def _has_requests(self) -> bool:
        return self.slot >= 0 and self._balancer.slot(self.slot).in_flight > 0

    async def _call_until_deadline(self, request: Request) -> Response:
        left_s = time_left_s(request.deadline_ns, self._clock())
        timeout_s = None if left_s is None else max(left_s, 0.0)
        return await self._tasks.end_within(timeout_s, self.replica.service.call(request), self.replica.name)
