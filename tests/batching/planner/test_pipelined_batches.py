"""Pipelined batches, which are sent early to a model with a queue: they gain throughput and harm no request."""

import asyncio
import itertools
import re

import numpy as np
import pytest

import streaminfer as si
from streaminfer.batching.dispatcher import Dispatcher
from streaminfer.batching.policy import Greedy
from streaminfer.simulation import arrivals
from streaminfer.testing import VirtualLoop, run

MS = 1_000_000
OUT_S, BACK_S = 0.0006, 0.0004
FULL = 16


class Server:
    """Model server behind a network, with a queue of its own; its workers run the batches in the order of arrival.

    Attributes:
        sent: when each batch was sent, its size, and when the device began and ended it; loop seconds.
        inputs: the inputs of each batch.
    """

    returns_new_arrays = True

    def __init__(self, *, workers=1, queued_workers=1, noise=0.0, script=None):
        self.queued_workers = queued_workers
        self.sent = []
        self.inputs = []
        self.running = 0
        self._free_at_s = [0.0] * workers
        self._rng = np.random.default_rng(0)
        self._noise = noise
        self._script = {}
        self._later = script or {}

    async def infer(self, batch):
        loop = asyncio.get_running_loop()
        number, size = len(self.sent), len(batch)
        self.sent.append([loop.time(), size, None, None])
        self.inputs.append(list(batch.inputs))
        self.running += 1
        try:
            await asyncio.sleep(OUT_S)
            worker = int(np.argmin(self._free_at_s))
            began_s = max(loop.time(), self._free_at_s[worker])
            took_s = (0.0118 + 0.00058 * size) * float(np.exp(self._noise * self._rng.standard_normal()))
            took_s = self._script.get(number, {}).get("took_s", took_s)
            self._free_at_s[worker] = began_s + took_s
            self.sent[number][2:] = began_s, began_s + took_s
            if "fails_after_s" in self._script.get(number, {}):
                await asyncio.sleep(self._script[number]["fails_after_s"])
                raise RuntimeError(f"batch {number} failed")
            await asyncio.sleep(began_s + took_s + BACK_S - loop.time())
            return [row.inputs for row in batch.rows]
        finally:
            self.running -= 1

    def begin(self):
        """Count the batches from 0, and follow the script from here on."""
        self.sent.clear()
        self.inputs.clear()
        self._script = self._later

    @property
    def waited(self):
        """Number of batches that reached the server before the device was free for them."""
        return sum(began_s is not None and began_s > came_s + OUT_S + 1e-9 for came_s, _, began_s, _ in self.sent)


async def warmed(service):
    for size in (1, 2, 4, 8, 12, FULL) * 6:  # so that no size is learned later
        await asyncio.gather(*(service(0) for _ in range(size)), return_exceptions=True)


def batcher_of(**more):
    return si.AdaptiveBatcher(
        **{"max_batch_size": FULL, "slo_s": 0.050, "max_queue_size": 10**5, "stack": False, **more}
    )


def open_loop(server, *, load, seconds=8.0, seed=0, layers=(), messages=None, **more):
    """Send Poisson arrivals; return the share on time, and the batcher.

    The load is relative to the capacity of the device without the round trip. The messages of the errors that late
    requests get are added to ``messages``.
    """
    messages = [] if messages is None else messages
    capacity = FULL / (0.0118 + 0.00058 * FULL)

    async def main(loop):
        batcher = batcher_of(**more)
        async with si.Stack(batcher, *layers, server, clock=loop.clock) as service:
            await warmed(service)
            trace = arrivals.poisson(load * capacity, int(load * capacity * seconds), seed) + loop.time() + 0.01
            on_time = 0

            async def ask(number):
                nonlocal on_time
                try:
                    assert await service(number) == number
                except si.DeadlineExceeded as error:
                    messages.append(str(error))
                    return
                on_time += 1

            asked = []
            for number, due_s in enumerate(trace.tolist()):
                await asyncio.sleep(max(due_s - loop.time(), 0.0))
                asked.append(asyncio.ensure_future(ask(number)))
            await asyncio.gather(*asked)
        assert server.running == 0
        return on_time / len(trace), batcher

    return run(main)


