"""`si.prove` finds each planted remain, in each place, and nothing where nothing remains."""

import asyncio
import email.utils
import errno
import os
import random
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from redis_server import PATIENT

import streaminfer as si
from streaminfer.auditing.cache_proof import prove_caches
from streaminfer.caching.tiers import DiskTier, Entry, RedisTier
from streaminfer.caching.tiers.encryption import StoredKeys
from streaminfer.compliance.retention_log import RetentionLog
from streaminfer.http_edge import EdgePolicy, NginxFolder, edge_headers

S = 10**9
MASTER = b"m" * 32
FACE = b"a face that must not be found on any medium"


@pytest.fixture
def keys(tmp_path):
    keys = StoredKeys(tmp_path / "keys.db", master=MASTER)
    yield keys
    keys.close()


class Model:
    fingerprint = "model 1"

    async def call(self, request):
        return si.Response(np.frombuffer(FACE, np.uint8))


class Wall:
    """One clock for a cache, its tiers and its log."""

    def __init__(self):
        self.now_ns = time.time_ns()

    def __call__(self):
        return self.now_ns


class Site:
    """Stack with a disk tier and a log, on one clock."""

    def __init__(self, folder, keys, *, tiers=(), max_age_s=600.0, **options):
        self.wall = Wall()
        self.folder = folder
        self.log = RetentionLog(wall_clock=self.wall)
        self.keys = keys
        self.disk = DiskTier(folder, max_bytes=2**22, keys=keys, wall_clock=self.wall)
        self.policy = si.Retention(max_age_s, log=self.log)
        tiers = (self.disk, *tiers)
        self.cache = si.EdgeCache(retention=self.policy, tiers=tiers, clock=self.wall, **options)
        self.stack = si.Stack(self.cache, Model(), clock=self.wall)

    async def ask(self, service, number, subject, tags=()):
        await service(float(number), subject=subject, tags=tags)
        while any(tier.queued for tier in self.cache.tiers.statistics()):
            await asyncio.sleep(0)

    async def erase(self, **selection):
        self.wall.now_ns += 1
        assert (await self.cache.erase_everywhere(**selection)).complete
        self.wall.now_ns += 1

    def prove(self, **options):
        return si.prove(self.stack, **options)


@pytest.fixture
def site(tmp_path, keys):
    return Site(tmp_path / "cache", keys)


def test_nothing_remains_after_an_erasure(site):
    async def main():
        async with site.stack as service:
            await site.ask(service, 1, "anna")
            await site.ask(service, 2, "ben")
            await site.erase(subject="anna")
            return await asyncio.to_thread(site.prove)

    proof = asyncio.run(main())

    assert proof.counts == {"memory": 0, "objects": 0, "disk": 0, "keys": 0}
    assert proof.ok
    assert proof.to_dict() == {"ok": True, "counts": dict(proof.counts), "remains": [], "held": {}}


def test_raw_file_copy_is_found_while_key_exists(site, tmp_path):
    """An erasure by tag destroys no key, so a copy of the file in the folder can still be read."""

    async def main():
        async with site.stack as service:
            await site.ask(service, 1, "anna", tags=("face",))
        shutil.copy(site.folder / "cache.db", tmp_path / "copy")
        async with site.stack:
            await site.erase(tag="face")
            clean = await asyncio.to_thread(site.prove)
            shutil.copy(tmp_path / "copy", site.folder / "forgotten.bak")
            found = await asyncio.to_thread(site.prove)
            await site.erase(subject="anna")
            return clean, found, await asyncio.to_thread(site.prove)

    clean, found, destroyed = asyncio.run(main())

    assert clean.ok
    assert not found.ok
    assert found.counts["disk"] == 1
    assert [it.where for it in found.remains] == ["forgotten.bak"]
    assert destroyed.counts["disk"] == 0


