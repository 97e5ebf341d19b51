"""What `Replicas` saw of each replica, as a frozen snapshot."""

import math
from typing import TYPE_CHECKING

import attrs

from streaminfer._internal.html_table import html_table
from streaminfer._internal.instants import NEVER_NS
from streaminfer._internal.snapshot import Snapshot
from streaminfer._internal.units import format_duration
from streaminfer.routing.replicas._p2c_cy import ACTIVE, DRAINING, EJECTED, TRIAL, P2CBalancer

if TYPE_CHECKING:
    from streaminfer.routing.replicas.replica import ReplicaHandle

__all__ = ["ReplicaStatistics", "ReplicasStatistics", "replica_statistics"]

_STATES = {ACTIVE: "active", TRIAL: "trial", EJECTED: "ejected", DRAINING: "draining"}


@attrs.frozen(kw_only=True)
class ReplicaStatistics(Snapshot):
    """One replica at one moment.

    Counting rule: every attempt counts in ``asked``, and when it ends in one of ``answered``, ``failed``, ``refused``,
    or, when it was cut off or the request was at fault, in none. A request that is asked twice counts at both replicas.

    Attributes:
        name: the replica.
        zone: where it is.
        weight: its share among equally fast ones.
        state: ``"active"``, ``"slow_start"``, ``"trial"`` (back from ejection, no success yet), ``"ejected"``,
            ``"unhealthy"`` (left out by the health check) or ``"draining"``.
        in_flight: attempts that have not ended.
        asked: attempts since it was added.
        answered: how many of them were answered.
        failed: how many failed, those that were cut off after an unusual time included.
        refused: how many it had no place for.
        ejections: how often it was left out.
        returns_in_s: seconds until its ejection ends; 0.0 where it is not ejected, infinity where it is
            unhealthy.
        latency_s: decaying mean of the latency of its answers; NaN: not known.
        expected_s: what the next request would take; NaN: not known.
        success: decaying share of attempts that were answered.
    """

    name: str
    zone: str
    weight: float
    state: str
    in_flight: int
    asked: int
    answered: int
    failed: int
    refused: int
    ejections: int
    returns_in_s: float
    latency_s: float
    expected_s: float
    success: float


@attrs.frozen(kw_only=True)
class ReplicasStatistics(Snapshot):
    """All replicas at one moment.

    Attributes:
        replicas: one for each, in the order in which they were added; those that drain at the end.
        retried: requests that were asked a second time.
        ejected: how many replicas are left out at present.
        panics: attempts at an ejected replica because there was no other.
        probes: probes of the health check that were sent.
        failed_probes: how many of them failed.
        looks: how often the discovery resolved its name.
        failed_looks: how often it found nothing.
    """

    replicas: tuple[ReplicaStatistics, ...]
    retried: int
    ejected: int
    panics: int
    probes: int = 0
    failed_probes: int = 0
    looks: int = 0
    failed_looks: int = 0

    def __getitem__(self, name: str) -> ReplicaStatistics:
        for replica in self.replicas:
            if replica.name == name:
                return replica
        raise KeyError(name)

    def _repr_html_(self) -> str:
        total = sum(replica.asked for replica in self.replicas) or 1
        names = (
            "replica", "zone", "state", "share", "in flight", "answered", "failed", "refused", "latency", "success",
        )  # fmt: skip
        rows = [
            (
                it.name, it.zone, it.state, f"{it.asked / total:.1%}", it.in_flight, f"{it.answered:,}",
                f"{it.failed:,}", f"{it.refused:,}", format_duration(it.latency_s), f"{it.success:.1%}",
            )
            for it in self.replicas
        ]  # fmt: skip
        caption = f"{len(self.replicas)} replicas, {self.ejected} ejected, {self.retried:,} requests asked twice"
        return html_table(rows, head=names, caption=caption)


def replica_statistics(place: "ReplicaHandle", balance: P2CBalancer, now_ns: int) -> ReplicaStatistics:
    """Return the snapshot of one replica."""
    slot = balance.slot(place.slot)
    expected_ns = balance.expected_ns(place.slot, now_ns)
    state = _STATES[slot.state]
    returns_in_s = 0.0
    if state == "active" and balance.ramp(place.slot, now_ns) < 1.0:
        state = "slow_start"
    elif state == "ejected" and slot.until_ns == NEVER_NS:
        state, returns_in_s = "unhealthy", math.inf
    elif state == "ejected":
        returns_in_s = (slot.until_ns - now_ns) / 1e9
    return ReplicaStatistics(
        name=place.replica.name,
        zone=place.replica.zone,
        weight=place.replica.weight,
        state=state,
        in_flight=slot.in_flight,
        asked=slot.chosen,
        answered=slot.succeeded,
        failed=slot.failed,
        refused=slot.refused,
        ejections=slot.ejections,
        returns_in_s=returns_in_s,
        latency_s=slot.latency_ns / 1e9 if slot.latency_ns else float("nan"),
        expected_s=expected_ns / 1e9 if expected_ns else float("nan"),
        success=slot.success,
    )
