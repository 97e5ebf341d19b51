"""The Redis tier against a real Valkey server, and against servers that are dead, slow or send invalid replies."""

import asyncio
import contextlib
import threading
import time
import traceback

import numpy as np
import pytest
from held_time import run_held
from hypothesis import given, settings
from hypothesis import strategies as st
from redis_server import PATIENT, RedisServer

import streaminfer as si
from streaminfer.caching.tiers import Entry, RedisTier, Tier
from streaminfer.caching.tiers.encryption import StoredKeys
from streaminfer.resilience.breaker.circuit_breaker import CircuitBreaker

S = 10**9
SECRET = b"a face that must not be found on any medium"


@pytest.fixture(autouse=True)
def _empty(server):
    with server.client() as client:
        client.flushall()


def entry(value, **more):
    return Entry(value=value, stored_ns=more.pop("stored_ns", time.time_ns()), **more)


def everything(server):
    """Return all data of the server, including its keys."""
    with server.client() as client:
        found = list(client.scan_iter("*"))
        for key in list(found):
            if client.type(key) == b"hash":
                found += [part for pair in client.hgetall(key).items() for part in pair]
            else:
                found.append(client.get(key))
    return b"|".join(found)


def test_redis_tier_satisfies_the_tier_protocol(server):
    assert isinstance(RedisTier(server.url), Tier)


@pytest.mark.parametrize("lease_s", [1e-9, 1e300], ids=["shortest", "longest"])
def test_a_lease_may_last_as_long_as_any_duration(server, lease_s):
    async def main():
        async with RedisTier(server.url, lease_s=lease_s, **PATIENT) as tier:
            assert await tier.take_lease("k", b"1" * 16)
            await tier.open_lease("k", b"1" * 16)
            return tier.statistics().errors

    assert asyncio.run(main()) == 0


def test_an_entry_comes_back_whole_to_another_process(server):
    put = entry(
        {"y": np.arange(4, dtype=">f4"), "n": None}, ttl_s=60.0, tags=["a", "b"], subject="anna", data_class="f"
    )

    async def main():
        async with RedisTier(server.url, **PATIENT) as first, RedisTier(server.url, **PATIENT) as second:
            assert await first.put(b"key", put)
            assert await second.get("key") is None
            return await second.get(b"key"), second.statistics()

    got, seen = asyncio.run(main())
    np.testing.assert_array_equal(got.value["y"], put.value["y"])
    assert got.value["y"].dtype == put.value["y"].dtype
    assert not got.value["y"].flags.writeable
    assert (got.stored_ns, got.ttl_s, got.tags, got.subject, got.data_class) == (
        put.stored_ns,
        60.0,
        frozenset("ab"),
        "anna",
        "f",
    )
    assert (seen.hits, seen.misses) == (1, 1)


def test_namespaces_are_separate(server):
    async def main():
        async with (
            RedisTier(server.url, namespace="a", **PATIENT) as first,
            RedisTier(server.url, namespace="b", **PATIENT) as second,
        ):
            await first.put("k", entry(1, subject="anna"))
            assert await second.get("k") is None
            assert await second.erase(subject="anna") == 0
            return (await first.get("k")).value

    assert asyncio.run(main()) == 1


def test_the_server_expires_entries(server):
    async def main():
        async with RedisTier(server.url, namespace="n", **PATIENT) as tier:
            await tier.put("long", entry(1, ttl_s=1000.0, subject="anna"))
            await tier.put("short", entry(1, ttl_s=100.0, subject="anna", tags=["x"]))
            await tier.put("late", entry(1, ttl_s=100.0, stored_ns=time.time_ns() - 50 * S))
            await tier.put("ever", entry(1, tags=["y"]))

    asyncio.run(main())
    with server.client() as client:
        left = {key: client.ttl(key) for key in client.scan_iter("*")}
    assert 990 < left[b"{n}:ekslong"] <= 1001
    assert 90 < left[b"{n}:eksshort"] <= 101
    assert 40 < left[b"{n}:ekslate"] <= 51
    assert left[b"{n}:eksever"] == -1
    assert len(left) == 5  # these four and the token


