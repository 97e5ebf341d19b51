"""`Replicas` as a service: retries, deadlines, cancellation, streams, start and stop, admission, statistics."""

import asyncio
import gc
import weakref
from collections import Counter

import numpy as np
import pytest

import streaminfer as si
from streaminfer.protocols import Admission
from streaminfer.routing.replicas.replica_set import Replica, Replicas
from streaminfer.routing.stable_hash import stable_hash
from streaminfer.testing import FakeClock, ScriptedBackend, run
from streaminfer.testing.faults import FaultPlan, Faulty, delay, error, hang

pytestmark = pytest.mark.uncompiled


class Echo:
    """Service that responds after a duration and counts its requests."""

    enforces_deadline = False

    def __init__(self, duration_s=0.0, *, log=None, name=""):
        self.duration_s, self.asked, self.cancelled, self.running = duration_s, 0, 0, 0
        self.log = [] if log is None else log
        self.name = name

    async def call(self, request):
        self.asked += 1
        self.running += 1
        try:
            if self.duration_s:
                await asyncio.sleep(self.duration_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        return si.Response(request.inputs, source=self.name)

    async def start(self):
        self.log.append(f"start {self.name}")

    async def stop(self, *, drain=True):
        self.log.append(f"stop {self.name} {drain}")


class Queue(Echo):
    """Service with one worker and a queue; ``service_s`` returns the duration of a request by its arrival."""

    def __init__(self, loop, service_s):
        super().__init__()
        self.loop, self.service_s, self.free = loop, service_s, 0.0

    async def call(self, request):
        now_s = self.loop.time()
        self.free = max(self.free, now_s) + self.service_s(now_s)
        self.duration_s = self.free - now_s
        return await super().call(request)


def pair(one, other, loop, **options):
    return Replicas(Replica("a", one), Replica("b", other), seed=1, clock=loop.clock, **options)


def failing(what=OSError, rate=1.0):
    return Faulty(Echo(), FaultPlan(error(what, rate=rate)))


def test_an_answer_names_its_replica():
    async def main(loop):
        answer = await pair(Echo(name="cpu"), Echo(), loop).call(si.Request(1.5))
        assert answer.outputs == 1.5
        return answer.source

    assert run(main) in ("a/cpu", "b")


def test_in_a_stack_with_batchers():
    async def main(loop):
        backends = [ScriptedBackend(duration_s=0.010) for _ in range(3)]
        stacks = [si.Stack(si.AdaptiveBatcher(max_batch_size=8, slo_s=0.1), backend) for backend in backends]
        replicas = Replicas(*(Replica(str(n), stack) for n, stack in enumerate(stacks)), seed=1)
        async with si.Stack(si.Telemetry("m"), replicas, clock=loop.clock) as service:
            answers = await asyncio.gather(*(service(np.float32(n)) for n in range(90)))
        assert answers == [np.float32(n) for n in range(90)]
        assert replicas.clock == loop.clock == stacks[0].clock
        assert replicas.slo_ns == 100_000_000
        return [sum(backend.batch_sizes) for backend in backends]

    assert run(main) == [30, 30, 30]


def test_failed_request_is_retried_elsewhere():
    async def main(loop):
        replicas = pair(Faulty(Echo(), FaultPlan(delay(0.010), error(OSError))), Echo(0.010), loop)
        for n in range(10):
            answers = await asyncio.gather(*(replicas.call(si.Request((n, each))) for each in range(20)))
            assert [answer.outputs for answer in answers] == [(n, each) for each in range(20)]
        return replicas.statistics()

    statistics = run(main)
    assert statistics["a"].failed == statistics.retried == 10
    assert statistics["a"].state == "ejected"
    assert statistics["b"].succeeded == 200


def test_non_idempotent_service_gets_one_attempt():
    """A failed request of a model that declares ``idempotent = False`` is not sent to another replica."""

    async def main(loop):
        one, other = Faulty(Echo(), FaultPlan(error(OSError))), Faulty(Echo(), FaultPlan(error(OSError)))
        one.inner.idempotent = other.inner.idempotent = False
        replicas = pair(one, other, loop)
        with pytest.raises(OSError):
            await replicas.call(si.Request(0))
        assert one.plan.calls + other.plan.calls == 1

    run(main)


@pytest.mark.parametrize("rejection", [si.Overloaded("full"), si.CircuitOpen("open"), si.Closed("stopped")])
def test_rejected_request_is_retried_elsewhere(rejection):
    async def main(loop):
        replicas = pair(failing(rejection), Echo(), loop)
        return [(await replicas.call(si.Request(n))).outputs for n in range(20)]

    assert run(main) == list(range(20))


def test_requests_not_retried_elsewhere():
    """A request is not retried with `retry=False`, for a stream, without time or with invalid input."""

    async def main(loop):
        for options, request in (
            ({"retry": False}, si.Request(0)),
            ({}, si.Request(0, stream_id="camera")),
            ({}, si.Request(0, deadline_ns=30_000_000)),
        ):
            slow_to_fail = Faulty(Echo(), FaultPlan(delay(0.010), error(OSError)))
            other = Faulty(Echo(), FaultPlan(delay(0.010), error(OSError)))
            replicas = pair(slow_to_fail, other, loop, **options)
            with pytest.raises((OSError, si.DeadlineExceeded)):
                await replicas.call(request)
            assert slow_to_fail.plan.calls + other.plan.calls == 1
            assert replicas.statistics().retried == 0
        invalid = pair(failing(si.InvalidInput), failing(si.InvalidInput), loop)
        with pytest.raises(si.InvalidInput):
            await invalid.call(si.Request(0))
        assert invalid.statistics().retried == 0
        assert sum(it.failed for it in invalid.statistics().replicas) == 0

    run(main)


def test_request_gets_at_most_two_attempts():
    """A request gets at most two attempts, and the last error is raised."""

    async def main(loop):
        replicas = Replicas(*(Replica(str(n), failing(OSError(str(n)))) for n in range(4)), seed=1, clock=loop.clock)
        with pytest.raises(OSError, match=r"^[0-3]$") as caught:
            await replicas.call(si.Request(0))
        asked = [it.name for it in replicas.statistics().replicas if it.attempts]
        assert len(asked) == 2
        assert str(caught.value) in asked

    run(main)


def test_a_zone_that_is_out_costs_few_requests():
    """Two requests fail, with two attempts each at four broken replicas; then second attempts leave the zone."""

    async def main(loop):
        plan = FaultPlan(error(ConnectionError("gone")))
        home = [Replica(f"h{n}", si.Stack(Faulty(ScriptedBackend(), plan)), zone="h") for n in range(4)]
        away = [Replica(f"a{n}", si.Stack(ScriptedBackend()), zone="a") for n in range(4)]
        failed = 0
        async with si.Stack(Replicas(*home, *away, zone="h", seed=1), clock=loop.clock) as service:
            for _ in range(60):
                try:
                    await service(1.0)
                except si.BackendError:
                    failed += 1
                await asyncio.sleep(1.0)
        return failed

    assert run(main) == 2


@pytest.mark.parametrize("what", [ConnectionError("gone"), si.Overloaded("full")], ids=["error", "full"])
def test_second_attempts_that_succeed_cost_no_budget(what):
    """If the own zone fails for good, second attempts at the other zone cost no budget, so only two requests fail."""

    async def main(loop):
        plan = FaultPlan(error(what))
        home = [Replica(f"h{n}", Faulty(Echo(), plan), zone="h") for n in range(4)]
        away = [Replica(f"a{n}", Echo(0.04), zone="a") for n in range(4)]
        replicas = Replicas(*home, *away, zone="h", seed=1, clock=loop.clock)
        failed = 0
        for n in range(120):
            try:
                await replicas.call(si.Request(n))
            except (ConnectionError, si.Overloaded):
                failed += 1
            await asyncio.sleep(0.25)
        return failed, replicas.statistics().retried

    failed, retried = run(main)
    assert failed == 2
    assert retried > 20


def test_where_all_fail_second_attempts_are_a_fifth():
    """If all replicas fail, second attempts are a fifth of the requests of the last ten seconds, and ten more."""

    async def main(loop):
        replicas = pair(failing(), failing(), loop, consecutive_failures=None)
        for n in range(500):
            with pytest.raises(OSError):
                await replicas.call(si.Request(n))
        return replicas.statistics().retried

    assert run(main) == 110


def test_a_replica_that_dies_loses_no_request():
    """The requests in flight at a replica that dies are all retried if they are less than a fifth of the traffic."""

    async def main(loop):
        dead = loop.create_future()

        class Dying(Echo):
            async def call(self, request):
                await asyncio.wait({asyncio.ensure_future(super().call(request)), dead}, return_when="FIRST_COMPLETED")
                if dead.done():
                    raise ConnectionError("gone")
                return si.Response(request.inputs)

        others = [Replica(str(n), Echo(1.0)) for n in range(9)]
        replicas = Replicas(Replica("dying", Dying(1.0)), *others, seed=1, clock=loop.clock)
        calls = []
        for n in range(1000):
            calls.append(asyncio.ensure_future(replicas.call(si.Request(n))))
            await asyncio.sleep(0.005)
        in_flight = replicas.statistics()["dying"].in_flight
        dead.set_result(None)
        ends = await asyncio.gather(*calls, return_exceptions=True)
        await asyncio.sleep(2.0)
        return in_flight, sum(isinstance(end, Exception) for end in ends)

    in_flight, failed = run(main)
    assert in_flight > 15
    assert failed == 0


def test_the_deadline_ends_a_request():
    async def main(loop):
        slow = Echo(10.0)
        replicas = pair(slow, slow, loop)
        with pytest.raises(si.DeadlineExceeded):
            await replicas.call(si.Request(0, deadline_ns=50_000_000))
        assert loop.time() == 0.050
        await asyncio.sleep(0)
        assert (slow.cancelled, slow.running) == (1, 0)
        assert sum(it.in_flight for it in replicas.statistics().replicas) == 0
        with pytest.raises(si.DeadlineExceeded, match="before arrival"):
            await replicas.call(si.Request(0, deadline_ns=50_000_000))
        assert slow.asked == 1

    run(main)


def test_deadline_ends_uncancellable_request():
    """The deadline ends a request even if its service ignores the cancellation."""

    class Stubborn(Echo):
        async def call(self, request):
            try:
                await asyncio.sleep(1.0)
            except asyncio.CancelledError:
                await asyncio.sleep(5.0)
            return si.Response(request.inputs)

    async def main(loop):
        replicas = pair(Stubborn(), Stubborn(), loop)
        await replicas.start()
        with pytest.raises(si.DeadlineExceeded):
            await replicas.call(si.Request(0, deadline_ns=50_000_000))
        assert loop.time() == 0.050
        await asyncio.sleep(1.0)
        assert replicas.statistics()["a"].in_flight == replicas.statistics()["b"].in_flight == 0
        await replicas.stop(drain=False)  # cancels the abandoned attempt and waits for it
        assert len(asyncio.all_tasks()) == 1

    run(main)


def test_cancelling_a_caller_cancels_its_attempt():
    async def main(loop):
        slow = Echo(10.0)
        replicas = pair(slow, slow, loop)
        task = asyncio.ensure_future(replicas.call(si.Request(0)))
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)
        assert slow.cancelled == 1
        statistics = replicas.statistics()
        assert statistics.retried == 0
        assert [(it.in_flight, it.failed) for it in statistics.replicas] == [(0, 0), (0, 0)]

    run(main)