def test_restored_backup_is_unreadable_after_erasure(site, tmp_path):
    """A restored backup of the folder cannot be read after an erasure has destroyed its key."""

    async def main():
        async with site.stack as service:
            await site.ask(service, 1, "anna")
        shutil.copytree(site.folder, tmp_path / "backup")
        async with site.stack:
            await site.erase(subject="anna")
        shutil.rmtree(site.folder)
        shutil.copytree(tmp_path / "backup", site.folder)
        async with DiskTier(site.folder, max_bytes=2**22, keys=site.keys) as restored:
            key = site.stack.layers[0]
            assert restored.statistics().entries == 1
            assert list(restored.scan()) == []
        assert key is site.cache
        return site.prove()

    proof = asyncio.run(main())

    assert proof.ok
    assert FACE not in b"".join(path.read_bytes() for path in site.folder.iterdir())


def test_restored_backup_with_its_key_is_found(site, tmp_path):
    """If the keys are restored together with the backup, the proof finds the erased entry."""

    async def main():
        async with site.stack as service:
            await site.ask(service, 1, "anna")
        shutil.copytree(site.folder, tmp_path / "backup")
        shutil.copy(tmp_path / "keys.db", tmp_path / "keys.bak")
        async with site.stack:
            await site.erase(subject="anna")
        shutil.rmtree(site.folder)
        shutil.copytree(tmp_path / "backup", site.folder)
        shutil.copy(tmp_path / "keys.bak", tmp_path / "keys.db")
        return site.prove()

    assert asyncio.run(main()).counts["disk"] == 1


def test_expired_record_on_a_stopped_tier_is_found(site):
    async def main():
        async with site.stack as service:
            await site.ask(service, 1, "anna")

    asyncio.run(main())
    site.wall.now_ns += 629 * S
    due = site.prove()
    site.wall.now_ns += 2 * S
    over = site.prove()

    assert due.counts["disk"] == 0
    assert over.counts["disk"] == 1


def test_expired_entry_in_memory_is_found(keys, tmp_path):
    """The proof counts an expired entry that ``expire()`` has not removed yet, and leaves it in memory."""
    site = Site(tmp_path / "cache", keys, ttl_s=60.0)
    site.cache.put("k", 1, subject="anna")
    site.wall.now_ns += 61 * S

    found = site.prove()
    again = site.prove()
    site.cache.expire()

    assert found.counts["memory"] == again.counts["memory"] == 1
    assert site.prove().ok


@pytest.mark.parametrize(("kind", "lasts_s"), [("fresh", 30.0), ("set aside", 30.0), ("failure", 5.0)], ids=str)
def test_stale_time_counts_once_and_for_values_only(kind, lasts_s):
    """An entry may be in memory for 0.25 s after its stale time, and a failure, which has none, after its ttl."""
    clock = Wall()
    cache = si.EdgeCache(ttl_s=10.0, stale_s=20.0, clock=clock)
    if kind == "failure":
        cache.put_negative("k", ValueError("no"), ttl_s=lasts_s)
    else:
        cache["k"] = 1
    clock.now_ns += 10 * S + 100
    if kind == "set aside":
        cache.expire()
    stack = si.Stack(cache, Model(), clock=clock)

    clock.now_ns += round((lasts_s + 0.2) * S) - 10 * S
    before = si.prove(stack).counts["memory"]
    clock.now_ns += S // 10
    after = si.prove(stack).counts["memory"]

    assert (before, after) == (0, 1)


def test_entry_missed_by_erasure_in_memory_is_found(site):
    """An entry that an erasure missed in memory is a remain, but one stored after the erasure is not."""
    site.cache.put("k", 1, subject="anna", tags=("face",))
    site.wall.now_ns += 1
    for selection in ({"subject": "anna"}, {"tag": "face"}):
        site.log.record("erased", where="memory", data_class="", count=0, reason="asked for", **selection)
        assert site.prove().counts["memory"] == 1
    site.cache.erase(subject="anna")
    site.wall.now_ns += 1
    site.cache.put("k", 1, subject="anna", tags=("face",))

    assert site.prove().counts["memory"] == 0


def test_answer_that_is_kept_alive_is_found(site):
    async def main():
        async with site.stack as service:
            await site.ask(service, 1, "anna")
            leak = next(iter(site.cache.values()))
            answer = await service(1.0, subject="anna")
            await site.erase(subject="anna")
            found = await asyncio.to_thread(site.prove)
            del leak
            return found, await asyncio.to_thread(site.prove), answer

    found, clean, answer = asyncio.run(main())

    assert found.counts["objects"] == 1, str(found)
    assert clean.ok
    assert answer.tobytes() == FACE  # the caller's own view is no remain


