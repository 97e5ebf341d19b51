"""`audit`: check how a `Stack` handles personal data, without running it.

Each check applies to every cache, tier, policy and hop that the stack leads to:

``max-age``
    each cache limits the time for which it stores a response, and a recurrent model the time for the state of a stream.
``ttl``
    no time to live is longer than the policy allows; the policy shortens it, and its author should know.
``tier``
    data on a tier are encrypted; a tier that does not encrypt gets no response with a subject.
``hop``
    data that leave this machine are encrypted in transit.
``subjects``
    stored data can be erased by subject.
``log``
    removals are recorded in a log that outlives the process, and no erasure is still owed.
``min-age``
    data with a minimum age outlive the process.
``residual``
    copies that no erasure reaches, as the policy declares them, are gone by a known time.
``key-store``
    a tier that other machines read has keys that these machines share.
``keys``
    no caller can make inputs that share a response with others, such as another tenant's: keys are made with a secret.

**Declaring a hop.** Your own backend or service declares where it sends requests by two attributes, of the instance or
the class. ``address`` is a string (``"host:port"``, a URL, ``"unix:/path"``; ``""``: requests stay in this process).
``encrypted`` is a bool: whether requests are encrypted in transit. A tier, where ``encrypted`` means the stored data,
has ``encrypted_in_transit`` instead, which takes precedence everywhere. The audit does not read properties of your
classes, because that would run them. An object that declares nothing, and is not from this package, gets
``"attention"``.

**Limits.** The audit knows settings. It cannot know whether requests *should* have had a subject, because a response
does not show that it is about a person. It therefore counts the entries with and without a subject that the memory of
a cache holds at this moment. For a stack that has served nothing, the audit says so. It does not check entries on
tiers.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import attrs

from streaminfer._internal.display.html_table import html_table
from streaminfer._internal.snapshot import Snapshot
from streaminfer._internal.units import format_duration
from streaminfer._internal.validation import check_instance
from streaminfer.auditing.traversal import NOTHING, StackPart, inner_of, is_a, is_own_code, read, walk
from streaminfer.caching.edge_cache import EdgeCache
from streaminfer.caching.tiers.disk.tier import DiskTier
from streaminfer.caching.tiers.encryption import StoredKeys
from streaminfer.caching.tiers.redis.tier import RedisTier
from streaminfer.compliance.retention import Retention
from streaminfer.routing.fallback.fallback_router import FallbackRouter
from streaminfer.routing.replicas.replica_set import Replicas
from streaminfer.stack import Stack
from streaminfer.streams.state.backend import StatefulBackend

if TYPE_CHECKING:
    from streaminfer.caching.tiers.writer import TierWriter

__all__ = ["Audit", "Finding", "audit"]

_SCHEMA = "streaminfer.audit"
_VERSION = 1
_SEVERITIES = ("fail", "attention", "ok")
_HEAD = ("", "check", "where", "what", "remedy")
_MARKS = {"ok": "good", "attention": "so", "fail": "bad"}


@attrs.frozen
class Finding:
    """Outcome of one check of one object.

    Attributes:
        severity: ``"ok"``, ``"attention"`` (a person should check whether this is intended) or ``"fail"``.
        check: name of the check.
        where: path to the object.
        what: the finding, in words.
        remedy: what to do; ``""`` if nothing is wrong.
    """

    severity: str
    check: str
    where: str
    what: str
    remedy: str = ""


_ok, _attention, _fail = (partial(Finding, severity) for severity in ("ok", "attention", "fail"))


@attrs.frozen
class Audit(Snapshot):
    """Findings of an audit, good ones included.

    Attributes:
        findings: in the order of the stack, outermost first.
    """

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """True if no check fails; some may need attention."""
        return all(finding.severity != "fail" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return the findings as plain values, in the layout that ``schema`` and ``version`` name."""
        return {"schema": _SCHEMA, "version": _VERSION, "ok": self.ok, **super().to_dict()}

    def __str__(self) -> str:
        lines = []
        for finding in self._by_severity():
            lines.append(f"[{finding.severity:^9}] {finding.check:<8} {finding.where}: {finding.what}")
            if finding.remedy:
                lines.append(f"{'':21}→ {finding.remedy}")
        return "\n".join([self._summary(), *lines])

    def _repr_html_(self) -> str:
        rows = [(it.severity, it.check, it.where, it.what, it.remedy) for it in self._by_severity()]
        return f"<p>{self._summary()}</p>" + html_table(rows, head=_HEAD, marks=_MARKS)

    def _by_severity(self) -> list[Finding]:
        return sorted(self.findings, key=lambda it: _SEVERITIES.index(it.severity))

    def _summary(self) -> str:
        counts = [sum(it.severity == severity for it in self.findings) for severity in _SEVERITIES]
        return f"audit: {counts[0]} fail, {counts[1]} ask for attention, {counts[2]} are ok"


