"""Discovery by DNS: replicas follow the addresses of a name, and stay if the name cannot be resolved."""

import asyncio
import socket
import threading

import pytest

import streaminfer as si
from streaminfer.routing import DnsDiscovery, HealthCheck, Replica, Replicas
from streaminfer.routing.replicas.discovery import Finder
from streaminfer.testing import ScriptedBackend, run


class Names:
    """Resolver that returns the addresses of the test, and the replicas that follow them."""

    def __init__(self, loop, *addresses, static=(), **settings):
        self.says = list(addresses)
        self.asked = []
        self.made = {}
        self.refuses = set()
        self.duration_s = 0.001
        found = DnsDiscovery("models", self.make, interval_s=10.0, timeout_s=2.0, resolve=self.resolve)
        self.replicas = Replicas(
            *(Replica(name, self.service(name)) for name in static),
            discovery=found, seed=1, slow_start_s=0.0, clock=loop.clock, **settings,
        )  # fmt: skip

    async def resolve(self, host):
        self.asked.append(host)
        if isinstance(self.says, BaseException):
            raise self.says
        if self.says == "hangs":
            await asyncio.get_running_loop().create_future()
        return self.says

    def service(self, name):
        self.made[name] = si.Stack(ScriptedBackend(duration_s=lambda rows: self.duration_s))
        return self.made[name]

    def make(self, address):
        if address in self.refuses:
            raise ConnectionError(f"{address} is not there")
        return Replica(f"face {address}", self.service(address))

    def names(self):
        return [replica.name.removeprefix("face ") for replica in self.replicas.statistics().replicas]


def test_replicas_come_and_go_as_the_name_resolves():
    """New addresses get a replica, replicas of vanished addresses stop, and requests continue meanwhile."""

    async def main(loop):
        names = Names(loop, "10.0.0.1", "10.0.0.2", "10.0.0.1")
        async with si.Stack(names.replicas, clock=loop.clock) as service:
            assert names.names() == ["10.0.0.1", "10.0.0.2"]
            await service(1.0)
            names.says = ["10.0.0.2", "10.0.0.3"]
            await asyncio.sleep(9.0)
            assert names.names() == ["10.0.0.1", "10.0.0.2"]
            await asyncio.sleep(1.5)
            assert names.names() == ["10.0.0.2", "10.0.0.3"]
            assert not names.made["10.0.0.1"].ready
            assert names.made["10.0.0.3"].ready
            names.says = ["10.0.0.4"]  # all at once
            await asyncio.sleep(10.0)
            assert names.names() == ["10.0.0.4"]
            await service(1.0)
        assert names.asked == ["models"] * 3
        assert names.replicas.statistics().lookups == 3

    run(main)


@pytest.mark.parametrize("says", [socket.gaierror("no server"), [], "hangs", asyncio.CancelledError()], ids=repr)
def test_replicas_stay_when_the_name_is_not_resolved(says, caplog):
    """If the name server is down, returns no address or hangs, no replica is removed, and one warning is logged."""

    async def main(loop):
        names = Names(loop, "10.0.0.1", "10.0.0.2")
        async with si.Stack(names.replicas, clock=loop.clock) as service:
            names.says = says
            await asyncio.sleep(40.0)
            assert names.names() == ["10.0.0.1", "10.0.0.2"]
            await service(1.0)
            assert names.replicas.statistics().failed_lookups >= 3
            names.says = ["10.0.0.2", "10.0.0.5"]
            await asyncio.sleep(15.0)
            assert names.names() == ["10.0.0.2", "10.0.0.5"]

    run(main)
    assert len(caplog.records) == 1
    assert caplog.records[0].message.startswith("'models' was not resolved: the replicas stay as they are")
    assert caplog.records[0].exc_info


def test_resolver_that_ends_its_task_is_called_again(caplog):
    """Discovery calls the resolver again whatever it raises; otherwise it would keep servers that are gone."""

    async def main(loop):
        names = Names(loop, "10.0.0.1")
        async with si.Stack(names.replicas, clock=loop.clock):
            names.says = BaseExceptionGroup("odd", [GeneratorExit()])
            await asyncio.sleep(10.5)
            names.says = ["10.0.0.2"]
            await asyncio.sleep(12.0)
            assert names.names() == ["10.0.0.2"]
        assert "the discovery of 'models' failed: " in caplog.text

    run(main)


