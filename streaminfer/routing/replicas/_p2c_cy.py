# cython: wraparound=False, cdivision=True
"""Power of two choices: the state machine of `Replicas`, which chooses the replica of each request.

*Design.* Two replicas are drawn by weight and measured speed, and the one that is expected to respond sooner gets the
request (Mitzenmacher 1996). If they were drawn by weight alone, no replica of ``n`` would get more than ``2 / n`` of
the requests. If one replica had most of the capacity, the others would then be overloaded long before it. With as many
choices as replicas, nothing is drawn and all replicas are compared. This makes the tail shorter, except for batching
replicas of unequal speed near saturation. The compared value is the expected time of the request
(``_replica_stats_cy``), over the replica's weight and times the penalty of its zone.

*Zones.* If replicas are drawn, two candidates come from the own zone, and two from the other zones, by weight over
penalty. A response from another zone must be expected sooner by the factor of its penalty. So traffic stays at home
until home is that much worse, and only enough traffic leaves to make both equal: no threshold and no flapping.

*Ejection* is decided by ``_ejection_cy``. A replica that starts slowly takes part in a tenth of the choices at first,
and in all of them after ``slow_start_ns``. In the other choices it still gets the request if it is expected sooner by
that factor, because the other replicas may have no room for nine tenths of its share.

*Streams* stay with the replica of the greatest weighted rendezvous hash (Thaler and Ravishankar 1998; weights by
Schindelhauer and Schomaker 2005). When a replica is ejected, only its streams move, and they return with it. While all
replicas are ejected, streams go where they would go if none were ejected.

*Complexity.* A choice is two passes over the replicas if all are compared, otherwise one pass and one more for each
drawn replica; a result is two passes at most.

*Invariants.* A request is in flight from its choice until it is done; a free slot has none in flight; a probing replica
has at most one request of its generation, unless there is no other replica; the same seed and the same calls give the
same choices. When all replicas are ejected, an ejected one gets the request (Envoy's panic).

One source, compiled with the C types of ``_p2c_cy.pxd`` or run uncompiled. Not thread-safe: for one event loop.
"""

from __future__ import annotations

from math import log

from streaminfer.routing.replicas._draws_cy import UniformDraws, unit_hash
from streaminfer.routing.replicas._ejection_cy import OutlierEjection
from streaminfer.routing.replicas._replica_stats_cy import ACTIVE, DRAINING, EJECTED, FREE, PROBING, Fleet, ReplicaStats

__all__ = ["FAILURE", "IGNORED", "REJECTED", "SUCCESS", "P2CBalancer"]

SUCCESS, FAILURE, REJECTED, IGNORED = range(4)
"""Outcomes of an attempt; an ``IGNORED`` attempt was interrupted, or says nothing about the replica."""

# C variables in the compiled module, not visible from Python
_SUCCESS = SUCCESS
_FAILURE = FAILURE
_REJECTED = REJECTED
_OUTCOME_WEIGHT = 0.125  # of the newest outcome in the share that succeeded
_SLOT_BITS = 16
_SLOTS = 2**16 - 1
_PLACES = 2**24 - 1
_GENERATION_BITS = 40
_NO_TIER = 3


