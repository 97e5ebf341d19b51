"""`Retention`: limits on how long and where each class of data may be stored.

A policy has one default rule and a rule for each *data class* that it names. An entry belongs to a class if one of its
tags is the name of the class. If it belongs to several classes, the strictest value of each rule applies; if to none,
the default rule.

**Age** counts from the instant at which the response was computed, even if it is read elsewhere later. It includes
everything: the fresh time of a response, its stale time, and the time of a remembered failure. A fresh time is
therefore limited to ``max_age_s - stale_s`` when a value is stored, and a value from a tier keeps its age.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import attrs

from streaminfer._internal.validation import LONGEST_S, check_duration, check_instance, expected, field_check, is_name
from streaminfer.compliance.retention_log import RetentionLog

__all__ = ["PRESERVED", "Holding", "Residual", "Retention", "Rule", "StorageTraits"]

_MAX_CACHED_RULES = 1024

PRESERVED = "preserved"
"""Place name, in records and reports, of entries that a legal hold or minimum age preserves after their time."""


class Holding(NamedTuple):
    """Entries of one data class in one place; a retention report consists of these.

    Attributes:
        where: ``"memory"``, or the tier's name.
        data_class: its name; ``""``: the default class.
        entries: number of entries, stale ones and failures included; ``None``: the place cannot count them.
        oldest_age_s: seconds since the oldest was computed; ``None``: not known, or there are none.
        size_bytes: their bytes; ``None``: not known.
    """

    where: str
    data_class: str
    entries: int | None
    oldest_age_s: float | None
    size_bytes: int | None


class StorageTraits(Protocol):
    """Traits of a tier that decide what a policy allows there.

    Attributes:
        on_disk: whether it writes to a disk of this machine.
        shared: whether other machines read it.
        encrypted: whether it encrypts what it writes.
    """

    on_disk: bool
    shared: bool
    encrypted: bool


class Rule(NamedTuple):
    """Rule for one entry.

    Attributes:
        data_class: the class; of several, the one with the shortest maximum age; ``""``: the default class.
        max_age_s: seconds after the computation for which the entry may be stored.
        encrypt: whether only encrypted tiers may store it.
        allow_disk: whether a disk of this machine may store it.
        allow_shared: whether tiers that other machines read may store it.
        min_age_s: seconds after the computation for which it must not be erased, at most ``max_age_s``.
    """

    data_class: str
    max_age_s: float
    encrypt: bool
    allow_disk: bool
    allow_shared: bool
    min_age_s: float = 0.0

    def permits(self, storage: StorageTraits) -> bool:
        """Return whether this tier may store the entry."""
        return (
            (self.allow_disk or not storage.on_disk)
            and (self.allow_shared or not storage.shared)
            and (storage.encrypted or not self.encrypt)
        )


@attrs.frozen
class Residual:
    """Copies that the cache's erasures do not reach: backups, replicas, an append-only file, a CDN, traces.

    Args:
        name: description of the copies and their place.
        within_s: seconds > 0 after an erasure within which these copies are gone too; ``None``: no bound is known, and
            the audit warns.
    """

    name: str = attrs.field(validator=field_check(check_instance, is_name, "words"))
    within_s: float | None = attrs.field(
        default=None, validator=field_check(check_duration, positive=True, optional=True)
    )


_check_flag = field_check(check_instance, bool, "True or False")
_check_log = field_check(check_instance, RetentionLog, "a RetentionLog", optional=True)


def _several(value: Any) -> Any:
    return tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else value


def _are_residual(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(it, Residual) for it in value)


_check_residual = field_check(check_instance, _are_residual, "several Residual")


def _classes(value: Any) -> Any:
    if value is None:
        return MappingProxyType({})
    return MappingProxyType(dict(value)) if isinstance(value, Mapping) else value


@attrs.frozen(eq=False)
class Retention:
    """Policy of how long and where data may be stored.

    Args:
        max_age_s: seconds > 0 after its computation for which a response may be stored.
        encrypt: whether only encrypting tiers may store it. Memory is not encrypted.
        allow_disk: whether a disk of this machine may store it.
        allow_shared: whether tiers that other machines read (Redis) may store it. Whether such a server writes to its
            own disk is the responsibility of its operator.
        min_age_s: seconds, at most ``max_age_s``, for which the law requires storage. Until then a response is not
            erased, and the cache preserves it, without returning it to callers, if it expires, is evicted or is
            replaced earlier. A deletion by key removes it.
        classes: rules by name of the data class, each a `Retention` without ``classes``, ``residual`` or ``log``.
        residual: copies that the cache's erasures do not reach, each a `Residual`.
        log: a `RetentionLog` of entries that expired or were evicted, erased or disallowed; ``None``: no record.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Example:
        >>> policy = Retention(3600.0, classes={"face": Retention(60.0, allow_disk=False)})
        >>> policy.rule(["face", "camera 3"]).max_age_s, policy.rule([]).max_age_s
        (60.0, 3600.0)
    """

    max_age_s: float = attrs.field(validator=field_check(check_duration, positive=True))
    encrypt: bool = attrs.field(default=False, kw_only=True, validator=_check_flag)
    allow_disk: bool = attrs.field(default=True, kw_only=True, validator=_check_flag)
    allow_shared: bool = attrs.field(default=True, kw_only=True, validator=_check_flag)
    min_age_s: float = attrs.field(default=0.0, kw_only=True, validator=field_check(check_duration))
    residual: tuple[Residual, ...] = attrs.field(
        default=(), kw_only=True, converter=_several, validator=_check_residual
    )
    classes: Mapping[str, Retention] = attrs.field(default=None, kw_only=True, converter=_classes)
    log: RetentionLog | None = attrs.field(default=None, kw_only=True, repr=False, validator=_check_log)
    _rules: dict[frozenset[str], Rule] = attrs.field(factory=dict, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        if self.min_age_s > self.max_age_s:
            raise ValueError(expected("min_age_s", f"at most max_age_s, {float(self.max_age_s):g}", self.min_age_s))
        check_instance("classes", self.classes, Mapping, "a mapping of name to Retention")
        for name, inner in self.classes.items():
            check_instance("classes", name, is_name, "names that are strings and not empty")
            check_instance(f"classes[{name!r}]", inner, Retention, "a Retention")
            if inner.classes or inner.residual or inner.log is not None:
                raise ValueError(f"classes[{name!r}]: expected a Retention without classes, residual or log of its own")

    def rule(self, tags: Iterable[str]) -> Rule:
        """Return the rule for an entry with these tags."""
        named = frozenset(tag for tag in tags if tag in self.classes)
        rule = self._rules.get(named)
        if rule is None:
            rule = self._strictest(named)
            if len(self._rules) < _MAX_CACHED_RULES:
                self._rules[named] = rule
        return rule

    def _strictest(self, named: frozenset[str]) -> Rule:
        parts = sorted(((name, self.classes[name]) for name in named), key=lambda it: (it[1].max_age_s, it[0]))
        if not parts:
            parts = [("", self)]
        policies = [policy for _, policy in parts]
        max_age_s = min(float(parts[0][1].max_age_s), LONGEST_S)
        return Rule(
            parts[0][0],
            max_age_s,
            any(policy.encrypt for policy in policies),
            all(policy.allow_disk for policy in policies),
            all(policy.allow_shared for policy in policies),
            min(max_age_s, float(max(policy.min_age_s for policy in policies))),
        )

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The default rule, then the rule of each class in the order of names."""
        return (self.rule(()), *(self.rule((name,)) for name in sorted(self.classes)))

    @property
    def shortest_s(self) -> float:
        """The smallest of all maximum ages."""
        return min(rule.max_age_s for rule in self.rules)

    @property
    def has_min_age(self) -> bool:
        """True if a rule has a minimum age."""
        return any(rule.min_age_s for rule in self.rules)

    def check_tier(self, name: str, storage: StorageTraits) -> None:
        """Check that a tier can store the default class if the policy allows that class there.

        Raises:
            ValueError: the policy requires encryption, and the tier does not encrypt.
        """
        rule = self.rule(())
        if rule.encrypt and not rule.permits(storage) and rule._replace(encrypt=False).permits(storage):
            raise ValueError(
                f"tiers: the policy says encrypt=True, and the tier {name!r} has no keys: give it "
                "keys=StoredKeys(path, master=…) of streaminfer.caching.tiers.encryption, or forbid it by "
                "allow_disk=False or allow_shared=False"
            )
