"""Several processes record into histograms that are merged; the counts of dead processes stay."""

import asyncio
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from forked import status_of_child, waiting_child

from streaminfer.telemetry import LatencyHistogram, RollingHistogram, WorkerHistograms
from streaminfer.telemetry.exporters.collection import Collection
from streaminfer.telemetry.exporters.histogram_points import HistogramReader
from streaminfer.telemetry.exporters.opentelemetry.metric_exporter import _data
from streaminfer.telemetry.exporters.prometheus.collector import StackCollector
from streaminfer.telemetry.exporters.prometheus.protobuf_format import _timestamp, write_protobuf
from streaminfer.telemetry.exporters.prometheus.text_formats import write_openmetrics
from streaminfer.telemetry.interval_log import worker_histograms
from streaminfer.telemetry.services import name_services
from streaminfer.testing import FakeClock, run

WORKER = """
import sys
from streaminfer.telemetry import LatencyHistogram, WorkerHistograms
histogram = LatencyHistogram()
workers = WorkerHistograms(sys.argv[1], {"latency": histogram})
for line in sys.stdin:
    command, _, value = line.strip().partition(" ")
    if command == "record":
        histogram.record_many([float(value)] * 100)
        workers.publish()
    elif command == "merge":
        merged = workers.merge()["latency"]
        print(merged.count, round(merged.quantile(0.99), 3), flush=True)
        continue
    elif command == "close":
        workers.close()
    print("ok", flush=True)
"""


class Process:
    def __init__(self, folder):
        self.child = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", WORKER, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, command):
        print(command, file=self.child.stdin, flush=True)
        return self.child.stdout.readline().strip()

    def end(self):
        if self.child.poll() is None:
            self.child.kill()
        self.child.wait()
        self.child.stdin.close()
        self.child.stdout.close()


@pytest.fixture
def start(tmp_path):
    started = []

    def start():
        started.append(Process(tmp_path))
        return started[-1]

    yield start
    for process in started:
        process.end()


def make(folder, **options):
    histogram = LatencyHistogram()
    return histogram, WorkerHistograms(folder, {"latency": histogram}, **options)


def test_all_workers_see_the_merged_tail(start):
    fast, slow = start(), start()
    assert fast.ask("record 0.01") == slow.ask("record 0.5") == "ok"
    assert fast.ask("merge").split() == slow.ask("merge").split() == ["200", "0.5"]


def test_killed_worker_is_counted_once(start, tmp_path):
    processes = [start() for _ in range(4)]
    for process in processes:
        process.ask("record 0.01")
    for process in processes[:3]:
        os.kill(process.child.pid, signal.SIGKILL)
        process.child.wait()
    for lock in tmp_path.glob(f"*.{processes[0].child.pid}.*.lock"):
        (tmp_path / f"{lock.stem}.hlog.{lock.stem}.new").write_text("half of a fi")  # it was killed while it wrote this
    for _ in range(3):
        assert processes[3].ask("merge").split()[0] == "400"
    assert sorted(path.suffix for path in tmp_path.iterdir()) == ["", ".hlog", ".hlog", ".lock"]
    assert start().ask("merge").split()[0] == "400"


def test_concurrent_merges_count_dead_workers_once(start):
    """Workers that merge at the same time count the dead workers once."""
    processes = [start() for _ in range(6)]
    for process in processes:
        process.ask("record 0.01")
    for process in processes[:3]:
        process.end()
    for process in processes[3:]:
        print("merge", file=process.child.stdin, flush=True)
    assert {process.child.stdout.readline().split()[0] for process in processes[3:]} == {"600"}


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_worker_stopped_in_merge_delays_no_other(start, tmp_path):
    """A worker that is stopped during its merge delays no other worker.

    The others still merge all counts; the counts of the dead workers are added up later.
    """
    process = start()
    process.ask("record 0.01")
    process.end()

    def merged():
        _, workers = make(tmp_path)
        return workers.merge()["latency"].count == 100

    with (tmp_path / "merging").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert status_of_child(merged) == 0
    assert not (tmp_path / "dead.hlog").exists()
    assert status_of_child(merged) == 0
    assert (tmp_path / "dead.hlog").exists()