def test_expiry_also_follows_the_clock_of_the_tier(server):
    now_ns = time.time_ns()

    async def main():
        async with (
            RedisTier(server.url, **PATIENT) as tier,
            RedisTier(server.url, wall_clock=lambda: now_ns + 100 * S, **PATIENT) as later,
        ):
            await tier.put("k", entry(1, ttl_s=100.0, stored_ns=now_ns))
            assert (await tier.get("k")).value == 1
            return await later.get("k")

    assert asyncio.run(main()) is None


@pytest.mark.parametrize("by", ["subject", "tag"])
def test_erased_means_gone_from_the_server(server, by):
    async def main():
        async with RedisTier(server.url, **PATIENT) as tier:
            for number in range(600):  # more than a chunk
                mine = number % 2 == 0
                more = (
                    {"subject": "anna" if mine else "ben"}
                    if by == "subject"
                    else {"tags": ["x", "y"] if mine else ["y"]}
                )
                await tier.put(f"k{number}", entry((SECRET if mine else b"kept") + b"%d" % number, **more))
            erased = await tier.erase(**{by: "anna" if by == "subject" else "x"})
            assert await tier.get("k0") is None
            assert (await tier.get("k1")).value == b"kept1"
            assert await tier.erase(**{by: "nobody"}) == 0
            return erased, tier.statistics()

    erased, seen = asyncio.run(main())
    assert erased == seen.erased == 300
    held = everything(server)
    assert SECRET not in held
    assert b"anna" not in held


def test_replaced_entry_has_only_its_new_labels(server):
    """A replaced entry belongs to its new subject and tags only."""

    async def main():
        async with RedisTier(server.url, namespace="n", **PATIENT) as tier:
            await tier.put("k", entry(1, subject="anna", tags=["x"]))
            await tier.put("k", entry(2, subject="ben", tags=["y"]))
            assert await tier.erase(subject="anna") == await tier.erase(tag="x") == 0
            await tier.put("m", entry(1, subject="anna"))
            with server.client() as client:
                client.delete("{n}:eksm")  # as if it had expired there
            await tier.put("m", entry(3, subject="ben"))
            assert await tier.erase(subject="anna") == 0
            assert ((await tier.get("k")).value, (await tier.get("m")).value) == (2, 3)
            return await tier.erase(subject="ben")

    assert asyncio.run(main()) == 2


def test_erasure_is_limited_to_its_own_namespace(server):
    """An erasure takes the namespace literally, and leaves keys that are not entries alone."""

    async def main():
        async with (
            RedisTier(server.url, namespace="[n]*", **PATIENT) as tier,
            RedisTier(server.url, **PATIENT) as other,
        ):
            await tier.put("k", entry(1, subject="anna"))
            await other.put("k", entry(2, subject="anna"))
            with server.client() as client:
                client.hset("{n}:esother", "lssssanna", "not ours")
                client.set("{[n]*}:eother", "no hash")
            assert await tier.erase(subject="anna") == 1
            with server.client() as client:
                assert sorted(client.keys()) == [
                    b"{[n]*}:eother",
                    b"{n}:esother",
                    b"{streaminfer}:eksk",
                    b"{streaminfer}:g",
                ]

    asyncio.run(main())


@pytest.mark.parametrize("policy", ["allkeys-lru", "noeviction"])
def test_erasure_is_complete_on_a_full_server(tmp_path, policy):
    """An erasure on a full server erases and counts the entries of a subject that the server has not evicted."""
    server = RedisServer(tmp_path)
    server.start()
    with server.client() as client:
        client.config_set("maxmemory", client.info("memory")["used_memory"] + 2 * 2**20)
        client.config_set("maxmemory-policy", policy)

    async def main():
        breaker = CircuitBreaker(window=10_000, minimum_calls=10_000)
        async with RedisTier(server.url, breaker=breaker, **PATIENT) as tier:
            for number in range(3000):
                subject = "anna" if number % 3 == 0 else f"other {number % 7}"
                await tier.put(f"k{number}", entry(bytes(2000), subject=subject, tags=["all"]))
            left = [number for number in range(0, 3000, 3) if await tier.get(f"k{number}") is not None]
            assert 0 < len(left) < 1000
            assert 0 < await tier.erase(subject="anna") <= len(left)  # some may have been evicted since
            assert [number for number in left if await tier.get(f"k{number}") is not None] == []
            with server.client() as client:
                held = client.keys("{streaminfer}:e*")
                assert held
                assert not any(client.hexists(key, "lsssanna") for key in held)

    try:
        asyncio.run(main())
    finally:
        server.stop()