def test_start_waits_for_the_first_lookup():
    """A start without any other replica raises the error of its first lookup; a later start can succeed."""

    async def main(loop):
        names = Names(loop)
        names.says = socket.gaierror("no server")
        stack = si.Stack(names.replicas, clock=loop.clock)
        with pytest.raises(socket.gaierror, match="no server"):
            await stack.start()
        with pytest.raises(si.Closed, match="these replicas do not run"):
            await names.replicas.call(si.Request(1.0))
        assert names.replicas.admission(si.Request(1.0), loop.clock()).reason == "closed"
        names.says = ["10.0.0.1"]
        async with stack as service:
            await service(1.0)

    run(main)


def test_restart_skips_vanished_addresses():
    """A replica whose address has gone between a stop and the next start is neither started nor left running."""

    async def main(loop):
        names = Names(loop, "10.0.0.1", "10.0.0.2")
        stack = si.Stack(names.replicas, clock=loop.clock)
        await stack.start()
        await stack.stop()
        names.says = ["10.0.0.2", "10.0.0.3"]
        await stack.start()
        await asyncio.sleep(1.0)
        assert names.names() == ["10.0.0.2", "10.0.0.3"]
        assert [names.made[f"10.0.0.{number}"].ready for number in (1, 2, 3)] == [False, True, True]
        await stack.stop()
        assert not any(service.ready for service in names.made.values())

    run(main)


def test_replicas_that_were_given_are_never_removed():
    """Replicas of the constructor stay, whatever the name resolves to, and serve if it resolves to nothing."""

    async def main(loop):
        names = Names(loop, static=["own"])
        async with si.Stack(names.replicas, clock=loop.clock) as service:
            assert names.names() == ["own"]
            await service(1.0)
            names.says = ["10.0.0.1"]
            await asyncio.sleep(10.5)
            assert names.names() == ["own", "10.0.0.1"]
            names.says = ["10.0.0.2"]
            await asyncio.sleep(10.5)
            assert names.names() == ["own", "10.0.0.2"]

    run(main)


def test_replica_removed_by_hand_is_not_removed_again(caplog):
    """A replica removed by hand stays away while its address resolves; it returns after the address was gone."""

    async def main(loop):
        names = Names(loop, "10.0.0.1", "10.0.0.2", "10.0.0.3")
        async with si.Stack(names.replicas, clock=loop.clock):
            await names.replicas.remove("face 10.0.0.1")
            await asyncio.sleep(10.5)
            assert names.names() == ["10.0.0.2", "10.0.0.3"]
            names.says = ["10.0.0.3"]
            await asyncio.sleep(10.0)
            assert names.names() == ["10.0.0.3"]
            names.says = ["10.0.0.1", "10.0.0.3"]
            await asyncio.sleep(10.0)
            assert names.names() == ["10.0.0.3", "10.0.0.1"]

    run(main)
    assert not caplog.records


def test_a_replica_that_cannot_be_made_is_tried_again(caplog):
    """If a new replica cannot be made, the last replica stays, and the next lookup tries again."""

    async def main(loop):
        names = Names(loop, "10.0.0.1")
        async with si.Stack(names.replicas, clock=loop.clock):
            names.says, names.refuses = ["10.0.0.2"], {"10.0.0.2"}
            await asyncio.sleep(10.5)
            assert names.names() == ["10.0.0.1"]
            names.refuses = set()
            await asyncio.sleep(10.5)
            assert names.names() == ["10.0.0.2"]

    run(main)
    assert [record.message.split(";")[0] for record in caplog.records] == [
        "the replica at '10.0.0.2' could not be added"
    ]


class Hanging:
    """Service whose start never ends."""

    cancelled = 0

    async def start(self):
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.cancelled += 1

    async def stop(self, *, drain):
        """Do nothing."""

    async def call(self, request):
        return si.Response(request.inputs)