async def beside_a_hang(loop, streams):
    """Send 20 requests at a time to a pair, whose first hangs after a second; return its hangs and statistics."""
    plan = FaultPlan(hang().between(1.0, 99.0))
    replicas = pair(Faulty(Echo(0.010), plan), Echo(0.010), loop)
    for _ in range(200):
        requests = [
            si.Request(n, deadline_ns=loop.now_ns + 100_000_000, stream_id=n if streams else None) for n in range(20)
        ]
        await asyncio.gather(*(replicas.call(it) for it in requests), return_exceptions=True)
    return plan.injected["hang"], replicas.statistics()["a"]


def test_hanging_replica_is_no_longer_called():
    hung, statistics = run(lambda loop: beside_a_hang(loop, streams=False))
    assert 10 <= statistics.failed <= hung <= 20


def test_streams_leave_a_hanging_replica():
    """Streams leave a replica that hangs once five frames in a row have missed their deadlines."""
    hung, statistics = run(lambda loop: beside_a_hang(loop, streams=True))
    assert statistics.ejections == 1
    assert 0 < statistics.failed <= hung <= 20


def test_replica_that_rejects_at_once_gets_less():
    """A replica that rejects late requests at once gets fewer requests.

    A replica that is too slow for the deadlines may reject requests at once; it must not look idle because of this.
    """

    class Hasty(Echo):
        async def call(self, request):
            if request.inputs >= 100:
                raise si.DeadlineExceeded("it would be late")
            return await super().call(request)

    async def main(loop):
        replicas = pair(Hasty(0.010), Echo(0.010), loop)
        for n in range(500):
            request = si.Request(n, deadline_ns=loop.now_ns + 25_000_000)
            await asyncio.gather(replicas.call(request), return_exceptions=True)
        return [it.attempts - it.succeeded for it in replicas.statistics().replicas]

    late, others = run(main)
    assert late <= 20
    assert others == 0


