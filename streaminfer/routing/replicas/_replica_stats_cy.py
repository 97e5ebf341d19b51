# cython: wraparound=False, cdivision=True
"""Measurements of one replica, and how long the next request would take there: a slot of ``_p2c_cy``.

*Design.* Replicas are compared by Prequal's pair of signals (Wydrowski et al., NSDI 2024), requests in flight and the
latency at that number in flight. There are no probes of their own: every request that ends is one. It brings its
latency and how many were in flight when it was sent; their averages give the time per request in flight, so that the
latency at the present number in flight is::

    expected = latency / in_flight_then · (in_flight_now + 1)

which is right for a queue in front of one worker, and for batching and parallel replicas near their usual load. It is
divided by the share of calls that succeeded (a replica that fails at once must not look fast) and by the weight, and
multiplied by the penalty of the replica's zone.

*Peaks.* As in Finagle's peak EWMA a rise counts more than a fall, and old measurements are forgotten: the estimate of a
replica without requests returns to the mean of the fleet within some ``decay_ns``, so that it gets requests again while
others have some in flight, and a quick response then counts more than all before. Two things differ. A single slow
response does not become the estimate (with service times that vary, the peak of a busy good replica is as high as that
of a slow one with few requests), it counts four times an ordinary one. And *silence* counts: a replica with requests in
flight that has not responded for longer than expected is as slow as its silence. So a hang shows before any request
ends.

*Complexity.* O(1) per method.

One source, compiled with the C types of ``_replica_stats_cy.pxd`` or run uncompiled. Not thread-safe.
"""

from __future__ import annotations

__all__ = ["ACTIVE", "DRAINING", "EJECTED", "FREE", "PROBING", "Fleet", "ReplicaStats"]

FREE, ACTIVE, PROBING, EJECTED, DRAINING = range(5)
"""States of a slot; ``FREE`` has no replica, one that starts slowly is ``ACTIVE``."""

# C variables in the compiled module, not visible from Python
_FREE = FREE
_ACTIVE = ACTIVE
_PROBING = PROBING
_EJECTED = EJECTED
_NEWEST = 0.03125  # the least weight of a new sample once there are many
_PEAK = 4.0  # how much more a sample counts that is above the estimate
_MOST = 0.25  # the most that one counts
_LEAST_SUCCESS = 0.02
_LEAST_RAMP = 0.1
_ENOUGH = 8  # samples by which a latency is judged
_GENERATIONS = 2**22 - 1
_RECENT = 8  # requests whose mean is the latency of late
_FEW = 3  # so many have a mean; the first alone may have been quick by chance
_FARTHER = 1.5  # how much longer than at home a request may take elsewhere, for want of knowledge


