# cython: wraparound=False, cdivision=True
"""Which replicas of `Replicas` are ejected for a while, and how they return.

*Design* (Envoy's outlier detection). After ``consecutive_failures``, or when its latency and its latency per request in
flight are more than ``latency_factor`` times those of most others in the zone (a burst that queues is not the replica's
fault), and so are those of its last response, a replica is ejected for ``eject_ns`` times the number of its ejections,
at most ``max_eject_ns``. That number falls by one for each ``eject_ns`` in service. At most a share of the fleet is
ejected, but always one may be where there are two. Afterwards the replica is *probing*: it gets one request at a time,
until one succeeds. A failure ejects it again, and so does a request that does not end within ``eject_ns``. Then it
starts slowly. Each change begins a generation, and requests of an earlier one count neither way when they end.

*Complexity.* O(1), and O(replicas) where a latency is compared.

*Invariants.* Ejected ≤ the cap, unless replicas were removed since or a health check ejected some.

One source, compiled with the C types of ``_ejection_cy.pxd`` or run uncompiled. Not thread-safe.
"""

from __future__ import annotations

from streaminfer._internal.units import NEVER_NS
from streaminfer.routing.replicas._replica_stats_cy import ACTIVE, EJECTED, PROBING, ReplicaStats

__all__ = ["OutlierEjection"]

# C variables in the compiled module, not visible from Python
_MIN_SAMPLES = 8  # by which a latency is judged
_DEFAULT_LATENCY_FACTOR = 3.0


class OutlierEjection:
    """Ejects replicas that fail or are slow.

    Args:
        consecutive_failures: so many eject; 0: never.
        latency_factor: so many times slower than most others ejects; 0.0: never.
        eject_ns: duration of the first ejection.
        max_eject_ns: of the longest.
        max_ejected: the share of replicas that may be ejected.
        slow_start_ns: how long a returned replica takes to its full weight; 0: no time.

    Attributes:
        slots: of all replicas; the balancer adds to it.
        replicas: how many there are, without those that drain.
        ejected: how many are ejected.
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
        self._latency_factor = latency_factor
        self._eject_ns = eject_ns
        self._max_eject_ns = max_eject_ns
        self._max_ejected = max_ejected
        self._slow_start_ns = slow_start_ns
        self.replicas = 0
        self.ejected = 0

    def hold_out(self, slot: ReplicaStats) -> None:
        """Eject a replica until :meth:`let_back`, whatever share is ejected already."""
        if slot.state in (ACTIVE, PROBING):
            self._take_out(slot, NEVER_NS)
        elif slot.state == EJECTED:
            slot.until_ns = NEVER_NS

    def let_back(self, slot: ReplicaStats, now_ns: int) -> None:
        """End what :meth:`hold_out` began; the replica is probing then."""
        if slot.until_ns == NEVER_NS:
            slot.until_ns = now_ns

    def settle(self, slot: ReplicaStats, now_ns: int) -> None:
        """Make the changes that time alone makes."""
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
            slot: of the replica.
            duration_ns: how long the request took.
            places: how many were in flight when it was sent.
            now_ns: the present.
        """
        if slot.state == PROBING:
            slot.state = ACTIVE
            slot.slow_start = self._slow_start_ns > 0
            slot.since_ns = now_ns
        elif slot.state == ACTIVE and slot.samples >= _MIN_SAMPLES and self._is_outlier(slot, duration_ns, places):
            self._eject(slot, now_ns)

    def failed(self, slot: ReplicaStats, now_ns: int) -> None:
        """Eject a probing replica, or one with too many consecutive failures."""
        if slot.state == PROBING or (
            slot.state == ACTIVE and 0 < self._consecutive_failures <= slot.consecutive_failures
        ):
            self._eject(slot, now_ns)

    def took_too_long(self, slot: ReplicaStats, duration_ns: float, places: float) -> bool:
        """Return whether an interrupted request had run for longer than those of most others in the zone ever do.

        Args:
            slot: of the replica.
            duration_ns: how long it had run.
            places: how many were in flight when it was sent.
        """
        factor = self._latency_factor if self._latency_factor > 0.0 else _DEFAULT_LATENCY_FACTOR
        return self._exceeds_most(slot, duration_ns / factor, duration_ns / places / factor)

    def _is_outlier(self, slot: ReplicaStats, duration_ns: float, places: float) -> bool:
        """Return whether it is slower by the factor than most others of its zone, and not because it has more to do.

        A mean can be of an outage that is over, and then each quick response is a sign that it is. So both count: the
        means, and the response that came just now.
        """
        factor = self._latency_factor
        return (
            factor > 0.0
            and self._exceeds_most(slot, slot.latency_ns / factor, slot.per_place_ns / factor)
            and self._exceeds_most(slot, duration_ns / factor, duration_ns / places / factor)
        )

    def _exceeds_most(self, slot: ReplicaStats, latency_ns: float, per_place_ns: float) -> bool:
        """Return whether these exceed the latencies of most others in the zone of a replica."""
        others = 0
        slower = 0
        for other in self.slots:
            if other is slot or other.zone != slot.zone or other.state != ACTIVE or other.samples < _MIN_SAMPLES:
                continue
            others += 1
            if latency_ns > other.latency_ns and per_place_ns > other.per_place_ns:
                slower += 1
        return slower > 0 and 2 * slower > others

    def _eject(self, slot: ReplicaStats, now_ns: int) -> None:
        most = int(self._max_ejected * self.replicas)
        if most < 1 and self._max_ejected > 0.0:
            most = 1
        if self.ejected >= most or self.ejected + 1 >= self.replicas:
            if slot.state == PROBING:
                slot.state = ACTIVE  # no more may be ejected: it serves, at the price of its failures
                slot.since_ns = now_ns
            return
        in_service = (now_ns - slot.since_ns) // self._eject_ns
        slot.level = (slot.level - in_service if slot.level > in_service else 0) + 1
        lasts_ns = self._max_eject_ns
        if slot.level < self._max_eject_ns // self._eject_ns + 1:
            lasts_ns = self._eject_ns * slot.level
            if lasts_ns > self._max_eject_ns:
                lasts_ns = self._max_eject_ns
        self._take_out(slot, now_ns + lasts_ns)

    def _take_out(self, slot: ReplicaStats, until_ns: int) -> None:
        slot.state = EJECTED
        slot.begin_generation()
        slot.until_ns = until_ns
        slot.ejections += 1
        self.ejected += 1