def audit(stack: Stack) -> Audit:
    """Check a stack and everything in it: nested stacks, the routes of routers, replicas.

    It reads settings and runs none of your code. If the stack runs, call it in the thread of the stack.

    Args:
        stack: the stack.

    Returns:
        One finding for each check of each object. The module docstring lists the checks and their limits.

    Raises:
        TypeError: ``stack`` is not a `Stack`.
    """
    check_instance("stack", stack, lambda it: is_a(it, Stack), "a Stack")
    findings: list[Finding] = []
    parts = list(walk(stack))
    if not any(is_a(part.obj, EdgeCache) for part in parts):
        what = "none of its layers is a cache; one that your own code calls is not seen"
        findings.append(_ok("max-age", "stack", what))
    for part in parts:
        if is_a(part.obj, EdgeCache):
            findings += _check_cache(part.obj, part.where)
        else:
            if is_a(part.obj, StatefulBackend):
                findings.append(_check_states(part.obj, part.where))
            findings += _check_hop(part)
    return Audit(tuple(findings))


def idle_s(backend: StatefulBackend) -> float | None:
    """Return the seconds for which a state is stored after its stream's last request; ``None``: no limit."""
    ttl_ns = read(backend, "_ttl_ns")
    return None if ttl_ns is None else ttl_ns / 1e9


def _check_states(backend: StatefulBackend, where: str) -> Finding:
    ttl_s = idle_s(backend)
    erased = "end_stream(id) erases it: an erasure by subject does not know whose stream it is"
    if ttl_s is None:
        what = "it keeps the state of each stream, in memory, until end_stream(id) or the stop"
        return _attention("max-age", where, what, f"StatefulBackend(idle_ttl_s=…); {erased}")
    what = f"the state of a stream is kept in memory for {format_duration(ttl_s)} after its last request"
    return _ok("max-age", where, f"{what}; {erased}")


# -- caches ------------------------------------------------------------------------------------------------------------


def _check_cache(cache: EdgeCache, where: str) -> Iterator[Finding]:
    policy, tiers = _attribute(cache, "freshness").policy, _attribute(cache, "tiers")
    yield from _check_age(cache, policy, where)
    yield _check_subjects(_count_subjects(cache, policy), where)
    if policy is not None or tiers is not None:
        retention = _attribute(cache, "_memory").retention
        failure = None if retention is None else retention.counts.failure
        yield _check_log(None if policy is None else policy.log, failure, where)
    if policy is not None:
        yield from _check_residual(policy, where)
        yield from _check_min_age(policy, () if tiers is None else tiers.workers, where)
    yield _check_keys(_attribute(cache, "_secret"), where)
    for tier in () if tiers is None else [worker.tier for worker in tiers.workers]:
        tier_where = f"{where} → {type(tier).__name__}"
        yield _check_tier(tier, policy, tier_where)
        if read(tier, "shared") is True and is_a(read(tier, "keys"), StoredKeys):
            what = "its keys lie in a file of this machine: other machines neither have them nor learn of their end"
            remedy = "ServiceKeys(service) for more machines than one. Not needed where one machine uses the tier"
            yield _attention("key-store", tier_where, what, remedy)
        yield from _check_tier_hop(tier, tier_where)


def _attribute(cache: EdgeCache, name: str) -> Any:
    """Return an attribute of a cache as this package defines it, even if a subclass overrides it."""
    return getattr(EdgeCache, name).__get__(cache, EdgeCache)


def _check_age(cache: EdgeCache, policy: Retention | None, where: str) -> Iterator[Finding]:
    freshness = _attribute(cache, "freshness")
    ttl_s, stale_s = freshness.ttl_s, freshness.stale_s
    kept_s = None if ttl_s is None else ttl_s + stale_s
    if policy is not None:
        default, *others = policy.rules
        classes = "".join(f", {it.data_class!r} {format_duration(it.max_age_s)}" for it in others)
        longest = f"{format_duration(default.max_age_s)}{classes}"
        yield _ok("max-age", where, f"the policy keeps nothing longer than {longest}")
        shortest_s = policy.shortest_s
        if kept_s is None or kept_s <= shortest_s:
            yield _ok("ttl", where, "no time to live of the cache is longer than the policy allows")
        else:
            kept, allowed = format_duration(kept_s), format_duration(shortest_s)
            what = f"ttl_s and stale_s make {kept}, and the policy allows {allowed} for some of it, at which it is cut"
            remedy = f"set ttl_s to at most {shortest_s - stale_s:g} or raise max_age_s"
            if shortest_s <= stale_s:
                remedy = "set stale_s below the shortest max_age_s, or raise that"
            yield _attention("ttl", where, what, remedy)
    elif kept_s is not None:
        yield _ok("max-age", where, f"an answer is kept for {format_duration(kept_s)} unless put() says otherwise")
    else:
        remedy = "EdgeCache(ttl_s=…), or retention=Retention(max_age_s), which also binds put()"
        yield _fail("max-age", where, "it keeps answers for good: it has neither ttl_s nor a policy", remedy)


