"""The retention log: it detects changes, contains no names of subjects, and survives faults of its file."""

import errno
import fcntl
import json
import multiprocessing
import os
import stat
import threading
from functools import partial
from typing import get_args
from unittest import mock

import attrs
import pytest
from forked import status_of_child, waiting_child
from hypothesis import given, settings
from hypothesis import strategies as st
from small_files import files_limited_to

from streaminfer.compliance import log_file as _retention_file
from streaminfer.compliance import retention_log
from streaminfer.compliance.retention_log import ACTIONS, Action, RetentionLog, verify_file
from streaminfer.errors import BackendError

SECRET = b"a secret that lives elsewhere 01"
OTHER = b"a secret that lives elsewhere 02"
NOW = 1_700_000_000_000_000_000


class Wall:
    def __init__(self):
        self.now_ns = NOW

    def __call__(self):
        self.now_ns += 1_000
        return self.now_ns


@pytest.fixture
def path(tmp_path):
    return tmp_path / "log.jsonl"


def opened(path, **more):
    return RetentionLog(path, secret=more.pop("secret", SECRET), wall_clock=more.pop("wall_clock", Wall()), **more)


def fill(log, number=5):
    actions = list(ACTIONS)
    for index in range(number):
        log.record(
            actions[index % len(actions)],
            where=f"place {index % 2}",
            data_class="faces",
            count=index,
            reason="why",
            subject=f"anna {index % 3}",
        )
    return log


def whole(path):
    return verify_file(path, secret=SECRET)


# -- records ---------------------------------------------------------------------------------------------------------


def test_record_has_its_fields_and_previous_digest(path):
    """A record says what was removed, when, where and why, and holds the digest of the record before it."""
    log = opened(path)
    begin = log.head
    log.record("erased", where="memory", data_class="faces", count=3, reason="asked for", subject="anna", tag="t")
    log.record("expired", where="disk", data_class="", count=7, reason="its time had passed")
    first, second = log.events
    assert (first.number, first.at_ns, first.action, first.where, first.data_class) == (
        0,
        NOW + 2_000,  # the log had read its clock once
        "erased",
        "memory",
        "faces",
    )
    assert (first.count, first.reason, first.tag) == (3, "asked for", "t")
    assert first.subject == log.pseudonym("anna")
    assert len(first.subject) == 32
    assert (second.number, second.subject, second.tag) == (1, None, None)
    assert first.previous == begin
    assert second.previous == first.digest
    assert log.head == second.digest
    assert log.records == 2
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        first.count = 4


def test_each_line_of_the_file_is_the_record_as_json(path):
    log = fill(opened(path))
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [event.to_dict() for event in log.events]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_new_log_reads_and_continues_existing_file(path):
    """A new log object reads what an earlier one wrote and appends to it."""
    log = fill(opened(path), 7)
    again = opened(path)
    assert again.events == log.events
    assert again.head == log.head
    again.record("evicted", where="memory", data_class="", count=1, reason="no room")
    assert whole(path).records == 8
    assert whole(path).ok
    assert str(whole(path)) == f"8 records, whole; head {again.head}"