def test_encrypted_server_has_no_readable_content(server):
    keys = StoredKeys(":memory:", master=b"m" * 32)
    stranger = StoredKeys(":memory:", master=b"n" * 32)

    async def main():
        async with RedisTier(server.url, keys=keys, **PATIENT) as tier:
            for subject in ("anna-subject", "ben-subject"):
                await tier.put(
                    f"the-key-of-{subject}", entry([SECRET, "a secret text"], subject=subject, tags=["the-tag"])
                )
            held = everything(server)
            for plain in (SECRET[:16], b"secret text", b"-subject", b"the-key", b"the-tag"):
                assert plain not in held
            assert (await tier.get("the-key-of-anna-subject")).value == [SECRET, "a secret text"]
            keys.destroy("anna-subject")
            assert await tier.get("the-key-of-anna-subject") is None
            assert await tier.erase(tag="the-tag") == 1  # the get removed the unreadable entry
            await tier.put("k", entry(1))
            seen = tier.statistics()
        async with RedisTier(server.url, keys=stranger, **PATIENT) as tier:
            assert await tier.get("k") is None
        return seen

    seen = asyncio.run(main())
    assert (seen.unreadable, seen.errors) == (1, 0)
    keys.close()
    stranger.close()


@pytest.mark.parametrize("damage", ["flip", "cut", "swap", "type"])
def test_altered_record_is_a_miss_and_removed(server, damage):
    """A record that was altered on the server is a miss and is removed."""

    async def main():
        async with RedisTier(server.url, namespace="n", **PATIENT) as tier:
            await tier.put("k", entry(np.arange(9)))
            await tier.put("m", entry(np.arange(8)))
            with server.client() as client:
                record = client.hget("{n}:eksk", "d")
                if damage == "flip":
                    client.hset("{n}:eksk", "d", record[:70] + bytes((record[70] ^ 1,)) + record[71:])
                elif damage == "cut":
                    client.hset("{n}:eksk", "d", record[:-1])
                elif damage == "swap":
                    client.hset("{n}:eksk", "d", client.hget("{n}:eksm", "d"))
                else:
                    client.set("{n}:eksk", "not a hash")
            assert await tier.get("k") is None
            assert (await tier.get("m")).value.size == 8
            return tier.statistics()

    seen = asyncio.run(main())
    assert (seen.unreadable, seen.errors) == ((0, 1) if damage == "type" else (1, 0))
    if damage != "type":
        with server.client() as client:
            assert not client.exists("{n}:eksk")


@pytest.mark.parametrize("later_s", [1.0, 30.0])
def test_put_does_not_replace_a_later_value(server, later_s):
    """A value that was computed later stays, but not one from the future, nor one of another type."""
    stored_ns = time.time_ns() - 10 * S

    async def main():
        async with RedisTier(server.url, namespace="n", **PATIENT) as tier:
            assert await tier.put("k", entry("later", stored_ns=stored_ns + round(later_s * S)))
            is_put = await tier.put("k", entry("old", stored_ns=stored_ns))
            with server.client() as client:
                client.set("{n}:eksm", "not a hash")
            assert await tier.put("m", entry(1))
            return is_put, (await tier.get("k")).value

    assert asyncio.run(main()) == ((False, "later") if later_s < 10.0 else (True, "old"))


