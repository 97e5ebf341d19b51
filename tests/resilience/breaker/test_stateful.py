"""The breaker compared with a plain model: any order of calls, outcomes, cancellations, double returns and pauses."""

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from streaminfer.resilience import CircuitBreaker
from streaminfer.testing import FakeClock

pytestmark = pytest.mark.uncompiled

MS = 1_000_000


@attrs.define
class Probe:
    generation: int
    back: bool = False


class Model:
    """The documented table of states, with lists of outcomes; it shares no code with the breaker."""

    def __init__(self, settings, seed):
        self.__dict__.update(settings)
        self.random = seed
        self.generation = 0
        self.mode = "automatic"
        self.trips = self.rejected = self.succeeded = self.failed = self.ignored = self.stale_permits = (
            self.permitted
        ) = 0
        self.took_ns = []
        self.reasons = []
        self.close(None)

    # time

    def draw(self):
        self.random = (self.random * 1103515245 + 12345) % 2**31
        self.next_open_ns = self.base_ns - int(0.1 * self.random / 2**31 * self.base_ns)
        assert 0.9 * self.base_ns <= self.next_open_ns <= self.base_ns

    def settle(self, now):
        """Make the change of a half-open circuit that the clock alone causes."""
        if self.state != "half_open" or now < self.until or not (self.probes or self.outcomes):
            return
        if self.probes:
            self.open("half_open_time_passed", self.until)
        else:
            self.judge_probes(self.until)

    def read(self, now):
        """Return the state that a reader sees."""
        if self.state == "open" and self.mode == "automatic":
            return "half_open" if now >= self.until else "open"
        if self.state == "half_open" and now >= self.until and (self.probes or self.outcomes):
            if not self.probes and self.exceeded(self.outcomes) is None:
                return "closed"
            return "half_open" if now >= self.until + self.next_open_ns else "open"
        return self.state

    def judged(self, now):
        """Return the outcomes and the probes of the state that a reader sees."""
        over = self.state == "half_open" and now >= self.until and (self.probes or self.outcomes)
        return ([], []) if over or self.state != self.read(now) else (self.outcomes, self.probes)

    # transitions

    def close(self, reason):
        self.generation += 1
        self.state, self.outcomes, self.probes = "closed", [], []
        self.in_a_row, self.base_ns = 0, self.open_ns
        self.above = False
        if reason:
            self.reasons.append(reason)
        self.draw()

    def open(self, reason, at):
        self.generation += 1
        self.state, self.until, self.probes = "open", at + self.next_open_ns, []
        self.trips += 1
        self.in_a_row += 1
        self.reasons.append(reason)

    def half_open(self):
        self.generation += 1
        self.state, self.outcomes, self.probes = "half_open", [], []
        self.base_ns = min(2 * self.base_ns, self.max_open_ns)
        self.reasons.append("open_time_passed")
        self.draw()

    def exceeded(self, outcomes):
        if sum(not ok for ok, *_ in outcomes) / len(outcomes) >= self.failure_rate:
            return "failed"
        if sum(slow for _, slow, _ in outcomes) / len(outcomes) >= self.slow_rate:
            return "slow"
        return None

    def judge_probes(self, at):
        why = self.exceeded(self.outcomes)
        if why:
            self.open(f"probes_{why}", at)
        else:
            self.close("probes_succeeded")

    # calls

    def try_acquire(self, now):
        self.settle(now)
        if self.state == "open" and self.mode == "automatic" and now >= self.until:
            self.half_open()
        if self.state == "open" or (
            self.state == "half_open" and len(self.probes) + len(self.outcomes) >= self.half_open_calls
        ):
            self.rejected += 1
            return None
        self.permitted += 1
        probe = Probe(self.generation)
        if self.state == "half_open":
            if not self.probes and not self.outcomes:
                self.until = now + self.half_open_ns
            self.probes.append(probe)
        return probe

    def take_back(self, probe):
        """Take a permit back; return whether it belongs to the present state."""
        if probe.generation != self.generation:
            return False
        if self.state == "half_open":
            if probe not in self.probes or probe.back:
                return False
            self.probes = [other for other in self.probes if other is not probe]
            probe.back = True
        return True

    def release(self, probe, now):
        self.settle(now)
        if self.take_back(probe):
            self.ignored += 1
        else:
            self.stale_permits += 1

    def record(self, ok, duration_ns, probe, now):
        self.settle(now)
        if (probe and probe.generation != self.generation) or self.state == "open":
            self.stale_permits += 1
            return
        if self.mode == "disabled":
            self.ignored += 1
            return
        if probe and not self.take_back(probe):
            self.stale_permits += 1
            return
        if self.state == "half_open" and not probe and not self.probes and not self.outcomes:
            self.until = now + self.half_open_ns
        slow = duration_ns > self.slow_ns
        if ok:
            self.succeeded += 1
            self.took_ns = [*self.took_ns, duration_ns][-16:]
        else:
            self.failed += 1
        self.outcomes.append((ok, slow, now))
        if self.state == "half_open":
            if len(self.outcomes) >= min(self.minimum_calls, self.half_open_calls):
                self.judge_probes(now)
            return
        self.outcomes = self.outcomes[-self.window :]
        if len(self.outcomes) < min(self.minimum_calls, self.window):
            return
        why = self.exceeded(self.outcomes)
        reason = {"failed": "failure_rate", "slow": "slow_rate"}.get(why)
        if self.mode == "metrics_only":
            if why and not self.above:
                self.reasons.append(reason)
            self.above = bool(why)
        elif why:
            self.open(reason, now)

    def cut_off(self, duration_ns, probe, now):
        usual_ns = sorted(self.took_ns)[len(self.took_ns) // 2] if len(self.took_ns) >= 3 else 0
        if duration_ns >= usual_ns:
            self.record(False, duration_ns, probe, now)
        else:
            self.release(probe, now)

    def set_mode(self, mode, reason):
        if mode == "forced_open":
            self.generation += 1
            self.state, self.probes = "open", []
            self.reasons.append(reason)
        else:
            self.close(reason)
        self.mode = mode


class Life(RuleBasedStateMachine):
    @initialize(
        failure_rate=st.sampled_from([0.2, 0.5, 0.7, 1.0]),
        slow_rate=st.sampled_from([0.3, 1.0]),
        window=st.integers(1, 8),
        minimum_calls=st.integers(1, 6),
        half_open_calls=st.integers(1, 4),
        open_ms=st.integers(1, 40),
        max_open_ms=st.integers(1, 200),
        half_open_ms=st.integers(1, 60),
        seed=st.integers(0, 2**31 - 1),
    )
    def begin(
        self, failure_rate, slow_rate, window, minimum_calls, half_open_calls, open_ms, max_open_ms, half_open_ms, seed
    ):
        self.clock = FakeClock(7)
        self.breaker = CircuitBreaker(
            failure_rate_threshold=failure_rate,
            slow_call_s=0.010,
            slow_rate_threshold=slow_rate,
            window=window,
            minimum_calls=minimum_calls,
            half_open_calls=half_open_calls,
            open_s=open_ms / 1e3,
            max_open_s=max_open_ms / 1e3,
            half_open_s=half_open_ms / 1e3,
            seed=seed,
            clock=self.clock,
        )
        self.model = Model(
            {
                "failure_rate": failure_rate,
                "slow_rate": slow_rate,
                "slow_ns": 10 * MS,
                "window": window,
                "minimum_calls": minimum_calls,
                "half_open_calls": half_open_calls,
                "open_ns": open_ms * MS,
                "max_open_ns": max(max_open_ms, open_ms) * MS,
                "half_open_ns": half_open_ms * MS,
            },
            seed,
        )
        self.permits = []  # all that were ever given, so that any can come back late or twice
        self.heard = []
        self.breaker.listen(self.heard.append)

    @rule(ms=st.sampled_from([0, 1, 3, 9, 30, 100, 1000]))
    def wait(self, ms):
        self.clock.now_ns += ms * MS

    @rule()
    def until_the_end_of_the_open_time(self):
        """Advance to the end of the open time; one nanosecond earlier the circuit is still open."""
        wait_ns = round(self.breaker.retry_after_s * 1e9)
        if self.breaker.mode == "automatic" and self.breaker.state == "open":
            self.clock.now_ns += wait_ns - 1
            assert self.breaker.state == "open"
            self.clock.now_ns += 1
            assert self.breaker.state == "half_open"

    @rule(times=st.integers(1, 6))
    def acquire(self, times):
        for _ in range(times):
            expected = self.model.try_acquire(self.clock.now_ns)
            looked = self.breaker.permits()
            permit = self.breaker.try_acquire()
            assert (permit > 0) == looked == (expected is not None)
            if permit:
                self.permits.append((permit, expected))

    def choose(self, data):
        return data.draw(st.sampled_from(self.permits[-8:])) if self.permits else None

    @rule(data=st.data(), ok=st.booleans(), ms=st.sampled_from([0, 1, 10, 11, 50]))
    def record(self, data, ok, ms):
        if (chosen := self.choose(data)) is not None:
            self.model.record(ok, ms * MS, chosen[1], self.clock.now_ns)
            self.breaker.record(ok, ms / 1e3, chosen[0])

    @rule(ok=st.booleans(), ms=st.sampled_from([0, 5, 20]))
    def record_without_a_permit(self, ok, ms):
        self.model.record(ok, ms * MS, None, self.clock.now_ns)
        self.breaker.record(ok, ms / 1e3)

    @rule(data=st.data())
    def release(self, data):
        if (chosen := self.choose(data)) is not None:
            self.model.release(chosen[1], self.clock.now_ns)
            self.breaker.release(chosen[0])

    @rule(data=st.data(), ms=st.sampled_from([0, 4, 30]))
    def cut_off(self, data, ms):
        if (chosen := self.choose(data)) is not None:
            self.model.cut_off(ms * MS, chosen[1], self.clock.now_ns)
            self.breaker._machine.cut_off(ms * MS, chosen[0], self.clock.now_ns)
            self.breaker._events.deliver()

    @rule()
    def a_refused_call_gives_nothing_back(self):
        self.breaker.release(0)

    @rule(mode=st.sampled_from(["force_open", "disable", "metrics_only", "reset", "reset", "reset"]))
    def by_hand(self, mode):
        name, reason = {
            "force_open": ("forced_open", "forced_open"),
            "disable": ("disabled", "disabled"),
            "metrics_only": ("metrics_only", "metrics_only"),
            "reset": ("automatic", "reset"),
        }[mode]
        self.model.set_mode(name, reason)
        getattr(self.breaker, mode)()

    @invariant()
    def agree(self):
        if not hasattr(self, "model"):
            return
        now = self.clock.now_ns
        model, seen = self.model, self.breaker.statistics()
        assert (seen.state, seen.mode) == (model.read(now), model.mode)
        assert self.breaker.state == seen.state
        assert (seen.permitted, seen.rejected, seen.ignored, seen.stale_permits) == (
            model.permitted,
            model.rejected,
            model.ignored,
            model.stale_permits,
        )
        assert (seen.succeeded, seen.failed) == (model.succeeded, model.failed)
        assert (seen.trips, seen.consecutive_trips) == (model.trips, model.in_a_row)
        if seen.state != "open":
            outcomes, probes = model.judged(now)
            assert (seen.calls, seen.failures, seen.slow, seen.half_open_in_flight) == (
                len(outcomes),
                sum(not ok for ok, *_ in outcomes),
                sum(slow for _, slow, _ in outcomes),
                len(probes),
            )
        assert [event.reason for event in self.heard] == model.reasons
        assert (seen.retry_after_s > 0) is not self.breaker.permits()


Life.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestLife = Life.TestCase
