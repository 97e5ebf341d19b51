"""Ejection and return against a plain model: any order of requests, outcomes, pauses, additions and removals."""

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from streaminfer.routing.replicas._ejection_cy import OutlierEjection
from streaminfer.routing.replicas._p2c_cy import FAILURE, IGNORED, REJECTED, SUCCESS, P2CBalancer
from streaminfer.routing.replicas._replica_stats_cy import ACTIVE, DRAINING, EJECTED, FREE, PROBING

pytestmark = pytest.mark.uncompiled

S = 1_000_000_000
SLOT = 2**16 - 1
EJECT, MOST = 2 * S, 5 * S


@attrs.define
class Member:
    """One replica of the model."""

    state: int = ACTIVE
    in_a_row: int = 0
    level: int = 0
    until: int = 0
    since: int = 0
    turn: int = 0
    trial: int | None = None


@attrs.define
class Sent:
    token: int
    member: Member
    turn: int


class FleetMachine(RuleBasedStateMachine):
    @initialize(
        count=st.integers(1, 5),
        choices=st.integers(1, 3),
        in_a_row=st.integers(1, 3),
        share=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
        seed=st.integers(0, 9),
    )
    def begin(self, count, choices, in_a_row, share, seed):
        self.in_a_row, self.share, self.now = in_a_row, share, 0
        self.balance = P2CBalancer(choices, 10 * S, OutlierEjection(in_a_row, 0.0, EJECT, MOST, share, S), S, seed)
        self.members = {self.balance.add(1.0, 1.0, 0, n, False, 0): Member() for n in range(count)}
        self.leaving = {}
        self.has_drained = False
        self.sent = []

    # the model

    def eject(self, member):
        count = len(self.members)
        out = sum(each.state == EJECTED for each in self.members.values())
        most = max(int(self.share * count), 1 if self.share else 0)
        if out >= most or out + 1 >= count:
            if member.state == PROBING:
                member.state, member.since = ACTIVE, self.now
            return
        member.level = max(member.level - (self.now - member.since) // EJECT, 0) + 1
        member.state, member.turn = EJECTED, member.turn + 1
        member.until = self.now + min(member.level * EJECT, MOST)

    def settle(self):
        for number in sorted(self.members):
            member = self.members[number]
            if member.state == EJECTED and self.now >= member.until:
                member.state, member.in_a_row, member.trial = PROBING, 0, None
                member.since, member.turn = self.now, member.turn + 1
            elif member.state == PROBING and member.trial is not None and self.now - member.trial > EJECT:
                member.trial = None
                self.eject(member)

    def classify(self, sent, outcome):
        member = sent.member
        if sent.turn != member.turn:
            return
        member.trial = None
        if outcome == SUCCESS:
            member.in_a_row = 0
            if member.state == PROBING:
                member.state, member.since = ACTIVE, self.now
        elif outcome == FAILURE:
            member.in_a_row += 1
            if member.state == PROBING or (member.state == ACTIVE and member.in_a_row >= self.in_a_row):
                self.eject(member)

    # what happens

    @staticmethod
    def tier(member):
        return {ACTIVE: 0, PROBING: 0 if member.trial is None else 1}.get(member.state, 2)

    def take(self, token, excluded=-1):
        number = token & SLOT
        member = self.members[number]  # never a replica that is leaving
        assert number != excluded
        free = {
            each
            for each, it in self.members.items()
            if each != excluded and (it.state == ACTIVE or (it.state == PROBING and it.trial is None))
        }
        # one choice may skip all free replicas if they all start slowly
        assert number in free or not free or all(self.balance.ramp(each, self.now) < 1.0 for each in free)
        if member.state == PROBING:
            member.trial = self.now
        self.sent.append(Sent(token, member, member.turn))

    @rule(excluded=st.integers(-1, 4))
    def ask(self, excluded):
        self.settle()
        token = self.balance.choose(excluded, self.now)
        if token < 0:
            tiers = {number: self.tier(it) for number, it in self.members.items()}
            kept = tiers.pop(excluded, 3)
            assert all(kept < tier for tier in tiers.values())
        else:
            self.take(token, excluded)

    @rule(key=st.integers(0, 2**64 - 1))
    def ask_for_a_stream(self, key):
        self.settle()
        looked = self.balance.of_stream(key, self.now)
        token = self.balance.choose_for_stream(key, self.now)
        assert token & SLOT == looked
        self.take(token)

    @precondition(lambda self: self.sent)
    @rule(data=st.data(), outcome=st.sampled_from([SUCCESS, FAILURE, FAILURE, REJECTED, IGNORED]))
    def end(self, data, outcome):
        sent = self.sent.pop(data.draw(st.integers(0, len(self.sent) - 1)))
        self.balance.done(sent.token, outcome, 0, self.now)
        self.classify(sent, outcome)

    @rule(seconds=st.sampled_from([0.001, 0.5, 2.0, 7.0, 100.0]))
    def wait(self, seconds):
        self.now += round(seconds * S)

    @rule()
    def look(self):
        self.settle()
        self.balance.settle(self.now)

    @precondition(lambda self: len(self.members) < 5)
    @rule(slowly=st.booleans())
    def add(self, slowly):
        number = self.balance.add(1.0, 1.0, 0, 3, slowly, self.now)
        assert number not in self.members
        assert number not in self.leaving
        self.members[number] = Member(since=self.now)

    @precondition(lambda self: len(self.members) > 1)
    @rule(data=st.data())
    def drain(self, data):
        number = data.draw(st.sampled_from(sorted(self.members)))
        self.balance.drain(number)
        self.leaving[number] = self.members.pop(number)
        self.leaving[number].state = DRAINING
        self.has_drained = True  # the last replica in service may drain while the others are ejected

    @precondition(lambda self: self.leaving)
    @rule(data=st.data())
    def remove(self, data):
        number = data.draw(st.sampled_from(sorted(self.leaving)))
        if any(sent.member is self.leaving[number] for sent in self.sent):
            with pytest.raises(RuntimeError):
                self.balance.remove(number)
        else:
            self.balance.remove(number)
            del self.leaving[number]
            assert self.balance.slot(number).state == FREE

    @invariant()
    def agrees(self):
        if not hasattr(self, "balance"):
            return
        everyone = {**self.members, **self.leaving}
        for number, member in everyone.items():
            slot = self.balance.slot(number)
            assert slot.state == member.state
            assert slot.in_flight == sum(sent.member is member for sent in self.sent)
            assert member.state != EJECTED or slot.until_ns == member.until
            assert slot.attempts >= slot.succeeded + slot.failed + slot.rejected
        assert self.balance.replicas == len(self.members)
        assert self.balance.ejected == sum(it.state == EJECTED for it in self.members.values())
        assert self.balance.ejected < max(len(self.members), 1) or self.balance.ejected == 0 or self.has_drained


TestFleet = FleetMachine.TestCase
TestFleet.settings = settings(max_examples=150, stateful_step_count=50)