def test_pipelining_hides_the_overhead_under_overload():
    """Under overload, pipelined batches lose no throughput to the round trip to the model."""
    shares = {}
    for known in (None, 1):
        server = Server(queued_workers=known, noise=0.02)
        shares[known], batcher = open_loop(server, load=1.2)
        assert (batcher.statistics().pipelined > 0) == (known == 1)
    # a full batch takes 22.1 ms with the round trip and 21.1 without: at most 0.795 or 0.833 can be on time
    assert shares[None] < 0.80
    assert shares[1] > 0.815


def test_a_rejection_does_not_contradict_itself():
    """If a request is rejected with more time left than a batch of one takes, the error names the batch that runs."""
    messages = []
    open_loop(Server(noise=0.02), load=1.4, seconds=4.0, messages=messages)
    rejected = [
        re.match(r"rejected with (.*) s left: even a batch of one takes ([0-9.]*) s(.*)", it) for it in messages
    ]
    found = [(float(it[1]) > float(it[2]), it[3]) for it in rejected if it]
    assert set(found) <= {(False, ""), (True, ", behind the one that runs"), (False, ", behind the one that runs")}
    assert (True, ", behind the one that runs") in found


@pytest.mark.parametrize("load", [0.5, 0.7, 0.9])
def test_pipelining_costs_no_deadlines_below_capacity(load):
    plain, _ = open_loop(Server(queued_workers=None, noise=0.02), load=load)
    ahead, _ = open_loop(Server(noise=0.02), load=load)
    assert ahead >= plain


def test_overhead_is_learned_apart_from_service_time():
    """The overhead is learned from pipelined batches, and the learned service time stays correct."""
    server = Server(noise=0.02)
    _, batcher = open_loop(server, load=1.2)
    assert batcher._overhead.overhead_ns == pytest.approx((OUT_S + BACK_S) * 1e9, rel=0.35)
    assert batcher.service_time.fitted().seconds(FULL) == pytest.approx(
        0.0118 + 0.00058 * FULL + OUT_S + BACK_S, rel=0.02
    )
    assert server.waited > 0.8 * batcher.statistics().pipelined > 0


def test_two_workers_get_a_third_batch_pipelined():
    shares = {}
    for known in (None, 2):
        server = Server(workers=2, queued_workers=known, noise=0.02)
        shares[known], batcher = open_loop(server, load=2.4, max_in_flight=2, seconds=4.0)
        assert (batcher.statistics().pipelined > 0) == (known == 2)
    assert shares[2] > shares[None] + 0.015


@pytest.mark.parametrize(("known", "in_flight"), [(2, 1), (1, 2), (None, 1)])
def test_no_pipelining_if_worker_counts_differ(known, in_flight):
    """No batch is pipelined unless the model has as many workers as there are batches in flight."""
    _, batcher = open_loop(Server(queued_workers=known), load=1.2, seconds=1.0, max_in_flight=in_flight)
    assert batcher.statistics().pipelined == 0


def test_only_full_batches_are_pipelined():
    server = Server()
    _, batcher = open_loop(server, load=0.9)
    ahead = batcher.statistics().pipelined
    assert ahead > 0
    full = sum(size == FULL for _, size, _, _ in server.sent)
    assert ahead <= full < len(server.sent)


def test_greedy_batches_wait_for_a_worker():
    _, batcher = open_loop(Server(), load=1.2, seconds=1.0, policy="greedy")
    assert batcher.statistics().pipelined == 0


async def filled(service, count, *, timeout_s=10.0):
    """Send ``count`` requests at once; return tasks that end with the response or the error of each."""

    async def ask(number):
        try:
            return await service(number, timeout_s=timeout_s)
        except si.StreamInferError as error:
            return error

    return [asyncio.ensure_future(ask(number)) for number in range(count)]