def test_entry_object_that_is_kept_alive_is_found(site):
    entry = Entry(value=1, stored_ns=site.wall(), subject="carla of the proof")
    site.wall.now_ns += 1
    site.cache.erase(subject="carla of the proof")

    assert site.prove().counts["objects"] == 1
    del entry
    assert site.prove().counts["objects"] == 0


@pytest.mark.parametrize(
    "plant",
    [
        lambda client, name, record: client.set(name, record),
        lambda client, name, record: client.hset(name, "x", record),
        lambda client, name, record: client.sadd(name, record),
        lambda client, name, record: client.rpush(name, record),
        lambda client, name, record: client.zadd(name, {record: 1.0}),
        lambda client, name, record: client.xadd(name, {"x": record}),
    ],
    ids=["string", "hash", "set", "list", "sorted set", "stream"],
)
def test_redis_key_of_any_type_is_found(server, keys, tmp_path, plant):
    redis = RedisTier(server.url, namespace="proof", keys=keys, **PATIENT)
    site = Site(tmp_path / "cache", keys, tiers=[redis])

    async def main():
        async with site.stack as service:
            await service.layers[0].put_through("k", FACE, subject="anna", tags=("face",))
            with server.client() as client:
                (name,) = client.scan_iter("{proof}:e*")
                record = client.hget(name, "d")
                await site.erase(tag="face")
                clean = await asyncio.to_thread(site.prove)
                plant(client, "{proof}:strange", record)
                found = await asyncio.to_thread(site.prove)
                await site.erase(subject="anna")
                destroyed = await asyncio.to_thread(site.prove)
                client.flushall()
            return clean, found, destroyed

    clean, found, destroyed = asyncio.run(main())

    assert clean.ok
    assert found.counts["redis"] == 1
    assert destroyed.counts["redis"] == 0


def test_held_data_counts_as_held_not_as_remaining(tmp_path, keys):
    """Data under a hold counts as held, in memory and on the disk; after the release it is a remain until removed."""
    site = Site(tmp_path / "cache", keys, ttl_s=60.0)

    async def main():
        async with site.stack as service:
            await site.ask(service, 1, "anna")
            await site.ask(service, 2, "ben")
            await site.cache.hold(subject="anna", reason="case 17")
            site.wall.now_ns += 700 * S
            site.cache.expire()
            await site.disk.purge()
            held = await asyncio.to_thread(site.prove)
            assert len(site.cache.preserved) == 1
            site.log.record("released", where="all", data_class="", count=0, reason="case 17", subject="anna")
            forgotten = await asyncio.to_thread(site.prove)
            await site.cache.release(subject="anna", reason="case 17")
            await site.disk.purge()
            return held, forgotten, await asyncio.to_thread(site.prove)

    held, forgotten, released = asyncio.run(main())

    assert held.ok, str(held)
    assert held.held == held.to_dict()["held"] == {"memory": 1, "disk": 1}
    assert "1 in disk: held" in str(held)
    assert (forgotten.counts["memory"], forgotten.counts["disk"], forgotten.held) == (1, 1, {})
    assert released.ok, str(released)
    assert released.held == {}


def test_entry_within_minimum_age_is_held():
    """An entry that its minimum age preserves counts as held, and is a remain only after that age."""
    wall = Wall()
    policy = si.Retention(600.0, min_age_s=300.0)
    cache = si.EdgeCache(retention=policy, ttl_s=60.0, clock=wall)
    stack = si.Stack(cache, Model(), clock=wall)
    cache.put("k", np.zeros(4), subject="anna")
    wall.now_ns += 100 * S
    cache.expire()
    young = si.prove(stack)
    wall.now_ns += 201 * S
    over = si.prove(stack)
    cache.expire()

    assert young.ok, str(young)
    assert young.held == {"memory": 1}
    assert over.counts["memory"] == 1
    assert [it.where for it in over.remains] == ["preserved"]
    assert si.prove(stack).ok