class P2CBalancer:
    """Chooses among replicas, each in a numbered slot.

    Args:
        choices: how many replicas are drawn and compared for a request; if there are no more, all are compared.
        decay_ns: how fast the measurements of a replica without requests are forgotten.
        ejection: decides which replicas are ejected.
        slow_start_ns: how long a new or returned replica takes to its full weight; 0: no time.
        seed: seed of the draws, 0 ≤ seed < 2^63.

    Attributes:
        panics: choices when all replicas were ejected.
    """

    def __init__(self, choices: int, decay_ns: int, ejection: OutlierEjection, slow_start_ns: int, seed: int) -> None:
        self._choices = choices
        self._decay_ns = decay_ns
        self._ejection = ejection
        self._slots = self._ejection.slots
        self._slow_start_ns = slow_start_ns
        self._draws = UniformDraws(seed)
        self._skipped_slow_starter = False
        self._fleet = Fleet(self._slots)
        self._own_zone_share = 0.0
        self._other_zones_share = 0.0
        self.panics = 0

    @property
    def replicas(self) -> int:
        """How many replicas there are, without those that drain."""
        return self._ejection.replicas

    @property
    def ejected(self) -> int:
        """How many replicas are ejected."""
        return self._ejection.ejected

    def add(self, weight: float, penalty: float, zone: int, key: int, slowly: bool, now_ns: int) -> int:
        """Add a replica.

        Args:
            weight: weight of the replica, above 0.
            penalty: penalty of its zone, ≥ 1; 1.0: the own zone.
            zone: number of its zone; latencies are compared within a zone.
            key: hash of its name, 64 bits.
            slowly: the replica starts slowly, with a tenth of its weight.
            now_ns: the present.

        Returns:
            Its slot.
        """
        number = 0
        while number < len(self._slots) and self._slots[number].state != FREE:
            number += 1
        if number > _SLOTS:
            raise ValueError(f"at most {_SLOTS + 1} replicas")
        if number == len(self._slots):
            self._slots.append(ReplicaStats())
        slot = self._slots[number]
        slot.reset(weight, penalty, zone, key, now_ns)
        self._fleet.join(slot)
        slot.slow_start = slowly and self._slow_start_ns > 0
        slot.state = ACTIVE
        self._ejection.replicas += 1
        return number

    def drain(self, number: int) -> None:
        """Send no more requests to a replica."""
        slot = self._slots[number]
        if slot.state == EJECTED:
            self._ejection.ejected -= 1
        if slot.state not in (FREE, DRAINING):
            self._ejection.replicas -= 1
            slot.state = DRAINING

    def remove(self, number: int) -> None:
        """Free the slot of a replica that has drained.

        Raises:
            RuntimeError: it has requests in flight, or is not draining.
        """
        slot = self._slots[number]
        if slot.state != DRAINING or slot.in_flight:
            raise RuntimeError("a replica is removed once it has drained")
        slot.state = FREE

    def force_eject(self, number: int) -> None:
        """Eject a replica until :meth:`end_forced_ejection`, whatever share is ejected already."""
        self._ejection.force_eject(self._slots[number])

    def end_forced_ejection(self, number: int, now_ns: int) -> None:
        """End the ejection of :meth:`force_eject`; the replica is probing then."""
        self._ejection.end_forced_ejection(self._slots[number], now_ns)

    def slot(self, number: int) -> ReplicaStats:
        """Return the measurements of a replica; read-only."""
        return self._slots[number]

    def ramp(self, number: int, now_ns: int) -> float:
        """Return the share of its weight that a replica has: 1.0, or less while it starts slowly."""
        slot = self._slots[number]
        return slot.ramp(now_ns, self._slow_start_ns)

    def begin(self, now_ns: int) -> None:
        """Start again with another clock, before the first request."""
        for slot in self._slots:
            slot.forget(now_ns)

    def settle(self, now_ns: int) -> None:
        """End the ejections whose time has passed."""
        for slot in self._slots:
            self._ejection.settle(slot, now_ns)

    def choose(self, excluded: int, now_ns: int) -> int:
        """Choose the replica for one request, which is in flight there until :meth:`done`.

        Args:
            excluded: a slot that is not chosen; -1: none.
            now_ns: the present.

        Returns:
            A token for :meth:`done`; its lowest 16 bits are the slot. -1: there is no replica, or only replicas that
            get no requests while the excluded one is available.
        """
        self._weigh(excluded, True, now_ns)
        if self._choices >= self._ejection.replicas:
            best = self._cheapest(now_ns)
        else:
            at_home = self._pick(True, now_ns)  # on its own line: C may work out arguments in any order, and both draw
            best = self._better(at_home, self._pick(False, now_ns), now_ns)
        if best < 0:
            best = self.best(excluded, now_ns)
            if best < 0:
                return -1
        elif self._skipped_slow_starter:
            best = self._or_slow_starter(best, excluded, now_ns)
        return self._take(best, now_ns)

    def choose_for_stream(self, key: int, now_ns: int) -> int:
        """Choose the replica of a stream by its hash of 64 bits, as :meth:`choose`."""
        best = self.of_stream(key, now_ns)
        return best if best < 0 else self._take(best, now_ns)

    def of_stream(self, key: int, now_ns: int) -> int:
        """Return the slot of a stream; changes no count. -1: there is no replica."""
        self._weigh(-1, False, now_ns)
        if self._own_zone_share + self._other_zones_share <= 0.0:  # no replica takes part in the draws
            for number in self.ranked(now_ns):
                slot = self._slots[number]
                slot.share = slot.weight / slot.penalty
                if slot.penalty <= 1.0:
                    self._own_zone_share += slot.share
        best = -1
        highest = 0.0
        for number, slot in enumerate(self._slots):
            if slot.share <= 0.0 or (self._own_zone_share > 0.0 and slot.penalty > 1.0):
                continue
            score = -slot.weight / slot.penalty / log(unit_hash(slot.key ^ key))
            if best < 0 or score > highest:
                best = number
                highest = score
        return best

    def best(self, excluded: int, now_ns: int) -> int:
        """Return the slot that is expected to respond first, from those in the draws, else from the others.

        Changes nothing, and draws nothing.

        Args:
            excluded: a slot that is not returned, but still keeps requests from replicas of a higher tier, such as
                ejected ones; -1: none.
            now_ns: the present.

        Returns:
            The slot; -1: there is none.
        """
        for number in self.ranked(now_ns):
            if number != excluded:
                return number
        return -1

    def ranked(self, now_ns: int) -> list[int]:
        """Return the slots that a request may go to, the best first; changes nothing, and draws nothing.

        An ejected replica gets no request while there is another one, so it is included only if all are ejected.
        """
        lowest = _NO_TIER
        for slot in self._slots:
            lowest = min(lowest, slot.tier(now_ns))
        costs = [
            (self._cost(slot, now_ns), number)
            for number, slot in enumerate(self._slots)
            if slot.tier(now_ns) == lowest < _NO_TIER
        ]
        return [number for _, number in sorted(costs)]

    def expected_ns(self, number: int, now_ns: int) -> int:
        """Return the expected time of the next request there, in nanoseconds; 0: not known."""
        slot = self._slots[number]
        return int(slot.expected(now_ns, self._fleet, self._decay_ns))

    def done(self, token: int, outcome: int, duration_ns: int, now_ns: int) -> None:
        """Record the outcome of an attempt.

        Args:
            token: token from :meth:`choose`.
            outcome: ``SUCCESS``, ``FAILURE``, ``REJECTED`` or ``IGNORED``. An interrupted attempt counts as a failure
                if it took ``latency_factor`` (3 by default) times longer than attempts at most other replicas of the
                zone. If it took longer than expected, the replica gets less traffic.
            duration_ns: how long it took, or would have taken at least, ≥ 0.
            now_ns: the present.
        """
        slot = self._slots[token & _SLOTS]
        slot.in_flight -= 1
        places = (token >> _SLOT_BITS) & _PLACES
        current = (token >> _GENERATION_BITS) == slot.generation
        if current:
            slot.probe_in_flight = False
        if outcome == _SUCCESS:
            slot.succeeded += 1
            if current:
                self._succeeded(slot, duration_ns, places, now_ns)
        elif outcome == _REJECTED:
            slot.rejected += 1
            if current:
                slot.failed_last = True
                slot.success -= slot.success * _OUTCOME_WEIGHT
                slot.updated_ns = now_ns
        elif outcome == _FAILURE or self._ejection.is_overlong(slot, duration_ns, places):
            slot.failed += 1
            if current:
                self._failed(slot, outcome, duration_ns, places, now_ns)
        elif current and self._learn_at_least(slot, duration_ns, places, now_ns):
            slot.success -= slot.success * _OUTCOME_WEIGHT

    def _take(self, number: int, now_ns: int) -> int:
        slot = self._slots[number]
        if not slot.in_flight:
            slot.busy_ns = now_ns
        if not slot.zone_tried:
            self._fleet.tried(slot)
        slot.in_flight += 1
        slot.attempts += 1
        if slot.state == EJECTED:
            self.panics += 1
        elif slot.state == PROBING:
            slot.probe_in_flight = True
            slot.probe_began_ns = now_ns
        return number | ((slot.in_flight & _PLACES) << _SLOT_BITS) | (slot.generation << _GENERATION_BITS)

    def _succeeded(self, slot: ReplicaStats, duration_ns: int, places: int, now_ns: int) -> None:
        slot.consecutive_failures = 0
        slot.failed_last = False
        slot.success += (1.0 - slot.success) * _OUTCOME_WEIGHT
        slot.learn(duration_ns, places, now_ns, self._decay_ns)
        self._fleet.learn(slot, 1.0 * duration_ns / places)
        self._ejection.succeeded(slot, duration_ns, places, now_ns)

    def _failed(self, slot: ReplicaStats, outcome: int, duration_ns: int, places: int, now_ns: int) -> None:
        slot.consecutive_failures += 1
        slot.failed_last = True
        slot.success -= slot.success * _OUTCOME_WEIGHT
        self._learn_at_least(slot, duration_ns, places, now_ns)
        slot.updated_ns = now_ns
        self._ejection.failed(slot, outcome == _FAILURE, now_ns)

    def _learn_at_least(self, slot: ReplicaStats, duration_ns: int, places: int, now_ns: int) -> bool:
        """Learn from an attempt without response if it took longer than expected; return whether it did."""
        expected_ns = (slot.per_place_ns if slot.samples else self._fleet.mean_ns) * places
        if not 0.0 < expected_ns < duration_ns:
            return False
        slot.learn(duration_ns, places, now_ns, self._decay_ns)
        return True

    def _weigh(self, excluded: int, slowly: bool, now_ns: int) -> None:
        """Set each slot's share in the draws, their sums at home and elsewhere, and the mean of what is known.

        If ``slowly``, a replica that starts slowly takes part in a part of the choices: its share of its weight.
        """
        own = 0.0
        others = 0.0
        measured = 0
        speed = 0.0
        self._skipped_slow_starter = False
        for number, slot in enumerate(self._slots):
            slot.share = 0.0
            if slot.state in (EJECTED, PROBING):
                self._ejection.settle(slot, now_ns)
            if slot.state == ACTIVE:
                if slot.per_place_ns > 0.0:
                    measured += 1
                    speed += 1.0 / slot.per_place_ns
                if not (slot.slow_start and slowly) or self._draws.next() < slot.ramp(now_ns, self._slow_start_ns):
                    # the mean is that of the previous choice
                    slot.share = slot.draw_share(now_ns, self._fleet.mean_ns, self._decay_ns)
                else:
                    self._skipped_slow_starter = True
            elif slot.state == PROBING and not slot.probe_in_flight:
                slot.share = slot.weight
            if number == excluded or (excluded >= 0 and slot.is_doubtful()):
                slot.share = 0.0
            elif slot.penalty > 1.0:
                slot.share /= slot.penalty
                others += slot.share
            else:
                own += slot.share
        # the mean of speeds: in a mean of times, one replica's outage would keep its own estimate high for ever
        self._fleet.mean_ns = measured / speed if measured else 0.0
        self._own_zone_share = own
        self._other_zones_share = others

    def _cheapest(self, now_ns: int) -> int:
        """Return the cheapest slot in the draws; of equal ones, one of the nearest at random. -1: there is none."""
        best = -1
        equal = 0
        least = penalty = 0.0
        for number, slot in enumerate(self._slots):
            if slot.share <= 0.0:
                continue
            cost = self._cost(slot, now_ns)
            if best < 0 or cost < least or (cost == least and slot.penalty < penalty):
                best, least, penalty, equal = number, cost, slot.penalty, 1
            elif cost == least and slot.penalty == penalty:  # all new processes would choose the first one
                equal += 1
                if self._draws.next() * equal < 1.0:
                    best = number
        return best

    def _pick(self, own: bool, now_ns: int) -> int:
        """Draw slots at home, or elsewhere, and return the cheapest one; -1: there is none."""
        total = self._own_zone_share if own else self._other_zones_share
        best = -1
        for _ in range(self._choices):
            if total <= 0.0:
                break
            number = self._draws.slot(self._slots, total, own)
            if number < 0:
                break
            slot = self._slots[number]
            total -= slot.share
            slot.share = 0.0  # drawn once
            best = self._better(best, number, now_ns)
        return best

    def _or_slow_starter(self, best: int, excluded: int, now_ns: int) -> int:
        """Return a replica that starts slowly if its cost, over its share of its weight, is less; else ``best``."""
        slot = self._slots[best]
        least = self._cost(slot, now_ns)
        for number, slot in enumerate(self._slots):
            if (
                slot.state == ACTIVE
                and slot.slow_start
                and (excluded < 0 or not (number == excluded or slot.failed_last))
            ):
                cost = self._cost(slot, now_ns) / slot.ramp(now_ns, self._slow_start_ns)
                if cost < least:
                    best = number
                    least = cost
        return best

    def _better(self, first: int, second: int, now_ns: int) -> int:
        if second < 0:
            return first
        if first < 0:
            return second
        return second if self._cost(self._slots[second], now_ns) < self._cost(self._slots[first], now_ns) else first

    def _cost(self, slot: ReplicaStats, now_ns: int) -> float:
        return slot.cost(now_ns, self._fleet, self._decay_ns)
