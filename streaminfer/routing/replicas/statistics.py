"""Frozen snapshots of `Replicas` and of each replica."""

import math

import attrs

from streaminfer._internal.snapshot import Snapshot
from streaminfer._internal.units import NEVER_NS
from streaminfer.routing.replicas._p2c_cy import P2CBalancer
from streaminfer.routing.replicas._replica_stats_cy import ACTIVE, DRAINING, EJECTED, PROBING
from streaminfer.routing.replicas.replica import ReplicaHandle

__all__ = ["ReplicaStatistics", "ReplicasStatistics", "replica_statistics"]

_STATES = {ACTIVE: "active", PROBING: "probing", EJECTED: "ejected", DRAINING: "draining"}
_COUNTED = ("in_flight", "attempts", "succeeded", "failed", "rejected", "ejections")


@attrs.frozen(kw_only=True)
class ReplicaStatistics(Snapshot):
    """One replica at one moment.

    Counting rule: every attempt counts in ``attempts``, and when it ends, in one of ``succeeded``, ``failed`` and
    ``rejected``. It counts in none of these if it was cancelled, missed its deadline or had invalid inputs. A retried
    request counts at both replicas.

    Attributes:
        name: name of the replica.
        zone: zone of the replica.
        weight: its share among equally fast replicas.
        state: ``"active"``, ``"slow_start"``, ``"probing"`` (back from ejection, no success yet), ``"ejected"``,
            ``"unhealthy"`` (ejected by the health check) or ``"draining"``.
        in_flight: attempts that have not ended.
        attempts: attempts since it was added.
        succeeded: attempts that succeeded.
        failed: attempts that failed, or were cancelled or missed their deadline after an unusual time.
        rejected: attempts that the replica rejected.
        ejections: how often it was ejected.
        returns_in_s: seconds until its ejection ends; 0.0 if it is not ejected, infinity if it is unhealthy.
        latency_s: decaying mean of the latency of its responses; NaN: not known.
        expected_s: expected time of the next request; NaN: not known.
        success: decaying share of attempts that succeeded.
    """

    name: str
    zone: str
    weight: float
    state: str
    in_flight: int
    attempts: int
    succeeded: int
    failed: int
    rejected: int
    ejections: int
    returns_in_s: float
    latency_s: float
    expected_s: float
    success: float


@attrs.frozen(kw_only=True)
class ReplicasStatistics(Snapshot):
    """All replicas at one moment.

    Attributes:
        replicas: statistics of each replica, in the order in which they were added; those that drain at the end.
        retried: requests that were sent to a second replica.
        ejected: how many replicas are ejected at present.
        panics: attempts at an ejected replica because there was no other.
        lost_states: streams whose state ended with a removed replica, because their next replica had no place for them.
        probes: probes of the health check that were sent.
        failed_probes: how many of them failed.
        lookups: how often the discovery resolved its name.
        failed_lookups: how often it found nothing.
    """

    replicas: tuple[ReplicaStatistics, ...]
    retried: int
    ejected: int
    panics: int
    lost_states: int = 0
    probes: int = 0
    failed_probes: int = 0
    lookups: int = 0
    failed_lookups: int = 0

    def __getitem__(self, name: str) -> ReplicaStatistics:
        return {replica.name: replica for replica in reversed(self.replicas)}[name]  # not a draining one of this name


def replica_statistics(handle: ReplicaHandle, balancer: P2CBalancer, now_ns: int) -> ReplicaStatistics:
    """Return the snapshot of one replica."""
    slot = balancer.slot(handle.slot)
    expected_ns = balancer.expected_ns(handle.slot, now_ns)
    state = _STATES[slot.state]
    returns_in_s = 0.0
    if state == "active" and balancer.ramp(handle.slot, now_ns) < 1.0:
        state = "slow_start"
    elif state == "ejected" and slot.until_ns == NEVER_NS:
        state, returns_in_s = "unhealthy", math.inf
    elif state == "ejected":
        returns_in_s = (slot.until_ns - now_ns) / 1e9
    return ReplicaStatistics(
        name=handle.replica.name,
        zone=handle.replica.zone,
        weight=handle.replica.weight,
        state=state,
        returns_in_s=returns_in_s,
        latency_s=slot.latency_ns / 1e9 if slot.latency_ns else float("nan"),
        expected_s=expected_ns / 1e9 if expected_ns else float("nan"),
        success=slot.success,
        **{name: getattr(slot, name) for name in _COUNTED},
    )