def test_unstorable_value_leaves_no_older_value(server):
    """A value that cannot be stored is rejected, and the older value of its key is removed."""

    async def main():
        async with RedisTier(server.url, max_value_bytes=10_000, **PATIENT) as tier:
            for value, more in ((object(), {}), (bytes(10_000), {}), (1, {"ttl_s": 0.0})):
                await tier.put("k", entry("old"))
                assert not await tier.put("k", entry(value, **more))
                assert await tier.get("k") is None
            await tier.put("k", entry("old"))
            assert await tier.supersede("k")
            assert await tier.get("k") is None
            return tier.statistics().rejected

    assert asyncio.run(main()) == 3


def test_a_restarted_server_is_found_again_empty(tmp_path):
    server = RedisServer(tmp_path)
    server.start()

    async def main():
        breaker = si.CircuitBreaker(window=20, minimum_calls=4, open_s=1000.0)
        async with RedisTier(server.url, breaker=breaker, **PATIENT) as tier:
            await tier.put("k", entry(1))
            server.stop()
            for _ in range(20):
                assert await tier.get("k") is None
            assert not await tier.put("k", entry(2))
            with pytest.raises(si.CircuitOpen):
                await tier.erase(subject="anna")
            seen = tier.statistics()
            assert breaker.state == "open"
            assert seen.errors < 10  # the other calls did not reach the server
            assert seen.errors + seen.skipped == 21
            server.start()
            breaker.reset()
            assert await tier.get("k") is None
            assert await tier.put("k", entry(3))
            return (await tier.get("k")).value

    try:
        assert asyncio.run(main()) == 3
    finally:
        server.stop()