def scene(server, scenario, *, layers=(), **more):
    """Run a scenario with a batcher that has learned the durations of the server."""

    async def main(loop):
        batcher = batcher_of(**more)
        async with si.Stack(batcher, *layers, server, clock=loop.clock) as service:
            await warmed(service)
            server.begin()
            await scenario(loop, service, batcher)
        assert server.running == 0

    run(main)


async def until_sent(loop, server, count):
    while len(server.sent) < count:
        await asyncio.sleep(0.0002)


def test_the_device_does_not_idle_between_full_batches():
    server = Server()

    async def scenario(loop, service, batcher):
        await asyncio.gather(*await filled(service, 150 * FULL))  # the overhead is learned
        server.begin()
        await asyncio.gather(*await filled(service, 6 * FULL))
        times = [(began_s, ended_s) for _, _, began_s, ended_s in server.sent]
        gaps = [after[0] - before[1] for before, after in itertools.pairwise(times)]
        assert gaps == pytest.approx([0.0] * 5, abs=1e-9)
        # and none was sent long before its turn
        early = [came[0] for came in server.sent[1:]]
        assert all(began_s - came_s < 0.005 for came_s, (began_s, _) in zip(early, times[1:], strict=True))

    scene(server, scenario)


def test_request_that_fills_batch_in_window_sends_it():
    """A request that fills the next batch within the sending window sends that batch at once."""
    server = Server()

    async def scenario(loop, service, batcher):
        await asyncio.gather(*await filled(service, 150 * FULL))
        server.begin()
        first = await filled(service, FULL)
        await until_sent(loop, server, 1)
        rest = await filled(service, FULL - 1)
        await asyncio.sleep(0.0216)  # the device ends at 21.7 ms, and its response arrives at 22.1
        assert len(server.sent) == 1
        last = await filled(service, 1)
        await asyncio.gather(*first, *rest, *last)
        came_s, size, _, _ = server.sent[1]
        assert size == FULL
        assert came_s < server.sent[0][3] + BACK_S  # before the first response arrived

    scene(server, scenario)


def test_a_batch_that_is_not_full_costs_no_timer(monkeypatch):
    server = Server()
    set_timer = Dispatcher.set_timer

    async def main(loop):
        batcher = batcher_of(slo_s=None)
        async with si.Stack(batcher, server, clock=loop.clock) as service:
            for size in (1, 2, 4, 8, 12, FULL) * 6:
                await asyncio.gather(*(service(0) for _ in range(size)))
            armed = []
            monkeypatch.setattr(Dispatcher, "set_timer", lambda self: (armed.append(self._recheck_ns), set_timer(self)))
            for _ in range(50):
                await asyncio.gather(*(service(0) for _ in range(FULL - 1)))
            assert set(armed) <= {2**63 - 1}

    run(main)


def test_infeasible_requests_are_not_pipelined():
    """Infeasible requests are not sent as probes in pipelined batches."""
    shares = {}
    for known in (None, 1):
        server = Server(queued_workers=known)
        # batches of one, 12.4 ms and the round trip, at 1.3 times their capacity; the SLO leaves no time to queue
        shares[known], _ = open_loop(server, load=1.3 * 0.0211 / 0.0124 / FULL, max_batch_size=1, slo_s=0.016)
    assert shares[1] > 0.9 * shares[None] > 0.1


def test_randomly_delayed_responses_do_not_mislead():
    """Pipelining helps even if responses are delayed at random."""

    class HeldUp(Server):
        async def infer(self, batch):
            rows = await super().infer(batch)
            if self._rng.random() < 0.3:
                await asyncio.sleep(0.010)
            return rows

    shares = {}
    for known in (None, 1):
        shares[known] = np.mean(
            [open_loop(HeldUp(queued_workers=known), load=0.9, slo_s=0.080, seed=seed)[0] for seed in range(3)]
        )
    assert shares[1] > shares[None] + 0.02