def test_recovered_replica_gets_its_share_again():
    """A replica that was slow has its share again within a minute, even if no rule ejects and returns it."""

    async def main(loop):
        slow = Queue(loop, lambda now_s: 0.5 if now_s < 10.0 else 0.010)
        other = Queue(loop, lambda now_s: 0.010)
        replicas = pair(slow, other, loop, latency_factor=None)
        asked = None
        while loop.time() < 80.0:
            await asyncio.gather(*(replicas.call(si.Request(1.0)) for _ in range(6)))
            if asked is None and loop.time() >= 60.0:
                asked = slow.asked, other.asked
        return slow.asked - asked[0], other.asked - asked[1]

    again, others = run(main)
    assert again > 0.8 * others > 500


def test_new_replicas_take_load_beyond_the_others():
    """If two of three replicas are replaced at 0.8 of the capacity, their slow start does not overload the third."""

    async def main(loop):
        def server(name):
            return Replica(name, Queue(loop, lambda now_s: 0.006))

        took = []

        async def send():
            began = loop.time()
            await replicas.call(si.Request(1.0))
            took.append(loop.time() - began)

        replicas = Replicas(*map(server, "abc"), seed=1, clock=loop.clock)
        await replicas.start()
        requests = []
        for number in range(1_500):
            requests.append(asyncio.ensure_future(send()))
            await asyncio.sleep(0.0025)
            if number == 500:
                for old, new in ("ad", "be"):
                    await replicas.add(server(new))
                    await replicas.remove(old)
        await asyncio.gather(*requests)
        return max(took)

    assert run(main) < 0.3