def test_log_in_memory_has_the_same_interface():
    log = fill(RetentionLog(wall_clock=Wall()), 6)
    assert log.path is None
    assert log.verify() == attrs.evolve(log.verify(), ok=True, records=6, head=log.head, first_bad=None, problem="")
    assert [event.number for event in log.events_about("anna 1")] == [1, 4]
    assert log.events_about("nobody") == ()
    log.refresh()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"path": 3}, "path"),
        ({"path": "x"}, "secret"),
        ({"secret": "text " * 8}, "secret"),
        ({"secret": b"short"}, "secret"),
        ({"wall_clock": 3}, "wall_clock"),
    ],
)
def test_rejected_arguments_are_named(wrong, named, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((TypeError, ValueError), match=f"^{named}: ") as raised:
        RetentionLog(**wrong)
    assert "short" not in str(raised.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"action": "lost"}, "action"),
        ({"action": None}, "action"),
        ({"where": None}, "where"),
        ({"data_class": None}, "data_class"),
        ({"reason": b""}, "reason"),
        ({"count": -1}, "count"),
        ({"count": True}, "count"),
        ({"subject": b"anna"}, "subject"),
        ({"tag": 3}, "tag"),
    ],
)
def test_bad_record_is_rejected_and_changes_nothing(path, wrong, named):
    """A record with a wrong field is rejected and leaves the log unchanged."""
    log = fill(opened(path))
    before = path.read_bytes()
    fields = {"action": "erased", "where": "memory", "data_class": "", "count": 1, "reason": "", **wrong}
    with pytest.raises((TypeError, ValueError), match=f"^{named}: "):
        log.record(fields.pop("action"), **fields)
    assert path.read_bytes() == before
    assert log.records == 5


# -- names of subjects -----------------------------------------------------------------------------------------------


@given(st.text(), st.text(), st.text())
def test_names_of_subjects_are_never_in_a_record(before, name, after):
    name = f"<{name}>"
    log = RetentionLog()
    log.record("erased", where="m", data_class="", count=1, reason=before + name + after, subject=name, tag=name + "!")
    (event,) = log.events
    text = json.dumps(event.to_dict(), ensure_ascii=False)
    assert name not in text
    assert json.dumps(name)[1:-1] not in json.dumps(event.to_dict())
    assert log.events_about(name) == (event,)
    assert log.events_about(name + " ") == ()


def test_names_are_hashed_with_the_secret(path, tmp_path):
    """No name is in the file, and the hash of a name depends on the secret, which is never shown."""
    opened(path).record("erased", where="m", data_class="", count=1, reason="by Anna Ångström", subject="Anna Ångström")
    text = path.read_text(encoding="utf-8")
    assert "Anna" not in text
    assert "\\u00c5ngstr" not in text
    assert opened(path).pseudonym("anna") != opened(tmp_path / "b", secret=OTHER).pseudonym("anna")
    assert SECRET not in repr(opened(path)).encode()


def test_empty_subject_is_a_valid_name():
    log = RetentionLog()
    log.record("erased", where="m", data_class="", count=1, reason="why", subject="")
    assert log.events[0].reason == "why"
    assert log.events_about("") == log.events


def test_pseudonym_requires_a_string():
    with pytest.raises(TypeError, match=r"^subject: "):
        RetentionLog().events_about(None)


# -- nothing can be changed unseen -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("log") / "whole.jsonl"
    log = fill(opened(path), 6)
    return path.read_bytes(), log.head


def checked(tmp_path_factory, data, **more):
    path = tmp_path_factory.getbasetemp() / "changed.jsonl"
    path.write_bytes(data)
    return path, verify_file(path, secret=SECRET, **more)


@given(st.data())
@settings(max_examples=300)
def test_changed_byte_is_found_with_its_place(written, tmp_path_factory, data):
    """The change of any byte is found, together with the record in which it lies."""
    whole_file, _ = written
    place = data.draw(st.integers(0, len(whole_file) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda it: it != whole_file[place]))
    changed = whole_file[:place] + bytes([byte]) + whole_file[place + 1 :]
    path, found = checked(tmp_path_factory, changed)
    assert not found.ok
    assert found.first_bad == found.records == whole_file[:place].count(b"\n")
    assert found.problem in str(found)
    with pytest.raises(ValueError, match="expected a whole log"):
        opened(path)
    assert path.read_bytes() == changed


@given(st.data())
@settings(max_examples=150)
def test_any_byte_that_is_taken_out_or_put_in_is_found(written, tmp_path_factory, data):
    whole_file, _ = written
    place = data.draw(st.integers(0, len(whole_file) - 1))
    extra = data.draw(st.one_of(st.just(None), st.binary(min_size=1, max_size=3)))
    changed = whole_file[:place] + (whole_file[place + 1 :] if extra is None else extra + whole_file[place:])
    if changed.startswith(whole_file) and changed != whole_file:
        found = checked(tmp_path_factory, changed)[1]
        assert found.first_bad == 6
    elif changed != whole_file:
        assert not checked(tmp_path_factory, changed)[1].ok


