# cython: wraparound=False, cdivision=True
"""Measurements of one replica, and the expected time of its next request: a slot of ``_p2c_cy``.

*Design.* Replicas are compared by Prequal's pair of signals (Wydrowski et al., NSDI 2024): requests in flight and the
latency at that number in flight. There are no separate probes, because every request that ends serves as one. Its
latency, and the number in flight when it was sent, are averaged. The averages give the time per request in flight, so
the latency at the present number in flight is::

    expected = latency / in_flight_then · (in_flight_now + 1)

This is right for one worker with a queue, and for batching and parallel replicas near their usual load. The result is
divided by the share of calls that succeeded (a replica that fails at once must not look fast) and by the weight, and
multiplied by the penalty of the replica's zone.

*Peaks.* As in Finagle's peak EWMA, a rise counts more than a fall, and old measurements are forgotten. The estimate of
a replica without requests returns to the mean of the fleet within some ``decay_ns``. So the replica gets requests again
while others have some in flight, and a quick response then counts more than all before. Two things differ from Finagle.
First, a single slow response does not become the estimate but counts four times: with varying service times, the peak
of a busy good replica is as high as the peak of a slow replica with few requests. Second, *silence* counts: a replica
with requests in flight that has not responded for longer than expected is as slow as its silence. So a hang shows
before any request ends.

*Complexity.* O(1) per method, but for the methods of `Fleet`, which are one pass over the replicas.

One source, compiled with the C types of ``_replica_stats_cy.pxd`` or run uncompiled. Not thread-safe.
"""

from __future__ import annotations

from streaminfer._internal.units import NEVER_NS

__all__ = ["ACTIVE", "DRAINING", "EJECTED", "FREE", "PROBING", "Fleet", "ReplicaStats"]

FREE, ACTIVE, PROBING, EJECTED, DRAINING = range(5)
"""States of a slot; a ``FREE`` slot has no replica, and a replica that starts slowly is ``ACTIVE``."""

# C variables in the compiled module, not visible from Python
_FREE = FREE
_ACTIVE = ACTIVE
_PROBING = PROBING
_EJECTED = EJECTED
_MIN_SAMPLE_WEIGHT = 0.03125  # the least weight of a new sample once there are many
_PEAK_FACTOR = 4.0  # factor on the weight of a sample above the estimate
_MAX_PEAK_WEIGHT = 0.25  # largest weight of such a sample
_LEAST_SUCCESS = 0.02
_LEAST_RAMP = 0.1
_PEAK_MIN_SAMPLES = 8  # number of samples after which `_PEAK_FACTOR` applies
_GENERATIONS = 2**22 - 1
_RECENT = 8  # number of requests in the recent mean
_MIN_RECENT = 3  # least number of requests in it; one may be quick by chance
_UNKNOWN_ZONE_FACTOR = 1.5  # expected time in an unknown zone, as a multiple of the least recent mean