def test_wrong_inputs_eject_no_replica():
    """Invalid input ejects no replica, however late the service finds it, because it is the caller's mistake."""

    class Strict(Echo):
        async def call(self, request):
            if request.inputs < 0:
                await asyncio.sleep(1.0)
                raise si.InvalidInput("inputs: expected a number ≥ 0")
            return await super().call(request)

    async def main(loop):
        replicas = pair(Strict(0.01), Strict(0.01), loop, consecutive_failures=2)
        for inputs in [1.0] * 10 + [-1.0] * 10:
            await asyncio.gather(replicas.call(si.Request(inputs)), return_exceptions=True)
        return replicas.statistics()

    seen = run(main)
    assert [(replica.state, replica.failed) for replica in seen.replicas] == [("active", 0)] * 2


def test_request_after_a_hang_goes_elsewhere():
    """Only the first request to a hanging replica misses its deadline."""

    async def main(loop):
        replicas = pair(Faulty(Echo(0.010), FaultPlan(hang().between(1.0, 99.0))), Echo(0.010), loop)
        missed = 0
        for n in range(1_000):
            try:
                await replicas.call(si.Request(n, deadline_ns=loop.now_ns + 100_000_000))
            except si.DeadlineExceeded:
                missed += 1
        return missed

    assert run(main) == 1


def test_streams_move_only_while_replica_is_ejected():
    """Streams stay with their replica, move while it is ejected, and return afterwards."""

    async def main(loop):
        echoes = [Echo() for _ in range(4)]
        plan = FaultPlan(error(OSError).between(1.0, 2.0))
        plan.begin()
        services = [Faulty(echoes[0], plan), *echoes[1:]]
        replicas = Replicas(*(Replica(f"r{n}", it) for n, it in enumerate(services)), seed=1, clock=loop.clock)

        async def places():
            return [(await replicas.call(si.Request(0, stream_id=f"camera {n}"))).source for n in range(60)]

        before = await places()
        assert await places() == before
        counts = Counter(before)
        assert len(counts) == 4
        await asyncio.sleep(1.0)
        lost = 0
        for n in range(60):
            try:
                await replicas.call(si.Request(0, stream_id=f"camera {n}"))
            except OSError:
                lost += 1
        assert lost == 5
        meanwhile = await places()
        assert "r0" not in meanwhile
        assert all(now == was for now, was in zip(meanwhile, before, strict=True) if was != "r0")
        await asyncio.sleep(5.0)
        await places()  # a probe
        assert await places() == before

    run(main)


def test_a_stream_has_the_same_place_in_every_process():
    replicas = Replicas(*(Replica(f"r{n}", Echo()) for n in range(5)))
    ids = ["camera 1", b"\x00\xff", 7, 2**70]
    assert [replicas._balancer.of_stream(key, 0) for key in map(stable_hash, ids)] == [4, 0, 1, 4]


# -- start and stop ---------------------------------------------------------------------------------------------


def test_replicas_start_and_stop_with_the_stack():
    async def main(loop):
        log = []
        replicas = pair(Echo(log=log, name="a"), Echo(log=log, name="b"), loop)
        async with si.Stack(replicas, clock=loop.clock) as service:
            assert await service(3.0) == 3.0
        with pytest.raises(si.Closed):
            await replicas.call(si.Request(0))
        assert replicas.admission(si.Request(0), 0) == Admission(False, "closed")
        return log

    assert run(main) == ["start a", "start b", "stop a True", "stop b True"]


def test_replicas_use_the_clock_of_the_stack():
    async def main(loop):
        bad = Faulty(Echo(0.010), FaultPlan(error(OSError).between(1.0, 2.0)))
        replicas = Replicas(Replica("a", bad), Replica("b", Echo(0.010)), seed=1)
        async with si.Stack(replicas, clock=loop.clock) as service:
            while loop.time() < 1.5:
                await asyncio.gather(*(service(0) for _ in range(10)))
            assert 0.5 <= replicas.statistics()["a"].returns_in_s <= 0.7
            while loop.time() < 3.0:
                await asyncio.gather(*(service(0) for _ in range(10)))
            assert replicas.statistics()["a"].state == "slow_start"

    run(main)