@given(st.permutations(range(6)), st.sets(st.integers(0, 5)), st.booleans())
def test_moved_removed_or_repeated_lines_are_found(written, tmp_path_factory, order, removed, twice):
    """Lines that are moved, removed or repeated are found; a missing tail is found with a stored head only."""
    whole_file, head = written
    lines = whole_file.splitlines(keepends=True)
    chosen = [lines[at] for at in order if at not in removed] + ([lines[order[0]]] if twice else [])
    found = checked(tmp_path_factory, b"".join(chosen))[1]
    in_place = next((at for at, line in enumerate(chosen) if at >= 6 or line != lines[at]), len(chosen))
    assert found.records == in_place
    assert found.ok == (in_place == len(chosen))  # the rest is a beginning: only a head shows that records are missing
    with_head = checked(tmp_path_factory, b"".join(chosen), head=head)[1]
    assert with_head.ok == (chosen == lines)


def test_cut_tail_is_found_by_stored_head_or_reader(path):
    """A tail that was cut is found with a head stored elsewhere, or by a process that has read the tail."""
    log = fill(opened(path))
    head = log.head
    log.record("erased", where="m", data_class="", count=1, reason="")
    assert log.verify(head=head).ok
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:4]))
    assert whole(path).ok
    found = verify_file(path, secret=SECRET, head=head)
    assert (found.ok, found.first_bad, found.records) == (False, 4, 4)
    assert "the head that was kept is not reached" in found.problem
    found = log.verify()
    assert (found.ok, found.first_bad) == (False, 4)
    assert "2 records that this process has seen were cut off" in found.problem
    with pytest.raises(ValueError, match="its end was cut or changed"):
        log.record("erased", where="m", data_class="", count=1, reason="")
    with pytest.raises(ValueError, match="its end was cut or changed"):
        log.refresh()


def test_discarded_records_in_memory_are_no_alteration(monkeypatch):
    """A log in memory does not report an alteration for the records that it has discarded."""
    monkeypatch.setattr(retention_log, "_MAX_RECENT", 2)
    log = fill(RetentionLog(wall_clock=Wall()), 1)
    heads = [log.head]
    for _ in range(4):
        log.record("erased", where="m", data_class="", count=1, reason="")
        heads.append(log.head)
    found = [log.verify(head=head) for head in heads]
    assert [it.ok for it in found] == [False, False, True, True, True]
    assert found[0].problem == "the head that was kept is none of the latest 2 records, and memory has no others"


@pytest.mark.parametrize(
    ("head", "error"), [(b"0" * 64, TypeError), (5, TypeError), ("", ValueError), ("0" * 64 + "\n", ValueError)]
)
def test_malformed_head_is_an_error(path, head, error):
    """A head that is no digest raises an error that names the argument, and gives no verdict."""
    log = fill(opened(path))
    for verify in (log.verify, partial(verify_file, path, secret=SECRET)):
        with pytest.raises(error, match="head: expected 64 hexadecimal digits"):
            verify(head=head)


def test_head_of_empty_log_is_reached_by_later_ones(path):
    """The head of an empty log is reached by every later state of that log."""
    log = opened(path)
    head = log.head
    assert whole(path).ok
    fill(log)
    assert verify_file(path, secret=SECRET, head=head).ok


