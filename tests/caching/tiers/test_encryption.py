"""Sealed records: unreadable without their key, unchanged with it, and lost when the key is destroyed."""

import gc
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from contextlib import closing

import pytest
from forked import status_of_child
from hypothesis import given
from hypothesis import strategies as st

from streaminfer.caching.codec import CorruptRecord
from streaminfer.caching.tiers import encryption
from streaminfer.caching.tiers.encryption import Cipher, Key, KeyProvider, KeyUnknown, StoredKeys
from streaminfer.caching.tiers.service_keys import ServiceKeys

MASTER = b"m" * 32
SECRET = b"somebody's face, which must not be found"


@pytest.fixture
def keys(tmp_path):
    stored = StoredKeys(tmp_path / "keys.db", master=MASTER)
    yield stored
    stored.close()


@pytest.fixture
def cipher(keys):
    return Cipher(keys)


@given(st.binary(max_size=200), st.binary(max_size=20), st.one_of(st.none(), st.text(max_size=5)))
def test_round_trip(data, name, subject):
    cipher = Cipher(memory := StoredKeys(":memory:", master=MASTER))
    sealed = cipher.seal(data, name=name, subject=subject)
    assert cipher.open(sealed, name=name) == data
    assert len(sealed) == len(data) + 52
    memory.close()