def test_failed_start_stops_the_other_replicas():
    class Broken(Echo):
        async def start(self):
            raise OSError("no device")

    async def main(loop):
        log = []
        with pytest.raises(OSError, match="no device"):
            await pair(Echo(log=log, name="a"), Broken(), loop).start()
        return log

    assert run(main) == ["start a", "stop a False"]


def test_draining_stop_completes_requests_in_flight():
    async def main(loop):
        replicas = pair(Echo(1.0), Echo(1.0), loop)
        await replicas.start()
        tasks = [asyncio.ensure_future(replicas.call(si.Request(n))) for n in range(4)]
        await asyncio.sleep(0.5)
        await replicas.stop()
        assert loop.time() == 1.0
        assert [task.result().outputs for task in tasks] == [0, 1, 2, 3]

    run(main)


def test_hard_stop_closes_requests_in_flight():
    async def main(loop):
        replicas = pair(Echo(1.0), Echo(1.0), loop)
        await replicas.start()
        tasks = [asyncio.ensure_future(replicas.call(si.Request(n))) for n in range(4)]
        await asyncio.sleep(0.5)
        await replicas.stop(drain=False)
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert loop.time() == 0.5
        assert [type(end) for end in ends] == [si.Closed] * 4
        await replicas.start()
        assert (await replicas.call(si.Request(9))).outputs == 9

    run(main)


def test_a_draining_stop_that_is_cancelled_still_stops():
    async def main(loop):
        log = []
        replicas = pair(Echo(99.0, log=log, name="a"), Echo(99.0, log=log, name="b"), loop)
        await replicas.start()
        calls = [asyncio.ensure_future(replicas.call(si.Request(n))) for n in range(2)]
        await asyncio.sleep(0.1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(replicas.stop(), 1.0)
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(end) for end in ends] == [si.Closed] * 2
        return log[2:]

    assert sorted(run(main)) == ["stop a False", "stop b False"]


def test_a_stop_that_is_cancelled_at_once_still_stops():
    """Each replica is stopped even if the stop of the stack is cancelled before its first step."""

    async def main(loop):
        log = []
        stack = si.Stack(Replicas(*(Replica(name, Echo(log=log, name=name)) for name in "ab"), clock=loop.clock))
        await stack.start()
        stop = asyncio.ensure_future(stack.stop())
        await asyncio.sleep(0)
        stop.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stop
        return log[2:]

    assert [entry[:6] for entry in sorted(run(main))] == ["stop a", "stop b"]


def test_a_hard_stop_that_is_cancelled_still_stops():
    """A replica that takes long to end its cancelled request is stopped even if the stop is cancelled."""

    class Stubborn(Echo):
        async def call(self, request):
            try:
                return await super().call(request)
            except asyncio.CancelledError:
                await asyncio.sleep(1.0)
                raise

    async def main(loop):
        log = []
        replicas = Replicas(Replica("a", Stubborn(60.0, log=log, name="a")), clock=loop.clock)
        await replicas.start()
        call = asyncio.ensure_future(replicas.call(si.Request(1)))
        await asyncio.sleep(0.1)
        stop = asyncio.ensure_future(replicas.stop(drain=False))
        await asyncio.sleep(0.1)
        stop.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stop
        with pytest.raises(si.Closed):
            await call
        return log

    assert run(main) == ["start a", "stop a False"]


def test_replicas_come_and_go():
    async def main(loop):
        log = []
        replicas = pair(Echo(0.1, log=log, name="a"), Echo(0.1, log=log, name="b"), loop, slow_start_s=1.0)
        await replicas.start()
        calls = [asyncio.ensure_future(replicas.call(si.Request(n))) for n in range(6)]
        await asyncio.sleep(0.05)
        removing = asyncio.ensure_future(replicas.remove("a"))
        await asyncio.sleep(0)
        assert [(it.name, it.state) for it in replicas.statistics().replicas] == [("b", "active"), ("a", "draining")]
        assert {(await replicas.call(si.Request(0))).source for _ in range(5)} == {"b/b"}
        await removing
        assert log[-1] == "stop a True"
        assert [call.result().outputs for call in calls] == list(range(6))
        with pytest.raises(ValueError, match="'b' is the last"):
            await replicas.remove("b")
        with pytest.raises(ValueError, match="name: expected one of 'b', got 'a'"):
            await replicas.remove("a")
        await replicas.add(Replica("c", Echo(0.1, log=log, name="c")))
        assert log[-1] == "start c"
        assert replicas.statistics()["c"].state == "slow_start"
        await asyncio.sleep(1.0)
        answers = await asyncio.gather(*(replicas.call(si.Request(n)) for n in range(20)))
        assert Counter(answer.source for answer in answers) == {"b/b": 10, "c/c": 10}
        assert replicas.statistics()["c"].state == "active"
        with pytest.raises(ValueError, match="another replica"):
            await replicas.add(Replica("c", Echo()))

    run(main)