@contextlib.asynccontextmanager
async def listening(handle):
    """Run a server that calls ``handle`` for each connection, and yield its port."""
    writers = []

    async def handled(reader, writer):
        writers.append(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await handle(reader, writer)
        writer.close()

    server = await asyncio.start_server(handled, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in writers:
            writer.close()
        await asyncio.sleep(0)
        await server.wait_closed()


REPLIES = [
    b":1\r\n",
    b"$-1\r\n",
    b"*0\r\n",
    b"+OK\r\n",
    b"-ERR no\r\n",
    b"%1\r\n+a\r\n:1\r\n",
    b"$5\r\nhello\r\n",
    b"_\r\n",
    b"#t\r\n",
]
garbage = st.one_of(
    st.binary(min_size=1, max_size=30),
    st.lists(st.sampled_from(REPLIES), min_size=1, max_size=4).map(b"".join),
    st.sampled_from(
        [b"$99999999999\r\n", b"*99999999\r\n", b"$-7\r\n", b"*-7\r\n", b"$x\r\n", b"\r\n", b"%-1\r\n", b"~x\r\n"]
    ),
)


@settings(max_examples=40)
@given(garbage)
def test_invalid_server_replies_count_as_misses(answer):
    async def main():
        async def handle(reader, writer):
            while await reader.read(65536):
                writer.write(answer)
                await writer.drain()

        async with listening(handle) as port:
            breaker = si.CircuitBreaker(window=100, minimum_calls=100)
            async with RedisTier(f"redis://127.0.0.1:{port}", timeout_s=0.02, breaker=breaker) as tier:
                assert await tier.get("k") is None
                await tier.put("k", entry(1))
                assert await tier.get("k") is None
                return tier.statistics()

    seen = asyncio.run(main())
    assert (seen.hits, seen.misses) == (0, 2)


def test_silent_server_costs_the_timeout_then_nothing():
    """A server that never responds costs the timeout, and nothing once the circuit breaker is open."""

    async def main():
        async def handle(reader, writer):
            while await reader.read(65536):
                pass

        async with listening(handle) as port:
            url = f"redis://127.0.0.1:{port}"
            async with RedisTier(url, timeout_s=0.01, erase_timeout_s=0.02) as tier:
                with pytest.raises(si.BackendError, match="TimeoutError: it took longer than"):
                    await tier.erase(tag="x")
                for _ in range(30):
                    assert await tier.get("k") is None
                return tier.breaker.state, tier.statistics()

    state, seen = asyncio.run(main())
    assert state == "open"
    assert seen.errors == 5
    assert seen.skipped == 26
    assert seen.last_error == "TimeoutError: it took longer than 0.01 s"


def test_cancelled_get_leaves_connection_in_order(server):
    """A cancelled get leaves its connection in order for the next one."""

    async def main():
        async with RedisTier(server.url, max_connections=1, **PATIENT) as tier:
            for key in ("a", "b"):
                await tier.put(key, entry(key))
            for turns in range(12):
                task = asyncio.ensure_future(tier.get("a"))
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                assert (await tier.get("b")).value == "b"

    asyncio.run(main())


def test_cancelled_gets_free_their_connection(server):
    """Gets that are cancelled leave a free connection to the next get.

    One of them returns its connection, and the other has been notified that the connection is free.
    """

    async def main():
        async with RedisTier(server.url, max_connections=1, **PATIENT) as tier:
            await tier.put("k", entry(1))
            for turns in range(12):
                first, second, third = (asyncio.ensure_future(tier.get("k")) for _ in range(3))
                for _ in range(turns):
                    await asyncio.sleep(0)
                first.cancel()
                second.cancel()
                asyncio.get_running_loop().call_soon(first.cancel)
                assert (await third).value == 1
                await asyncio.wait([first, second])

    asyncio.run(main())


def test_stop_ends_waiting_gets_as_misses():
    """A stop ends waiting gets as misses: neither is cancelled, and neither makes a connection afterwards.

    One get waits for the handshake, the other for a free connection."""

    async def main():
        asked, made = asyncio.Event(), []

        async def handle(reader, _writer):
            made.append(await reader.read(1))
            asked.set()
            await reader.read()

        async with listening(handle) as port:
            tier = RedisTier(f"redis://127.0.0.1:{port}", max_connections=1, **PATIENT)
            await tier.start()
            gets = [asyncio.ensure_future(tier.get(key)) for key in "ab"]
            await asked.wait()
            await tier.stop()
            outcomes = await asyncio.gather(*gets, return_exceptions=True)
            assert len(made) == 1
        return outcomes

    assert asyncio.run(main()) == [None, None]


class Stalling:
    """Proxy that holds requests with a given text, as a stalled server would, even if the client disconnects."""

    def __init__(self, port, text):
        self.port = port
        self.text = text
        self.holds = asyncio.Event()
        self.goes_on = asyncio.Event()
        self.done = asyncio.Event()

    async def __call__(self, reader, writer):
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self.port)

        async def back():
            while answer := await from_server.read(65536):
                if self.goes_on.is_set():
                    self.done.set()
                writer.write(answer)

        answers = asyncio.ensure_future(back())
        try:
            while asked := await reader.read(65536):
                if self.text in asked:
                    self.holds.set()
                    await self.goes_on.wait()
                to_server.write(asked)
            await answers if self.goes_on.is_set() and not self.done.is_set() else None
        finally:
            answers.cancel()
            to_server.close()


@pytest.mark.parametrize("by", [{"subject": "anna"}, {"tag": "x"}])
@pytest.mark.parametrize("erased_by", ["itself", "another"])
def test_put_executed_after_an_erasure_has_no_effect(server, by, erased_by):
    """A put that the server executes after an erasure has no effect."""
    mine = entry(SECRET, subject="anna", tags=["x"])

    async def main(loop):
        proxy = Stalling(server.port, SECRET)
        async with listening(proxy) as port:
            breaker = si.CircuitBreaker(window=100, minimum_calls=100)
            url = f"redis://127.0.0.1:{port}"
            async with (
                RedisTier(url, breaker=breaker, **PATIENT) as tier,
                RedisTier(server.url, **PATIENT) as other,
            ):
                assert await tier.put("before", entry(1))
                putting = asyncio.create_task(tier.put("late", mine))
                await proxy.holds.wait()
                await loop.pass_time(PATIENT["timeout_s"])
                assert not await putting  # it timed out
                assert await (tier if erased_by == "itself" else other).erase(**by) == 0
                proxy.goes_on.set()
                await proxy.done.wait()  # the server has executed the put
                assert await other.get("late") is None
                assert SECRET not in everything(server)
                assert await tier.put("late", mine)
                assert (await other.get("late")).value == SECRET
                return tier.statistics()

    seen = run_held(main)
    assert (seen.stored, seen.errors, seen.rejected) == (2, 1, 0)


def test_put_during_an_erasure_is_rejected(server):
    """A put is rejected if anything was erased while it ran."""

    async def main():
        proxy = Stalling(server.port, SECRET)
        async with (
            listening(proxy) as port,
            RedisTier(f"redis://127.0.0.1:{port}", **PATIENT) as tier,
            RedisTier(server.url, **PATIENT) as other,
        ):
            put = asyncio.ensure_future(tier.put("k", entry(SECRET, subject="anna")))
            await proxy.holds.wait()
            await other.erase(subject="ben")
            proxy.goes_on.set()
            assert not await put
            assert await other.get("k") is None
            return tier.statistics()

    seen = asyncio.run(main())
    assert (seen.stored, seen.rejected, seen.errors) == (0, 1, 0)
    assert "erased" in seen.last_error


@pytest.mark.parametrize("encrypted", [False, True])
def test_the_inventory_counts_a_namespace_by_class(server, tmp_path, encrypted):
    keys = StoredKeys(tmp_path / "keys", master=bytes(32)) if encrypted else None

    async def main():
        async with (
            RedisTier(server.url, namespace="n[1]", keys=keys, **PATIENT) as tier,
            RedisTier(server.url, namespace="n1", **PATIENT) as other,
        ):
            assert await tier.inventory() == []
            await other.put("elsewhere", entry(1))
            for number in range(600):  # more than a step
                face = number % 3 == 0
                await tier.put(
                    f"k{number}",
                    entry(number, stored_ns=time.time_ns() - number * S, data_class="face" if face else "", tags=["x"]),
                )
            await tier.put("v", entry(1, data_class="voice"))
            held = {it.data_class: it for it in await tier.inventory(["face"])}
            assert await tier.erase(tag="x") == 600
            return held, await tier.inventory(["face", "voice"])

    held, left = asyncio.run(main())
    assert {name: it.entries for name, it in held.items()} == {"face": 200, "": 400, "?" if encrypted else "voice": 1}
    now_ns = time.time_ns()
    assert 597 * S <= now_ns - held["face"].oldest_ns < 660 * S
    assert 599 * S <= now_ns - held[""].oldest_ns < 660 * S
    assert held[""].size_bytes > 400 * 50
    assert [(it.data_class, it.entries) for it in left] == [("voice", 1)]
    if keys is not None:
        keys.close()


def test_inventory_of_a_very_large_server_is_unknown(server, monkeypatch):
    """The inventory is not known if the server holds more keys than the tier counts."""
    monkeypatch.setattr("streaminfer.caching.tiers.redis.tier.MAX_COUNTED_KEYS", 3)

    async def main():
        async with RedisTier(server.url, **PATIENT) as tier:
            await tier.put("a", entry(1))
            few = await tier.inventory()
            for key in "bcd":
                await tier.put(key, entry(1))
            return few, await tier.inventory()

    few, many = asyncio.run(main())
    assert (few[0].entries, many) == (1, None)


def test_tier_requires_start_and_can_restart(server):
    async def main():
        tier = RedisTier(server.url, **PATIENT)
        assert await tier.get("k") is None
        assert not await tier.put("k", entry(1))
        for operation in (tier.erase(subject="anna"), tier.inventory()):
            with pytest.raises(si.Closed):
                await operation
        async with tier:
            with pytest.raises(RuntimeError, match="runs already"):
                await tier.start()
        await tier.stop()
        await tier.start()
        assert await tier.put("k", entry(1))
        await tier.stop()
        return tier.statistics().skipped

    assert asyncio.run(main()) == 2


def test_cancelled_stop_closes_the_connections(server, tmp_path):
    """A stop that is cancelled while a key provider hangs closes the connections.

    The time limit of a `Stack`'s stop cancels it; nothing can end the thread that hangs.
    """
    asked, answers = threading.Event(), threading.Event()

    class HangingKeys(StoredKeys):
        def current(self, *args, **more):
            asked.set()
            answers.wait()
            return super().current(*args, **more)

    def connections():
        with server.client() as client:
            return len(client.client_list()) - 1

    async def main():
        before = connections()
        tier = RedisTier(server.url, keys=HangingKeys(tmp_path / "keys", master=bytes(32)), **PATIENT)
        await tier.start()
        put = asyncio.ensure_future(tier.put("k", entry(1)))
        await asyncio.to_thread(asked.wait)
        opened = connections() - before
        thread = tier._sealer
        stop = asyncio.ensure_future(tier.stop())
        await asyncio.sleep(0)
        stop.cancel()
        await asyncio.gather(stop, return_exceptions=True)
        left = connections() - before
        answers.set()
        assert await put is False
        thread.shutdown(wait=True)
        seen = tier.statistics()
        return opened, stop.cancelled(), left, (seen.skipped, seen.errors, seen.last_error)

    assert asyncio.run(main()) == (1, True, 0, (1, 0, ""))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"url": 1}, TypeError, "url"),
        ({"url": "http://x:secret@y"}, ValueError, "url"),
        ({"namespace": ""}, ValueError, "namespace"),
        ({"namespace": "{a}"}, ValueError, "namespace"),
        ({"timeout_s": 0}, ValueError, "timeout_s"),
        ({"breaker": 1}, TypeError, "breaker"),
        ({"keys": 1}, TypeError, "keys"),
        ({"max_connections": 0}, ValueError, "max_connections"),
        ({"tls_ca": "ca.pem"}, ValueError, "rediss"),
        ({"wall_clock": 1}, TypeError, "wall_clock"),
    ],
)
def test_arguments_are_checked_and_passwords_not_shown(arguments, error, message):
    with pytest.raises(error, match=message) as raised:
        RedisTier(arguments.pop("url", "redis://localhost"), **arguments)
    assert "secret" not in str(raised.value)
    assert "pass" not in repr(RedisTier("redis://user:pass@localhost"))