class ReplicaStats:
    """Measurements of one replica; written by :class:`P2CBalancer` and its ejection.

    Attributes:
        state: one of the states of the module.
        weight: as given.
        penalty: 1.0: the own zone.
        zone: number of the zone.
        in_flight: requests chosen and not done.
        latency_ns: decaying mean of the latency of successful requests.
        per_place_ns: latency over the number in flight, of the same requests.
        success: decaying share of outcomes that were successes.
        attempts: requests sent to it since it was added.
        succeeded: how many of them it served.
        failed: how many failed.
        rejected: how many it rejected.
        ejections: how often it was ejected.
        until_ns: end of the ejection.
    """

    def __init__(self) -> None:
        self.state = _FREE
        self.in_flight = 0
        self.generation = 0
        self.reset(1.0, 1.0, 0, 0, 0)

    def reset(self, weight: float, penalty: float, zone: int, key: int, now_ns: int) -> None:
        """Begin with another replica, of which nothing is known."""
        self.weight = weight
        self.penalty = penalty
        self.zone = zone
        self.key = key
        self.share = 0.0
        self.level = 0
        self.zone_ns = 0.0
        self.ejections = 0
        self.attempts = 0
        self.succeeded = 0
        self.failed = 0
        self.rejected = 0
        self.until_ns = 0
        self.slow_start = False
        self.forget(now_ns)

    def begin_generation(self) -> None:
        """Let requests in flight count neither way."""
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
        self.refused = False
        self.consecutive_failures = 0
        self.heard_ns = now_ns
        self.busy_ns = now_ns
        self.since_ns = now_ns

    def ramp(self, now_ns: int, slow_start_ns: int) -> float:
        """Return the share of its weight that it has: 1.0, or less while it starts slowly."""
        if not self.slow_start:
            return 1.0
        elapsed_ns = now_ns - self.since_ns
        if elapsed_ns >= slow_start_ns:
            self.slow_start = False
            return 1.0
        part = 1.0 * elapsed_ns / slow_start_ns  # of whole numbers, compiled, it would be a whole number
        return part if part > _LEAST_RAMP else _LEAST_RAMP

    def drawn(self, now_ns: int, mean_ns: float, decay_ns: int) -> float:
        """Return its share in the draws; ``mean_ns``: the fleet's time per request in flight, 0.0: not known.

        It goes with the share of its requests that it serves: where most replicas fail, both of two draws would often
        be such. Half of the rest is the weight. The other half goes with its speed, because by Little's law requests in
        flight over latency are its throughput. All of it would magnify itself: a replica is less fast while it has few
        requests.
        """
        weight = self.weight * self.served(now_ns, decay_ns)
        if self.per_place_ns <= 0.0 or mean_ns <= 0.0:
            return weight
        return weight * (0.5 + 0.5 * mean_ns / self.per_place_ns)

    def tier(self, now_ns: int) -> int:
        """Return when it gets a request, replicas of a lower number first.

        0: it takes part in the draws; 1: it is probing, and its probe is in flight; 2: it is ejected; 3: never.
        """
        if self.state == _ACTIVE:
            return 0
        if self.state == _PROBING:
            return 1 if self.probe_in_flight else 0
        if self.state == _EJECTED:
            return 2 if now_ns < self.until_ns else 0
        return 3

    def is_doubtful(self) -> bool:
        """Return whether it is no place for a second attempt: its last request failed or was rejected, or it probes.

        Where a whole zone is out, the next replica of it is no better than the first.
        """
        return self.refused or self.state == _PROBING

    def cost(self, now_ns: int, fleet: Fleet, decay_ns: int) -> float:
        """Return the value to compare: the expected time over success and weight, times the penalty."""
        # before the first measurement the replica with the fewest requests is the cheapest
        expected = self.expected(now_ns, fleet, decay_ns)
        served = self.served(now_ns, decay_ns)
        return (expected if expected > 0.0 else self.in_flight + 1.0) * self.penalty / (served * self.weight)

    def served(self, now_ns: int, decay_ns: int) -> float:
        """Return the share of its requests that it should serve; failures are forgotten as latencies are."""
        if self.success >= 1.0:
            return 1.0
        success = 1.0 - (1.0 - self.success) * self.remembered(now_ns, decay_ns)
        return success if success > _LEAST_SUCCESS else _LEAST_SUCCESS

    def expected(self, now_ns: int, fleet: Fleet, decay_ns: int) -> float:
        """Return the nanoseconds that the next request takes.

        A replica elsewhere that was never called is not expected to be as busy as those that were: see `Fleet`.
        """
        mean_ns = per_place_ns = fleet.mean_ns
        if self.samples:
            per_place_ns = self.per_place_ns
            if per_place_ns > mean_ns:
                per_place_ns = mean_ns + (per_place_ns - mean_ns) * self.remembered(now_ns, decay_ns)
        elif self.penalty > 1.0:
            if self.zone_ns > 0.0:
                per_place_ns = self.zone_ns
            elif 0.0 < _FARTHER * fleet.least_ns < mean_ns:
                per_place_ns = _FARTHER * fleet.least_ns
        expected_ns = per_place_ns * (self.in_flight + 1)
        if self.in_flight:
            silent_ns = now_ns - (self.heard_ns if self.heard_ns > self.busy_ns else self.busy_ns)
            if silent_ns > expected_ns > 0.0:
                expected_ns = silent_ns
        return expected_ns

    def remembered(self, now_ns: int, decay_ns: int) -> float:
        """Return the weight of the measurements: 1.0 if the replica responded just now."""
        decays = 1.0 * (now_ns - self.heard_ns) / decay_ns
        if decays <= 0.0:
            return 1.0
        return 1.0 / ((1.0 + decays) * (1.0 + decays))

    def learn(self, duration_ns: float, places: float, now_ns: int, decay_ns: int) -> None:
        """Add a latency, with the number in flight when the request was sent."""
        self.samples += 1
        newest = 1.0 / self.samples if self.samples < 1.0 / _NEWEST else _NEWEST
        silent_ns = max(now_ns - self.heard_ns, 0)  # a clock that jumps back stands still
        by_time = silent_ns / (1.0 * decay_ns + silent_ns)
        if by_time > newest:
            newest = by_time
        if duration_ns > self.per_place_ns * places:
            if self.samples > _ENOUGH:
                newest *= _PEAK
            if newest > _MOST and self.samples > 4:
                newest = _MOST
        self.latency_ns += (duration_ns - self.latency_ns) * newest
        self.places += (places - self.places) * newest
        self.per_place_ns = self.latency_ns / self.places
        self.heard_ns = now_ns


class Fleet:
    """The time per request in flight of all replicas, and what it says of those that were never called.

    *Design.* Where a zone fills up, the mean of its replicas says nothing of a zone that was never called: times the
    penalty it would keep a process with few requests at home, however long they take. So a replica there is expected
    to take little longer than a request did when there was least to do, which one request corrects. The others of its
    zone are then expected to be like it: a process tries each zone once, not each replica.

    Args:
        slots: of all replicas.

    Attributes:
        mean_ns: at the mean speed of the replicas that are known; 0.0: none is.
        least_ns: the least that a few successive requests took in the mean; 0.0: not known.
    """

    def __init__(self, slots: list[ReplicaStats]) -> None:
        self.slots = slots
        self.mean_ns = 0.0
        self.least_ns = 0.0
        self.lately_ns = 0.0
        self.learned = 0

    def learn(self, slot: ReplicaStats, per_place_ns: float) -> None:
        """Add the time per request in flight of one request, which the replica has learned."""
        if self.learned < _RECENT:
            self.learned += 1
        self.lately_ns += (per_place_ns - self.lately_ns) / self.learned
        if self.learned >= _FEW and (self.least_ns <= 0.0 or self.lately_ns < self.least_ns):
            self.least_ns = self.lately_ns
        if slot.penalty > 1.0:
            for other in self.slots:
                if other.zone == slot.zone:
                    other.zone_ns = slot.per_place_ns