def test_read_during_merge_misses_no_dead_worker(start, tmp_path, monkeypatch):
    """A worker that reads while another worker adds up the dead ones misses none of them.

    The counts of a file that is gone when it is read are in the file of the dead, which did not exist before.
    """
    process = start()
    process.ask("record 0.01")
    process.end()
    (_, reading), (_, adding) = make(tmp_path), make(tmp_path)
    read_file = worker_histograms._intervals

    def add_first(path):
        monkeypatch.setattr(worker_histograms, "_intervals", read_file)
        lock.close()
        adding.merge()
        return read_file(path)

    monkeypatch.setattr(worker_histograms, "_intervals", add_first)
    with (tmp_path / "merging").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        count = reading.merge()["latency"].count

    assert count == 100
    assert (tmp_path / "dead.hlog").exists()
    reading.close()
    adding.close()


def test_crash_before_deletion_counts_nothing_twice(start, tmp_path):
    """A crash between counting a dead worker and deleting its file counts nothing twice."""
    process = start()
    process.ask("record 0.01")
    (snapshot,) = tmp_path.glob("*.hlog")
    (lock,) = tmp_path.glob("*.lock")
    kept = snapshot.read_bytes()
    process.end()
    _, workers = make(tmp_path)
    assert workers.merge()["latency"].count == 100
    snapshot.write_bytes(kept)  # as after a crash before the deletion
    lock.touch()
    assert workers.merge()["latency"].count == 100
    assert not snapshot.exists()
    assert workers.merge()["latency"].count == 100
    workers.close()


def test_workers_of_other_hosts_are_merged_and_kept(tmp_path, monkeypatch):
    """Locks of another host have no meaning here, so its files stay, and each merge counts them once."""
    monkeypatch.setattr(socket, "gethostname", lambda: "vm-2.example")
    histogram, far = make(tmp_path)
    histogram.record(0.5)
    far.close()  # its lock is free, like that of a live worker on a file system that does not carry locks
    monkeypatch.setattr(socket, "gethostname", lambda: "vm-1")
    own, near = make(tmp_path)
    own.record(0.1)

    merged = [near.merge()["latency"].count for _ in range(2)]

    assert merged == [2, 2]
    assert not (tmp_path / "dead.hlog").exists()
    assert len([*tmp_path.glob("vm-2-example.*.hlog")]) == 1
    near.close()


def test_closed_worker_stays_counted(start, tmp_path):
    process = start()
    process.ask("record 0.01")
    process.ask("close")
    _, workers = make(tmp_path)
    assert workers.merge()["latency"].count == 100
    assert (tmp_path / "dead.hlog").exists()
    workers.close()
    workers.close()
    for call in (workers.publish, workers.merge):
        with pytest.raises(RuntimeError, match="are closed"):
            call()


def test_merge_includes_own_unpublished_counts(tmp_path):
    histogram, workers = make(tmp_path)
    histogram.record(0.1)
    assert workers.merge()["latency"].count == 1
    workers.publish()
    histogram.record(0.1)
    assert workers.merge()["latency"].count == 2
    workers.close()


@pytest.mark.parametrize("later_s", [60.0, -60.0], ids=["later", "clock set back"])
def test_rolling_window_of_a_dead_worker_expires(tmp_path, later_s):
    now = [1_700_000_000.0]
    clock = FakeClock()

    def pair():
        rolling = RollingHistogram(window_s=60.0, clock=clock)
        total = LatencyHistogram()
        return rolling, total, WorkerHistograms(tmp_path, {"recent": rolling, "all": total}, clock=lambda: now[0])

    def counts():
        return {name: histogram.count for name, histogram in second[2].merge().items()}

    first, second = pair(), pair()
    first[0].record(0.1)
    first[1].record(0.1)
    first[2].close()
    assert counts() == {"recent": 1, "all": 1}
    assert not (tmp_path / "dead.hlog").exists()
    now[0] += later_s
    assert counts() == {"recent": 0, "all": 1}
    assert (tmp_path / "dead.hlog").exists()
    assert counts() == {"recent": 0, "all": 1}
    second[2].close()


