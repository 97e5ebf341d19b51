# cython: wraparound=False, cdivision=True
"""Which replica answers the next request, and which is left out for a while: the state machine of `Replicas`.

**The choice** is a power of two choices (Mitzenmacher 1996): two replicas are drawn by weight, and the one that is
expected to answer sooner is asked. To compare all of them is better for a single process, which knows all that is in
flight; of several processes, each of which knows its own requests alone, all would run to the same best replica.

**What is compared** is how long each is expected to take for it, by what is known of it (``_replica_stats_cy``), over
its weight and times the penalty of its zone.

**Zones.** Two candidates come from the own zone, and two from the others, by weight over penalty. An answer from
another zone must be expected sooner by the factor of its penalty. So traffic stays at home until home is that much
worse, and only as much of it leaves as makes them equal: no threshold, nothing to flap.

**Ejection** (Envoy's outlier detection): after ``consecutive_failures`` in a row, or when its latency, and what a place
in flight costs, are more than ``latency_factor`` times those of most others in the zone (a burst that queues is not the
replica's fault), a replica is left out for ``eject_ns`` times the number of ejections, at most ``max_eject_ns``. That
number falls by one for each ``eject_ns`` in service. Never more than a share of the fleet is out, but always one may be
where there are two. Afterwards it is *on trial*: one request at a time, until one succeeds; a failure ejects it again,
and so does a trial that has no end within ``eject_ns``. Then, like a replica that was added, it starts slowly: it takes
part in a tenth of the choices, and over ``slow_start_ns`` in all. Each of these turns begins a generation, and what was
sent in an earlier one says nothing any more when it ends.

**Streams** stay with the replica of the greatest weighted rendezvous hash (Thaler and Ravishankar 1998; weights by
Schindelhauer and Schomaker 2005): when one is out only its streams move, and they come back with it.

Invariants: in flight is what was chosen and not done; a free slot has none in flight; a replica on trial has one
request of that generation at most, unless nothing else is left; ejected ≤ the cap, unless replicas were removed since;
the same seed and the same calls give the same choices. When nothing else is left an ejected replica is asked (Envoy's
panic), and -1 says that there is none at all.

Cost: a choice is one pass over the replicas and one more for each that is drawn; a result one pass at most.

Threads: none; it belongs to one event loop. One source, compiled with the C types of ``_p2c_cy.pxd`` or run as it
is.
"""

from __future__ import annotations

from math import log

from streaminfer._internal.instants import NEVER_NS
from streaminfer.routing.replicas._replica_stats_cy import ACTIVE, DRAINING, EJECTED, FREE, TRIAL, ReplicaStats

__all__ = [
    "ACTIVE",
    "DRAINING",
    "EJECTED",
    "FAILURE",
    "FREE",
    "NEUTRAL",
    "REFUSED",
    "SUCCESS",
    "TRIAL",
    "P2CBalancer",
]

SUCCESS, FAILURE, REFUSED, NEUTRAL = range(4)
"""What became of a request; ``REFUSED``: the replica had no place, ``NEUTRAL``: it says nothing, or was cut off."""


# C variables in the compiled module, not visible from Python
_NEVER = NEVER_NS
_FREE = FREE
_ACTIVE = ACTIVE
_TRIAL = TRIAL
_EJECTED = EJECTED
_DRAINING = DRAINING
_SUCCESS = SUCCESS
_FAILURE = FAILURE
_REFUSED = REFUSED
_OUTCOME = 0.125  # the weight of the newest outcome in the share that succeeded
_ENOUGH = 8  # samples by which a latency is judged
_RETRY_SHARE = 0.2
_RETRY_BURST = 10.0
_SLOT_BITS = 16
_SLOTS = 2**16 - 1
_PLACES = 2**24 - 1
_GENERATION_BITS = 40
_GENERATIONS = 2**22 - 1
_MASK = 2**64 - 1
_STEP = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_UNIT = 2.0**-53