def test_hanging_start_does_not_delay_other_replicas():
    """Other replicas come and go while a start hangs; it is cancelled when its address is gone, or by the stop."""

    async def main(loop):
        names = Names(loop, "10.0.0.1")
        hanging = Hanging()
        service = names.service
        names.service = lambda name: hanging if name == "10.0.0.9" else service(name)
        before = asyncio.all_tasks()
        stack = si.Stack(names.replicas, clock=loop.clock)
        await stack.start()
        names.says = ["10.0.0.9", "10.0.0.2"]
        await asyncio.sleep(10.5)
        assert names.names() == ["10.0.0.1", "10.0.0.2"]
        await asyncio.sleep(10.0)
        assert names.names() == ["10.0.0.2"]
        names.says = ["10.0.0.9", "10.0.0.3"]
        await asyncio.sleep(30.0)
        assert names.names() == ["10.0.0.3"]
        assert not hanging.cancelled
        names.says = ["10.0.0.3"]
        await asyncio.sleep(20.0)
        assert hanging.cancelled == 1
        names.says = ["10.0.0.3", "10.0.0.9"]
        await asyncio.sleep(15.0)
        await stack.stop()
        assert hanging.cancelled == 2
        assert asyncio.all_tasks() == before

    run(main)


def test_draining_replica_does_not_delay_lookups():
    """While a replica drains, later lookups add other replicas, and its request gets its response."""

    async def main(loop):
        names = Names(loop, "10.0.0.1")
        names.duration_s = 60.0
        async with si.Stack(names.replicas, clock=loop.clock) as service:
            slow = asyncio.ensure_future(service(1.0))
            await asyncio.sleep(0.1)
            names.says = ["10.0.0.2"]
            await asyncio.sleep(11.0)
            names.says = ["10.0.0.2", "10.0.0.3"]
            await asyncio.sleep(10.0)
            assert names.names() == ["10.0.0.2", "10.0.0.3", "10.0.0.1"]
            assert names.replicas.statistics()["face 10.0.0.1"].state == "draining"
            assert await slow == 1.0
            await asyncio.sleep(1.0)
            assert names.names() == ["10.0.0.2", "10.0.0.3"]

    run(main)


@pytest.mark.parametrize(("drain", "ends_s"), [(True, 60.0), (False, 11.0)], ids=["drain", "no drain"])
def test_stop_waits_for_draining_replica(drain, ends_s):
    """A stop waits until a replica that drains has completed its request, or ends that request with `Closed`."""

    async def main(loop):
        names = Names(loop, "10.0.0.1")
        names.duration_s = 60.0
        before = asyncio.all_tasks()
        await names.replicas.start()
        slow = asyncio.ensure_future(names.replicas.call(si.Request(1.0)))
        names.says = ["10.0.0.2"]
        await asyncio.sleep(11.0)
        assert names.replicas.statistics()["face 10.0.0.1"].state == "draining"
        await names.replicas.stop(drain=drain)
        assert loop.time() == pytest.approx(ends_s, abs=0.1)
        assert not names.made["10.0.0.1"].ready
        (answer,) = await asyncio.gather(slow, return_exceptions=True)
        assert answer.outputs == 1.0 if drain else type(answer) is si.Closed
        assert asyncio.all_tasks() == before

    run(main)


def test_nothing_outlives_the_stop():
    """Lookups, even one that hangs, and removals of replicas end with the stop."""

    async def main(loop):
        names = Names(loop, "10.0.0.1", health=HealthCheck(_probe))
        before = asyncio.all_tasks()
        stack = si.Stack(names.replicas, clock=loop.clock)
        await stack.start()
        names.says = ["10.0.0.2"]
        await asyncio.sleep(10.0)
        names.says = "hangs"
        await asyncio.sleep(11.0)
        await stack.stop()
        assert asyncio.all_tasks() == before
        asked = len(names.asked)
        await asyncio.sleep(60.0)
        assert len(names.asked) == asked

    run(main)