class ReplicaStats:
    """Measurements of one replica; written by :class:`P2CBalancer` and its ejection.

    Attributes:
        state: one of the states of the module.
        weight: weight of the replica.
        penalty: penalty of its zone; 1.0: the own zone.
        zone: number of the zone.
        in_flight: requests chosen and not done.
        latency_ns: decaying mean of the latency of successful requests.
        per_place_ns: latency over the number in flight, of the same requests.
        success: decaying share of outcomes that were successes.
        attempts: requests sent to the replica since it was added.
        succeeded: requests that succeeded.
        failed: requests that failed.
        rejected: requests that the replica rejected.
        ejections: how often the replica was ejected.
        until_ns: end of the ejection.
    """

    def __init__(self) -> None:
        self.state = _FREE
        self.in_flight = 0
        self.generation = 0
        self.reset(1.0, 1.0, 0, 0, 0)

    def reset(self, weight: float, penalty: float, zone: int, key: int, now_ns: int) -> None:
        """Begin with another replica, without measurements."""
        self.weight = weight
        self.penalty = penalty
        self.zone = zone
        self.key = key
        self.share = 0.0
        self.level = 0
        self.zone_ns = 0.0
        self.zone_tried = False
        self.ejections = 0
        self.attempts = 0
        self.succeeded = 0
        self.failed = 0
        self.rejected = 0
        self.until_ns = 0
        self.slow_start = False
        self.forget(now_ns)

    def begin_generation(self) -> None:
        """Begin a generation: requests in flight will count neither way."""
        self.generation = (self.generation + 1) & _GENERATIONS
        self.probe_in_flight = False

    def forget(self, now_ns: int) -> None:
        """Forget the measurements; requests in flight will count neither way."""
        self.begin_generation()
        self.probe_began_ns = now_ns
        self.samples = 0
        self.latency_ns = 0.0
        self.places = 0.0
        self.per_place_ns = 0.0
        self.success = 1.0
        self.failed_last = False
        self.consecutive_failures = 0
        self.bad_since_ns = NEVER_NS
        self.updated_ns = now_ns
        self.busy_ns = now_ns
        self.since_ns = now_ns

    def ramp(self, now_ns: int, slow_start_ns: int) -> float:
        """Return the share of its weight that the replica has: 1.0, or less while it starts slowly."""
        if not self.slow_start:
            return 1.0
        elapsed_ns = now_ns - self.since_ns
        if elapsed_ns >= slow_start_ns:
            self.slow_start = False
            return 1.0
        part = 1.0 * elapsed_ns / slow_start_ns  # compiled, a quotient of whole numbers would be a whole number
        return part if part > _LEAST_RAMP else _LEAST_RAMP

    def draw_share(self, now_ns: int, mean_ns: float, decay_ns: int) -> float:
        """Return its share in the draws; ``mean_ns``: the fleet's time per request in flight, 0.0: not known.

        The share is proportional to the share of its requests that it serves: where most replicas fail, both of two
        draws would often be such replicas. Half of the rest is the weight. The other half is proportional to the speed,
        because by Little's law requests in flight over latency are the throughput. If the whole share followed the
        speed, differences would grow: a replica is less fast while it has few requests.
        """
        weight = self.weight * self.served(now_ns, decay_ns)
        if self.per_place_ns <= 0.0 or mean_ns <= 0.0:
            return weight
        return weight * (0.5 + 0.5 * mean_ns / self.per_place_ns)

    def tier(self, now_ns: int) -> int:
        """Return the tier of the replica; replicas of a lower tier get requests first.

        0: it takes part in the draws; 1: it is probing, and its probe is in flight; 2: it is ejected; 3: no requests.
        """
        if self.state == _ACTIVE:
            return 0
        if self.state == _PROBING:
            return 1 if self.probe_in_flight else 0
        if self.state == _EJECTED:
            return 2 if now_ns < self.until_ns else 0
        return 3

    def is_doubtful(self) -> bool:
        """Return whether a second attempt should avoid it: it is probing, or its last request failed or was rejected.

        If a whole zone is out, its next replica is no better than the first.
        """
        return self.failed_last or self.state == _PROBING

    def cost(self, now_ns: int, fleet: Fleet, decay_ns: int) -> float:
        """Return the value to compare: the expected time over success and weight, times the penalty."""
        # before the first measurement the replica with the fewest requests is the cheapest
        expected = self.expected(now_ns, fleet, decay_ns)
        served = self.served(now_ns, decay_ns)
        return (expected if expected > 0.0 else self.in_flight + 1.0) * self.penalty / (served * self.weight)

    def served(self, now_ns: int, decay_ns: int) -> float:
        """Return the share of its requests that it is expected to serve; failures fade like latencies."""
        if self.success >= 1.0:
            return 1.0
        success = 1.0 - (1.0 - self.success) * self.measurement_weight(now_ns, decay_ns)
        return success if success > _LEAST_SUCCESS else _LEAST_SUCCESS

    def expected(self, now_ns: int, fleet: Fleet, decay_ns: int) -> float:
        """Return the expected nanoseconds of the next request.

        A replica of another zone that was never called is not expected to be as busy as the known ones, see `Fleet`.
        """
        mean_ns = per_place_ns = fleet.mean_ns
        if self.samples or (self.zone_ns > 0.0 and mean_ns > 0.0):
            per_place_ns = self.per_place_ns if self.samples else self.zone_ns
            if per_place_ns > mean_ns:
                per_place_ns = mean_ns + (per_place_ns - mean_ns) * self.measurement_weight(now_ns, decay_ns)
        elif self.penalty > 1.0 and not self.zone_tried and 0.0 < _UNKNOWN_ZONE_FACTOR * fleet.least_ns < mean_ns:
            per_place_ns = _UNKNOWN_ZONE_FACTOR * fleet.least_ns
        expected_ns = per_place_ns * (self.in_flight + 1)
        if self.in_flight:
            silent_ns = now_ns - (self.updated_ns if self.updated_ns > self.busy_ns else self.busy_ns)
            if silent_ns > expected_ns > 0.0:
                expected_ns = silent_ns
        return expected_ns

    def measurement_weight(self, now_ns: int, decay_ns: int) -> float:
        """Return the weight of the measurements: 1.0 if the replica responded just now."""
        decays = 1.0 * (now_ns - self.updated_ns) / decay_ns
        if decays <= 0.0:
            return 1.0
        return 1.0 / ((1.0 + decays) * (1.0 + decays))

    def learn(self, duration_ns: float, places: float, now_ns: int, decay_ns: int) -> None:
        """Add a latency, with the number in flight when the request was sent."""
        self.samples += 1
        weight = 1.0 / self.samples if self.samples < 1.0 / _MIN_SAMPLE_WEIGHT else _MIN_SAMPLE_WEIGHT
        silent_ns = max(now_ns - self.updated_ns, 0)  # a clock that jumps back counts as standing still
        weight = max(weight, silent_ns / (1.0 * decay_ns + silent_ns))
        if duration_ns > self.per_place_ns * places:
            if self.samples > _PEAK_MIN_SAMPLES:
                weight *= _PEAK_FACTOR
            if weight > _MAX_PEAK_WEIGHT and self.samples > 4:
                weight = _MAX_PEAK_WEIGHT
        self.latency_ns += (duration_ns - self.latency_ns) * weight
        self.places += (places - self.places) * weight
        self.per_place_ns = self.latency_ns / self.places
        self.updated_ns = now_ns