def test_file_exchanged_under_same_secret_is_found(path, tmp_path):
    """A file that was replaced by another file of the same secret is found."""
    log = fill(opened(path))
    fill(opened(tmp_path / "other", wall_clock=lambda: NOW), 9)
    (tmp_path / "other").replace(path)
    last_whole = [json.loads(line)["digest"] for line in path.read_bytes().splitlines()][3]
    found = log.verify()
    assert (found.ok, found.records, found.head, found.first_bad) == (False, 4, last_whole, 4)
    assert "it is not the record that this process has seen there" in found.problem
    with pytest.raises(ValueError, match="its end was cut or changed"):
        log.record("erased", where="m", data_class="", count=1, reason="")


def test_record_of_another_log_is_found_in_its_place(path, tmp_path):
    """A record of another log with the same secret is found at its place."""
    fill(opened(path))
    fill(opened(tmp_path / "other", wall_clock=lambda: NOW))
    lines, others = (it.read_bytes().splitlines(keepends=True) for it in (path, tmp_path / "other"))
    path.write_bytes(b"".join([*lines[:2], others[2], *lines[3:]]))
    found = whole(path)
    assert (found.ok, found.first_bad) == (False, 2)
    assert "records before it were removed or moved" in found.problem


@pytest.mark.parametrize("content", [b"a key", b'{"port": 80}'], ids=["text", "JSON"])
def test_single_line_of_another_file_is_no_torn_record(path, content):
    """A log at the path of another file raises an error and leaves the contents of that file."""
    path.write_bytes(content)

    with pytest.raises(ValueError, match="at record 0: it is no record"):
        opened(path)

    assert path.read_bytes() == content
    assert whole(path).problem == "it is no record"


def test_another_secret_does_not_open_the_log(path):
    fill(opened(path))
    with pytest.raises(ValueError, match="at record 0: it was changed, or written with another secret"):
        opened(path, secret=OTHER)
    assert verify_file(path, secret=OTHER).first_bad == 0


def test_altered_event_in_memory_is_found():
    """An event in memory that was tampered with is found."""
    log = fill(RetentionLog(), 4)
    object.__setattr__(log.events[2], "count", 99)
    found = log.verify()
    assert (found.ok, found.first_bad, found.problem) == (False, 2, "it was changed")


def test_verify_file_changes_nothing_and_checks_input(path):
    """`verify_file` changes nothing in the file and names an argument that is wrong."""
    fill(opened(path))
    path.write_bytes(path.read_bytes()[:-20])
    before = path.read_bytes()
    found = whole(path)
    assert (found.ok, found.first_bad) == (False, 4)
    assert "cut short" in found.problem
    assert path.read_bytes() == before
    with pytest.raises(TypeError, match=r"^secret: "):
        verify_file(path, secret=None)
    with pytest.raises(FileNotFoundError):
        verify_file(path.with_name("none"), secret=SECRET)


# -- crashes, disks, processes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [1, 2, 20, 79, 80, 200])
def test_torn_write_loses_only_its_own_record(path, missing):
    """A write that was cut short loses at most its own record."""
    log = fill(opened(path))
    events = log.events
    path.write_bytes(path.read_bytes()[:-missing])
    again = opened(path)
    assert again.events == (events if missing == 1 else events[:-1])
    again.record("erased", where="m", data_class="", count=1, reason="after")
    assert whole(path).ok
    assert opened(path).events == again.events
    assert again.events[-1].reason == "after"


def test_write_ending_at_any_byte_is_no_alteration(path):
    """A write that ended at any byte loses at most its own record, whatever the text ends with at that byte."""
    log = fill(opened(path))
    log.record("erase_failed", where="{disk}", data_class="", count=0, reason="{'code': {7}}")
    whole_file = path.read_bytes()
    begins = whole_file[:-1].rindex(b"\n") + 1
    for end in range(begins, len(whole_file)):
        path.write_bytes(whole_file[:end])
        again = opened(path)
        assert again.records == log.records - (end < len(whole_file) - 1), end
        again.record("erased", where="m", data_class="", count=1, reason="after")
        assert whole(path).ok


def test_zeros_that_a_power_cut_left_are_removed(path):
    log = fill(opened(path))
    path.write_bytes(path.read_bytes() + bytes(5000))
    assert opened(path).events == log.events
    assert whole(path).ok


