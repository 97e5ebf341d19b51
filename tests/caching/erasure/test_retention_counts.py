"""Records that a thread writes to the file of a retention log, and erasures owed after the process was killed."""

import asyncio
import fcntl
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from forked import status_of_child

import streaminfer as si
from streaminfer.caching.erasure.owed_erasures import OwedErasures
from streaminfer.caching.erasure.retention_counts import RetentionCounts
from streaminfer.caching.tiers import DiskTier
from streaminfer.caching.tiers.encryption import StoredKeys
from streaminfer.compliance import log_file
from streaminfer.compliance.retention import Retention
from streaminfer.compliance.retention_log import RetentionLog
from streaminfer.errors import BackendError

SECRET = b"s" * 32
KEYS = StoredKeys(":memory:", master=SECRET)
PATIENCE_S = 30.0


def log_in(folder):
    return RetentionLog(folder / "log", secret=SECRET)


def policy(folder):
    return Retention(3600.0, log=log_in(folder))


class Locked:
    """Lock on the file of a log, held as by a stopped process."""

    def __init__(self, folder):
        self.file = (folder / "log").open("rb")
        fcntl.flock(self.file, fcntl.LOCK_EX)

    def let_go(self):
        self.file.close()


def test_record_has_the_time_of_its_event(tmp_path):
    """The record of an erasure has the time of the erasure, however late the disk accepts the record."""
    now = [5_000_000_000]
    log = RetentionLog(tmp_path / "log", secret=SECRET, wall_clock=lambda: now[0])
    cache = si.EdgeCache(retention=Retention(60.0, log=log))

    stalled = Locked(tmp_path)
    cache.erase(tag="face")
    now[0] += 3_000_000_000
    stalled.let_go()
    cache._memory.retention.counts.drain()

    assert [event.at_ns for event in log.events] == [5_000_000_000]


def test_a_log_whose_clock_fails_stops_no_erasure(tmp_path, caplog):
    """An erasure erases memory and tiers even if the clock of the log fails, and each lost record is logged."""
    works = [True]

    def wall_clock():
        if not works[0]:
            raise OSError("no clock")
        return time.time_ns()

    async def main():
        log = RetentionLog(tmp_path / "log", secret=SECRET, wall_clock=wall_clock)
        tier = DiskTier(tmp_path / "tier", max_bytes=2**20)
        cache = si.EdgeCache(retention=Retention(60.0, log=log), tiers=[tier])
        async with cache:
            await cache.put_through("k", 1, tags=["face"])
            works[0] = False
            erasure = await cache.erase_everywhere(tag="face")
            works[0] = True
            assert erasure.complete
            assert (len(cache), tier.statistics().entries) == (0, 0)
        return log.events

    assert asyncio.run(main()) == ()
    lost = [(entry.getMessage(), entry.exc_info[1].args) for entry in caplog.records if entry.levelname == "ERROR"]
    assert lost == [
        (f"the retention log failed; not recorded: erased in {place}, 1 entries", ("no clock",))
        for place in ("memory", "disk")
    ]


class Failing:
    """Log that raises the given errors first, and blocks while the event ``free`` is not set."""

    def __init__(self, *errors):
        self.path = Path("log")
        self.now_ns = time.time_ns
        self.errors = list(errors)
        self.free = threading.Event()
        self.free.set()
        self.events = []

    def record(self, action, *, count, **_):
        assert self.free.wait(PATIENCE_S)
        if self.errors:
            raise self.errors.pop(0)
        self.events.append((action, count))


def record(ledger, count):
    ledger.record("erased", where="memory", count=count, reason="asked for")


def drained(ledger):
    """Wait until the ledger has written its records, including those that it retries."""
    until = time.monotonic() + PATIENCE_S
    while ledger._writer.is_behind:
        assert time.monotonic() < until
        os.sched_yield()


def test_an_erasure_does_not_wait_for_the_file(tmp_path):
    """An erasure returns while another process locks the log, and is recorded when the lock is free."""
    cache = si.EdgeCache(retention=policy(tmp_path))
    cache.put("k", 1, subject="anna")
    locked = Locked(tmp_path)
    assert cache.erase(subject="anna") == 1
    locked.let_go()
    report = asyncio.run(cache.retention_report())
    assert [event.count for event in report.erasures] == [1]


def test_a_stop_waits_until_all_is_recorded(tmp_path):
    """No record is lost when the tiers of a cache stop."""

    async def main():
        disk = DiskTier(tmp_path / "disk", max_bytes=2**20, keys=KEYS)
        cache = si.EdgeCache(retention=policy(tmp_path), tiers=[disk])
        async with cache:
            for number in range(20):
                await cache.put_through(f"k{number}", number, subject=f"subject {number}")
                await cache.erase_everywhere(subject=f"subject {number}")

    asyncio.run(main())
    erased = [event for event in log_in(tmp_path).events if event.action == "erased"]
    assert [event.count for event in erased if event.where == "disk"] == [1] * 20
    assert len(erased) == 40


