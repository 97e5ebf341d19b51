# cython: wraparound=False, cdivision=True
"""Ejection of replicas that fail or are slow, and their return.

*Design* (Envoy's outlier detection). A replica is ejected after ``consecutive_failures``, or when it is an outlier. It
is an outlier if its latency and its latency per request in flight are more than ``latency_factor`` times those of most
others in the zone (a burst that queues is not the replica's fault), and so are those of its last response. Requests
in flight together share a batch, or a stall, so slow responses and overlong requests eject only when a row of them has
lasted for the factor times the mean latency of the others. The ejection lasts ``eject_ns`` times the number of
ejections, at most ``max_eject_ns``; this number falls by one for each ``eject_ns`` in service. At most a share of the
fleet is ejected, but of two or more replicas always one may be. Afterwards the replica is *probing*: it gets one
request at a time, until one succeeds. A failure ejects it again, and so does a request that does not end within
``eject_ns``. After a success it starts slowly. Each change begins a generation, and requests of an earlier generation
count neither way when they end.

*Complexity.* O(1), and O(replicas) if latencies are compared.

*Invariants.* Ejected ≤ the allowed share, unless replicas were removed since or a health check ejected some.

One source, compiled with the C types of ``_ejection_cy.pxd`` or run uncompiled. Not thread-safe.
"""

from __future__ import annotations

from streaminfer._internal.units import NEVER_NS
from streaminfer.routing.replicas._replica_stats_cy import ACTIVE, EJECTED, PROBING, ReplicaStats

__all__ = ["OutlierEjection"]

# C variables in the compiled module, not visible from Python
_MIN_SAMPLES = 8  # before a latency is judged
_DEFAULT_LATENCY_FACTOR = 3.0


