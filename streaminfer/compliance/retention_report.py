"""`RetentionReport`: what is stored and for how long, compared with the policy, and what was erased when and why.

A report combines three independent parts: the policy, an inventory of the places, and the log. It contains numbers,
names of classes and places, and keyed hashes of subjects, but no data and no names of persons.

Each holding has a state: ``within`` its class's maximum age; ``due``: older, but not by more than the place's stated
time to remove expired entries (its purge bound); ``held``: preserved, or older still while a legal hold is in force;
``over``: a violation; ``empty``; or ``unknown``: the age is not known (as on a very full Redis server), or the policy
has no such class. A report never counts an unknown state as good.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from streaminfer._internal.display.document import Document
from streaminfer._internal.display.html_report import cells, instant, list_of, text_table
from streaminfer._internal.display.html_table import html_table
from streaminfer._internal.units import format_duration
from streaminfer._internal.validation import check_duration, check_instance
from streaminfer.compliance.retention import PRESERVED, Holding, Retention, Rule
from streaminfer.compliance.retention_log import RetentionEvent, RetentionLog, Verification

__all__ = ["PURGE_BOUNDS_S", "ReportedHolding", "RetentionReport", "build_report"]

PURGE_BOUNDS_S: Mapping[str, float] = {"memory": 0.25, "disk": 30.0}
"""Default time for which a place may hold expired entries: an `EdgeCache` without a clock, and a running `DiskTier`
with its default ``purge_every_s``."""

_MAX_LISTED = 500
_MARKS = {"within": "good", "empty": "good", "due": "so", "held": "so", "unknown": "so", "over": "bad"}
_HOLDINGS = (
    ("state", "where", "data_class", "entries", "size_bytes", "oldest_age_s", "max_age_s", "purge_bound_s"),
    ("state", "where", "class", "entries", "size", "oldest", "allowed", "purge bound"),
)
_RULES = (
    ("data_class", "max_age_s", "min_age_s", "encrypt", "allow_disk", "allow_shared"),
    ("class", "maximum age", "minimum age", "must be encrypted", "on a disk", "on shared tiers"),
)
_EVENTS = (
    ("at_ns", "action", "where", "data_class", "count", "subject", "tag", "reason"),
    ("when", "action", "where", "class", "entries", "subject (hash)", "tag", "reason"),
)
_ALL = "(all)"
_Columns = tuple[tuple[str, ...], tuple[str, ...]]


@attrs.frozen(kw_only=True)
class ReportedHolding:
    """Entries of one class in one place, against the policy.

    Attributes:
        where: the place.
        data_class: the class; ``""``: the default class.
        entries: number of entries; ``None``: not known.
        oldest_age_s: seconds since the oldest was computed; ``None``: not known, or there are none.
        size_bytes: their bytes; ``None``: not known.
        max_age_s: maximum age in the policy, seconds; ``None``: the policy has no such class.
        purge_bound_s: seconds after that for which the place may hold expired entries.
        state: ``"within"``, ``"due"``, ``"held"``, ``"over"``, ``"empty"`` or ``"unknown"``.
    """

    where: str
    data_class: str
    entries: int | None
    oldest_age_s: float | None
    size_bytes: int | None
    max_age_s: float | None
    purge_bound_s: float
    state: str


@attrs.frozen(kw_only=True)
class RetentionReport(Document):
    """Inventory, deletions and violations at one instant; made by :func:`build_report`.

    Attributes:
        at_ns: that instant, in nanoseconds of the wall clock.
        rules: rules of the policy, the default rule first.
        holdings: entries of each class in each place.
        erasures: erasures that were made, oldest first, as far back as the log's events reach.
        pending: failed erasures that have not been made since, so that their entries may still be there.
        holds: legal holds in force; while there are any, a pending ``erase_held`` is no violation.
        log: outcome of the check of the log, with its head; ``None``: there is no log.
    """

    at_ns: int
    rules: tuple[Rule, ...]
    holdings: tuple[ReportedHolding, ...]
    erasures: tuple[RetentionEvent, ...]
    pending: tuple[RetentionEvent, ...]
    holds: tuple[RetentionEvent, ...] = ()
    log: Verification | None
    schema = "streaminfer.retention-report"
    title = "Retention report"

    @property
    def violations(self) -> list[str]:
        """Descriptions of the violations; empty if none is known."""
        violations = []
        for it in self.holdings:
            if it.state == "over":
                violations.append(
                    f"{it.where} holds {_class(it.data_class)} that is {format_duration(it.oldest_age_s)} old: "
                    f"{format_duration(it.max_age_s)} are allowed, and {format_duration(it.purge_bound_s)} to remove it"
                )
            elif it.max_age_s is None and it.entries:
                violations.append(
                    f"{it.where} holds {it.entries} entries of {_class(it.data_class)}: the policy has none"
                )
        for event in self.pending:
            if event.action == "erase_held" and self.holds:
                continue
            target = f"subject {event.subject}" if event.tag is None else f"tag {event.tag!r}"
            outcome = "was held" if event.action == "erase_held" else "failed"
            violations.append(
                f"an erasure in {event.where} ({target}) {outcome} on {instant(event.at_ns)} and is still to be made: "
                f"{event.reason}"
            )
        if self.log is not None and not self.log.ok:
            violations.append(f"the log is not whole: {self.log}")
        return violations

    @property
    def _default_class(self) -> str:
        return "(all others)" if len(self.rules) > 1 else _ALL

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values, in the layout that ``schema`` and ``version`` name."""
        first = {"schema": self.schema, "version": self.version, "at_ns": self.at_ns, "violations": self.violations}
        return {**first, **super().to_dict()}

    def _repr_html_(self) -> str:
        violations = self.violations
        parts = [f"<p>{instant(self.at_ns)}</p>"]
        parts.append(list_of(violations, "bad") if violations else '<p class="good">No violation is known.</p>')
        sections: list[tuple[str, _Columns, Sequence[Any], str]] = [
            ("What is kept", _HOLDINGS, self.holdings, self._default_class),
            ("The policy", _RULES, self.rules, self._default_class),
            ("Legal holds", _EVENTS, self.holds, _ALL),
            ("Erasures still to be made", _EVENTS, self.pending, _ALL),
            ("Erasures", _EVENTS, self.erasures[-_MAX_LISTED:], _ALL),
        ]
        for name, (fields, head), records, no_class in sections:
            if records:
                marks = _MARKS if records is self.holdings else {}
                table = html_table((cells(it, fields, no_class) for it in records), head=head, marks=marks)
                parts.append(f"<h2>{name}</h2>{table}")
        if len(self.erasures) > _MAX_LISTED:
            parts.append(f"<p>{len(self.erasures) - _MAX_LISTED} earlier erasures are in the JSON.</p>")
        if self.log is not None:
            parts.append(f"<h2>The log</h2>{list_of([str(self.log)], 'good' if self.log.ok else 'bad')}")
        return "\n".join(parts)

    def __str__(self) -> str:
        holdings = _text_of(_HOLDINGS, self.holdings, self._default_class)
        lines = [f"Retention report, {instant(self.at_ns)}", "", holdings]
        if self.erasures:
            entries = sum(event.count for event in self.erasures)
            lines += ["", f"{len(self.erasures)} erasures of {entries} entries, the latest:"]
            lines.append(_text_of(_EVENTS, self.erasures[-5:], _ALL))
        violations = self.violations
        lines += ["", *(f"VIOLATION: {text}" for text in violations)] if violations else ["", "no violation is known"]
        return "\n".join(lines)


