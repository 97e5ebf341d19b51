"""`record_of_processing`: a draft of the record of processing activities (GDPR Art. 30) of a `Stack`.

The settings of the stack give the categories of data, time limits, places, hops and security measures. Facts that only
people know (the controller, the purpose, the legal basis) are arguments; those that are not given are listed as
missing. The record contains settings and names of classes and places, but no data.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import attrs

from streaminfer._internal.display.document import Document
from streaminfer._internal.display.html_report import list_of
from streaminfer._internal.display.html_table import html_table
from streaminfer._internal.units import format_duration
from streaminfer._internal.validation import check_instance
from streaminfer.auditing.stack_audit import audit, idle_s
from streaminfer.auditing.traversal import is_a, read, walk
from streaminfer.caching.edge_cache import EdgeCache
from streaminfer.stack import Stack
from streaminfer.streams.state.backend import StatefulBackend

__all__ = ["ProcessingRecord", "record_of_processing"]

_STATED = {
    "controller": "Controller and contact (Art. 30(1)(a))",
    "purpose": "Purpose (Art. 30(1)(b))",
    "legal_basis": "Legal basis (Art. 6)",
    "subjects": "Categories of data subjects (Art. 30(1)(c))",
    "recipients": "Recipients (Art. 30(1)(d))",
    "transfers": "Transfers to third countries (Art. 30(1)(e))",
}
_PART = "part of the stack"
_TABLES = {
    "categories": (
        "Categories of personal data and time limits for erasure (Art. 30(1)(c), (f))",
        {"where": _PART, "category": "category", "max_age_s": "stored at most", "min_age_s": "stored at least"},
    ),
    "places": (
        "Places of storage (Art. 30(1)(g))",
        {
            "where": _PART,
            "place": "place",
            "on_disk": "on a disk",
            "shared": "read by other machines",
            "encrypted": "encrypted",
        },
    ),
    "residual": (
        "Copies that no erasure reaches (Art. 30(1)(f))",
        {"where": _PART, "copy": "copy", "within_s": "gone after an erasure within"},
    ),
    "measures": (
        "Technical security measures, and machines that receive data (Art. 30(1)(d), (g))",
        {"check": "measure", "where": _PART, "finding": "state", "what": "description"},
    ),
}
_MEASURES = {
    "tier": "protection of stored data",
    "hop": "protection of sent data",
    "key-store": "protection of keys",
    "subjects": "erasure of one person's data",
    "log": "log of erasures",
}
_ALL = "all answers"
_NOT_GIVEN = "not given"
_STATES = "states of streams, since the last request"


@attrs.frozen(kw_only=True)
class ProcessingRecord(Document):
    """Record of processing activities, as far as known.

    Attributes:
        stated: the given facts by name: ``controller``, ``purpose``, ``legal_basis``, ``subjects``, ``recipients``,
            ``transfers``; ``""`` if not given.
        categories: for each cache and data class, and for the states of each recurrent model: the object, the name, the
            most seconds for which it is stored (``None``: no limit) and the least. The time of a state counts from its
            stream's last request.
        places: for each place of a cache, and for the states: the object, the name of the place, and whether it is on a
            disk, shared and encrypted.
        residual: for each declared copy: the object, the name, and the seconds after an erasure (``None``: no bound).
        measures: the findings of `audit` on encryption, hops, erasures and logs: check, object, severity, finding.
    """

    stated: dict[str, str]
    categories: tuple[tuple[str, str, float | None, float], ...]
    places: tuple[tuple[str, str, bool, bool, bool], ...]
    residual: tuple[tuple[str, str, float | None], ...]
    measures: tuple[tuple[str, str, str, str], ...]
    schema = "streaminfer.record-of-processing"
    title = "Record of processing activities (Art. 30 GDPR), draft"

    @property
    def missing(self) -> list[str]:
        """Names of the facts that a complete record still needs."""
        return [name for name, text in self.stated.items() if not text]

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain values, in the layout that ``schema`` and ``version`` name."""
        tables = {
            name: [dict(zip(head, row, strict=True)) for row in getattr(self, name)]
            for name, (_, head) in _TABLES.items()
        }
        first = {"schema": self.schema, "version": self.version, "missing": self.missing, "stated": dict(self.stated)}
        return {**first, **tables}

    def _repr_html_(self) -> str:
        rows = [(_STATED[name], text or _NOT_GIVEN) for name, text in self.stated.items()]
        parts = [list_of((f"missing: {_STATED[name]}" for name in self.missing), "bad") if self.missing else ""]
        parts.append(html_table(rows))
        for name, (title, head) in _TABLES.items():
            cells = [[*map(_cell_text, head, row)] for row in getattr(self, name)]
            parts.append(f"<h2>{title}</h2>{html_table(cells, head=[*head.values()])}" if cells else "")
        return "\n".join(parts)