def test_occasional_slow_batches_do_not_mislead():
    """Pipelining helps even if some batches, chosen at random, take twice as long."""

    def shared(known, seed):
        server, rng = Server(queued_workers=known, noise=0.02), np.random.default_rng(seed)
        own_s = 0.0118 + 0.00058 * FULL
        server._later = {number: {"took_s": 2 * own_s} for number in range(3000) if rng.random() < 0.3}
        server.begin()
        return open_loop(server, load=0.9, slo_s=0.080, seed=seed)[0]

    shares = {known: np.mean([shared(known, seed) for seed in range(3)]) for known in (None, 1)}
    assert shares[1] > shares[None]


def test_every_request_completes_under_a_coarse_clock():
    async def main(loop):
        server, batcher = Server(), batcher_of(slo_s=None, clock=lambda: loop.now_ns // 15_600_000 * 15_600_000)
        async with si.Stack(batcher, server) as service:
            for _ in range(20):
                for size in (1, 2, 4, 8, 12, FULL, 3 * FULL, 5 * FULL):
                    answers = await asyncio.wait_for(asyncio.gather(*(service(number) for number in range(size))), 60)
                    assert answers == list(range(size))
            assert batcher.statistics().pipelined > 0

    run(main)


def test_padded_sizes_take_the_time_of_their_padding():
    """The expected duration of a padded size is that of the size to which it is padded."""
    server = Server()

    async def main(loop):
        batcher = batcher_of(stack=True, preferred_sizes=(4, FULL))
        async with si.Stack(batcher, server, clock=loop.clock) as service:
            for size in (1, 3, 4, 9, FULL) * 6:
                await asyncio.gather(*(service(1.0) for _ in range(size)), return_exceptions=True)
            model = batcher._service._dispatcher.policy._model
            for size in (2, 5, 9, FULL):
                assert 0 <= model.upper[size] - model.expected_ns(size) < 0.5 * model.expected_ns(size)
            assert model.expected_ns(5) == model.expected_ns(FULL)

    run(main)


def test_log_shows_pipelined_batch_from_its_turn():
    """The decision log shows each batch on its worker from the end of the previous batch on."""
    server = Server()

    async def scenario(loop, service, batcher):
        await asyncio.gather(*await filled(service, 4 * FULL))
        log = batcher.decision_log()
        assert log.batch_workers[-4:].tolist() == [0] * 4
        starts_ns, ends_ns = log.batch_starts_ns[-4:], log.batch_ends_ns[-4:]
        assert (starts_ns[1:] == ends_ns[:-1]).all()
        assert batcher.statistics().pipelined == 3
        assert batcher.statistics().batch_s == pytest.approx(0.0118 + 0.00058 * FULL + OUT_S + BACK_S, rel=0.3)

    scene(server, scenario)


def test_a_model_that_hangs_gets_no_second_batch():
    server = Server(script={0: {"took_s": 60.0}})

    async def scenario(loop, service, batcher):
        began_s = loop.time()
        first = await filled(service, FULL, timeout_s=0.5)
        await until_sent(loop, server, 1)
        await asyncio.sleep(0.1)  # the sending window is over
        rest = await filled(service, 2 * FULL, timeout_s=0.2)
        outcomes = await asyncio.gather(*first, *rest)
        assert all(isinstance(outcome, si.DeadlineExceeded) for outcome in outcomes)
        assert len(server.sent) == 1
        assert loop.time() - began_s == pytest.approx(0.5, abs=0.001)

    scene(server, scenario)


def test_batch_behind_hung_model_ends_at_its_deadline():
    """Requests of a pipelined batch behind one that hangs end at their deadline."""
    server = Server(script={0: {"took_s": 60.0}})

    async def scenario(loop, service, batcher):
        began_s = loop.time()
        outcomes = await asyncio.gather(*await filled(service, 2 * FULL, timeout_s=0.2))
        assert len(server.sent) == 2
        assert all(isinstance(outcome, si.DeadlineExceeded) for outcome in outcomes)
        assert loop.time() - began_s == pytest.approx(0.2, abs=0.001)
        server._free_at_s = [loop.time()]  # the model has recovered
        assert await service(7, timeout_s=10.0) == 7
        # the hung batches taught only that the first one took long
        assert batcher.service_time.fitted().seconds(FULL) < 0.25

    scene(server, scenario)


@pytest.mark.parametrize("failing", [0, 1])
def test_failed_batch_harms_only_its_own_callers(failing):
    """If the running or the pipelined batch fails, only its own requests fail."""
    server = Server(script={failing: {"fails_after_s": 0.001, "took_s": 0.001}})
    server.isolates_rows = True  # so that the batcher does not send the batch again in parts

    async def scenario(loop, service, batcher):
        before = batcher.service_time.fitted().seconds(FULL)
        outcomes = await asyncio.gather(*await filled(service, 4 * FULL))
        own = range(failing * FULL, (failing + 1) * FULL)
        for number, outcome in enumerate(outcomes):
            if number in own:
                assert isinstance(outcome, si.BackendError)
            else:
                assert outcome == number
        assert batcher.service_time.fitted().seconds(FULL) == pytest.approx(before, rel=0.02)
        assert batcher.statistics().running_batches == 0

    scene(server, scenario)


def test_callers_of_a_pipelined_batch_can_cancel():
    server = Server()

    async def scenario(loop, service, batcher):
        calls = await filled(service, 3 * FULL)
        await until_sent(loop, server, 2)
        for call in calls[FULL : 2 * FULL]:
            call.cancel()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert outcomes[:FULL] == list(range(FULL))
        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes[FULL : 2 * FULL])
        assert outcomes[2 * FULL :] == list(range(2 * FULL, 3 * FULL))
        assert batcher.statistics().abandoned_batches == 1

    scene(server, scenario)