def _count_subjects(cache: EdgeCache, policy: Retention | None) -> tuple[int, int] | None:
    """Return the number of entries in memory with a subject, and without; ``None`` if counting would run other code.

    Counting frees expired entries, which reads the clock and calls listeners.
    """
    memory = _attribute(cache, "_memory")
    called = (memory.clock, *memory.events, None if policy is None else policy.log)
    if not all(map(is_own_code, called)):
        return None
    memory.expire()
    labels = memory.contents()[::4]
    owned = sum(label is not None and label[0] is not None for label in labels)
    return owned, len(labels) - owned


def _check_subjects(counted: tuple[int, int] | None, where: str) -> Finding:
    remedy = "pass subject= with every request that carries a person's data; erase(subject=…) finds nothing else"
    if counted is None:
        what = "not looked at: its clock, its log or a listener is not this package's, and would be called"
        return _attention("subjects", where, what, remedy)
    owned, without = counted
    if owned + without == 0:
        what = "it holds nothing now, so whether requests bring a subject cannot be seen"
        return _attention("subjects", where, what, "audit again when it has served requests")
    if without == 0:
        return _ok("subjects", where, f"all {owned} entries in memory have a subject")
    if owned == 0:
        what = f"none of the {without} entries in memory has a subject: nothing can be erased by person"
        return _attention("subjects", where, what, remedy + ". Not needed where no request is about a person")
    what = f"{without} of {owned + without} entries in memory have no subject, and the others have"
    return _attention("subjects", where, what, remedy)


def _check_log(log: Any, failure: Exception | None, where: str) -> Finding:
    remedy = "Retention(…, log=RetentionLog(path, secret=…))"
    if log is None:
        what = "nothing records what goes: it cannot be shown afterwards, and what a tier owes is lost with the process"
        return _attention("log", where, what, remedy)
    if failure is not None:
        what = f"records wait, and are lost with the process, erasures that tiers owe among them: {failure}"
        return _fail("log", where, what, "make its file writable; the waiting records are then written")
    pending = [event for event in log.pending if event.action != "erase_held" or not log.holds]
    if pending:
        places = ", ".join(sorted({event.where for event in pending}))
        ended = "failed" if all(event.action == "erase_failed" for event in pending) else "failed or were held"
        what = f"{len(pending)} erasures {ended} and are still owed, in {places}"
        again = "a running stack tries again once its tiers can be reached; call erase() again for what was held"
        return _fail("log", where, what, again)
    if log.path is None:
        return _attention("log", where, "the log is in memory: it and what tiers owe end with the process", remedy)
    held = f"; {len(log.holds)} legal holds are in force" if log.holds else ""
    return _ok("log", where, f"what goes is recorded in {log.path}{held}")


def _check_residual(policy: Retention, where: str) -> Iterator[Finding]:
    for it in policy.residual:
        if it.within_s is None:
            what = f"{it.name}: copies stay there after an erasure, and no bound is known"
            remedy = "bound them, and say so: Residual(name, within_s=…); or encrypt, and destroy the keys of a subject"
            yield _attention("residual", where, what, remedy)
        else:
            yield _ok("residual", where, f"{it.name}: gone at most {format_duration(it.within_s)} after an erasure")


def _check_min_age(policy: Retention, workers: Sequence[TierWriter], where: str) -> Iterator[Finding]:
    for rule in policy.rules:
        if rule.min_age_s:
            named = f"class {rule.data_class!r}" if rule.data_class else "the default class"
            what = f"{named} must be kept for at least {format_duration(rule.min_age_s)}"
            disks = [it.statistics() for it in workers if is_a(it.tier, DiskTier) and rule.permits(it.tier)]
            missing = sum(it.rejected + it.dropped for it in disks)
            if missing:
                what += f"; writes to the disk that were not made: {missing}"
                remedy = "enlarge max_bytes if the disk is full; cache.tiers.statistics() has the reasons"
                yield _attention("min-age", where, what, remedy)
            elif disks:
                yield _ok("min-age", where, f"{what}, and lies on a disk")
            else:
                what += ", and what is in memory ends with the process"
                yield _attention("min-age", where, what, "add a DiskTier, where the rule allows it")