def test_failed_disk_writes_are_retried_in_order(caplog):
    """After a failed write the records are written in order, and the failure is logged."""
    log = Failing(BackendError("the disk is full"))
    ledger = RetentionCounts(log, time.monotonic_ns)
    for count in range(3):
        record(ledger, count)
    drained(ledger)
    assert log.events == [("erased", 0), ("erased", 1), ("erased", 2)]
    assert "is tried again: the disk is full" in caplog.text


def test_lost_records_are_an_error(caplog):
    """The ledger logs an error for a record that the log rejects, and for each record that a drain cannot write."""
    log = Failing(ValueError("it was altered"), BackendError("the disk is full"))
    ledger = RetentionCounts(log, time.monotonic_ns)
    log.free.clear()
    record(ledger, 7)
    record(ledger, 8)
    record(ledger, 9)
    draining = threading.Thread(target=ledger.drain)
    draining.start()
    until = time.monotonic() + PATIENCE_S
    while not ledger._writer._draining:
        assert time.monotonic() < until
        os.sched_yield()
    log.free.set()
    draining.join(PATIENCE_S)
    assert not ledger._writer.is_behind
    assert log.events == []
    lost = [entry.getMessage() for entry in caplog.records if entry.levelname == "ERROR"]
    assert lost == [f"the retention log failed; not recorded: erased in memory, {count} entries" for count in (7, 8, 9)]


class Gone(Failing):
    """Log whose disk fails while ``errors`` is not empty."""

    def record(self, action, *, count, **_):
        if self.errors:
            raise self.errors[0]
        self.events.append((action, count))


def test_a_report_while_the_disk_fails_loses_nothing():
    """A report raises the error of a failing disk; the queued records are written when the disk works again."""
    log = Gone(BackendError("the disk is away"))
    ledger = RetentionCounts(log, time.monotonic_ns)
    for count in range(3):
        record(ledger, count)
    for _ in range(2):
        with pytest.raises(BackendError, match="the disk is away"):
            asyncio.run(ledger.settle())
    log.errors.clear()
    asyncio.run(ledger.settle())
    assert log.events == [("erased", 0), ("erased", 1), ("erased", 2)]


@pytest.mark.parametrize("settled", [True, False], ids=["settled", "drained"])
def test_caller_does_not_wait_without_thread_and_disk(monkeypatch, settled):
    """If no thread can be started and the disk fails, records are queued and the caller does not wait."""

    def no_more(_):
        raise RuntimeError("can't start new thread")

    log = Gone(BackendError("the disk is full"))
    ledger = RetentionCounts(log, time.monotonic_ns)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_more)
        for count in range(2):
            record(ledger, count)
    with pytest.raises(BackendError, match="the disk is full"):
        asyncio.run(ledger.settle())
    log.errors.clear()

    asyncio.run(ledger.settle()) if settled else ledger.drain()

    assert log.events == [("erased", 0), ("erased", 1)]


def test_report_waits_only_for_earlier_records():
    """A report waits only for earlier records, so it returns although new records keep arriving."""

    class Busy(Failing):
        def record(self, action, *, count, **_):
            if count == 0:
                with writer._changed:
                    writer._changed.wait_for(lambda: writer._retry_requested)
                record(ledger, 1)
            else:
                assert reported.wait(PATIENCE_S)
            super().record(action, count=count)

    reported = threading.Event()
    log = Busy()
    ledger = RetentionCounts(log, time.monotonic_ns)
    writer = ledger._writer
    record(ledger, 0)
    ledger.catch_up()
    reported.set()
    ledger.drain()
    assert log.events == [("erased", 0), ("erased", 1)]


def test_full_record_queue_is_an_error(caplog):
    """At most 10,000 records are queued; the next record is lost, and the ledger logs it."""
    log = Failing()
    ledger = RetentionCounts(log, time.monotonic_ns)
    log.free.clear()
    for count in range(10_001):
        record(ledger, count)
    assert "10000 records behind; not recorded: erased in memory, 10000 entries" in caplog.text
    log.free.set()
    ledger.drain()
    assert len(log.events) == 10_000


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_process_writes_only_its_own_records():
    """The parent writes the records that were queued at the fork; the child writes only its own."""
    log = Failing()
    ledger = RetentionCounts(log, time.monotonic_ns)
    log.free.clear()
    record(ledger, 1)
    child = os.fork()
    if child == 0:
        log.free.set()
        record(ledger, 2)
        ledger.drain()
        os._exit(0 if log.events == [("erased", 2)] else 1)
    _, status = os.waitpid(child, 0)
    log.free.set()
    ledger.drain()
    assert status == 0
    assert log.events == [("erased", 1)]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_events_counted_before_fork_are_recorded_once(tmp_path):
    """The parent records the events that were counted before the fork; the child records only its own."""
    log = log_in(tmp_path)
    counts = RetentionCounts(log, lambda: 0)
    counts.count("evicted", "memory", "", "no room", 3)

    def record():
        counts.count("evicted", "memory", "", "no room", 1)
        counts.flush()
        counts.drain()
        return True

    status = status_of_child(record)
    record()
    log.refresh()

    assert status == 0
    assert [event.count for event in log.events] == [1, 4]