def test_torn_write_of_another_writer_is_removed(path):
    """The next writer removes a record that another writer has left half written."""
    log = fill(opened(path))
    with path.open("ab") as file:
        file.write(b'{"number":5,"at_')
    log.record("erased", where="m", data_class="", count=1, reason="")
    assert whole(path).records == 6
    assert whole(path).ok


def test_erasures_are_synced_before_the_call_returns(path, monkeypatch):
    """Erasures and holds are on the disk before the call returns; expiries need not be."""
    log = opened(path)
    synced = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.fstat(number).st_size))
    for action in ACTIONS:
        before = len(synced)
        log.record(action, where="m", data_class="", count=1, reason="")
        durable = action in {"erased", "erase_failed", "held", "released", "erase_held"}
        assert len(synced) - before == durable, action
        assert not durable or synced[-1] == path.stat().st_size


def test_new_file_syncs_its_folder_entry(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.path.realpath(f"/proc/self/fd/{number}")))
    opened(tmp_path / "new" / "log")
    assert synced == [str(tmp_path / "new")]


@pytest.mark.parametrize("part", [0, 10])
def test_full_disk_leaves_log_unchanged_and_raises(path, part):
    """A full disk leaves the log as it was and raises an error that says so."""
    log = fill(opened(path))
    before = path.read_bytes()

    with (
        files_limited_to(len(before) + part),
        pytest.raises(BackendError, match=r"the retention log .* failed: OSError: .* File too large"),
    ):
        log.record("erased", where="m", data_class="", count=1, reason="")

    assert path.read_bytes() == before
    assert log.records == 5
    log.record("erased", where="m", data_class="", count=1, reason="")
    assert whole(path).records == 6


def test_record_that_cannot_be_synced_is_removed(path, monkeypatch):
    """A record that could not be synced is not in the file."""
    log = fill(opened(path))
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda number: (_ for _ in ()).throw(OSError(errno.EIO, "I/O error")))
    with pytest.raises(BackendError, match="I/O error"):
        log.record("erased", where="m", data_class="", count=1, reason="")
    assert path.read_bytes() == before