class P2CBalancer:
    """Chooses among replicas, each in a numbered slot.

    The arguments are taken as they are; ``Replicas`` checks them.

    Args:
        choices: how many replicas are drawn and compared for a request.
        decay_ns: how fast a replica that is not asked is forgotten.
        consecutive_failures: so many in a row eject; 0: never.
        latency_factor: so many times slower than most others ejects; 0.0: never.
        eject_ns: how long the first ejection lasts.
        max_eject_ns: how long any.
        max_ejected: the share of replicas that may be ejected.
        slow_start_ns: how long a new or returned replica takes to its full weight; 0: none.
        seed: of the draws, 0 ≤ seed < 2^63.

    Attributes:
        replicas: how many there are, without those that drain.
        ejected: how many are ejected.
        panics: choices when all that were left were ejected.
    """

    __slots__ = (
        "_choices",
        "_consecutive_failures",
        "_decay_ns",
        "_eject_ns",
        "_latency_factor",
        "_max_eject_ns",
        "_max_ejected",
        "_mean_ns",
        "_others",
        "_own",
        "_random",
        "_retry_tokens",
        "_slots",
        "_slow_start_ns",
        "ejected",
        "panics",
        "replicas",
    )

    def __init__(
        self,
        choices: int,
        decay_ns: int,
        consecutive_failures: int,
        latency_factor: float,
        eject_ns: int,
        max_eject_ns: int,
        max_ejected: float,
        slow_start_ns: int,
        seed: int,
    ) -> None:
        self._choices = choices
        self._decay_ns = decay_ns
        self._consecutive_failures = consecutive_failures
        self._latency_factor = latency_factor
        self._eject_ns = eject_ns
        self._max_eject_ns = max_eject_ns
        self._max_ejected = max_ejected
        self._slow_start_ns = slow_start_ns
        self._random = seed
        self._slots: list[ReplicaStats] = []
        self._mean_ns = 0.0
        self._own = 0.0
        self._others = 0.0
        self._retry_tokens = _RETRY_BURST
        self.replicas = 0
        self.ejected = 0
        self.panics = 0

    # -- the fleet ----------------------------------------------------------------------------------------------

    def add(self, weight: float, penalty: float, zone: int, key: int, slowly: bool, now_ns: int) -> int:
        """A further replica.

        Args:
            weight: of it, above 0.
            penalty: of its zone, ≥ 1; 1.0: the own zone.
            zone: number of its zone; latencies are compared within one.
            key: hash of its name, 64 bits.
            slowly: its weight grows from a tenth.
            now_ns: the present.

        Returns:
            Its slot.
        """
        number = 0
        while number < len(self._slots) and self._slots[number].state != _FREE:
            number += 1
        if number > _SLOTS:
            raise ValueError(f"at most {_SLOTS + 1} replicas")
        if number == len(self._slots):
            self._slots.append(ReplicaStats())
        slot = self._slots[number]
        slot.reset(weight, penalty, zone, key, now_ns)
        slot.slowly = slowly and self._slow_start_ns > 0
        slot.state = _ACTIVE
        self.replicas += 1
        return number

    def drain(self, number: int) -> None:
        """Gives it nothing more."""
        slot = self._slots[number]
        if slot.state == _EJECTED:
            self.ejected -= 1
        if slot.state not in (_FREE, _DRAINING):
            self.replicas -= 1
            slot.state = _DRAINING

    def remove(self, number: int) -> None:
        """Frees the slot of one that has drained.

        Raises:
            RuntimeError: it has requests in flight, or does not drain.
        """
        slot = self._slots[number]
        if slot.state != _DRAINING or slot.in_flight:
            raise RuntimeError("a replica is removed once it has drained")
        slot.state = _FREE

    def hold_out(self, number: int) -> None:
        """Ejects it until :meth:`let_back`, whatever share is ejected already."""
        slot = self._slots[number]
        if slot.state in (_ACTIVE, _TRIAL):
            slot.state = _EJECTED
            slot.generation = (slot.generation + 1) & _GENERATIONS
            slot.trial_out = False
            slot.ejections += 1
            self.ejected += 1
        if slot.state == _EJECTED:
            slot.until_ns = _NEVER

    def let_back(self, number: int, now_ns: int) -> None:
        """Ends what :meth:`hold_out` began; it is on trial then."""
        slot = self._slots[number]
        if slot.until_ns == _NEVER:
            slot.until_ns = now_ns

    def slot(self, number: int) -> ReplicaStats:
        """What is known of a replica; to be read only."""
        return self._slots[number]

    def ramp(self, number: int, now_ns: int) -> float:
        """Which share of its weight it has: 1.0, or less while it starts slowly."""
        slot = self._slots[number]
        return slot.ramp(now_ns, self._slow_start_ns)

    def begin(self, now_ns: int) -> None:
        """Another clock: what is known so far is of no use; for a fleet that has not been asked."""
        for slot in self._slots:
            slot.forget(now_ns)

    def settle(self, now_ns: int) -> None:
        """Ends the ejections whose time has passed."""
        for slot in self._slots:
            self._settle(slot, now_ns)

    # -- requests -----------------------------------------------------------------------------------------------

    def choose(self, excluded: int, now_ns: int) -> int:
        """The replica for one request; it is in flight there until :meth:`done`.

        Args:
            excluded: a slot that is not to be asked again; -1: none.
            now_ns: the present.

        Returns:
            A token for :meth:`done`, whose lowest 16 bits are the slot; -1: there is no replica.
        """
        self._weigh(excluded, True, now_ns)
        at_home = self._pick(True, now_ns)  # on its own line: C may work out arguments in any order, and both draw
        best = self._better(at_home, self._pick(False, now_ns), now_ns)
        if best < 0:
            best = self._least_bad(excluded, now_ns)
            if best < 0:
                return -1
        return self._take(best, now_ns)

    def choose_for_stream(self, key: int, now_ns: int) -> int:
        """The replica of a stream, as :meth:`choose`.

        Args:
            key: hash of the stream, 64 bits.
            now_ns: the present.
        """
        best = self.of_stream(key, now_ns)
        return best if best < 0 else self._take(best, now_ns)

    def of_stream(self, key: int, now_ns: int) -> int:
        """The slot of a stream; takes nothing. -1: there is no replica."""
        self._weigh(-1, False, now_ns)
        best = -1
        most = 0.0
        for number in range(len(self._slots)):
            slot = self._slots[number]
            if slot.share <= 0.0 or (self._own > 0.0 and slot.penalty > 1.0):
                continue
            score = -slot.weight / slot.penalty / log(_uniform(_mixed(slot.key ^ key)))
            if best < 0 or score > most:
                best = number
                most = score
        return best if best >= 0 else self._least_bad(-1, now_ns)

    def best(self, excluded: int, now_ns: int) -> int:
        """The slot that is expected to answer first; changes nothing, and draws nothing.

        Args:
            excluded: a bit for each slot that is not meant (of the first 62).
            now_ns: the present.

        Returns:
            The slot; -1: there is none.
        """
        best = -1
        least = 0.0
        out = True
        for number in range(len(self._slots)):
            slot = self._slots[number]
            if slot.state in (_FREE, _DRAINING) or (number < 62 and (excluded >> number) & 1):
                continue
            is_out = slot.state == _EJECTED and now_ns < slot.until_ns
            cost = slot.cost(now_ns, self._mean_ns, self._decay_ns)
            if best < 0 or (out and not is_out) or (out == is_out and cost < least):
                best = number
                least = cost
                out = is_out
        return best

    def expected_ns(self, number: int, now_ns: int) -> int:
        """What the next request is expected to take there, in nanoseconds; 0: not known."""
        slot = self._slots[number]
        return int(slot.expected(now_ns, self._mean_ns, self._decay_ns))

    def may_retry(self) -> bool:
        """Whether one more request may be asked a second time; takes the permission.

        Second attempts are at most a fifth of the requests, and ten at once (as Finagle's retry budget): where all
        replicas fail, asking another one only doubles the load.
        """
        if self._retry_tokens < 1.0:
            return False
        self._retry_tokens -= 1.0
        return True

    def done(self, token: int, outcome: int, duration_ns: int, now_ns: int) -> None:
        """A request ended.

        Args:
            token: from :meth:`choose`.
            outcome: ``SUCCESS``, ``FAILURE``, ``REFUSED`` or ``NEUTRAL``: what was cut off counts as a failure when it
                took more than ``latency_factor`` (3 where there is none) times what the others take.
            duration_ns: how long it took, ≥ 0.
            now_ns: the present.
        """
        slot = self._slots[token & _SLOTS]
        slot.in_flight -= 1
        current = (token >> _GENERATION_BITS) == slot.generation
        if current:
            slot.trial_out = False
        if outcome == _SUCCESS:
            slot.succeeded += 1
            if current:
                self._succeeded(slot, duration_ns, (token >> _SLOT_BITS) & _PLACES, now_ns)
        elif outcome == _REFUSED:
            slot.refused += 1
            if current:
                slot.success -= slot.success * _OUTCOME
                slot.heard_ns = now_ns
        elif outcome == _FAILURE or self._took_too_long(slot, duration_ns):
            slot.failed += 1
            if current:
                self._failed(slot, duration_ns, (token >> _SLOT_BITS) & _PLACES, now_ns)

    # -- inside -------------------------------------------------------------------------------------------------

    def _take(self, number: int, now_ns: int) -> int:
        slot = self._slots[number]
        if not slot.in_flight:
            slot.busy_ns = now_ns
        slot.in_flight += 1
        slot.chosen += 1
        self._retry_tokens += _RETRY_SHARE
        if self._retry_tokens > _RETRY_BURST:
            self._retry_tokens = _RETRY_BURST
        if slot.state == _EJECTED:
            self.panics += 1
        elif slot.state == _TRIAL:
            slot.trial_out = True
            slot.trial_ns = now_ns
        return number | ((slot.in_flight & _PLACES) << _SLOT_BITS) | (slot.generation << _GENERATION_BITS)

    def _succeeded(self, slot: ReplicaStats, duration_ns: int, places: int, now_ns: int) -> None:
        slot.failures_in_a_row = 0
        slot.success += (1.0 - slot.success) * _OUTCOME
        slot.learn(duration_ns, places, now_ns, self._decay_ns)
        if slot.state == _TRIAL:
            slot.state = _ACTIVE
            slot.slowly = self._slow_start_ns > 0
            slot.since_ns = now_ns
        elif slot.state == _ACTIVE and slot.samples >= _ENOUGH and self._is_outlier(slot):
            self._eject(slot, now_ns)

    def _failed(self, slot: ReplicaStats, duration_ns: int, places: int, now_ns: int) -> None:
        slot.failures_in_a_row += 1
        slot.success -= slot.success * _OUTCOME
        if slot.samples and duration_ns > slot.latency_ns:
            slot.learn(duration_ns, places, now_ns, self._decay_ns)  # it would have taken at least so long
        slot.heard_ns = now_ns
        if slot.state == _TRIAL or (slot.state == _ACTIVE and 0 < self._consecutive_failures <= slot.failures_in_a_row):
            self._eject(slot, now_ns)

    def _settle(self, slot: ReplicaStats, now_ns: int) -> None:
        """What the clock alone changes."""
        if slot.state == _EJECTED:
            if now_ns >= slot.until_ns:
                self.ejected -= 1
                slot.state = _TRIAL
                slot.forget(now_ns)
        elif slot.state == _TRIAL and slot.trial_out and now_ns - slot.trial_ns > self._eject_ns:
            slot.trial_out = False
            self._eject(slot, now_ns)

    def _weigh(self, excluded: int, slowly: bool, now_ns: int) -> None:
        """Sets each slot's share in the draws, their sums at home and elsewhere, and the mean of what is known.

        Where ``slowly``, one that starts slowly takes part in as many choices as it has of its weight.
        """
        own = 0.0
        others = 0.0
        known = 0
        total_ns = 0.0
        for number in range(len(self._slots)):
            slot = self._slots[number]
            slot.share = 0.0
            self._settle(slot, now_ns)
            if slot.state == _ACTIVE:
                if slot.samples:
                    known += 1
                    total_ns += slot.per_place_ns
                if not (slot.slowly and slowly) or self._random_unit() < slot.ramp(now_ns, self._slow_start_ns):
                    slot.share = slot.weight
            elif slot.state == _TRIAL and not slot.trial_out:
                slot.share = slot.weight
            if number == excluded:
                slot.share = 0.0
            elif slot.penalty > 1.0:
                slot.share /= slot.penalty
                others += slot.share
            else:
                own += slot.share
        self._mean_ns = total_ns / known if known else 0.0
        self._own = own
        self._others = others

    def _pick(self, own: bool, now_ns: int) -> int:
        """The cheapest of so many that are drawn at home, or elsewhere; -1: there is none."""
        total = self._own if own else self._others
        best = -1
        for _ in range(self._choices):
            if total <= 0.0:
                break
            number = self._draw(total, own)
            if number < 0:
                break
            slot = self._slots[number]
            total -= slot.share
            slot.share = 0.0  # drawn once
            best = self._better(best, number, now_ns)
        return best

    def _draw(self, total: float, own: bool) -> int:
        """A slot by its share, at home or elsewhere; -1: there is none."""
        left = self._random_unit() * total
        last = -1
        for number in range(len(self._slots)):
            slot = self._slots[number]
            if slot.share <= 0.0 or (slot.penalty <= 1.0) != own:
                continue
            last = number
            left -= slot.share
            if left < 0.0:
                break
        return last

    def _random_unit(self) -> float:
        self._random = (self._random + _STEP) & _MASK
        return _uniform(_mixed(self._random))

    def _better(self, first: int, second: int, now_ns: int) -> int:
        if second < 0:
            return first
        if first < 0:
            return second
        one = self._slots[first]
        other = self._slots[second]
        mean_ns = self._mean_ns
        decay_ns = self._decay_ns
        return second if other.cost(now_ns, mean_ns, decay_ns) < one.cost(now_ns, mean_ns, decay_ns) else first

    def _is_outlier(self, slot: ReplicaStats) -> bool:
        """Slower by the factor than more than half of the others in its zone, and not since it has more to do."""
        if self._latency_factor <= 0.0:
            return False
        others = 0
        slower = 0
        for other in self._slots:
            if other is slot or other.zone != slot.zone or other.state != _ACTIVE or other.samples < _ENOUGH:
                continue
            others += 1
            if (
                slot.latency_ns > self._latency_factor * other.latency_ns
                and slot.per_place_ns > self._latency_factor * other.per_place_ns
            ):
                slower += 1
        return slower > 0 and 2 * slower > others

    def _took_too_long(self, slot: ReplicaStats, duration_ns: float) -> bool:
        """Whether what was cut off had waited for longer than others ever do."""
        factor = self._latency_factor if self._latency_factor > 0.0 else 3.0
        known = 0
        total_ns = 0.0
        for other in self._slots:
            if other.zone == slot.zone and other.state == _ACTIVE and other.samples:
                known += 1
                total_ns += other.latency_ns
        return known > 0 and duration_ns > factor * total_ns / known

    def _eject(self, slot: ReplicaStats, now_ns: int) -> None:
        most = int(self._max_ejected * self.replicas)
        if most < 1 and self._max_ejected > 0.0:
            most = 1
        if self.ejected >= most or self.ejected + 1 >= self.replicas:
            if slot.state == _TRIAL:
                slot.state = _ACTIVE  # with no place among the ejected it goes on, at the price of its failures
                slot.since_ns = now_ns
            return
        in_service = (now_ns - slot.since_ns) // self._eject_ns
        slot.level = (slot.level - in_service if slot.level > in_service else 0) + 1
        lasts_ns = self._max_eject_ns
        if slot.level < self._max_eject_ns // self._eject_ns + 1:
            lasts_ns = self._eject_ns * slot.level
            if lasts_ns > self._max_eject_ns:
                lasts_ns = self._max_eject_ns
        slot.state = _EJECTED
        slot.generation = (slot.generation + 1) & _GENERATIONS
        slot.until_ns = now_ns + lasts_ns
        slot.ejections += 1
        self.ejected += 1

    def _least_bad(self, excluded: int, now_ns: int) -> int:
        """Where all that are left are ejected or on trial: the cheapest of them."""
        best = -1
        for number in range(len(self._slots)):
            slot = self._slots[number]
            if number != excluded and slot.state not in (_FREE, _DRAINING):
                best = self._better(best, number, now_ns)
        return best


def _mixed(value: int) -> int:
    """The output function of splitmix64 (Steele, Lea and Flood 2014)."""
    value = ((value ^ (value >> 30)) * _MIX_1) & _MASK
    value = ((value ^ (value >> 27)) * _MIX_2) & _MASK
    return value ^ (value >> 31)


def _uniform(value: int) -> float:
    """Above 0 and below 1."""
    return ((value >> 11) + 0.5) * _UNIT