class OutlierEjection:
    """Ejects replicas that fail or are slow.

    Args:
        consecutive_failures: number of failures that eject a replica; 0: failures never eject.
        latency_factor: how many times slower than most others an ejected replica is; 0.0: latency never ejects.
        eject_ns: duration of the first ejection.
        max_eject_ns: duration of the longest ejection.
        max_ejected: the share of replicas that may be ejected.
        slow_start_ns: how long a returned replica takes to its full weight; 0: no time.

    Attributes:
        slots: slots of all replicas; the balancer adds to it.
        replicas: number of replicas, without those that drain.
        ejected: number of ejected replicas.
    """

    def __init__(
        self,
        consecutive_failures: int,
        latency_factor: float,
        eject_ns: int,
        max_eject_ns: int,
        max_ejected: float,
        slow_start_ns: int,
    ) -> None:
        self.slots: list[ReplicaStats] = []
        self._consecutive_failures = consecutive_failures
        self._ejects_outliers = latency_factor > 0.0
        self._factor = latency_factor if latency_factor > 0.0 else _DEFAULT_LATENCY_FACTOR
        self._eject_ns = eject_ns
        self._max_eject_ns = max_eject_ns
        self._max_ejected = max_ejected
        self._slow_start_ns = slow_start_ns
        self.replicas = 0
        self.ejected = 0

    def force_eject(self, slot: ReplicaStats) -> None:
        """Eject a replica until :meth:`end_forced_ejection`, whatever share is ejected already."""
        if slot.state in (ACTIVE, PROBING):
            self._take_out(slot, NEVER_NS)
        elif slot.state == EJECTED:
            slot.until_ns = NEVER_NS

    def end_forced_ejection(self, slot: ReplicaStats, now_ns: int) -> None:
        """End the ejection of :meth:`force_eject`; the replica is probing then."""
        if slot.until_ns == NEVER_NS:
            slot.until_ns = now_ns

    def settle(self, slot: ReplicaStats, now_ns: int) -> None:
        """Make the changes that depend only on time."""
        if slot.state == EJECTED:
            if now_ns >= slot.until_ns:
                self.ejected -= 1
                slot.state = PROBING
                slot.forget(now_ns)
        elif slot.state == PROBING and slot.probe_in_flight and now_ns - slot.probe_began_ns > self._eject_ns:
            slot.probe_in_flight = False
            self._eject(slot, now_ns)

    def succeeded(self, slot: ReplicaStats, duration_ns: float, places: float, now_ns: int) -> None:
        """Return a probing replica to service; eject one that is too slow.

        Args:
            slot: slot of the replica.
            duration_ns: how long the request took.
            places: how many were in flight when it was sent.
            now_ns: the present.
        """
        if slot.state == PROBING:
            slot.state = ACTIVE
            slot.slow_start = self._slow_start_ns > 0
            slot.since_ns = now_ns
        elif slot.samples < _MIN_SAMPLES or not self._has_slow_mean(slot):
            slot.bad_since_ns = NEVER_NS
        elif self.is_overlong(slot, duration_ns, places) and self._is_lasting(slot, now_ns) and slot.state == ACTIVE:
            self._eject(slot, now_ns)

    def failed(self, slot: ReplicaStats, raised: bool, now_ns: int) -> None:
        """Eject a probing replica, or one with too many consecutive failures.

        Args:
            slot: slot of the replica.
            raised: the request failed; otherwise it was interrupted after it had run far too long.
            now_ns: the present.
        """
        is_lasting = self._is_lasting(slot, now_ns)
        if slot.state == PROBING or (
            slot.state == ACTIVE
            and 0 < self._consecutive_failures <= slot.consecutive_failures
            and (raised or is_lasting)
        ):
            self._eject(slot, now_ns)

    def is_overlong(self, slot: ReplicaStats, duration_ns: float, places: float) -> bool:
        """Return whether a request ran far longer than requests of most other replicas in the zone.

        Args:
            slot: slot of the replica.
            duration_ns: how long it has run.
            places: how many were in flight when it was sent.
        """
        return self._exceeds_most(slot, duration_ns / self._factor, duration_ns / places / self._factor)

    def _has_slow_mean(self, slot: ReplicaStats) -> bool:
        """Return whether a replica is slower by the factor than most others of its zone, and not because of its load.

        The mean may come from an outage that is over; then each quick response shows this. So its latest response has
        to be slow as well.
        """
        return self._ejects_outliers and self._exceeds_most(
            slot, slot.latency_ns / self._factor, slot.per_place_ns / self._factor
        )

    def _is_lasting(self, slot: ReplicaStats, now_ns: int) -> bool:
        """Return whether a row of slow requests, which may begin now, has lasted longer than one batch or stall.

        That is the factor times the mean latency of the other replicas in the zone.
        """
        if slot.bad_since_ns == NEVER_NS:
            slot.bad_since_ns = now_ns
        others = 0
        latencies_ns = 0.0
        for other in self.slots:
            if self._is_measured_peer(other, slot):
                others += 1
                latencies_ns += other.latency_ns
        return (now_ns - slot.bad_since_ns) * others >= self._factor * latencies_ns

    def _is_measured_peer(self, other: ReplicaStats, slot: ReplicaStats) -> bool:
        return other is not slot and other.zone == slot.zone and other.state == ACTIVE and other.samples >= _MIN_SAMPLES

    def _exceeds_most(self, slot: ReplicaStats, latency_ns: float, per_place_ns: float) -> bool:
        """Return whether these exceed the latencies of most others in the zone of a replica."""
        others = 0
        slower = 0
        for other in self.slots:
            if self._is_measured_peer(other, slot):
                others += 1
                if latency_ns > other.latency_ns and per_place_ns > other.per_place_ns:
                    slower += 1
        return slower > 0 and 2 * slower > others

    def _eject(self, slot: ReplicaStats, now_ns: int) -> None:
        limit = int(self._max_ejected * self.replicas)
        if limit < 1 and self._max_ejected > 0.0:
            limit = 1
        if self.ejected >= limit or self.ejected + 1 >= self.replicas:
            if slot.state == PROBING:
                slot.state = ACTIVE  # no more replicas may be ejected, so it serves in spite of its failures
                slot.since_ns = now_ns
            return
        in_service = (now_ns - slot.since_ns) // self._eject_ns
        slot.level = max(slot.level - in_service, 0) + 1
        times = min(slot.level, self._max_eject_ns // self._eject_ns + 1)  # a product of 64 bits
        self._take_out(slot, now_ns + min(self._eject_ns * times, self._max_eject_ns))

    def _take_out(self, slot: ReplicaStats, until_ns: int) -> None:
        slot.state = EJECTED
        slot.begin_generation()
        slot.until_ns = until_ns
        slot.ejections += 1
        self.ejected += 1