def test_proof_waits_for_pending_log_writes(tmp_path, keys, monkeypatch):
    """The proof waits for the thread that writes the log file, so that it knows the latest erasure."""
    site = Site(tmp_path / "cache", keys)
    log = RetentionLog(tmp_path / "log.jsonl", secret=b"s" * 16, wall_clock=site.wall)
    cache = si.EdgeCache(retention=si.Retention(600.0, log=log), clock=site.wall)
    stack = si.Stack(cache, Model(), clock=site.wall)
    write, writer = log.record, cache._memory.retention.counts._writer

    def record(*args, **options):
        with writer._changed:
            writer._changed.wait_for(lambda: writer._retry_requested)
        write(*args, **options)

    monkeypatch.setattr(log, "record", record)
    entry = Entry(value=1, stored_ns=site.wall(), subject="dora of the proof")
    site.wall.now_ns += 1
    cache.erase(subject=entry.subject)
    proof = si.prove(stack)

    assert proof.counts["objects"] == 1


def test_unreachable_redis_server_is_an_error(keys, tmp_path):
    site = Site(tmp_path / "cache", keys, tiers=[RedisTier("redis://127.0.0.1:1", keys=keys)])

    with pytest.raises(si.BackendError, match="the Redis tier 'streaminfer' failed"):
        site.prove()


def test_destroyed_key_in_the_key_file_is_found(site, tmp_path):
    """The proof finds a key whose row SQLite deleted without overwriting it, as it does by default."""
    identity = site.keys.current("anna").id
    site.keys._db.execute("PRAGMA secure_delete = OFF")
    site.keys._db.execute("DELETE FROM keys")
    assert site.prove().counts["keys"] == 1

    site.keys._db.execute("VACUUM")

    assert site.prove().counts["keys"] == 0
    assert identity not in (tmp_path / "keys.db").read_bytes()


@pytest.mark.parametrize("subjects", [40, 400])
def test_destroyed_keys_leave_no_byte(tmp_path, subjects):
    """No byte of a destroyed key is left, although SQLite moves rows when pages become empty, and leaves copies."""
    keys = StoredKeys(tmp_path / "many.db", master=MASTER)
    for number in range(subjects):
        keys.current(f"{number}")
    wrapped = [row[0] for row in keys._db.execute("SELECT wrapped FROM keys")]

    for number in range(subjects):
        if number % 7:
            keys.destroy(f"{number}")
    raw = (tmp_path / "many.db").read_bytes()
    left = sum(row[12:28] in raw or row[28:44] in raw for row in wrapped)
    recoverable = keys.recoverable()
    keys.close()

    assert recoverable == 0
    assert left == len(range(0, subjects, 7))


def test_expired_records_leave_no_readable_byte(tmp_path, keys):
    """Purges leave no readable byte of expired records, whose keys still exist; one would be left without a search."""
    chance = random.Random(1)
    wall = Wall()

    async def main():
        async with DiskTier(tmp_path / "cache", max_bytes=2**24, keys=keys, wall_clock=wall) as tier:
            for number in range(800):
                wall.now_ns += S // 10
                name, value = f"{chance.randrange(60)}", np.zeros(chance.randrange(100, 600), np.uint8)
                label = {"ttl_s": float(chance.choice([10, 20, 30, 40, 50])), "tags": [str(chance.randrange(3))]}
                await tier.put(name, Entry(value=value, stored_ns=wall(), subject="anna", **label))
                if number % 50 == 49:
                    await tier.purge()
            await tier.purge()
            return sum(copy.entry.is_expired(wall()) for copy in tier.scan())

    assert asyncio.run(main()) == 0


def test_subject_data_without_keys_is_not_stored(tmp_path, caplog):
    """Without keys a tier stores only responses that have no subject."""
    site = Site(tmp_path / "cache", None)

    async def main():
        async with site.stack as service:
            await site.ask(service, 1, "anna of the street")
            await site.ask(service, 2, None)
            assert b"anna" not in b"".join(path.read_bytes() for path in site.folder.iterdir())
            return site.disk.statistics()

    seen = asyncio.run(main())

    assert seen.stored == 1
    assert site.cache.tiers.statistics()[0].disallowed == 1
    assert "gets no answers that have a subject" in caplog.text


