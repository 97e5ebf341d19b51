"""`prove`: search for remains of erased subjects and expired responses in the media themselves, not in indices.

**Remains.** An entry, or the readable beginning of its record, is a remain in two cases. Either it matches an erasure
in the retention log (by its subject's keyed hash, or its tag) and was computed before that erasure. Or it is older than
the policy or its own time allows, by more than its place may take to remove it. A sealed record counts as long as its
key exists, because destroying the key is the erasure. A destroyed key that can still be read from the bytes of the key
file therefore counts too.

**Held entries** are no remains and are counted separately: a legal hold, or a minimum age, preserves them.

**Places.** Every slot of each cache's table, due or not; every `Entry` that the garbage collector knows; responses that
left a cache and still live (``outliving_arrays``); the results of each tier's ``scan`` of its medium; key files; the
folders of HTTP caches. Nothing is freed, purged or repaired first.

**Ages** are compared, not instants: each clock is read once, at the start, and the ages of erasures and entries follow
from their own clocks.
"""

from __future__ import annotations

import functools
import gc
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from streaminfer._internal.snapshot import Snapshot
from streaminfer._internal.validation import check_instance
from streaminfer.auditing.traversal import is_a, walk
from streaminfer.caching.edge_cache import EdgeCache
from streaminfer.caching.table._slots_cy import NEVER, SMALL
from streaminfer.caching.tiers.encryption import StoredKeys
from streaminfer.caching.tiers.protocol import Entry, Tier, in_ns
from streaminfer.compliance.retention_log import RetentionLog
from streaminfer.http_edge.nginx_folder import NginxFolder
from streaminfer.stack import Stack

__all__ = ["Proof", "Remain", "prove", "prove_caches"]

_EXPIRY_NS = 250_000_000
_SERVER_BOUND_S = 1.0
"""Time for which a place without a stated bound may hold expired entries: a server hides them at once."""
_ERASED = "it belongs to a subject or tag that was erased after it was computed"
_EXPIRED = "it has expired, and the time to remove it has passed"
_RELEASED = "the hold or minimum age for which it was preserved has ended"
_REFERENCED = "an answer that left the cache is still held by an object"
_KEY = "a destroyed key can be read from the bytes of the key file"


@attrs.frozen(kw_only=True)
class Remain(Snapshot):
    """Remains of one kind in one place.

    Attributes:
        place: ``"memory"``, ``"objects"``, a tier's name, ``"keys"`` or ``"http"``.
        where: position in the place, such as the name of a file; contains no personal data.
        why: the reason why it must not be there.
        count: number of remains.
    """

    place: str
    where: str
    why: str
    count: int