def test_calls_are_checked(server):
    async def main():
        async with RedisTier(server.url) as tier:
            for call in (
                lambda: tier.get(1),
                lambda: tier.put(None, entry(1)),
                lambda: tier.put("k", 1),
                tier.erase,
                lambda: tier.erase(subject="a", tag="b"),
            ):
                with pytest.raises(TypeError):
                    await call()

    asyncio.run(main())


@pytest.mark.parametrize("option", ["ssl_cert_reqs=none", "ssl_check_hostname=False", "max_connections=1", "timeout="])
def test_url_options_cannot_override_tier_settings(option):
    """An option after `?` that would override the tier's own settings is an error, which does not show the url."""
    with pytest.raises(ValueError, match=f"url: expected no options but .*, got {option.split('=')[0]}") as caught:
        RedisTier(f"rediss://:word@localhost?{option}")
    assert "word@" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://me:secret/word@localhost:6379",
        "rediss://me:secret#word@localhost",
        "redis://me:secret?word@localhost",
        "redis://me:12/secret@localhost",
        "redis://:12#secret@localhost",
        "redis://localhost:secret",
        "redis://me:secret\u2100@localhost",
        "redis://[secret",
    ],
    ids=["slash", "fragment", "query", "digits", "digits of a fragment", "port", "normalized", "no host"],
)
def test_invalid_url_is_not_shown(url):
    """The error for a password with special characters that are not percent-encoded does not show the password."""
    with pytest.raises(ValueError, match=r"^url: .* percent-encoded, got something else \(not shown\)$") as caught:
        RedisTier(url)
    assert "secret" not in "".join(traceback.format_exception_only(caught.value))
    assert caught.value.__context__ is None