class SlowStart(Echo):
    """Service that takes a second to start."""

    async def start(self):
        await asyncio.sleep(1.0)
        await super().start()


def test_replicas_that_come_and_go_during_the_start():
    """A replica that is added during the start is started too, and one that is removed is stopped again."""

    async def main(loop):
        log = []
        replicas = pair(SlowStart(log=log, name="a"), SlowStart(log=log, name="b"), loop)
        starting = asyncio.ensure_future(replicas.start())
        await asyncio.sleep(0.5)
        await replicas.add(Replica("c", Echo(log=log, name="c")))
        await replicas.remove("b")
        await starting
        await replicas.stop()
        return log

    assert run(main) == ["start c", "start a", "start b", "stop b True", "stop a True", "stop c True"]


def test_failed_start_stops_replicas_added_meanwhile():
    """A failed start stops all replicas that have started, also one added meanwhile, and no other."""

    class Broken(SlowStart):
        async def start(self):
            await super().start()
            raise OSError("no model")

    async def main(loop):
        log = []
        replicas = pair(Echo(log=log, name="a"), Broken(log=log, name="b"), loop)
        starting = asyncio.ensure_future(replicas.start())
        await asyncio.sleep(0.5)
        await replicas.add(Replica("c", Echo(log=log, name="c")))
        with pytest.raises(OSError, match="no model"):
            await starting
        return log

    assert run(main) == ["start a", "start c", "start b", "stop a False", "stop c False"]


def test_a_stop_during_the_start_has_the_last_word():
    """Replicas that are stopped during their start do not run."""

    async def main(loop):
        log = []
        replicas = pair(SlowStart(log=log, name="a"), SlowStart(log=log, name="b"), loop)
        starting = asyncio.ensure_future(replicas.start())
        await asyncio.sleep(0.5)
        await replicas.stop()
        await starting
        with pytest.raises(si.errors.Closed):
            await replicas.call(si.Request(1.0))
        return log

    assert run(main) == ["start a", "start b", "stop a True", "stop b True"]


def test_a_removed_replica_is_freed():
    """Nothing references the model of a removed replica, so a roll-out does not keep the old model in memory."""

    async def main(loop):
        model = ScriptedBackend()
        seen = weakref.ref(model)
        replicas = pair(si.Stack(model), si.Stack(ScriptedBackend()), loop)
        async with si.Stack(si.Telemetry("faces"), replicas, clock=loop.clock) as service:
            await asyncio.gather(*(service(1.0) for _ in range(10)))
            del model
            await replicas.remove("a")
            gc.collect()
            return seen()

    assert run(main) is None


def test_hard_removal_ends_requests_in_flight():
    """`remove(drain=False)` ends the requests in flight at the replica at once."""

    async def main(loop):
        replicas = pair(Echo(9.0), Echo(9.0), loop, retry=False)
        await replicas.start()
        calls = [asyncio.ensure_future(replicas.call(si.Request(n))) for n in range(4)]
        await asyncio.sleep(0.5)
        await replicas.remove("a", drain=False)
        await asyncio.sleep(0)
        assert sum(call.done() for call in calls) == 2
        assert [it.name for it in replicas.statistics().replicas] == ["b"]
        await replicas.stop(drain=False)
        await asyncio.gather(*calls, return_exceptions=True)

    run(main)


def test_removal_ends_if_slot_is_used_again_at_once():
    """A removed replica is stopped even if a new one takes its slot, and requests, before the removal continues."""

    async def main(loop):
        log = []
        replicas = pair(Echo(0.5, log=log, name="a"), Echo(0.5, log=log, name="b"), loop, slow_start_s=0.0)
        await replicas.start()

        async def replace():
            await replicas.call(si.Request(0))
            await replicas.add(Replica("c", Echo(9.0, log=log, name="c")))
            await asyncio.gather(*(replicas.call(si.Request(n)) for n in range(8)))

        replacing = asyncio.ensure_future(replace())
        await asyncio.sleep(0.25)
        busy = next(it.name for it in replicas.statistics().replicas if it.in_flight)
        async with asyncio.timeout(1.0):
            await replicas.remove(busy)
        assert log[-2:] == ["start c", f"stop {busy} True"]
        await replacing
        await replicas.stop()

    run(main)


@pytest.mark.parametrize("turns", range(6))
def test_replica_removed_during_stop_is_stopped_once(turns):
    """A removed replica is stopped once, even if the set stops in the turn in which its last request ends, or later."""
    log = []

    async def main(loop):
        replicas = pair(Echo(0.5, log=log, name="a"), Echo(0.5, log=log, name="b"), loop)
        await replicas.start()
        calls = [asyncio.ensure_future(replicas.call(si.Request(n))) for n in range(2)]
        await asyncio.sleep(0.25)
        removing = asyncio.ensure_future(replicas.remove("a"))
        await asyncio.sleep(0.25)
        for _ in range(turns):
            await asyncio.sleep(0)
        await replicas.stop()
        await asyncio.gather(removing, *calls)

    run(main)

    assert sorted(log) == ["start a", "start b", "stop a True", "stop b True"]