def test_missing_or_unwritable_file_is_a_backend_error(tmp_path, path):
    """A file that cannot be created or was removed raises a `BackendError` that names the retention log."""
    with pytest.raises(BackendError, match="the retention log"):
        opened(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(BackendError, match="the retention log"):
        opened(tmp_path / "file" / "log")
    log = fill(opened(path))
    path.unlink()
    for use in (log.verify, log.refresh, lambda: log.events_about("anna 1")):
        with pytest.raises(BackendError, match="the retention log"):
            use()
    with pytest.raises(BackendError, match="the retention log"):
        log.record("erased", where="m", data_class="", count=1, reason="")
    assert not path.exists()


def test_file_altered_while_open_is_found_by_readers(path):
    """A file that was altered while it is open is reported to its readers."""
    log = fill(opened(path))
    path.write_bytes(path.read_bytes().replace(b"why", b"not", 1))
    with pytest.raises(BackendError, match="it was changed"):
        log.events_about("anna 1")
    assert log.verify().first_bad == 0


def test_wait_for_lock_of_stopped_process_is_bounded(path, monkeypatch):
    """The wait for a lock that a stopped process holds is bounded."""
    log = fill(opened(path))
    waited = []
    instants = iter(range(100))
    monkeypatch.setattr(_retention_file.time, "monotonic", lambda: next(instants))
    monkeypatch.setattr(_retention_file.time, "sleep", waited.append)
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(BackendError, match="BlockingIOError"):
            log.record("erased", where="m", data_class="", count=1, reason="")
    assert len(waited) == 5
    assert log.records == 5
    log.record("erased", where="m", data_class="", count=1, reason="")


def test_writer_that_waits_for_the_lock_gets_it(path, monkeypatch):
    log = fill(opened(path))
    other = path.open("rb")
    fcntl.flock(other, fcntl.LOCK_EX)
    monkeypatch.setattr(_retention_file.time, "sleep", lambda _: other.close())
    log.record("erased", where="m", data_class="", count=1, reason="")
    assert whole(path).records == 6


def test_two_logs_on_one_file_see_each_other(path):
    one, two = opened(path), opened(path)
    one.record("erase_failed", where="redis", data_class="", count=0, reason="down", subject="anna")
    assert two.pending == ()
    two.refresh()
    assert two.pending == one.events
    two.record("erased", where="redis", data_class="", count=2, reason="again", subject="anna")
    one.record("expired", where="memory", data_class="", count=1, reason="")
    assert one.pending == ()
    assert [event.number for event in one.events] == [0, 1, 2]
    assert whole(path).ok


def _write(path, number, ready):
    log = opened(path)
    ready.wait()
    for index in range(40):
        log.record("expired", where=f"process {number}", data_class="", count=index, reason="")


def test_processes_that_write_at_once_make_one_chain(path):
    context = multiprocessing.get_context("fork")
    ready = context.Barrier(3)
    writers = [context.Process(target=_write, args=(path, number, ready)) for number in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    log = opened(path)
    assert (whole(path).ok, log.records) == (True, 120)
    for number in range(3):
        assert [event.count for event in log.events if event.where == f"process {number}"] == list(range(40))


def _record_in_a_child(log):
    log.record("erased", where="child", data_class="", count=1, reason="")


def test_forked_process_records_despite_held_lock(path):
    """A forked process records events even if the lock was held at the fork."""
    log = fill(opened(path))
    with log._lock:
        child = multiprocessing.get_context("fork").Process(target=_record_in_a_child, args=(log,))
        child.start()
        child.join(60)
    assert child.exitcode == 0
    log.record("expired", where="parent", data_class="", count=1, reason="")
    assert [event.where for event in log.events[5:]] == ["child", "parent"]
    assert whole(path).ok


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork_during_write_leaves_lock_to_others(path, monkeypatch):
    """A fork during a write leaves the file to other writers.

    The child has the open file too and is still running, but the end of the write releases the lock.
    """
    log, is_inside, go_on = opened(path), threading.Event(), threading.Event()

    def slow_sync(number):
        is_inside.set()
        go_on.wait()

    monkeypatch.setattr(_retention_file, "_WAIT_S", 0.0)
    monkeypatch.setattr(os, "fsync", slow_sync)
    writing = threading.Thread(target=_record_in_a_child, args=(log,))
    writing.start()
    is_inside.wait()

    with waiting_child():
        go_on.set()
        writing.join()
        log.record("expired", where="parent", data_class="", count=1, reason="")

    assert log.records == 2


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("in_file", [True, False])
def test_fork_during_record_has_all_or_none_of_it(path, in_file):
    """A forked child has the whole of a record or nothing of it.

    With half of a record, the log would look altered, and a hold would be unknown.
    """
    is_inside, is_forking = threading.Event(), threading.Event()

    class SlowLog(RetentionLog):
        def _absorb(self, event):
            is_inside.set()
            is_forking.wait()
            super()._absorb(event)

    log = SlowLog(path, secret=SECRET) if in_file else SlowLog()
    os.register_at_fork(before=is_forking.set)  # the function that is registered last runs first
    holding = threading.Thread(
        target=partial(log.record, "held", where="all", data_class="", count=0, reason="case 17", subject="anna")
    )
    holding.start()
    is_inside.wait()

    def is_whole():
        is_held = log.is_held("anna", ())
        _record_in_a_child(log)
        return is_held and log.records == len(log.events) == 2 and log.verify().ok

    status = status_of_child(is_whole)
    holding.join()

    assert status == 0


@pytest.mark.parametrize("in_file", [True, False])
def test_threads_that_write_at_once_make_one_chain(path, in_file):
    log = opened(path if in_file else None)

    def write(number):
        for index in range(50):
            log.record("expired", where=f"thread {number}", data_class="", count=index, reason="")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert log.verify().ok
    assert log.records == 200
    for number in range(4):
        assert [event.count for event in log.events if event.where == f"thread {number}"] == list(range(50))


# -- bounded ---------------------------------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(st.sampled_from(list(ACTIONS)), st.sampled_from("ab"), st.sampled_from("fg"), st.integers(0, 9))
    ),
    st.integers(1, 8),
)
def test_log_stays_valid_after_memory_discards_records(given_events, keep):
    with mock.patch.object(retention_log, "_MAX_RECENT", keep):
        check_bounds(RetentionLog(wall_clock=Wall()), given_events, keep)