def test_forked_worker_must_make_its_own_histograms(tmp_path):
    _, workers = make(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "getpid", lambda: -1)
        with pytest.raises(RuntimeError, match="before the fork"):
            workers.publish()
        workers.close()  # leaves the files of the parent alone
    workers.publish()
    workers.close()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork_during_merge_leaves_folder_to_others(tmp_path, monkeypatch):
    """A fork during a merge leaves the folder to the other workers.

    The child, which is still alive, has the open file of the lock too.
    """
    _, workers = make(tmp_path)
    is_inside, go_on = threading.Event(), threading.Event()

    def slow_fold(now_s):
        is_inside.set()
        go_on.wait()

    monkeypatch.setattr(workers, "_fold_dead", slow_fold)
    merging = threading.Thread(target=workers.merge)
    merging.start()
    is_inside.wait()

    with waiting_child():
        go_on.set()
        merging.join()
        with (tmp_path / "merging").open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises if it is held

    workers.close()


def test_keep_published_runs_until_cancelled(tmp_path):
    histogram, workers = make(tmp_path)
    _, other = make(tmp_path)

    async def main():
        task = asyncio.ensure_future(workers.keep_published(1e9))
        await asyncio.sleep(0)
        histogram.record(0.1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())
    assert other.merge()["latency"].count == 1
    workers.close()
    other.close()


def test_failing_disk_does_not_end_publishing(tmp_path, caplog):
    """A disk that fails for a while does not end the publishing.

    No caller awaits the task: if it ended, the other workers would merge old counts of this worker forever.
    """
    folder = tmp_path / "shared"
    histogram, workers = make(folder)
    _, other = make(folder)

    async def main(_):
        task = asyncio.ensure_future(workers.keep_published(1.0))
        await asyncio.sleep(0.5)
        away = folder.rename(tmp_path / "away")
        await asyncio.sleep(2.0)
        away.rename(folder)
        histogram.record(0.1)
        await asyncio.sleep(1.0)
        found = other.merge()["latency"].count
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return found

    assert run(main) == 1
    [record] = caplog.records
    assert "publishing what this worker has counted failed: FileNotFoundError" in record.message
    workers.close()
    other.close()


def test_cancelled_task_publishes_nothing_after_close(tmp_path):
    """A cancelled task has nothing to publish after the worker's histograms are closed.

    A shutdown can cancel the task and close at once, without waiting for the task in between.
    """
    _, workers = make(tmp_path)

    async def main():
        task = asyncio.ensure_future(workers.keep_published(1e9))
        await asyncio.sleep(0)
        task.cancel()
        workers.close()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


@pytest.mark.parametrize(
    ("histograms", "error"),
    [
        ({}, TypeError),
        (3, TypeError),
        ({"a": 3}, TypeError),
        ({5: LatencyHistogram()}, TypeError),
        ({"a b": LatencyHistogram()}, ValueError),
    ],
)
def test_bad_arguments(tmp_path, histograms, error):
    with pytest.raises(error, match="histograms: expected"):
        WorkerHistograms(tmp_path, histograms)
    assert not [*Path(tmp_path).iterdir()]