# -- admission and statistics -----------------------------------------------------------------------------------


class Asked(Echo):
    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def admission(self, request, now_ns):
        return self.answer


def test_admission_is_of_the_best_accepting_replica():
    """Admission is that of the best replica that accepts, else the rejection with the shortest wait."""
    full = Admission(False, "queue_full", 2.0)
    fuller = Admission(False, "queue_full", 3.0)
    taken = Admission(True, predicted_finish_ns=77)
    request = si.Request(0)

    def ask(*answers):
        replicas = Replicas(*(Replica(str(n), Asked(it)) for n, it in enumerate(answers)), seed=1, clock=FakeClock())
        for _ in range(2):  # a call changes nothing
            answer = replicas.admission(request, 0)
        assert all(not it.attempts for it in replicas.statistics().replicas)
        return answer

    assert ask(full, taken, fuller) == taken
    assert ask(fuller, full) == full
    streams = Replicas(Replica("0", Asked(full)), Replica("1", Asked(taken)), clock=FakeClock())
    answers = {streams.admission(si.Request(0, stream_id=n), 0) for n in range(20)}
    assert answers == {full, taken}


def test_admission_ignores_an_ejected_replica():
    """The set rejects if only an ejected replica accepts, because this one gets no request while there is another."""

    class Full(Echo):
        async def call(self, request):
            raise si.Overloaded("full")

        def admission(self, request, now_ns):
            return Admission(False, "limit", 2.0)

    async def main(loop):
        replicas = pair(Full(), failing(), loop, consecutive_failures=1, eject_s=9.0)
        while replicas.statistics()["b"].state != "ejected":
            with pytest.raises((si.Overloaded, OSError)):
                await replicas.call(si.Request(0))
        return replicas.admission(si.Request(0), loop.clock())

    assert run(main) == Admission(False, "limit", 2.0)


def test_admission_predicts_from_learned_latency():
    async def main(loop):
        replicas = pair(Echo(0.020), Echo(0.020), loop)
        assert replicas.admission(si.Request(0), loop.now_ns) == Admission(True)
        for n in range(20):
            await replicas.call(si.Request(n))
        assert replicas.admission(si.Request(0), loop.now_ns).predicted_finish_ns == loop.now_ns + 20_000_000

    run(main)


def test_statistics():
    async def main(loop):
        replicas = pair(Echo(0.020), failing(), loop, max_ejected=0.0)
        for n in range(10):
            await replicas.call(si.Request(n))
        return replicas, replicas.statistics()

    replicas, statistics = run(main)
    good, bad = statistics.replicas
    assert (good.succeeded, good.failed, good.in_flight, good.state, good.zone, good.weight) == (
        10,
        0,
        0,
        "active",
        "",
        1.0,
    )
    assert good.latency_s == pytest.approx(0.020)
    assert good.expected_s == pytest.approx(0.020)
    assert bad.attempts == bad.failed == statistics.retried > 0
    assert bad.success < 1.0
    assert np.isnan(bad.latency_s)
    with pytest.raises(KeyError):
        statistics["c"]
    assert repr(replicas) == "<Replicas: a, b>"
    assert "<td>a</td>" in replicas._repr_html_()


def test_names_are_escaped():
    replicas = Replicas(Replica("<b>", Echo()), clock=FakeClock())
    assert "&lt;b&gt;" in replicas._repr_html_()


def test_replicas_validate_requests():
    class Picky(Echo):
        def validate(self, request):
            if request.inputs < 0:
                raise si.InvalidInput("negative")

    async def main(loop):
        async with si.Stack(pair(Picky(), Picky(), loop), clock=loop.clock) as service:
            with pytest.raises(si.InvalidInput):
                await service(-1)
            assert await service(1) == 1

    run(main)