def test_complete_erasure_leaves_no_name_or_value(site):
    """After all subjects are erased, no file in the folder contains a name, a tag or a value."""
    names = [f"person number {number}" for number in range(60)]

    async def main():
        async with site.stack as service:
            for number, name in enumerate(names):
                await site.ask(service, number, name, tags=("the-tag-of-all",))
            for name in names:
                await site.erase(subject=name)
            live = b"".join(path.read_bytes() for path in site.folder.iterdir())
            copies = list(site.disk.scan())
        return live + b"".join(path.read_bytes() for path in site.folder.iterdir()), copies

    raw, copies = asyncio.run(main())

    assert copies == []
    for word in (FACE, b"person number", b"the-tag-of-all"):
        assert word not in raw


def _nginx_file(folder, name, fields, body=b"body"):
    folder.mkdir(parents=True, exist_ok=True)
    head = b"\x05\0\0\0binary head\nKEY: GET/x\nHTTP/1.1 200 OK\r\n"
    (folder / name).write_bytes(head + fields + b"\r\n\r\n" + body)


def test_nginx_folder_is_searched(site, tmp_path):
    """The proof counts expired and private files in the cache folder of nginx."""
    folder = tmp_path / "nginx"
    now = time.time()

    def date(age_s):
        return b"Date: " + time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(now - age_s)).encode()

    _nginx_file(folder / "a" / "bc", "new", date(5) + b"\r\nCache-Control: max-age=60")
    clean = site.prove(http_caches=[NginxFolder(folder, purge_bound_s=30.0)])
    _nginx_file(folder / "a" / "bc", "old", date(640) + b"\r\nCache-Control: max-age=60")
    _nginx_file(folder, "private", date(5) + b"\r\nCache-Control: private, max-age=60")
    found = site.prove(http_caches=[NginxFolder(folder, purge_bound_s=30.0)])

    assert clean.counts["http"] == 0
    assert found.counts["http"] == 2
    assert sorted(it.where for it in found.remains) == ["old", "private"]


def test_missing_http_folder_is_an_error(site, tmp_path):
    """A misspelled path is an error, not a clean folder."""
    with pytest.raises(si.BackendError, match=r"the HTTP cache in .*nginks cannot be read"):
        site.prove(http_caches=[NginxFolder(tmp_path / "nginks")])


@pytest.mark.parametrize("below", ["", "a/bc"], ids=["itself", "inner"])
@pytest.mark.parametrize("place", ["nginx", "cache"])
def test_unreadable_http_folder_is_an_error(site, tmp_path, monkeypatch, place, below):
    """A folder that cannot be read, such as one that belongs to the user of nginx, is an error, not a clean folder."""
    forbidden, scandir = tmp_path / place / below, os.scandir
    for name in ("nginx", "cache"):
        (tmp_path / name / "a" / "bc").mkdir(parents=True)

    def refuse(path):
        if Path(path) == forbidden:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(si.BackendError, match="Permission denied"):
        site.prove(http_caches=[NginxFolder(tmp_path / "nginx")])


def test_http_file_age_comes_from_its_date_field(site, tmp_path):
    """``Date`` may be the last field of a file; if it is no date, the modification time of the file gives its age."""
    folder = tmp_path / "nginx"
    long_ago = time.time() - 640
    _nginx_file(folder, "dated", b"Age: 1\r\nDate: " + email.utils.formatdate(long_ago, usegmt=True).encode())
    for name in ("new", "old"):
        _nginx_file(folder, name, b"Date: soon\r\nAge: 1")
    os.utime(folder / "old", (long_ago, long_ago))

    found = site.prove(http_caches=[NginxFolder(folder, purge_bound_s=30.0)])

    assert [it.where for it in found.remains] == ["dated", "old"]


@pytest.mark.parametrize("send_age", [False, True])
@pytest.mark.parametrize(("computed_ago_s", "remains"), [(640, ["late"]), (620, [])])
def test_http_file_age_includes_age_of_response(site, tmp_path, computed_ago_s, remains, send_age):
    """The age of a file counts from the computation of its response, even if nginx got the response much later."""
    now = time.time()
    fields = edge_headers(
        EdgePolicy(fresh_s=60, lifetime_s=600, send_age=send_age),
        si.Request("x"),
        si.Response("y"),
        now_s=now - computed_ago_s + 590,
        computed_s=now - computed_ago_s,
    )
    if send_age:
        del fields["last-modified"]
    _nginx_file(tmp_path / "nginx", "late", "\r\n".join(f"{name}: {value}" for name, value in fields.items()).encode())

    found = site.prove(http_caches=[NginxFolder(tmp_path / "nginx", purge_bound_s=30.0)])

    assert [it.where for it in found.remains] == remains


