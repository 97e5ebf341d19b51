"""Owner of each stream and its latest state: the state machine of `StreamStore`.

*Design.* A stream belongs to one replica at a time. If a replica gets a request of another replica's stream, it claims
the stream first. If the owner lives, it releases the stream after the running step, so that no step is lost and results
stay equal to the bit. Each replica also sends snapshots of the streams that had steps. If the owner does not report any
more, because its process or node is gone, the claim returns the latest snapshot. If that replica comes back, the
response to its next snapshot lists the streams that it has lost, and it drops them (fencing).

*Invariants.* A stream has one owner or none. The ledger ignores a record from a replica that is not the owner. Each
claim that succeeds for a stream of another replica counts as exactly one of moved, resumed and restarted.

*Complexity.* Constant per claim; a snapshot costs its records, and every ten seconds one of them searches all streams.
Uses no clock, loop or thread.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, NamedTuple

import attrs

from streaminfer._internal.snapshot import Snapshot

__all__ = ["Claim", "StreamLedger", "StreamMoves"]

SILENT_NS = 1_500_000_000
"""Time without a report after which a replica counts as dead: three snapshots are missing."""
IDLE_NS = 600_000_000_000
"""Time without a request after which the ledger forgets a stream; its replica may store the state for longer."""
_EXPIRY_NS = 10_000_000_000
"""Time between two searches for idle streams: a share of `IDLE_NS`, whatever the number of replicas."""


class Claim(NamedTuple):
    """Result of a claim.

    Attributes:
        record: the state of the stream, which now belongs to the claimer; ``None``: there is no state.
        owner: another replica that must release the stream first; empty: the stream belongs to the claimer.
        is_other: whether another replica had the stream last, so that a state in the claiming replica is older.
    """

    record: Any = None
    owner: str = ""
    is_other: bool = False


@attrs.frozen(kw_only=True)
class StreamMoves(Snapshot):
    """Counts of streams that moved between replicas.

    Attributes:
        streams: number of known streams.
        owners: number of streams of each replica, by its id.
        moved: released by their replica, without loss.
        resumed: continued from a snapshot, because their replica was gone; steps after the snapshot are lost.
        restarted: started again without state, because their replica was gone before the first snapshot.
        oldest_snapshot_s: the longest time so far between a snapshot and its use, seconds; includes the time for which
            the replica had been gone.
    """

    streams: int
    owners: Mapping[str, int]
    moved: int
    resumed: int
    restarted: int
    oldest_snapshot_s: float


@attrs.define
class _Stream:
    owner: str
    used_ns: int
    record: Any = None
    stored_ns: int = 0


class StreamLedger:
    """Owners and latest states of all streams."""

    def __init__(self) -> None:
        self._streams: dict[Hashable, _Stream] = {}
        self._last_seen_ns: dict[str, int] = {}
        self._unnotified: dict[str, set[Hashable]] = {}  # streams taken from a replica, until the replica is notified
        self._moved = self._resumed = self._restarted = 0
        self._oldest_ns = 0
        self._expires_ns = 0

    def mark_alive(self, replica: str, now_ns: int) -> None:
        """Note that a replica is alive."""
        self._last_seen_ns[replica] = now_ns

    def silent_from_ns(self, replica: str) -> int:
        """Return the instant at which a replica counts as dead, unless it reports before."""
        return self._last_seen_ns.get(replica, -SILENT_NS) + SILENT_NS

    def claim(self, stream_id: Hashable, replica: str, now_ns: int) -> Claim:
        """Give a stream to a replica, or return the owner that must release it first."""
        self.mark_alive(replica, now_ns)
        self._unnotified.get(replica, set()).discard(stream_id)  # by claiming it, the replica shows that it has lost it
        stream = self._streams.get(stream_id)
        if stream is None:
            self._streams[stream_id] = _Stream(replica, now_ns)
            return Claim()
        if stream.owner == replica:
            stream.used_ns = now_ns
            return Claim(stream.record)
        if not stream.owner:
            self._moved += 1
            return self._assign(stream, replica, now_ns)
        if now_ns >= self.silent_from_ns(stream.owner):
            return self.take(stream_id, replica, stream.owner, now_ns)
        return Claim(owner=stream.owner)

    def take(self, stream_id: Hashable, replica: str, owner: str, now_ns: int) -> Claim:
        """Give a stream to a replica from its snapshot, because ``owner`` did not respond; claim it if that changed."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.owner != owner:
            return self.claim(stream_id, replica, now_ns)
        if stream.record is None:
            self._restarted += 1
        else:
            self._resumed += 1
            self._oldest_ns = max(self._oldest_ns, now_ns - stream.stored_ns)
        self._unnotified.setdefault(owner, set()).add(stream_id)
        return self._assign(stream, replica, now_ns)

    def store(self, replica: str, records: Mapping[Hashable, Any], now_ns: int) -> list[Hashable]:
        """Store snapshots of a replica; return the streams, of these and of its earlier ones, that are not its own."""
        reassigned = self._unnotified.pop(replica, set())
        own = {stream_id: record for stream_id, record in records.items() if stream_id not in reassigned}
        return list(reassigned | self._store(replica, own, now_ns))

    def pass_on(self, replica: str, records: Mapping[Hashable, Any], now_ns: int) -> None:
        """Store final states of a replica's streams (``None``: no state), which then have no owner."""
        for stream_id in {*records}.difference(self._store(replica, records, now_ns)):
            self._streams[stream_id].owner = ""

    def forget(self, stream_ids: Iterable[Hashable]) -> None:
        """Forget streams that ended."""
        for stream_id in stream_ids:
            self._streams.pop(stream_id, None)

    def expire(self, now_ns: int) -> None:
        """Forget idle streams and dead replicas; do nothing within ten seconds of the last time."""
        if now_ns < self._expires_ns:
            return
        self._expires_ns = now_ns + _EXPIRY_NS
        self.forget([key for key, stream in self._streams.items() if now_ns - stream.used_ns >= IDLE_NS])
        self._last_seen_ns = {name: at_ns for name, at_ns in self._last_seen_ns.items() if now_ns - at_ns < IDLE_NS}
        self._unnotified = {
            name: reassigned for name, reassigned in self._unnotified.items() if name in self._last_seen_ns
        }

    def statistics(self) -> StreamMoves:
        """Return the current counts."""
        return StreamMoves(
            streams=len(self._streams),
            owners=Counter(stream.owner for stream in self._streams.values() if stream.owner),
            moved=self._moved,
            resumed=self._resumed,
            restarted=self._restarted,
            oldest_snapshot_s=self._oldest_ns / 1e9,
        )

    def _store(self, replica: str, records: Mapping[Hashable, Any], now_ns: int) -> set[Hashable]:
        """Store states of a replica's own streams; return the streams of other owners."""
        self.mark_alive(replica, now_ns)
        rejected = set()
        for stream_id, record in records.items():
            stream = self._streams.setdefault(stream_id, _Stream(replica, now_ns))
            if stream.owner != replica:
                rejected.add(stream_id)
            else:
                stream.record, stream.stored_ns, stream.used_ns = record, now_ns, now_ns
        return rejected

    @staticmethod
    def _assign(stream: _Stream, replica: str, now_ns: int) -> Claim:
        stream.owner, stream.used_ns = replica, now_ns
        return Claim(stream.record, is_other=True)