def test_settings_may_change_while_batch_is_pipelined():
    """Settings may change while a pipelined batch waits for its turn, and what was learned is kept."""
    server = Server()

    async def scenario(loop, service, batcher):
        calls = await filled(service, 4 * FULL)
        await until_sent(loop, server, 2)
        learned_ns = batcher._overhead.overhead_ns
        batcher.reconfigure(policy="greedy")
        assert await asyncio.gather(*calls) == list(range(4 * FULL))
        assert batcher.statistics().pipelined == 1
        batcher.reconfigure(policy="lookahead")
        assert batcher._overhead.overhead_ns == learned_ns  # what was learned is kept
        assert await asyncio.gather(*await filled(service, 4 * FULL)) == list(range(4 * FULL))
        assert batcher.statistics().pipelined > 1

    scene(server, scenario)


@pytest.mark.parametrize("drain", [True, False])
def test_a_stop_ends_the_running_and_pipelined_batch(drain):
    server = Server()

    async def main(loop):
        batcher = batcher_of()
        service = batcher.wrap(server)
        batcher.bind_clock(loop.clock)
        await service.start()

        async def ask(number):
            return (await service.call(si.Request(number, deadline_ns=loop.now_ns + 10**10))).outputs

        for size in (1, 2, 4, 8, 12, FULL) * 6:
            await asyncio.gather(*map(ask, range(size)))
        server.begin()
        calls = [asyncio.ensure_future(ask(number)) for number in range(3 * FULL)]
        await until_sent(loop, server, 2)
        await batcher.stop(drain=drain)
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        if drain:
            assert outcomes == list(range(3 * FULL))
        else:
            assert all(isinstance(outcome, si.Closed) for outcome in outcomes)
        assert (server.running, batcher.statistics().running_batches) == (0, 0)

    run(main)