def test_a_socket_may_have_an_at_sign(tmp_path):
    assert "me@here" in RedisTier(f"unix://{tmp_path}/me@here").place


def test_key_of_a_wrong_type_costs_one_miss(server):
    """A foreign value under the key of an entry costs that entry one miss, which the breaker does not count."""

    async def main():
        async with RedisTier(server.url, namespace="n", **PATIENT) as tier:
            for key in map(str, range(20)):
                await tier.put(key, entry(key, subject="anna"))
            with server.client() as client:
                for number in range(19):
                    name = client.keys("{n}:e*" + str(number))
                    client.set(min(name, key=len), "foreign")
            got = [await tier.get(str(number)) for number in range(20)]
            assert [each is None for each in got] == [True] * 19 + [False]
            assert tier.breaker.state == "closed"
            with server.client() as client:
                client.set("{n}:eforeign", "foreign")
            assert [held.entries for held in await tier.inventory()] == [1]
            assert tier.breaker.statistics().failed == 0
            assert await tier.put("3", entry("again", subject="anna"))
            assert (await tier.get("3")).value == "again"

    asyncio.run(main())


@pytest.mark.parametrize(
    ("setting", "at_fault", "at_rest"),
    [("maxmemory", "1mb", "0"), ("min-replicas-to-write", "1", "0")],
    ids=["full", "without_replicas"],
)
def test_a_server_that_takes_no_writes_is_read(server, setting, at_fault, at_rest):
    """A server that rejects writes still serves its entries: rejected puts do not open the breaker against reads."""

    async def main():
        async with RedisTier(server.url, **PATIENT) as tier:
            await tier.put("there", entry("there"))
            with server.client() as client:
                client.config_set(setting, at_fault)
                try:
                    stored = [await tier.put(str(number), entry(number)) for number in range(20)]
                    found = await tier.get("there")
                finally:
                    client.config_set(setting, at_rest)
            assert not any(stored)
            assert found is not None
            assert tier.statistics().errors == 20
            assert await tier.put("new", entry("new"))

    asyncio.run(main())