def test_start_of_gone_address_ends_with_stop():
    """The stop waits for a start that was cancelled because its address is gone."""

    ended = []

    class SlowToEnd(ScriptedBackend):
        async def start(self):
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                await asyncio.sleep(5.0)
                ended.append(asyncio.get_running_loop().time())

    async def main(loop):
        names = Names(loop, "10.0.0.1")
        before = asyncio.all_tasks()
        stack = si.Stack(names.replicas, clock=loop.clock)
        await stack.start()
        names.service = lambda name: si.Stack(SlowToEnd())
        names.says = ["10.0.0.1", "10.0.0.2"]
        await asyncio.sleep(25.0)
        names.says = ["10.0.0.1"]
        await asyncio.sleep(6.0)  # the lookup a second ago has cancelled the start
        await stack.stop()
        assert ended == [loop.time()]
        assert loop.time() == pytest.approx(35.0, abs=0.1)
        assert asyncio.all_tasks() == before

    run(main)


def test_stop_during_first_lookup_wins():
    """Replicas that are stopped during their first lookup do not run, and can be started again."""

    async def main(loop):
        names = Names(loop, static=["own"])
        names.says = "hangs"
        before = asyncio.all_tasks()
        starting = asyncio.ensure_future(names.replicas.start())
        await asyncio.sleep(1.0)
        await names.replicas.stop()
        await starting
        assert asyncio.all_tasks() == before
        assert not names.made["own"].ready
        with pytest.raises(si.Closed):
            await names.replicas.call(si.Request(1.0))
        names.says = ["10.0.0.1"]
        await names.replicas.start()
        assert names.made["own"].ready
        assert (await names.replicas.call(si.Request(1.0))).outputs == 1.0
        await names.replicas.stop()

    run(main)


async def test_one_text_is_no_list_of_addresses(loop):
    """A start fails if the resolver returns a string, because its characters are no addresses."""

    async def resolve(host):
        return "10.0.0.1"

    replicas = Replicas(discovery=DnsDiscovery("faces", lambda it: Replica(it, ScriptedBackend()), resolve=resolve))
    with pytest.raises(TypeError, match=r"resolve: expected a list of addresses from it, got '10\.0\.0\.1'"):
        await replicas.start()


async def _probe(replica):
    """Do nothing."""


def test_the_system_resolves_in_a_thread(monkeypatch):
    """Without a resolver, the system resolves the name in another thread, and each address gets one replica."""
    made, threads = [], []
    resolve = socket.getaddrinfo

    def resolve_twice(*args, **settings):
        threads.append(threading.current_thread())
        return 2 * resolve(*args, **settings)

    def make(address):
        made.append(address)
        return Replica(address, si.Stack(ScriptedBackend()))

    async def main():
        replicas = Replicas(discovery=DnsDiscovery("localhost", make))
        async with si.Stack(replicas) as service:
            await service(1.0)

    monkeypatch.setattr(socket, "getaddrinfo", resolve_twice)
    asyncio.run(main())

    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()
    assert made
    assert set(made) <= {"127.0.0.1", "::1"}
    assert len(set(made)) == len(made)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DnsDiscovery("", _probe), "host: expected a name, not empty"),
        (lambda: DnsDiscovery("a", 3), "make: expected a function"),
        (lambda: DnsDiscovery("a", _probe, resolve=3), "resolve: expected a function"),
        (lambda: DnsDiscovery("a", _probe, interval_s=0.0), "interval_s: expected a finite number of seconds > 0"),
        (lambda: DnsDiscovery("a", _probe, timeout_s=0.0), "timeout_s: expected a finite number of seconds > 0"),
        (lambda: Replicas(discovery=3), "discovery: expected a DnsDiscovery or None"),
        (Replicas, "replicas: expected at least one Replica"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


async def test_cancelled_removal_is_made_later(loop):
    """A removal that is cancelled before it begins is made later.

    If all tasks of the loop are cancelled, the next lookup still knows that the replica must be removed.
    """
    there = ["10.0.0.1", "10.0.0.2"]
    says = list(there)

    async def resolve(host):
        return says

    async def add(replica):
        pass

    async def remove(name):
        there.remove(name)

    found = DnsDiscovery("models", lambda address: Replica(address, si.Stack(ScriptedBackend())), resolve=resolve)
    finder = Finder(found, add, remove, lambda: there)
    await finder.look_up(strict=True)
    says.remove("10.0.0.1")

    await finder.look_up()
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await finder.look_up()
    await asyncio.sleep(0)

    assert there == ["10.0.0.2"]