@attrs.frozen
class Proof(Snapshot):
    """Remains that were found in every place.

    Attributes:
        counts: place → number of remains, for every place that was searched.
        remains: the same in more detail.
        held: place → number of entries that only a legal hold or a minimum age preserves; places without any are
            missing.
    """

    counts: Mapping[str, int]
    remains: tuple[Remain, ...]
    held: Mapping[str, int]

    @property
    def ok(self) -> bool:
        """True if there are no remains in any place."""
        return not any(self.counts.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the proof as plain values, for strict JSON."""
        return {"ok": self.ok, **super().to_dict()}

    def __str__(self) -> str:
        counts = ", ".join(f"{place} {count}" for place, count in self.counts.items())
        details = [f"{it.count} in {it.place}{f' ({it.where})' if it.where else ''}: {it.why}" for it in self.remains]
        details += [f"{count} in {place}: held" for place, count in self.held.items()]
        return "\n".join([f"proof: {'nothing remains' if self.ok else 'REMAINS'}; {counts}", *details])


def prove(stack: Stack, *, http_caches: Iterable[NginxFolder] = ()) -> Proof:
    """Search for remains of erased subjects and expired responses in every place that a stack writes to.

    It reads memory, the raw bytes of files and every key of servers, and changes nothing. It blocks, for about a second
    per GB of disk tier. Any thread may call it, whether or not the stack runs. On a serving event loop,
    use ``await asyncio.to_thread(si.prove, stack)``.

    Args:
        stack: the stack, including nested stacks, routes and replicas.
        http_caches: folders of HTTP caches in front of the process.

    Returns:
        Counts by place; each must be 0.

    Raises:
        TypeError: ``stack`` is not a `Stack`.
        BackendError: a medium or the retention log cannot be read, so nothing is proven.
    """
    check_instance("stack", stack, lambda it: is_a(it, Stack), "a Stack")
    caches = [part.obj for part in walk(stack) if is_a(part.obj, EdgeCache)]
    return prove_caches(caches, http_caches=http_caches)


def prove_caches(caches: Iterable[EdgeCache], *, http_caches: Iterable[NginxFolder] = ()) -> Proof:
    """Search for remains in caches and all their places.

    Args:
        caches: the caches; their tiers need not run.
        http_caches: folders of HTTP caches in front of the process.

    Raises:
        TypeError: ``http_caches`` are not `NginxFolder` objects.
        BackendError: a medium or the retention log cannot be read, so nothing is proven.
    """
    check_instance("http_caches", http_caches, Iterable, "folders of HTTP caches")
    folders = list(http_caches)
    for folder in folders:
        check_instance("http_caches", folder, NginxFolder, "an NginxFolder")
    remains = _RemainCounts()
    judges = [_Judge(cache) for cache in caches]
    gc.collect()  # frees objects that only a cycle holds
    for judge in judges:
        _check_memory(judge, remains)
        for worker in judge.workers:
            _scan(worker.name, worker.tier, judge, remains)
    _check_objects(judges, remains)
    tiers = [worker.tier for judge in judges for worker in judge.workers]
    for keys in {id(tier.keys): tier.keys for tier in tiers}.values():
        if isinstance(keys, StoredKeys):  # the operator of another key service must prove what it keeps
            remains.add("keys", "", _KEY, keys.recoverable())
    longest_s = max((judge.longest_s for judge in judges), default=float("inf"))  # as for a cache without a policy
    for folder in folders:
        for name, why in folder.remains(time.time(), longest_s):
            remains.add("http", name, why)
        remains.add("http", "", "", 0)
    return remains.proof()


class _RemainCounts:
    """Counts by place and reason."""

    def __init__(self) -> None:
        self._places: Counter[str] = Counter()
        self._counts: Counter[tuple[str, str, str]] = Counter()
        self._held: Counter[str] = Counter()

    def add(self, place: str, where: str, why: str, count: int = 1) -> None:
        self._places[place] += count
        if count:
            self._counts[place, where, why] += count

    def hold(self, place: str) -> None:
        self._held[place] += 1

    def count(self, judge: _Judge, subject: str | None, tags: Iterable[str], place: str, where: str, why: str) -> None:
        """Count an entry as a remain, or as held under a legal hold; with an empty ``why`` it may be there."""
        if why and judge.is_held(subject, tags):
            self.hold(place)
        elif why:
            self.add(place, where, why)

    def proof(self) -> Proof:
        remains = tuple(
            Remain(place=place, where=where, why=why, count=count)
            for (place, where, why), count in self._counts.items()
        )
        return Proof(dict(self._places), remains, dict(self._held))


class _Judge:
    """Checks entries against the log and the policy of one cache.

    Args:
        cache: the cache.

    Attributes:
        cache: as given.
        workers: writers of its tiers.
        now_ns: instant of the cache's clock when the proof began.
        longest_s: longest time for which the policy lets anything be stored.
    """

    def __init__(self, cache: EdgeCache) -> None:
        self.cache = cache
        retention = cache._memory.retention
        if retention is not None:
            retention.counts.catch_up()  # waits for the thread that writes the records
        self._policy = None if retention is None else retention.policy
        self._log: RetentionLog | None = cache.erasure_log
        self.now_ns = cache._memory.now()
        self.workers = () if cache.tiers is None else cache.tiers.workers
        self.tier_now_ns = {id(worker.tier): worker.tier.wall_clock() for worker in self.workers}
        self.wall_ns = time.time_ns()
        rules = () if self._policy is None else self._policy.rules
        self.longest_s = max((rule.max_age_s for rule in rules), default=float("inf"))
        self._subject_ages: dict[str, int] = {}
        self._tag_ages: dict[str, int] = {}
        if self._log is not None:
            self._pseudonym = functools.cache(self._log.pseudonym)
            log_now_ns = self._log.now_ns()
            for event in self._log._all():
                if event.action == "erased" and event.where == "memory":  # every erasure begins in memory
                    ages, label = (self._subject_ages, event.subject) if event.subject else (self._tag_ages, event.tag)
                    if label is not None:
                        # the latest erasure counts, even if it is not the last record
                        ages[label] = min(ages.get(label, NEVER), log_now_ns - event.at_ns)

    def is_erased(self, subject: str | None, tags: Iterable[str], age_ns: int) -> bool:
        """Return whether an entry of this age was already there when its subject or one of its tags was erased."""
        erased_ns = [self._tag_ages.get(tag, NEVER) for tag in tags]
        if subject is not None and self._subject_ages:
            erased_ns.append(self._subject_ages.get(self._pseudonym(subject), NEVER))
        return any(age_ns >= it for it in erased_ns)

    def is_held(self, subject: str | None, tags: Iterable[str]) -> bool:
        """Return whether a legal hold applies to an entry."""
        return self._log is not None and self._log.is_held(subject, tags)

    def reason_against(
        self, subject: str | None, tags: Iterable[str], age_ns: int | None, bound_ns: int, is_past: bool
    ) -> str:
        """Return the reason why an entry must not be there; ``""`` if it may be.

        Args:
            subject: the data subject of the entry.
            tags: of the entry.
            age_ns: nanoseconds since it was computed; ``None``: not known.
            bound_ns: time in which the place must remove it.
            is_past: whether its own time plus the bound has passed.
        """
        if age_ns is not None and self.is_erased(subject, tags, age_ns):
            return _ERASED
        if age_ns is not None and self._policy is not None:
            is_past = is_past or age_ns > in_ns(self._policy.rule(tags).max_age_s) + bound_ns
        return _EXPIRED if is_past else ""


def _check_memory(judge: _Judge, remains: _RemainCounts) -> None:
    cache = judge.cache
    slots = cache._memory.contents()
    stale_ns = cache.freshness.stale_ns
    remains.add("memory", "", "", 0)
    for labels, until_ns, queue in zip(slots[::4], slots[2::4], slots[3::4], strict=True):
        subject, tags = (None, ()) if labels is None else labels[:2]
        stored_ns = labels[3] if labels is not None and len(labels) > 2 else None
        age_ns = None if stored_ns is None else judge.now_ns - stored_ns
        removal_ns = until_ns + stale_ns if queue <= SMALL else until_ns  # stale and negative: the instant of removal
        is_past = until_ns != NEVER and judge.now_ns > removal_ns + _EXPIRY_NS
        why = judge.reason_against(subject, tags, age_ns, _EXPIRY_NS, is_past)
        remains.count(judge, subject, tags, "memory", "", why)
    retention = cache._memory.retention
    for event in cache.preserved:
        if retention is not None and judge.now_ns <= retention.until_ns(event.labels) + _EXPIRY_NS:
            remains.hold("memory")
        else:
            remains.add("memory", "preserved", _RELEASED)
    if retention is not None:
        remains.add("objects", "", _REFERENCED, retention.outliving_arrays())


def _check_objects(judges: list[_Judge], remains: _RemainCounts) -> None:
    """Check entries that are on their way to or from tiers: in queues, in threads, or held by any object."""
    remains.add("objects", "", "", 0)
    for obj in gc.get_objects():
        if type(obj) is Entry:
            for judge in judges:
                now_ns = next(iter(judge.tier_now_ns.values()), judge.wall_ns)
                if judge.is_erased(obj.subject, obj.tags, now_ns - obj.stored_ns):
                    remains.count(judge, obj.subject, obj.tags, "objects", "", _ERASED)
                    break


def _scan(place: str, tier: Tier, judge: _Judge, remains: _RemainCounts) -> None:
    remains.add(place, "", "", 0)
    now_ns = judge.tier_now_ns[id(tier)]
    bound_ns = in_ns(_SERVER_BOUND_S if tier.purge_bound_s is None else tier.purge_bound_s)
    for copy in tier.scan():
        entry = copy.entry
        age_ns = now_ns - entry.stored_ns
        is_past = entry.expires_ns is not None and now_ns > entry.expires_ns + bound_ns
        why = judge.reason_against(entry.subject, entry.tags, age_ns, bound_ns, is_past)
        remains.count(judge, entry.subject, entry.tags, place, copy.place, why)