def check_bounds(log, given_events, keep):
    for action, where, data_class, count in given_events:
        log.record(action, where=where, data_class=data_class, count=count, reason="")
    kept = [(it.action, it.where, it.data_class, it.count) for it in log.events]
    assert kept == given_events[-keep:]
    assert log.records == len(given_events)
    assert log.verify().ok
    if log.events:
        object.__setattr__(log.events[-1], "where", "c")
        assert log.verify().first_bad == len(given_events) - 1


def test_whole_file_is_searched_beyond_memory(path, monkeypatch):
    """The whole file is searched, although memory holds only the latest records."""
    monkeypatch.setattr(retention_log, "_MAX_RECENT", 2)
    log = fill(opened(path), 9)
    assert [event.number for event in log.events] == [7, 8]
    assert [event.number for event in log.events_about("anna 0")] == [0, 3, 6]
    again = opened(path)
    assert again.events == log.events
    assert log.verify().ok


def test_failed_erasure_is_pending_until_it_succeeds(monkeypatch):
    """A failed erasure is pending until the same erasure succeeds at the same place."""
    monkeypatch.setattr(retention_log, "_MAX_RECENT", 1)
    log = RetentionLog()
    asked = {"data_class": "", "reason": "down", "count": 0}
    log.record("erase_failed", where="redis", subject="anna", **asked)
    log.record("erase_failed", where="redis", subject="ben", **asked)
    log.record("erase_failed", where="disk", subject="anna", **asked)
    log.record("erase_failed", where="redis", tag="anna", **asked)
    log.record("erase_failed", where="redis", subject="anna", **{**asked, "reason": "down again"})
    assert [(event.where, event.reason, event.tag) for event in log.pending] == [
        ("redis", "down again", None),
        ("redis", "down", None),
        ("disk", "down", None),
        ("redis", "down", "anna"),
    ]
    log.record("erased", where="redis", subject="anna", **asked)
    assert [(event.where, event.tag) for event in log.pending] == [("redis", None), ("disk", None), ("redis", "anna")]
    assert log.pending[0].subject == log.pseudonym("ben")


def test_actions_are_those_that_can_be_recorded():
    """The actions of the log are exactly those that the type `Action` permits."""
    went = ["expired", "evicted", "erased", "erase_failed", "removed", "purged", "disallowed"]
    assert list(retention_log.ACTIONS) == [*went, "held", "released", "erase_held"]
    assert set(retention_log.ACTIONS) == set(get_args(Action))


@pytest.mark.parametrize("name", ["anna", "Ann\u00e5", "o'anna\"s", "an\\na", "an\nna"])
def test_quoted_name_is_left_out_of_reasons(name):
    """A name is left out of reasons and tags however the message quotes it."""
    log = RetentionLog()
    reason = f"KeyError: {name!r}; {name}; {name!a}"
    log.record("erase_failed", where="disk", data_class="", count=0, reason=reason, subject=name, tag=f"of {name!r}")
    event = log.events[0]
    for written in (name, repr(name)[1:-1], ascii(name)[1:-1]):
        assert written not in event.reason
        assert written not in event.tag