def on_disk(folder, name="disk"):
    return si.EdgeCache(retention=policy(folder), tiers=[DiskTier(folder / name, max_bytes=2**20, keys=KEYS)])


def test_next_process_carries_out_a_failed_erasure(tmp_path):
    """A failed erasure is stored beside the log, for its tier alone, until a later process carries it out."""
    owed = tmp_path / "log.owed"

    async def fill(name):
        async with on_disk(tmp_path, name) as cache:
            await cache.put_through("hers", 1, subject="anna \udc80")
            await cache.put_through("tagged", 2, tags=["face"])
            await cache.put_through("other", 3)

    async def look(name):
        async with on_disk(tmp_path, name) as cache:
            assert await cache.fetch("hers") is None
            assert await cache.fetch("tagged") is None
            assert await cache.fetch("other") == 3
            await cache.erase_everywhere(tag="nothing")  # queued after the owed erasures
            assert cache.tiers.statistics()[0].pending == 0

    async def use_another():
        async with on_disk(tmp_path, "another") as cache:
            await cache.erase_everywhere(tag="nothing")

    asyncio.run(fill("disk"))
    cache = on_disk(tmp_path)  # its tier is not started
    assert cache.erase(subject="anna \udc80") == 0
    assert cache.erase(tag="face") == 0
    assert cache.tiers.statistics()[0].pending == 2
    cache._memory.retention.counts.drain()
    assert [json.loads(line)[1:] for line in owed.read_text(encoding="utf-8").splitlines()] == [
        ["anna \udc80", None],
        [None, "face"],
    ]
    assert owed.stat().st_mode & 0o777 == 0o600

    asyncio.run(use_another())
    assert owed.exists()
    asyncio.run(look("disk"))
    assert not owed.exists()
    asyncio.run(look("disk"))
    assert [event.action for event in log_in(tmp_path).pending] == []


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_owed_erasure_survives_a_killed_process(tmp_path):
    """A failed erasure is owed after its process was killed."""
    child = os.fork()
    if child == 0:
        cache = on_disk(tmp_path)
        cache.erase(subject="anna")
        cache._memory.retention.counts.drain()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    place = f"disk {tmp_path / 'disk'}"
    assert OwedErasures(tmp_path / "log").of(place) == [("anna", None)]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_kill_leaves_no_pending_erasure_unowed(tmp_path, monkeypatch):
    """A process killed when it records a failed erasure has already noted that the erasure is owed.

    The next process carries out owed erasures; an erasure that only the log has would stay pending.
    """
    child = os.fork()
    if child == 0:

        def die(_, action, **__):
            if action == "erase_failed":
                os.kill(os.getpid(), signal.SIGKILL)

        monkeypatch.setattr(RetentionLog, "record", die)
        cache = on_disk(tmp_path)
        cache.erase(tag="face")
        cache._memory.retention.counts.drain()
        os._exit(1)
    os.waitpid(child, 0)
    assert OwedErasures(tmp_path / "log").of(f"disk {tmp_path / 'disk'}") == [(None, "face")]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_stopped_process_blocks_no_other_for_good(tmp_path, monkeypatch):
    """A process that was stopped while it noted an owed erasure does not block another process for good.

    It has locked the folder; the other process gets an error, as with the log itself, and can end.
    """
    monkeypatch.setattr(log_file, "_WAIT_S", 0.0)

    def note():
        with pytest.raises(BackendError, match="owed, which holds erasures"):
            OwedErasures(tmp_path / "log").note("disk", "anna", None, is_owed=True)
        return True

    folder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    status = status_of_child(note)
    os.close(folder)

    assert status == 0


def test_unreadable_file_of_owed_erasures_is_an_error(tmp_path):
    """A tier does not start if the file of its owed erasures cannot be read."""
    (tmp_path / "log.owed").write_text("no json\n")

    async def main():
        async with on_disk(tmp_path):
            pass

    with pytest.raises(BackendError, match=r"log\.owed, which holds erasures that are owed, failed"):
        asyncio.run(main())
