"""`Retention`: how long what kind of data may be kept, and where.

A policy has one default rule and a rule for each *data class* that it names. An entry is of a class if one of its tags
is the class's name; of several, the strictest of each rule holds; of none, the default rule.

**What the age counts from**: the instant at which the answer was computed, wherever it is read later. Everything is
within it: the time that an answer is fresh, the time that it is stale, and a remembered failure. A fresh time is
therefore cut to ``max_age_s - stale_s`` when something is kept, and what comes back from a tier is as old as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import attrs

from streaminfer._internal.validation import LONGEST_S, check_duration, check_instance, expected, field_check
from streaminfer.compliance.retention_log import RetentionLog

__all__ = ["PRESERVED", "Holding", "Residual", "Retention", "Rule", "StorageTraits"]

_MOST_REMEMBERED = 1024

PRESERVED = "preserved"
"""The place of what a legal hold or a minimum age keeps after its time, in records and reports."""


class Holding(NamedTuple):
    """Entries of one data class in one place; a retention report is made of these.

    Attributes:
        where: ``"memory"``, or the tier's name.
        data_class: its name; ``""``: the default one.
        entries: how many, stale ones and failures included; ``None``: the place cannot say.
        oldest_age_s: seconds since the oldest of them was computed; ``None``: not known, or there are none.
        size_bytes: what they take; ``None``: not known.
    """

    where: str
    data_class: str
    entries: int | None
    oldest_age_s: float | None
    size_bytes: int | None


class StorageTraits(Protocol):
    """Traits of a tier that decide what a policy allows there.

    Attributes:
        on_disk: it writes to a disk of this machine.
        shared: other machines read it.
        encrypted: it seals what it writes.
    """

    on_disk: bool
    shared: bool
    encrypted: bool


class Rule(NamedTuple):
    """Rule for one entry.

    Attributes:
        data_class: of several, the one that may be kept for the shortest time; ``""``: the default one.
        max_age_s: seconds from when it was computed.
        encrypt: only on encrypted tiers.
        allow_disk: also on a disk of this machine.
        allow_shared: also where other machines read it.
        min_age_s: seconds from then for which it must not be erased, at most ``max_age_s``.
    """

    data_class: str
    max_age_s: float
    encrypt: bool
    allow_disk: bool
    allow_shared: bool
    min_age_s: float = 0.0

    def permits(self, storage: StorageTraits) -> bool:
        """Return whether the entry may be stored there."""
        return (
            (self.allow_disk or not storage.on_disk)
            and (self.allow_shared or not storage.shared)
            and (storage.encrypted or not self.encrypt)
        )


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value != ""


@attrs.frozen
class Residual:
    """Copies that no erasure here reaches: backups, replicas, an append-only file, a CDN, traces.

    Args:
        name: what and where, in words.
        within_s: seconds > 0 after an erasure by which these copies are gone as well; ``None``: no bound is known,
            which the audit warns of.
    """

    name: str = attrs.field(validator=field_check(check_instance, _is_name, "words"))
    within_s: float | None = attrs.field(
        default=None, validator=field_check(check_duration, positive=True, optional=True)
    )


_check_flag = field_check(check_instance, lambda it: isinstance(it, bool), "True or False")
_check_log = field_check(check_instance, lambda it: isinstance(it, RetentionLog), "a RetentionLog", optional=True)


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
    """Policy that says for how long data may be stored, and where.

    Args:
        max_age_s: seconds > 0 after which nothing of an answer is left, counted from when it was computed.
        encrypt: on tiers only where they encrypt. Memory is not encrypted.
        allow_disk: whether it may lie on a disk of this machine.
        allow_shared: whether it may lie where other machines read it (Redis). Whether that server writes to a disk of
            its own is for its operator to see to.
        min_age_s: seconds, at most ``max_age_s``, for which the law wants it kept: until then it is not erased, and the
            cache preserves what leaves its memory earlier. It is served no longer for that.
        classes: rules by name of the data class, each a `Retention` without classes, residual copies or log of its own.
        residual: copies that no erasure here reaches, each a `Residual`.
        log: records what expired, was evicted, erased or disallowed: a ``RetentionLog``; ``None``: there is no record.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.

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
            raise ValueError(expected("min_age_s", f"at most max_age_s, {self.max_age_s:g}", self.min_age_s))
        check_instance("classes", self.classes, lambda it: isinstance(it, Mapping), "a mapping of name to Retention")
        for name, inner in self.classes.items():
            check_instance("classes", name, _is_name, "names that are strings and not empty")
            check_instance(f"classes[{name!r}]", inner, lambda it: isinstance(it, Retention), "a Retention")
            if inner.classes or inner.residual or inner.log is not None:
                raise ValueError(f"classes[{name!r}]: expected a Retention without classes, residual or log of its own")

    def rule(self, tags: Iterable[str]) -> Rule:
        """Return the rule for an entry with these tags."""
        named = frozenset(tag for tag in tags if tag in self.classes)
        found = self._rules.get(named)
        if found is None:
            found = self._strictest(named)
            if len(self._rules) < _MOST_REMEMBERED:
                self._rules[named] = found
        return found

    def _strictest(self, named: frozenset[str]) -> Rule:
        parts = sorted(((name, self.classes[name]) for name in named), key=lambda it: (it[1].max_age_s, it[0]))
        if not parts:
            parts = [("", self)]
        policies = [policy for _, policy in parts]
        return Rule(
            parts[0][0],
            min(parts[0][1].max_age_s, LONGEST_S),
            any(policy.encrypt for policy in policies),
            all(policy.allow_disk for policy in policies),
            all(policy.allow_shared for policy in policies),
            min(parts[0][1].max_age_s, max(policy.min_age_s for policy in policies)),
        )

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The default rule, and that of each class in the order of their names."""
        return (self.rule(()), *(self.rule((name,)) for name in sorted(self.classes)))

    @property
    def shortest_s(self) -> float:
        """The smallest of all maximum ages."""
        return min(rule.max_age_s for rule in self.rules)

    @property
    def has_min_age(self) -> bool:
        """True if anything must be kept for some time."""
        return any(rule.min_age_s for rule in self.rules)

    def check_tier(self, name: str, storage: StorageTraits) -> None:
        """Check that the default class can be stored on a tier where it is allowed to be.

        Raises:
            ValueError: it must be encrypted, and the tier does not.
        """
        rule = self.rule(())
        if rule.encrypt and not rule.permits(storage) and rule._replace(encrypt=False).permits(storage):
            raise ValueError(
                f"tiers: the policy says encrypt=True, and the tier {name!r} has no keys: give it "
                "keys=StoredKeys(path, master=…) of streaminfer.caching.tiers.encryption, or forbid it by "
                "allow_disk=False or allow_shared=False"
            )
