"""One replica: what the user gives, and how `Replicas` asks, starts and stops it."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any

import attrs

from streaminfer._internal.validation import check_instance, check_number
from streaminfer._runtime.owners import start_owned
from streaminfer._runtime.pending_calls import DeadlineCalls
from streaminfer._runtime.stopping import seconds_left, stop_all, until_limit
from streaminfer.protocols import Clock, adapt, is_service
from streaminfer.request import Request, Response, time_left_s

if TYPE_CHECKING:
    from streaminfer.routing.replicas.replica_set import Replicas

__all__ = ["Replica", "ReplicaHandle"]


def _check_name(_: Any, attribute: attrs.Attribute[str], value: object) -> None:
    check_instance(attribute.name, value, lambda it: isinstance(it, str), "a string")


def _check_service(_: Any, attribute: attrs.Attribute[Any], value: object) -> None:
    check_instance(attribute.name, value, is_service, "a service (an object with call, such as a Stack)")


def _check_weight(_: Any, attribute: attrs.Attribute[float], value: object) -> None:
    check_number(attribute.name, value, "a finite number above 0", lambda it: 0.0 < it < math.inf)


@attrs.frozen
class Replica:
    """One place where the model is served.

    Args:
        name: of it, unique among the replicas; where a stream goes depends on it.
        service: what answers: a `Stack`, or any other service.
        zone: where it is; `Replicas` prefers its own zone.
        weight: how much more of the traffic it gets than an equally fast one of weight 1. Speed and capacity need no
            weight, they are measured.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.
    """

    name: str = attrs.field(validator=_check_name)
    service: Any = attrs.field(validator=_check_service)
    zone: str = attrs.field(default="", kw_only=True, validator=_check_name)
    weight: float = attrs.field(default=1.0, kw_only=True, validator=_check_weight)


class ReplicaHandle:
    """A replica in its slot: how it is asked, started and stopped.

    Attributes:
        replica: what the user gave.
        slot: its number in the state machine.
        leaving: somebody waits for its last request to end.
        validate: checks what a request brings; ``None``: nothing does.
        slo: whose objective it has; ``None``: it has none.
        admission: what answers for it whether it would accept a request; ``None``: nothing does.
        call: how it is asked.
        changes: how often its model has changed; ``None``: it does not.
    """

    def __init__(self, replica: Replica, owner: Replicas) -> None:
        self.replica = replica
        self.slot = -1
        self.leaving = False
        offered = adapt(replica.service).capabilities()
        self.validate, self.slo = offered.validate, offered.slo
        self.admission: Any = offered.admission
        self.is_idempotent = offered.idempotent is not False
        self.changes = offered.fingerprint_changes
        self._owner = owner
        self._tasks = DeadlineCalls()
        self._empty: asyncio.Future[None] | None = None
        # what does not end requests itself runs in a task that can be left behind
        self.call: Any = replica.service.call if offered.enforces_deadline else self._call_until_deadline

    def bind(self, clock: Clock) -> None:
        """Gives the service the clock."""
        adapt(self.replica.service).bind_clock(clock)

    async def start(self) -> None:
        """Starts the service, where that means anything."""
        await start_owned(self, self.replica.service)

    async def stop(self, *, drain: bool) -> None:
        """Stops the service in any case, also where waiting for it to drain is cancelled."""
        failure: BaseException | None = None
        try:
            if drain:
                await until_limit(self.left())
        except BaseException as error:  # noqa: BLE001 - raised below
            failure, drain = error, False
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(tuple(self._tasks), timeout=seconds_left())
        await stop_all(self, [self.replica.service], drain=drain)
        if failure is not None:
            raise failure

    async def left(self) -> None:
        """Until nothing is in flight here."""
        while self._owner._balance.slot(self.slot).in_flight:
            if self._empty is None:
                self._empty = asyncio.get_running_loop().create_future()
                self.leaving = True
            await asyncio.shield(self._empty)

    def check_left(self) -> None:
        """Whoever waits for the last request to end is told; one that was removed gives its slot back."""
        owner = self._owner
        if owner._balance.slot(self.slot).in_flight:
            return
        if self._empty is not None:
            if not self._empty.done():
                self._empty.set_result(None)
            self._empty = None
        if self in owner._leaving:
            owner._leaving.remove(self)
            owner._balance.remove(self.slot)
        else:
            self.leaving = False

    async def _call_until_deadline(self, request: Request) -> Response:
        left_s = time_left_s(request.deadline_ns, self._owner.clock())
        timeout_s = None if left_s is None else max(left_s, 0.0)
        return await self._tasks.end_within(timeout_s, self.replica.service.call(request), self.replica.name)