def build_report(
    policy: Retention,
    inventory: Iterable[Holding],
    log: RetentionLog | None = None,
    *,
    at_ns: int | None = None,
    purge_bounds_s: Mapping[str, float] = PURGE_BOUNDS_S,
) -> RetentionReport:
    """Build a report of what is stored, what may be stored, and what was removed.

    Args:
        policy: the retention policy.
        inventory: entries of each class in each place at this moment.
        log: log of removals; it is verified and refreshed first. ``None``: there is no log.
        at_ns: the current instant, in nanoseconds of the wall clock; ``None``: the clock is read.
        purge_bounds_s: seconds for which each place, by name, may hold expired entries; 0 for places that are missing.

    Raises:
        TypeError, ValueError: an argument has the wrong type.
        BackendError, ValueError: the log cannot be read, or was altered while it was open.
    """
    check_instance("policy", policy, Retention, "a Retention")
    check_instance("purge_bounds_s", purge_bounds_s, Mapping, "a mapping of seconds")
    check_instance("at_ns", at_ns, int | None, "an integer or None")
    bounds = {where: check_duration(f"purge_bounds_s[{where!r}]", bound) for where, bound in purge_bounds_s.items()}
    check_instance("log", log, RetentionLog | None, "a RetentionLog or None")
    recorded = RetentionLog() if log is None else log
    verification = recorded.verify()
    if verification.ok:
        recorded.refresh()
    holds = recorded.holds
    return RetentionReport(
        at_ns=time.time_ns() if at_ns is None else at_ns,
        rules=policy.rules,
        holdings=tuple(_judged(policy, it, bounds, bool(holds)) for it in sorted(inventory, key=lambda it: it[:2])),
        erasures=tuple(event for event in recorded.events if event.action == "erased"),
        pending=recorded.pending,
        log=None if log is None else verification,
        holds=holds,
    )


def _judged(policy: Retention, holding: Holding, bounds: Mapping[str, float], has_holds: bool) -> ReportedHolding:
    max_age_s = None
    if holding.data_class == "" or holding.data_class in policy.classes:
        max_age_s = policy.rule((holding.data_class,)).max_age_s
    bound_s = bounds.get(holding.where, 0.0)
    if holding.where == PRESERVED:
        state = "held"
    elif holding.entries == 0:
        state = "empty"
    elif max_age_s is None or holding.oldest_age_s is None:
        state = "unknown"
    elif holding.oldest_age_s < max_age_s:  # expired means now ≥ expiry
        state = "within"
    else:
        state = "due" if holding.oldest_age_s <= max_age_s + bound_s else "held" if has_holds else "over"
    return ReportedHolding(**holding._asdict(), max_age_s=max_age_s, purge_bound_s=bound_s, state=state)


def _text_of(columns: _Columns, records: Iterable[Any], no_class: str) -> str:
    return text_table(columns[1], (cells(it, columns[0], no_class) for it in records))


def _class(name: str) -> str:
    return f"data of class {name!r}" if name else "data of the default class"