def test_closed_loop_leaves_no_pipelined_batch():
    """If an event loop is closed while a batch is pipelined, the batcher forgets the batch and serves the next loop."""
    loops = [VirtualLoop()]
    server = Server()
    batcher = batcher_of(clock=lambda: loops[-1].now_ns)
    service = batcher.wrap(server)
    dead = loops[0]
    left = []

    async def leave():
        for size in (1, 2, 4, 8, 12, FULL) * 6:
            deadline_ns = dead.now_ns + 10**10
            await asyncio.gather(*(service.call(si.Request(0, deadline_ns=deadline_ns)) for _ in range(size)))
        server.begin()
        left.extend(dead.create_task(service.call(si.Request(number))) for number in range(2 * FULL))
        await until_sent(dead, server, 2)
        left.extend(run.task for run in service._dispatcher.runner.batches)

    dead.run_until_complete(leave())
    assert service._dispatcher.pipeline.batch is not None
    dead.close()

    async def go_on(loop):
        loops.append(loop)
        server._free_at_s = [0.0]
        calls = [service.call(si.Request(number, deadline_ns=loop.now_ns + 10**10)) for number in range(3 * FULL)]
        assert [response.outputs for response in await asyncio.gather(*calls)] == list(range(3 * FULL))
        assert service._dispatcher.free == 1

    batcher.reconfigure(slo_s=1.0)  # does not wait for callers of the closed loop
    run(go_on)
    s = batcher.statistics()
    assert (s.closed, s.running_batches) == (2 * FULL, 0)
    for task in left:
        task._log_destroy_pending = False
        task.get_coro().close()


@pytest.mark.parametrize("layer", ["limit", "breaker"])
def test_no_pipelining_past_a_limit_or_breaker(layer):
    """A full limit or a half-open breaker in front of the model keeps a second batch from being pipelined."""
    # a limit of one batch, and a breaker that lets one probe through, would reject a second batch
    server = Server(script={0: {"fails_after_s": 0.001, "took_s": 0.001}} if layer == "breaker" else {})
    if layer == "limit":
        guard = si.ConcurrencyLimit(limit=1)
    else:
        guard = si.CircuitBreaker(minimum_calls=1, failure_rate_threshold=0.5, open_s=0.5, half_open_calls=1, window=1)

    async def scenario(loop, service, batcher):
        if layer == "breaker":
            await asyncio.gather(*await filled(service, 1))
            assert guard.state == "open"
            await asyncio.sleep(0.6)
            assert guard.state == "half_open"
        outcomes = await asyncio.gather(*await filled(service, 2 * FULL))
        assert outcomes == list(range(2 * FULL))
        assert batcher.statistics().pipelined == 0

    scene(server, scenario, layers=(guard,))


async def test_predicted_finish_counts_the_pipelined_batch(loop):
    """The predicted finish of a request counts the pipelined batch that waits for its turn."""
    server, batcher = Server(), batcher_of()
    async with si.Stack(batcher, server, clock=loop.clock) as service:
        for _ in range(4):
            await warmed(service)
        server.begin()
        calls = await filled(service, 2 * FULL)
        await until_sent(loop, server, 2)
        admission = service.admission(si.Request(0, deadline_ns=loop.now_ns + 10**10), loop.now_ns)
        completes_ns = asyncio.ensure_future(service(0, timeout_s=10.0))
        await completes_ns
        assert admission.predicted_finish_ns == pytest.approx(loop.now_ns, abs=2 * MS)
        await asyncio.gather(*calls)


async def test_urgent_requests_join_the_pipelined_batch(loop):
    """A pipelined batch has the most urgent requests that are queued when it is sent, not those that came first."""
    server, batcher = Server(), batcher_of()
    async with si.Stack(batcher, server, clock=loop.clock) as service:
        await warmed(service)
        server.begin()
        calls = [asyncio.ensure_future(service(number, timeout_s=10.0, priority=1)) for number in range(2 * FULL)]
        await until_sent(loop, server, 1)
        urgent = [asyncio.ensure_future(service(100 + number, timeout_s=10.0, priority=0)) for number in range(2)]
        await asyncio.gather(*calls, *urgent)

    (_, _, _, first_ended_s), (pipelined_s, *_), _ = server.sent
    assert pipelined_s < first_ended_s
    assert [sorted(inputs) for inputs in server.inputs[1:]] == [[*range(FULL, 2 * FULL - 2), 100, 101], [30, 31]]