def test_a_full_server_leaves_no_older_value(server):
    """A put that a full server rejects deletes the older value of its key."""

    async def main():
        async with RedisTier(server.url, **PATIENT) as tier:
            await tier.put("there", entry("old"))
            with server.client() as client:
                client.config_set("maxmemory", "1mb")
                try:
                    stored = await tier.put("there", entry("new"))
                    found = await tier.get("there")
                finally:
                    client.config_set("maxmemory", "0")
            return stored, found

    assert asyncio.run(main()) == (False, None)


def test_a_replica_is_read(server):
    """A server that became a replica still serves its entries."""

    async def main():
        async with RedisTier(server.url, **PATIENT) as tier:
            await tier.put("there", entry("there"))
            with server.client() as client:
                client.replicaof("127.0.0.1", 1)
                try:
                    stored = [await tier.put(str(number), entry(number)) for number in range(20)]
                    found = await tier.get("there")
                finally:
                    client.replicaof("NO", "ONE")
            assert not any(stored)
            assert found is not None

    asyncio.run(main())


def test_distant_server_gets_connected(server):
    """If a handshake takes longer than one operation, a later operation uses its connection."""

    async def pump(reader, writer):
        with contextlib.suppress(ConnectionError), contextlib.closing(writer):
            while data := await reader.read(2**16):
                await asyncio.sleep(0.012)  # one way
                writer.write(data)

    async def forward(reader, writer):
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", server.port)
        await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))

    async def main():
        far = await asyncio.start_server(forward, "127.0.0.1", 0)
        port = far.sockets[0].getsockname()[1]
        breaker = si.CircuitBreaker(minimum_calls=1000, window=1000)
        url = f"redis://127.0.0.1:{port}"
        async with (
            far,
            RedisTier(server.url, **PATIENT) as near,
            RedisTier(url, timeout_s=0.06, breaker=breaker) as tier,
        ):
            await near.put("k", entry(1))
            return [await tier.get("k") for _ in range(100)]

    assert any(each is not None for each in asyncio.run(main()))