def _check_keys(secret: bytes | None, where: str) -> Finding:
    if secret is not None:
        return _ok("keys", where, "keys are made with a secret: no caller can make inputs that share an answer")
    what = "keys are an unkeyed hash: who chooses inputs can make two, of two tenants, that share an answer"
    return _attention("keys", where, what, "EdgeCache(secret=…). Not needed where all callers are trusted")


# -- tiers and hops ----------------------------------------------------------------------------------------------------


def _check_tier(tier: Any, policy: Retention | None, where: str) -> Finding:
    remedy = "give the tier keys=StoredKeys(path, master=…), of streaminfer.caching.tiers.encryption"
    encrypted = read(tier, "encrypted")
    if encrypted is True:
        return _ok("tier", where, "what lies there is encrypted")
    if encrypted is not False:
        return _attention("tier", where, "it does not say whether it encrypts", "set encrypted on it, True or False")
    disallowed: list[str] = []
    if policy is not None:
        on_disk, shared = read(tier, "on_disk") is True, read(tier, "shared") is True
        plain: Any = SimpleNamespace(on_disk=on_disk, shared=shared, encrypted=False)
        disallowed = [rule.data_class for rule in policy.rules if not rule.permits(plain)]
        if len(disallowed) == len(policy.rules):
            return _ok("tier", where, "not encrypted, and the policy keeps nothing there")
    what = "not encrypted, so answers with a subject are not kept there"
    if disallowed:
        what += f", nor what is of {', '.join(repr(name) if name else 'the default class' for name in disallowed)}"
    return _attention("tier", where, what, remedy + ". Not needed where nothing there is about a person")


def _check_tier_hop(tier: Any, where: str) -> Iterator[Finding]:
    if not is_a(tier, RedisTier):
        yield from _judge_hop(read(tier, "address"), read(tier, "encrypted_in_transit"), where, known=is_own_code(tier))
        return
    url = read(tier, "_url")
    address, tls = url if _host_of(url) else "localhost", url.startswith("rediss:")
    if tier.encrypted and not tls and not _is_local(address):
        what = f"{_host_of(url)}, without TLS: values and names are sealed; the password and request times are not"
        yield _attention("hop", where, what, "a server with TLS, and rediss://…")
    else:
        yield from _judge_hop(address, tls, where, known=True)


def _check_hop(part: StackPart) -> Iterator[Finding]:
    obj = part.obj
    address = read(obj, "address")
    encrypted = read(obj, "encrypted_in_transit")
    if encrypted is NOTHING:
        encrypted = read(obj, "encrypted")
    if part.answers and inner_of(obj) is None and not any(is_a(obj, kind) for kind in (FallbackRouter, Replicas)):
        yield from _judge_hop(address, encrypted, part.where, known=is_own_code(obj))
    elif is_a(address, str):
        yield from _judge_hop(address, encrypted, part.where, known=True)


def _judge_hop(address: Any, encrypted: Any, where: str, *, known: bool) -> Iterator[Finding]:
    """Yield the finding of an object that may send requests elsewhere; one that is ``known`` would declare that."""
    declare = 'declare it: address="host:port" ("" in this process) and encrypted=True or False, as plain attributes'
    host = (_host_of(address) if is_a(address, str) else "") or "an address that cannot be read"
    if address is NOTHING and known:
        yield _ok("hop", where, "runs on this machine")
    elif not is_a(address, str):
        yield _attention("hop", where, "it does not declare the address to which it sends requests", declare)
    elif not address:
        yield _ok("hop", where, "requests stay in this process")
    elif _is_local(address):
        yield _ok("hop", where, f"{_host_of(address) or 'a socket'}: does not leave this machine")
    elif encrypted is True:
        yield _ok("hop", where, f"{host}: encrypted")
    elif encrypted is False:
        what = f"{host}, not encrypted: anyone on the way can read it"
        yield _fail("hop", where, what, "connect with TLS (rediss://, https://), or through a tunnel that is declared")
    else:
        yield _attention("hop", where, f"{host}: it does not say whether it is encrypted", declare)


def _host_of(address: str) -> str:
    """Return the host of an address, without the secret parts of a URL."""
    if address.startswith(("unix:", "/")):
        return ""
    try:
        return urlsplit(address if "://" in address else f"//{address}").hostname or ""
    except ValueError:
        return ""


def _is_local(address: str) -> bool:
    """Return whether an address is on this machine: a Unix socket, ``localhost`` or a loopback address."""
    host = _host_of(address)
    with suppress(ValueError):  # raised for names
        return address.startswith(("unix:", "/")) or host == "localhost" or ipaddress.ip_address(host).is_loopback
    return False