def test_exporters_read_what_all_workers_counted(tmp_path):
    """Exporters read the counts of all workers, except those of a rolling histogram, because they can fall."""
    first, second = LatencyHistogram(), LatencyHistogram()
    other = WorkerHistograms(tmp_path, {"latency": second}, name="faces")
    second.record_many([0.2] * 40)
    other.publish()
    workers = WorkerHistograms(tmp_path, {"latency": first, "recent": RollingHistogram()}, name="faces")
    first.record_many([0.1] * 60)

    collection = Collection(HistogramReader())
    for service, parts in name_services([workers]):
        collection.add(service, parts)
    other.close()
    workers.close()

    ((metric, (sample,)),) = collection.families.items()
    assert metric.prometheus == "streaminfer_workers_duration_seconds"
    assert sample.labels == (("service", "faces"), ("layer", "WorkerHistograms"), ("of", "latency"))
    assert sample.value.total == 100
    assert sample.value.sum_s == pytest.approx(14.0, rel=0.01)


def test_all_workers_report_the_first_start_time(tmp_path):
    """All workers report the start time of the first one.

    A different time at each scrape would look like another server, whose counts begin again.
    """
    (histogram, early), (_, late) = (make(tmp_path, clock=lambda at_s=at_s: at_s) for at_s in (1000.25, 2000.0))
    histogram.record(0.1)
    early.publish()
    begun = [workers.statistics().created_ns for workers in (early, late)]
    early.close()
    begun.append(late.statistics().created_ns)  # the start time is in the file of the dead
    assert (tmp_path / "dead.hlog").exists()

    families = Collection.of(name_services([late]), HistogramReader()).families
    ((metric, samples),) = families.items()
    (family,) = StackCollector(late).collect()
    late.close()

    assert begun == [1_000_250_000_000] * 3
    assert "_created{" in (text := "".join(write_openmetrics(families)))
    assert {line.split()[-1] for line in text.splitlines() if "_created{" in line} == {"1000.250"}
    assert [sample.value for sample in family.samples if sample.name.endswith("_created")] == [1000.25]
    assert _timestamp(begun[0]) in b"".join(write_protobuf(families))
    assert [point.start_time_unix_nano for point in _data(metric, samples).data_points] == begun[:1]


def test_no_scrape_sees_less_than_at_another_worker(tmp_path):
    """No scrape of a worker sees less than the scrape before it at another worker.

    Workers behind one port are scraped in any order, and a count that falls would look like a restart of the server.
    """
    made = [make(tmp_path) for _ in range(3)]
    for step in range(1, 10):
        histogram, _ = made[step % 3]
        histogram.record(0.1)
        _, scraped = made[step * step % 3]
        made[step % 3][1].statistics()
        assert scraped.statistics().durations["latency"].count == step
    for _, workers in made:
        workers.close()


@pytest.mark.usefixtures("switch_often")
def test_threads_may_publish_and_close_concurrently(tmp_path):
    """Threads can publish and close at the same time: they write one file, and none writes after the close."""
    histogram, workers = make(tmp_path)
    histogram.record(0.1)
    _, other = make(tmp_path)
    errors = []

    def publish():
        try:
            for _ in range(200):
                workers.publish()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=publish) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        workers.publish()
    workers.close()
    counts = [other.merge()["latency"].count]
    for thread in threads:
        thread.join()
    assert [*counts, other.merge()["latency"].count] == [1, 1]
    assert {str(error) for error in errors} <= {"these WorkerHistograms are closed"}
    other.close()


def test_callers_may_close_concurrently(tmp_path):
    """A caller of ``close`` that waits for the lock while another caller closes has nothing left to do."""
    histogram, workers = make(tmp_path)
    histogram.record(0.1)
    lock = workers._publishing

    class Overtaken:
        """Lock that another caller of ``close`` gets first."""

        def __enter__(self):
            workers._publishing = lock
            workers.close()
            lock.acquire()

        def __exit__(self, *_):
            lock.release()

    workers._publishing = Overtaken()
    workers.close()

    _, other = make(tmp_path)
    assert other.merge()["latency"].count == 1
    other.close()


def test_wrong_name_or_clock_is_an_error(tmp_path):
    for argument, what in (("name", "a string"), ("clock", "a callable")):
        with pytest.raises(TypeError, match=f"{argument}: expected {what}"):
            WorkerHistograms(tmp_path, {"latency": LatencyHistogram()}, **{argument: 3})