@pytest.mark.parametrize("caches", [[], [si.EdgeCache()]], ids=["none", "without a policy"])
def test_http_file_without_policy_has_no_maximum_age(caches, tmp_path):
    """Without a retention policy, an HTTP cache file has no maximum age to exceed.

    A stack may have no cache but nginx. The proof finds a private response, which no shared cache may store.
    """
    date = email.utils.formatdate(time.time() - 1e6, usegmt=True).encode()
    _nginx_file(tmp_path, "old", b"Cache-Control: max-age=3600\r\nDate: " + date)
    _nginx_file(tmp_path, "private", b"Cache-Control: private\r\nDate: " + date)

    found = prove_caches(caches, http_caches=[NginxFolder(tmp_path)])

    assert [it.where for it in found.remains] == ["private"]


def test_http_directives_are_whole_words(site, tmp_path):
    """The extension ``x-private`` is not the directive ``private``; a tab separates directives as a space does."""
    folder = tmp_path / "nginx"
    _nginx_file(folder, "extension", b"Cache-Control: max-age=60, x-private=1")
    _nginx_file(folder, "private", b"Cache-Control:\tmax-age=60,\tPRIVATE")

    found = site.prove(http_caches=[NginxFolder(folder, purge_bound_s=30.0)])

    assert [it.where for it in found.remains] == ["private"]


def test_cache_without_log_uses_its_own_erasures(keys, tmp_path):
    """For a cache without a retention log, the proof uses the erasures that the cache made."""
    disk = DiskTier(tmp_path / "cache", max_bytes=2**22, keys=keys)
    cache = si.EdgeCache(ttl_s=60.0, tiers=[disk])
    stack = si.Stack(cache, Model())

    async def main():
        async with stack as service:
            await service(1.0, subject="anna", tags=("face",))
        shutil.copy(tmp_path / "cache" / "cache.db", tmp_path / "copy")
        async with stack:
            assert (await cache.erase_everywhere(tag="face")).complete
            clean = await asyncio.to_thread(si.prove, stack)
        shutil.copy(tmp_path / "copy", tmp_path / "cache" / "copy")
        return clean, si.prove(stack)

    clean, found = asyncio.run(main())

    assert clean.ok
    assert found.counts["disk"] == 1


def test_prove_accepts_only_a_stack():
    with pytest.raises(TypeError, match="stack: expected a Stack"):
        si.prove(si.EdgeCache())


def test_latest_erasure_counts_in_any_record_order():
    """The latest erasure counts wherever it is in the log, because two processes may record erasures out of order."""
    instants = [10**18, 10**18 + 5 * 10**9]
    found = []
    for order in (instants, instants[::-1]):
        log = RetentionLog(secret=b"s" * 32, wall_clock=lambda: instants[1])
        cache = si.EdgeCache(retention=si.Retention(60.0, log=log))
        cache.put("k", 1, subject="anna")
        for at_ns in order:
            log.record(
                "erased", where="memory", data_class="", count=0, reason="asked for", subject="anna", at_ns=at_ns
            )
        found.append(prove_caches([cache]).counts)
    assert found[0] == found[1]
    assert sum(found[0].values()) == 1


def test_the_path_of_an_http_cache_is_checked_by_name():
    with pytest.raises(TypeError, match=r"path: expected a path, got 5 \(int\)"):
        NginxFolder(5)


@pytest.mark.parametrize(
    ("folders", "message"), [(5, "folders of HTTP caches, got 5"), (["x"], "an NginxFolder, got 'x'")]
)
def test_invalid_http_caches_argument_is_named(folders, message):
    with pytest.raises(TypeError, match=f"http_caches: expected {message}"):
        prove_caches([], http_caches=folders)