def test_altered_or_cut_ciphertext_is_rejected(cipher):
    sealed = cipher.seal(b"data", name=b"n")
    for at in range(len(sealed) * 8):
        altered = bytearray(sealed)
        altered[at // 8] ^= 1 << (at % 8)
        with pytest.raises(CorruptRecord):
            cipher.open(bytes(altered), name=b"n")
    for size in range(len(sealed)):
        with pytest.raises(CorruptRecord):
            cipher.open(sealed[:size], name=b"n")


def test_sealed_records_are_unreadable_and_distinct(cipher):
    """A sealed record contains no readable data, and no two sealed records are alike."""
    first, second = cipher.seal(SECRET, name=b"n"), cipher.seal(SECRET, name=b"n")
    assert SECRET[:8] not in first
    assert first != second


def test_a_record_is_bound_to_its_name(cipher):
    with pytest.raises(CorruptRecord, match="another entry"):
        cipher.open(cipher.seal(b"data", name=b"a"), name=b"b")


def test_destroyed_key_affects_only_its_subject(keys, cipher):
    """A destroyed key makes the records of its subject unreadable, and no others."""
    gone = [cipher.seal(b"data", name=b"n", subject="anna") for _ in range(2)]
    keys.rotate()
    gone.append(cipher.seal(b"data", name=b"n", subject="anna"))
    kept = [cipher.seal(b"data", name=b"n", subject=subject) for subject in ("ben", None)]
    assert keys.destroy("anna") == 2
    assert keys.destroy("anna") == 0
    for sealed in gone:
        with pytest.raises(KeyUnknown):
            cipher.open(sealed, name=b"n")
    for sealed in kept:
        assert cipher.open(sealed, name=b"n") == b"data"
    assert cipher.open(cipher.seal(b"new", name=b"n", subject="anna"), name=b"n") == b"new"


def test_rotation_keeps_old_records_until_retired(keys, cipher):
    """A rotation keeps old records readable until their keys are retired."""
    old = cipher.seal(b"old", name=b"n")
    keys.rotate()
    new = cipher.seal(b"new", name=b"n")
    assert old[8:24] != new[8:24]
    assert cipher.open(old, name=b"n") == b"old"
    assert keys.retire() == 1
    with pytest.raises(KeyUnknown):
        cipher.open(old, name=b"n")
    assert cipher.open(new, name=b"n") == b"new"


class Wall:
    now_ns = 1_800_000_000 * 10**9

    def __call__(self):
        return self.now_ns

    def advance(self, seconds):
        self.now_ns += round(seconds * 1e9)


def test_keys_are_destroyed_after_their_data_expired():
    """At a thousand new subjects a day, the file has the keys of two days, and no destroyed key can be recovered."""
    wall = Wall()
    with closing(StoredKeys(":memory:", master=MASTER, wall_clock=wall)) as keys:
        for_good = keys.current("for good")
        used = keys.current("used again", 86_400.0)
        first = keys.current("subject 0", 86_400.0)
        most = 0
        for number in range(1, 4_000):
            wall.advance(86.4)
            keys.current(f"subject {number}", 86_400.0)
            assert keys.current("used again", 86_400.0) == used
            most = max(most, keys._db.execute("SELECT count(*) FROM keys").fetchone()[0])
        assert 2_000 <= most <= 2_000 + 256 + 3
        assert keys.find(first.id) is None
        assert keys.current("for good", 1.0) == keys.find(for_good.id) == for_good
        assert keys.recoverable() == 0
        assert keys._db.execute("SELECT count(*) FROM expiries WHERE id NOT IN (SELECT id FROM keys)").fetchone() == (
            0,
        )


def test_file_is_not_searched_for_each_of_many_keys(tmp_path, monkeypatch):
    """A file that is opened after a week is not searched for each expired key.

    It has the keys of all subjects of that week, and its size grows with them."""
    searched, read = [], StoredKeys._raw

    class Raw(bytes):
        def __contains__(self, part):
            searched.append(part)
            return super().__contains__(part)

    wall = Wall()
    path = tmp_path / "keys.db"
    with closing(StoredKeys(path, master=MASTER, wall_clock=wall)) as keys:
        made = [keys.current(f"subject {number}", 1.0).id for number in range(200)]
        wall.advance(7 * 86_400.0)
    monkeypatch.setattr(StoredKeys, "_raw", lambda keys: Raw(read(keys)))
    with closing(StoredKeys(path, master=MASTER, wall_clock=wall)) as keys:
        assert len(searched) <= 2 * 16
        assert [keys.find(key_id) for key_id in made] == [None] * 200
        assert keys.recoverable() == 0


def test_key_outlives_the_latest_record_it_sealed(tmp_path):
    """A key outlives the latest record that it sealed."""
    wall = Wall()
    path = tmp_path / "keys.db"
    with closing(StoredKeys(path, master=MASTER, wall_clock=wall)) as keys:
        key = keys.current("anna", 10.0)
        assert keys.current("anna", 100_000.0) == key
        wall.advance(199_999.0)
    with closing(StoredKeys(path, master=MASTER, wall_clock=wall)) as keys:
        assert keys.find(key.id) == key
        wall.advance(2.0)
    with closing(StoredKeys(path, master=MASTER, wall_clock=wall)) as keys:
        assert keys.find(key.id) is None
        assert keys.current("anna", 10.0) != key


def test_a_hold_keeps_keys_beyond_their_time(tmp_path):
    wall = Wall()
    path = tmp_path / "keys.db"
    with closing(StoredKeys(path, master=MASTER, wall_clock=wall)) as keys:
        key = keys.current("anna", 10.0)
        keys.hold(b"case 17", True)
        keys.hold(b"case 18", True)
        keys.hold(b"case 18", False)
        wall.advance(100_000.0)
    with closing(StoredKeys(path, master=MASTER, wall_clock=wall)) as keys:
        assert keys.find(key.id) == key
        keys.hold(b"case 17", False)
    with closing(StoredKeys(path, master=MASTER, wall_clock=wall)) as keys:
        assert keys.find(key.id) is None


def test_keys_of_an_earlier_file_format_never_expire(tmp_path):
    wall = Wall()
    path = tmp_path / "keys.db"
    with closing(StoredKeys(path, master=MASTER, wall_clock=wall)) as keys:
        key = keys.current("anna", 10.0)
        keys._db.executescript("DROP TABLE expiries; DROP TABLE holds")
    wall.advance(100_000.0)
    with closing(StoredKeys(path, master=MASTER, wall_clock=wall)) as keys:
        assert keys.current("anna", 10.0) == key


def test_keys_outlive_process_and_need_master_key(tmp_path, keys, cipher):
    """Keys outlive the process and can be opened with their master key only."""
    sealed = cipher.seal(b"data", name=b"n", subject="anna")
    blinded = cipher.blind(b"anna")
    again = StoredKeys(tmp_path / "keys.db", master=MASTER)
    assert Cipher(again).open(sealed, name=b"n") == b"data"
    assert Cipher(again).blind(b"anna") == blinded
    again.close()
    with pytest.raises(ValueError, match="not the master key"):
        StoredKeys(tmp_path / "keys.db", master=b"x" * 32)


def test_the_master_key_can_be_changed(tmp_path, keys, cipher):
    sealed = cipher.seal(b"data", name=b"n", subject="anna")
    keys.rewrap(b"w" * 32)
    assert cipher.open(sealed, name=b"n") == b"data"
    with pytest.raises(ValueError, match="not the master key"):
        StoredKeys(tmp_path / "keys.db", master=MASTER)
    again = StoredKeys(tmp_path / "keys.db", master=b"w" * 32)
    assert Cipher(again).open(sealed, name=b"n") == b"data"
    again.close()


def test_old_master_key_writes_nothing_unreadable(tmp_path, keys):
    """A process with the old master key writes no key that the new master key cannot read."""
    with closing(StoredKeys(tmp_path / "keys.db", master=MASTER)) as other:
        keys.rewrap(b"w" * 32)
        for act in (lambda: other.current("anna"), lambda: other.rewrap(b"v" * 32)):
            with pytest.raises(ValueError, match="not the master key"):
                act()
        assert keys.current("anna") == keys.current("anna")
        keys.rewrap(b"v" * 32)


@pytest.mark.parametrize("read", ["current", "find"])
def test_key_is_read_during_a_master_key_change(keys, monkeypatch, read):
    """A key is read while another thread changes the master key."""
    key = keys.current("anna")
    unwrap = keys._unwrap

    def overtaken(*args):  # the row is read, and another thread rewraps before it is unwrapped
        monkeypatch.setattr(keys, "_unwrap", unwrap)
        keys.rewrap(b"w" * 32)
        return unwrap(*args)

    monkeypatch.setattr(keys, "_unwrap", overtaken)
    assert (keys.current("anna") if read == "current" else keys.find(key.id)) == key


def test_another_handle_sees_a_destroyed_key_at_once(tmp_path, keys, cipher):
    other = StoredKeys(tmp_path / "keys.db", master=MASTER)
    sealed = Cipher(other).seal(b"data", name=b"n", subject="anna")
    keys.destroy("anna")
    with pytest.raises(KeyUnknown):
        Cipher(other).open(sealed, name=b"n")
    other.close()


def test_key_file_reveals_nothing_and_is_private(tmp_path, keys, cipher):
    """The file contains no subject and no plain key, and only its owner has access to it."""
    key = keys.current("anna-the-subject")
    content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"anna" not in content
    assert key.secret not in content
    assert keys.index_secret() not in content
    keys.destroy("anna-the-subject")
    assert key.id not in b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert stat.S_IMODE((tmp_path / "keys.db").stat().st_mode) == 0o600


def test_threads_agree_on_one_key(keys):
    found = []
    threads = [threading.Thread(target=lambda: found.append(keys.current("anna"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1


def test_a_failed_change_leaves_the_lock_free(keys):
    keys._db.execute("PRAGMA query_only = ON")
    with pytest.raises(sqlite3.Error):
        keys.rotate()
    keys._db.execute("PRAGMA query_only = OFF")
    keys.rotate()


@pytest.mark.parametrize(("master", "error"), [(b"short", ValueError), ("m" * 32, TypeError)])
def test_master_keys_are_checked_and_not_shown(master, error):
    with pytest.raises(error, match="master: expected 32 bytes") as raised:
        StoredKeys(":memory:", master=master)
    assert "short" not in str(raised.value)


def test_keys_are_checked_and_not_shown():
    assert "sss" not in repr(Key(b"i" * 16, b"s" * 32))
    with pytest.raises(ValueError):
        Key(b"i", b"s" * 32)
    with pytest.raises(ValueError) as raised:
        Key(b"i" * 16, b"sss")
    assert "sss" not in str(raised.value)
    with pytest.raises(TypeError, match="keys: expected a key provider"):
        Cipher({})
    with pytest.raises(TypeError, match="subject"):
        memory = StoredKeys(":memory:", master=MASTER)
        try:
            memory.destroy(None)
        finally:
            memory.close()


def test_stored_keys_satisfy_the_provider_protocol(keys):
    assert isinstance(keys, KeyProvider)
    assert keys.find(b"?" * 16) is None


class Service:
    """Key management system of several machines, a `KeyService` that fails while ``error`` is set."""

    def __init__(self):
        self.secrets = {}
        self.asked = []
        self.error = None

    def get(self, name, *, create, lasts_s=None):
        self.asked.append(name)
        self.lasts_s = lasts_s
        if self.error is not None:
            raise self.error
        if create:
            self.secrets.setdefault(name, (name.encode() * 32)[:32])
        return self.secrets.get(name)

    def destroy(self, name):
        return self.secrets.pop(name, None) is not None


def test_machines_with_one_key_service_share_keys():
    """Machines that share a key service share its keys, and the destruction of a key."""
    service = Service()
    one, other = ServiceKeys(service), ServiceKeys(service)
    sealed = Cipher(one).seal(SECRET, name=b"n", subject="anna")
    ben = Cipher(one).seal(SECRET, name=b"n", subject="ben")
    assert Cipher(other).open(sealed, name=b"n") == SECRET
    assert Cipher(one).blind(b"x") == Cipher(other).blind(b"x")

    assert other.destroy("anna") == 1
    assert other.destroy("anna") == 0
    with pytest.raises(KeyUnknown):
        Cipher(one).open(sealed, name=b"n")
    assert Cipher(one).open(ben, name=b"n") == SECRET
    Cipher(one).seal(SECRET, name=b"n", subject="anna")  # a new key, of the same name
    service.secrets[one.current("anna").id.hex()] = b"n" * 32
    with pytest.raises(CorruptRecord):
        Cipher(one).open(sealed, name=b"n")


def test_a_key_service_sees_no_names():
    service = Service()
    keys = ServiceKeys(service)
    assert isinstance(keys, KeyProvider)
    assert keys.current("anna") != keys.current(None)
    assert keys.find(b"0" * 16) is None
    assert all(name == "index" or len(bytes.fromhex(name)) == 16 for name in service.asked)
    assert "secret" not in repr(keys)


def test_key_service_gets_the_lifetime_of_a_key():
    service = Service()
    cipher = Cipher(ServiceKeys(service))
    cipher.seal(SECRET, name=b"n", subject="anna", lasts_s=60.0)
    assert service.lasts_s == 60.0
    cipher.seal(SECRET, name=b"n", subject="anna")
    assert service.lasts_s is None


def test_key_service_errors_reach_the_tier():
    """An error that a key service raises reaches the tier, which handles it."""
    service = Service()
    keys = ServiceKeys(service)
    service.error = ConnectionError("down")
    for operation in (lambda: keys.current("anna"), lambda: keys.find(b"0" * 16)):
        with pytest.raises(ConnectionError):
            operation()


@pytest.mark.parametrize("secret", [b"short", None])
def test_key_of_wrong_size_from_service_is_an_error(secret):
    """A key service must return keys of the right size."""
    service = Service()
    service.get = lambda name, **_: secret
    with pytest.raises(ValueError, match="secret: expected 32 bytes"):
        ServiceKeys(service)
    with pytest.raises(TypeError, match="service: expected a KeyService"):
        ServiceKeys(object())


def test_unreferenced_keys_close_their_file(tmp_path):
    stored = StoredKeys(tmp_path / "keys.db", master=MASTER)
    db = stored._db

    del stored
    gc.collect()

    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        db.execute("SELECT 1")


WRITE = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None).execute('BEGIN IMMEDIATE')"


def test_reopening_keeps_the_lock_of_a_transaction(keys, tmp_path, monkeypatch):
    """A second opening of the key file in a process does not release the lock of a running transaction.

    POSIX releases all locks that a process has on a file when the process closes any descriptor of the file."""

    monkeypatch.setattr(encryption, "_BUSY_S", 0.0)
    with keys._writing():
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            StoredKeys(tmp_path / "keys.db", master=MASTER)
        another = subprocess.run(
            [sys.executable, "-c", WRITE, str(tmp_path / "keys.db")], capture_output=True, text=True, check=False
        )

    assert "database is locked" in another.stderr


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_waits_for_the_end_of_a_transaction(keys, monkeypatch):
    """A fork waits until the transaction of another thread ends.

    SQLite in the child would take the transaction for its own, and would hold the lock for good."""
    is_inside, is_forking, wrap = threading.Event(), threading.Event(), keys._wrap

    def slow_wrap(*arguments):
        is_inside.set()
        is_forking.wait()
        return wrap(*arguments)

    monkeypatch.setattr(keys, "_wrap", slow_wrap)
    os.register_at_fork(before=is_forking.set)  # the function that is registered last runs first
    writing = threading.Thread(target=keys.current, args=("anna",))
    writing.start()
    is_inside.wait()

    status = status_of_child(lambda: keys.destroy("anna") == 1 and keys.current("ben").id)
    writing.join()

    assert status == 0
    assert keys.destroy("anna") == 0
    assert keys.destroy("ben") == 1
