"""Membership of replicas in a set: from the addition of a replica until a removed one has ended its last request."""

import asyncio
import math
from collections.abc import Mapping
from typing import Any

from streaminfer._internal.validation import check_instance, check_number, expected
from streaminfer.protocols import Clock
from streaminfer.routing.replicas._p2c_cy import P2CBalancer
from streaminfer.routing.replicas.replica import Replica, ReplicaHandle
from streaminfer.routing.stable_hash import stable_hash

__all__ = ["Membership", "is_above_1"]


class Membership:
    """Replicas by name and by their slot of the balancer, and replicas that are leaving. Not thread-safe.

    Args:
        balancer: gives each replica its slot.
        clock: returns monotonic nanoseconds.
        zone: zone of this process.
        zone_penalty: the factor by which a replica of another zone must be expected to respond sooner, or a mapping of
            zone to such factors.

    Raises:
        TypeError, ValueError: a penalty is not a number above 1.

    Attributes:
        by_name: handles of the replicas that get requests, in the order in which they were added.
        by_slot: handles by slot, including those that are leaving.
        leaving: handles of removed replicas whose last requests have not ended.
    """

    def __init__(self, balancer: P2CBalancer, clock: Clock, zone: str, zone_penalty: object) -> None:
        self.by_name: dict[str, ReplicaHandle] = {}
        self.by_slot: dict[int, ReplicaHandle] = {}
        self.leaving: list[ReplicaHandle] = []
        self._balancer = balancer
        self._clock = clock
        self._penalties, self._usual_penalty = _zone_penalties(zone_penalty)
        self._penalties[zone] = 1.0
        self._zones: dict[str, int] = {}
        self._earlier_changes = 0  # of replicas that were removed

    def check_new(self, replica: Replica) -> None:
        """Check that a replica can be added.

        Raises:
            TypeError, ValueError: ``replica`` is not a `Replica`, or its name is taken.
        """
        check_instance("replica", replica, Replica, "a Replica")
        if replica.name in self.by_name:
            raise ValueError(f"name: {replica.name!r} is the name of another replica")

    def handle_of(self, replica: Replica) -> ReplicaHandle:
        """Return a new handle, which gets no requests before :meth:`put`."""
        return ReplicaHandle(replica, self._balancer, self._clock, self._on_removed)

    def put(self, handle: ReplicaHandle, *, slowly: bool) -> None:
        """Give a replica a slot, so that it gets requests from now on.

        Args:
            handle: handle of a replica with a new name.
            slowly: the replica starts slowly.
        """
        replica = handle.replica
        penalty = self._penalties.get(replica.zone, self._usual_penalty)
        zone = self._zones.setdefault(replica.zone, len(self._zones))
        key = stable_hash(replica.name)
        handle.slot = self._balancer.add(float(replica.weight), penalty, zone, key, slowly, self._clock())
        self.by_name[replica.name] = self.by_slot[handle.slot] = handle

    async def start_all(self) -> list[BaseException | None]:
        """Start all replicas at once; return the error of each, or ``None``.

        A replica that is removed before its start begins is not started. The first lookup of a name removes a replica
        in this way if its address is gone.
        """
        return await asyncio.gather(*map(self._start, self.by_name.values()), return_exceptions=True)

    async def _start(self, handle: ReplicaHandle) -> None:
        if self.by_name.get(handle.replica.name) is handle:
            await handle.start()

    def take_out(self, name: str) -> ReplicaHandle:
        """Send no more requests to a replica; its handle is leaving until its last request has ended.

        Raises:
            ValueError: there is no replica of this name, or no other replica.
        """
        if name not in self.by_name:
            raise ValueError(expected("name", "one of " + ", ".join(map(repr, self.by_name)), name))
        if len(self.by_name) == 1:
            raise ValueError(f"{name!r} is the last replica: stop all of them instead")
        handle = self.by_name.pop(name)
        self._earlier_changes += 0 if handle.changes is None else handle.changes()
        handle.remove()
        self.leaving.append(handle)
        return handle

    def _on_removed(self, handle: ReplicaHandle) -> None:
        self.leaving.remove(handle)
        del self.by_slot[handle.slot]  # otherwise the model would stay in memory

    def all(self) -> list[ReplicaHandle]:
        """Return the handles of all replicas; those that are leaving come last."""
        return [*self.by_name.values(), *self.leaving]

    def first(self) -> ReplicaHandle | None:
        """Return the first added handle of the replicas that get requests; ``None``: there is none."""
        return next(iter(self.by_name.values()), None)

    def services(self) -> dict[str, Any]:
        """Return the services by name; the name of a replica that drains has the suffix ``(leaving)``."""
        services = {name: handle.replica.service for name, handle in self.by_name.items()}
        for handle in self.leaving:
            name = f"{handle.replica.name} (leaving)"
            while name in services:  # another replica of this name is leaving too
                name += " (leaving)"
            services[name] = handle.replica.service
        return services

    def fingerprint_changes(self) -> int:
        """Return how often the models of the replicas have changed, including removed replicas until their removal."""
        now = (handle.changes() for handle in self.by_name.values() if handle.changes is not None)
        return self._earlier_changes + sum(now)


def _zone_penalties(zone_penalty: object) -> tuple[dict[str, float], float]:
    """Return the penalties of single zones, and the penalty of all others."""
    expectation = "a finite number above 1, or a mapping of zone to such numbers"
    if not isinstance(zone_penalty, Mapping):
        return {}, check_number("zone_penalty", zone_penalty, expectation, is_above_1)
    return {
        zone: check_number("zone_penalty", value, expectation, is_above_1) for zone, value in zone_penalty.items()
    }, 2.0


def is_above_1(number: float) -> bool:
    """Return whether a factor is finite and above 1."""
    return 1.0 < number < math.inf