def test_policy_without_pipelining_takes_over():
    """A policy that does not pipeline takes over while a pipelined batch is in flight."""
    server = Server()

    async def scenario(loop, service, batcher):
        calls = await filled(service, 3 * FULL)
        await until_sent(loop, server, 2)
        batcher._service.change(0.05, FULL, Greedy(FULL), batcher._service._calls.assembler)
        assert await asyncio.gather(*calls) == list(range(3 * FULL))

    scene(server, scenario)


class Told(Greedy):
    """Policy that pipelines all queued requests and records what it observes, although it would skip each batch."""

    full_size = 1

    def __init__(self):
        super().__init__(FULL)
        object.__setattr__(self, "told", [])

    def choose_pipelined(self, queue, now_ns, running):
        return self.decide(queue, now_ns, 0)

    def effective_start_ns(self, sent_ns, ended_ns):
        return max(sent_ns, ended_ns - MS)

    def skip(self, run, ended_ns):
        return True

    def observe(self, size, duration_ns, now_ns, cut_short, bucket):
        self.told.append(("alone", size, duration_ns, cut_short))
        return 0

    def observe_pipelined(self, size, busy_ns, now_ns, early_ns, bucket):
        self.told.append(("ahead", size, busy_ns, early_ns))
        return 0


def told_of(scenario, **script):
    """Return what a policy observes in a scenario with two batches of 16, of which the second is sent at once.

    Each batch takes 20 ms, unless the script for it (``batch_0``, ``batch_1``) differs.
    """
    server = Server(script={number: {"took_s": 0.020, **script.get(f"batch_{number}", {})} for number in range(3)})
    server.begin()
    policy = Told()

    async def main(loop):
        batcher = batcher_of(slo_s=None)
        async with si.Stack(batcher, server, clock=loop.clock) as service:
            batcher._service.change(None, FULL, policy, batcher._service._calls.assembler)
            await scenario(loop, service)

    run(main)
    return policy.told


def test_pipelined_duration_counts_from_previous_end():
    """The duration of a pipelined batch counts from the end of the previous one."""

    async def scenario(loop, service):
        await asyncio.gather(*await filled(service, 2 * FULL))

    first, second = told_of(scenario)
    assert first == ("alone", FULL, 21 * MS, False)
    assert second == ("ahead", FULL, pytest.approx(20 * MS, abs=10), pytest.approx(21 * MS, abs=10))


def test_a_batch_behind_a_failed_batch_teaches_nothing():
    async def scenario(loop, service):
        await asyncio.gather(*await filled(service, 2 * FULL))

    assert told_of(scenario, batch_0={"fails_after_s": 0.001}) == []


def test_batch_cancelled_in_its_turn_is_a_lower_bound():
    """A pipelined batch that is cancelled after its turn began teaches the least time that it took."""

    async def scenario(loop, service):
        calls = await filled(service, 2 * FULL)
        await asyncio.gather(*calls[:FULL])
        await asyncio.sleep(0.005)
        for call in calls[FULL:]:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    # its turn began a millisecond before the first batch ended
    assert told_of(scenario)[1:] == [("alone", FULL, pytest.approx(6 * MS, abs=10), True)]


def test_batch_cancelled_before_turn_teaches_nothing():
    """Nothing is learned from a pipelined batch that is cancelled before its turn."""

    async def scenario(loop, service):
        calls = await filled(service, 2 * FULL)
        await asyncio.sleep(0.005)
        for call in calls[FULL:]:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    assert told_of(scenario) == [("alone", FULL, 21 * MS, False)]