class Fleet:
    """Time per request in flight over all replicas, and the expectation for zones that were never called.

    *Design.* While the own zone fills up, the mean of its replicas says nothing about an unknown zone. That mean times
    the penalty would keep a process with few requests at home, however long they take. So an unknown zone is expected
    to take little longer than the quickest few requests of this process, until one request is sent there. Its response
    sets the expectation for all replicas of the zone: a process tries each zone once, not each replica.

    Args:
        slots: the slots of all replicas.

    Attributes:
        mean_ns: time per request in flight at the mean speed of the known replicas; 0.0: none is known.
        least_ns: least mean of a few successive requests; 0.0: not known.
    """

    def __init__(self, slots: list[ReplicaStats]) -> None:
        self.slots = slots
        self.mean_ns = 0.0
        self.least_ns = 0.0
        self.recent_ns = 0.0
        self.learned = 0

    def learn(self, slot: ReplicaStats, per_place_ns: float) -> None:
        """Learn from the time per request in flight of one request; the replica has learned from it already."""
        if self.learned < _RECENT:
            self.learned += 1
        self.recent_ns += (per_place_ns - self.recent_ns) / self.learned
        if self.learned >= _MIN_RECENT and (self.least_ns <= 0.0 or self.recent_ns < self.least_ns):
            self.least_ns = self.recent_ns
        if slot.penalty > 1.0:
            for other in self.slots:
                if other.zone == slot.zone:
                    other.zone_ns = slot.per_place_ns
                    if not (other.samples or other.in_flight):
                        other.updated_ns = slot.updated_ns

    def tried(self, slot: ReplicaStats) -> None:
        """Note that a request is sent to a zone; nothing more is guessed of it."""
        for other in self.slots:
            if other.zone == slot.zone:
                other.zone_tried = True

    def join(self, slot: ReplicaStats) -> None:
        """Give a new replica what is known of its zone."""
        for other in self.slots:
            if other.zone == slot.zone and other is not slot and other.state != _FREE:
                slot.zone_ns = other.zone_ns
                slot.zone_tried = other.zone_tried