def record_of_processing(
    stack: Stack,
    *,
    controller: str = "",
    purpose: str = "",
    legal_basis: str = "",
    subjects: str = "",
    recipients: str = "",
    transfers: str = "",
) -> ProcessingRecord:
    """Make a record of processing from the settings of a stack; runs no code of the stack.

    Args:
        stack: the stack.
        controller: name and contact of the controller, and of its data protection officer.
        purpose: the purpose of the processing.
        legal_basis: the legal basis under Art. 6.
        subjects: categories of data subjects.
        recipients: recipients of the data; the hops of the stack are listed in addition.
        transfers: third countries that receive the data, with safeguards; ``"none"`` if there are none.

    Raises:
        TypeError: ``stack`` is not a `Stack`, or another argument is not a string.
    """
    texts = (controller, purpose, legal_basis, subjects, recipients, transfers)
    stated = dict(zip(_STATED, texts, strict=True))
    for name, text in stated.items():
        check_instance(name, text, str, "a string")
    findings = audit(stack).findings
    parts = [(part.where, part.obj) for part in walk(stack)]
    caches = [(where, obj) for where, obj in parts if is_a(obj, EdgeCache)]
    models = [(where, obj) for where, obj in parts if is_a(obj, StatefulBackend)]
    return ProcessingRecord(
        stated=stated,
        categories=(
            *(row for where, cache in caches for row in _categories(where, cache)),
            *((where, _STATES, idle_s(model), 0.0) for where, model in models),
        ),
        places=(
            *(row for where, cache in caches for row in _places(where, cache)),
            *((where, "memory", False, False, False) for where, _ in models),
        ),
        residual=tuple(
            (where, it.name, it.within_s)
            for where, cache in caches
            for policy in (cache.freshness.policy,)
            for it in (() if policy is None else policy.residual)
        ),
        measures=tuple((it.check, it.where, it.severity, it.what) for it in findings if it.check in _MEASURES),
    )


def _categories(where: str, cache: EdgeCache) -> Iterable[tuple[str, str, float | None, float]]:
    policy = cache.freshness.policy
    if policy is None:
        freshness = cache.freshness
        retention_s = None if freshness.ttl_s is None else freshness.ttl_s + freshness.stale_s
        return [(where, _ALL, retention_s, 0.0)]
    rest = "all others" if policy.classes else _ALL
    return [(where, it.data_class or rest, it.max_age_s, it.min_age_s) for it in policy.rules]


def _places(where: str, cache: EdgeCache) -> Sequence[tuple[str, str, bool, bool, bool]]:
    rows = [(where, "memory", False, False, False)]
    for worker in () if cache.tiers is None else cache.tiers.workers:
        on_disk, shared, encrypted = (read(worker.tier, it) is True for it in ("on_disk", "shared", "encrypted"))
        rows.append((where, worker.name, on_disk, shared, encrypted))
    return rows


def _cell_text(column: str, cell: Any) -> str:
    if column == "check":
        return _MEASURES[cell]
    if cell is None:
        return "no limit known"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if column == "min_age_s" and cell == 0:
        return "no minimum"
    return format_duration(cell) if isinstance(cell, float) else str(cell)