def test_one_slow_replica_hardly_shows_in_the_tail():
    """If one of eight replicas is five times slower, the p99 is at most 1.15 times the p99 without this replica."""

    class Queue(Echo):
        """One worker with exponential service times of 10 ms on average, the same for any replica."""

        def __init__(self, loop, slower):
            super().__init__()
            self.loop, self.slower, self.free = loop, slower, 0.0

        async def call(self, request):
            self.asked += 1
            self.free = max(self.free, self.loop.time()) + request.inputs * self.slower
            await asyncio.sleep(self.free - self.loop.time())
            return si.Response(0)

    def p99(slower, **options):
        rng = np.random.default_rng(4)
        arrivals, services = np.cumsum(rng.exponential(0.010 / (0.7 * 7), 6_000)), rng.exponential(0.010, 6_000)

        async def main(loop):
            queues = [Queue(loop, factor) for factor in slower]
            replicas = Replicas(*(Replica(str(n), it) for n, it in enumerate(queues)), clock=loop.clock, **options)

            async def one(arrival, service):
                await asyncio.sleep(arrival - loop.time())
                await replicas.call(si.Request(service))
                return loop.time() - arrival

            took = await asyncio.gather(*map(one, arrivals, services))
            return np.quantile(took[600:], 0.99), queues[-1].asked / 6_000

        return run(main)

    for options in ({}, {"choices": 8}):
        ideal, _ = p99([1] * 7, seed=3, **options)
        took, share = p99([1] * 7 + [5], seed=3, **options)
        assert took <= 1.15 * ideal
        assert share < 0.015


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"zone": 1}, "zone: expected a string"),
        ({"zone_penalty": 1.0}, "zone_penalty: expected a finite number above 1"),
        ({"zone_penalty": {"b": 0.5}}, "zone_penalty: expected a finite number above 1"),
        ({"zone_penalty": "far"}, "zone_penalty: expected a finite number above 1"),
        ({"choices": 0}, "choices: expected a whole number ≥ 1"),
        ({"retry": 1}, "retry: expected True or False"),
        ({"consecutive_failures": 0}, "consecutive_failures: expected a whole number ≥ 1"),
        ({"latency_factor": 1.0}, "latency_factor: expected a number above 1"),
        ({"latency_factor": float("nan")}, "latency_factor: expected a number above 1"),
        ({"eject_s": 0.0}, "eject_s: expected a finite number of seconds > 0"),
        ({"max_eject_s": -1.0}, "max_eject_s: expected"),
        ({"max_ejected": 1.5}, "max_ejected: expected a share from 0 to 1"),
        ({"slow_start_s": -1.0}, "slow_start_s: expected"),
        ({"decay_s": 0.0}, "decay_s: expected"),
        ({"seed": -1}, "seed: expected"),
        ({"clock": 3}, "clock: expected a callable or None"),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Replicas(Replica("a", Echo()), **options)


def test_replicas_are_checked():
    with pytest.raises(TypeError, match="service: expected a service"):
        Replica("a", object())
    with pytest.raises(TypeError, match="name: expected a string"):
        Replica(1, Echo())
    for weight in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="weight: expected a finite number above 0"):
            Replica("a", Echo(), weight=weight)
    with pytest.raises(TypeError, match="at least one Replica"):
        Replicas()
    with pytest.raises(TypeError, match="replica: expected a Replica"):
        Replicas(Echo())
    with pytest.raises(ValueError, match="'a' is the name of another"):
        Replicas(Replica("a", Echo()), Replica("a", Echo()))


def test_zones_have_their_penalties():
    async def main(loop):
        named = [Replica(zone, Echo(1.0), zone=zone) for zone in ("home", "near", "far")]
        replicas = Replicas(*named, zone="home", zone_penalty={"far": 6.0}, seed=1, clock=loop.clock)
        calls = [asyncio.ensure_future(replicas.call(si.Request(n))) for n in range(50)]
        await asyncio.sleep(0.5)
        in_flight = [it.in_flight for it in replicas.statistics().replicas]
        await asyncio.gather(*calls)
        return in_flight

    assert run(main) == pytest.approx([30, 15, 5], abs=2)


class Rejecting(Echo):
    """Service that rejects each request."""

    def admission(self, request, now_ns):
        return Admission(False, "queue_full")


def test_admission_considers_more_than_64_replicas():
    """The set accepts if three of 70 replicas accept and the others reject."""

    async def main(loop):
        several = [Replica(f"r{number}", Rejecting() if number > 2 else Echo()) for number in range(70)]
        replicas = Replicas(*several, seed=1, clock=loop.clock)
        return replicas.admission(si.Request(1.0), loop.clock())

    assert run(main).ok


@pytest.mark.parametrize("around", ["replicas", "router", "canary"])
def test_retry_does_not_repeat_non_idempotent_calls(around):
    """A retry budget around a router, canary or replica set respects `idempotent = False` within it."""

    class Once(Echo):
        idempotent = False

        async def call(self, request):
            await super().call(request)
            raise si.BackendError("once")

    async def main(loop):
        service = Once()
        chooser = {
            "replicas": lambda: Replicas(Replica("a", service), clock=loop.clock),
            "router": lambda: si.FallbackRouter(si.Route("a", service), clock=loop.clock),
            "canary": lambda: si.routing.Canary(service, service, share=0.5),
        }[around]()
        async with si.Stack(si.RetryBudget(max_attempts=3), chooser, clock=loop.clock) as stack:
            with pytest.raises(si.BackendError):
                await stack(1.0)
        return service.asked

    assert run(main) == 1
