"""Which replica has the state of which stream: the state machine of `StreamStore`.

*Design.* A stream belongs to one replica at a time. A replica that gets a request of a stream of another one claims it
first. If another living replica has the stream, it is asked to hand it over after the step that runs, so that no
step is lost and results stay equal to the bit. Each replica also sends snapshots of the streams that had steps; when an
owner is not heard of any more, because its process or node is gone, the claim gets the latest snapshot. A replica that
comes back after that is told at its next snapshot which streams are not its own any more, and drops them (fencing).

*Invariants.* A stream has one owner or none; a record of a replica that is not the owner is refused; each claim of a
stream that another replica had counts as exactly one of moved, resumed and restarted.

*Complexity.* Constant per claim; a snapshot costs its records, and every ten seconds one of them looks at all streams.
Knows no clock, loop or thread.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, NamedTuple

import attrs

from streaminfer._internal.snapshot import Snapshot

__all__ = ["Claim", "StreamLedger", "StreamMoves"]

SILENT_NS = 1_500_000_000
"""A replica that was not heard of for so long is not asked: three snapshots are missing."""
IDLE_NS = 600_000_000_000
"""A stream without a request for so long is forgotten here; its replica keeps the state as its backend is told to."""
_EXPIRY_NS = 10_000_000_000
"""Between two searches through all streams for those that are idle: a share of `IDLE_NS`, whatever the replicas."""


class Claim(NamedTuple):
    """Answer to a claim.

    Attributes:
        record: the state of the stream, which is the claimer's; ``None``: it has none.
        owner: another replica, which must hand the stream over first; empty: it is the claimer's.
        is_other: another replica had the stream last, so what the claimer may have of it is older.
    """

    record: Any = None
    owner: str = ""
    is_other: bool = False


@attrs.frozen(kw_only=True)
class StreamMoves(Snapshot):
    """What became of streams that changed their replica.

    Attributes:
        streams: that are known now.
        owners: how many streams each replica has, by its id.
        moved: handed over by their replica: nothing was lost.
        resumed: continued from a snapshot, because their replica was gone; steps after the snapshot are lost.
        restarted: began again, because their replica was gone before the first snapshot.
        oldest_snapshot_s: seconds between the snapshot and its use, at most so far; the time for which the replica had
            been gone is part of it.
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
    taken_ns: int = 0


class StreamLedger:
    """Owners and latest states of all streams."""

    def __init__(self) -> None:
        self._streams: dict[Hashable, _Stream] = {}
        self._heard_ns: dict[str, int] = {}
        self._taken: dict[str, set[Hashable]] = {}  # from replicas that have not been told
        self._moved = self._resumed = self._restarted = 0
        self._oldest_ns = 0
        self._expires_ns = 0

    def hear(self, replica: str, now_ns: int) -> None:
        """Note that a replica lives."""
        self._heard_ns[replica] = now_ns

    def silent_from_ns(self, replica: str) -> int:
        """Return when a replica is taken for dead, unless it is heard of before."""
        return self._heard_ns.get(replica, -SILENT_NS) + SILENT_NS

    def claim(self, stream_id: Hashable, replica: str, now_ns: int) -> Claim:
        """Give a stream to a replica, or say whom to ask for it."""
        self.hear(replica, now_ns)
        self._taken.get(replica, set()).discard(stream_id)  # it knows
        stream = self._streams.get(stream_id)
        if stream is None:
            self._streams[stream_id] = _Stream(replica, now_ns)
            return Claim()
        if stream.owner == replica:
            stream.used_ns = now_ns
            return Claim(stream.record)
        if not stream.owner:
            self._moved += 1
            return self._give(stream, replica, now_ns)
        if now_ns >= self.silent_from_ns(stream.owner):
            return self.take(stream_id, replica, stream.owner, now_ns)
        return Claim(owner=stream.owner)

    def take(self, stream_id: Hashable, replica: str, owner: str, now_ns: int) -> Claim:
        """Give a stream to a replica from its snapshot: this owner did not answer. One of another by now is claimed."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.owner != owner:
            return self.claim(stream_id, replica, now_ns)
        if stream.record is None:
            self._restarted += 1
        else:
            self._resumed += 1
            self._oldest_ns = max(self._oldest_ns, now_ns - stream.taken_ns)
        self._taken.setdefault(owner, set()).add(stream_id)
        return self._give(stream, replica, now_ns)

    def store(self, replica: str, records: Mapping[Hashable, Any], now_ns: int) -> list[Hashable]:
        """Keep snapshots of a replica; return which of their streams, and of those that it had, are not its own."""
        taken = self._taken.pop(replica, set())
        own = {stream_id: record for stream_id, record in records.items() if stream_id not in taken}
        return list(taken | self._store(replica, own, now_ns))

    def hand_over(self, replica: str, records: Mapping[Hashable, Any], now_ns: int) -> None:
        """Keep final states of a replica's own streams, which no replica owns from now on; ``None``: no state."""
        for stream_id in {*records}.difference(self._store(replica, records, now_ns)):
            self._streams[stream_id].owner = ""

    def forget(self, stream_ids: Iterable[Hashable]) -> None:
        """Forget streams that ended."""
        for stream_id in stream_ids:
            self._streams.pop(stream_id, None)

    def expire(self, now_ns: int) -> None:
        """Forget streams that are idle, and replicas that are gone; within ten seconds of the last time do nothing."""
        if now_ns < self._expires_ns:
            return
        self._expires_ns = now_ns + _EXPIRY_NS
        self.forget([key for key, stream in self._streams.items() if now_ns - stream.used_ns >= IDLE_NS])
        self._heard_ns = {name: at_ns for name, at_ns in self._heard_ns.items() if now_ns - at_ns < IDLE_NS}
        self._taken = {name: taken for name, taken in self._taken.items() if name in self._heard_ns}

    def statistics(self) -> StreamMoves:
        """What was counted until now."""
        return StreamMoves(
            streams=len(self._streams),
            owners=Counter(stream.owner for stream in self._streams.values() if stream.owner),
            moved=self._moved,
            resumed=self._resumed,
            restarted=self._restarted,
            oldest_snapshot_s=self._oldest_ns / 1e9,
        )

    def _store(self, replica: str, records: Mapping[Hashable, Any], now_ns: int) -> set[Hashable]:
        """Keep states of a replica's own streams; return the other streams."""
        self.hear(replica, now_ns)
        refused = set()
        for stream_id, record in records.items():
            stream = self._streams.setdefault(stream_id, _Stream(replica, now_ns))
            if stream.owner != replica:
                refused.add(stream_id)
            else:
                stream.record, stream.taken_ns, stream.used_ns = record, now_ns, now_ns
        return refused

    @staticmethod
    def _give(stream: _Stream, replica: str, now_ns: int) -> Claim:
        stream.owner, stream.used_ns = replica, now_ns
        return Claim(stream.record, is_other=True)
