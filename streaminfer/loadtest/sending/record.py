"""Record of a load test as arrays, with one row per request in the order of due time."""

import base64
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Self

import attrs
import numpy as np
from numpy.typing import NDArray

from streaminfer.errors import text_of_error
from streaminfer.loadtest.sending.loops import OpenLoop
from streaminfer.loadtest.sending.requests import Requests

__all__ = ["ANSWERED", "UNANSWERED", "Record"]

ANSWERED = "ok"
UNANSWERED = "unanswered"
"""Outcome of a request without response or error when the drain ended, or one that was never sent."""

Floats = NDArray[np.float64]

_NUMBERS = ("due_s", "late_s", "latency_s")
_COLUMNS = (*_NUMBERS, "outcome")
_GROUPS: dict[str, Any] = {"stages": np.nan, "values": np.nan, "labels": ""}
"""Groups of columns, with the value for a missing entry."""


@attrs.frozen(eq=False)
class Record:
    """Requests of a load test.

    Attributes:
        due_s: due time of each request, in seconds since the start of the run, ascending.
        late_s: delay from due time to send time; NaN if the request was not sent.
        latency_s: seconds from due time to response; infinite without a response.
        outcome: ``ok``, ``unanswered``, or the class of the exception.
        stages: seconds by name of the stage; NaN where it was not measured.
        values: other measurements by name; NaN where there is none.
        labels: labels by name; an empty string where there is none.
        messages: message of the first exception of each class.
    """

    due_s: Floats
    late_s: Floats
    latency_s: Floats
    outcome: NDArray[np.str_]
    stages: Mapping[str, Floats] = attrs.field(factory=dict)
    values: Mapping[str, Floats] = attrs.field(factory=dict)
    labels: Mapping[str, NDArray[np.str_]] = attrs.field(factory=dict)
    messages: Mapping[str, str] = attrs.field(factory=dict)

    @classmethod
    def of(cls, loop: OpenLoop, due_s: Floats, requests: Requests) -> Self:
        """Return the record of a run.

        Args:
            loop: the loop that sent the requests.
            due_s: due times in seconds since the start.
            requests: labels, stages and values of the requests.
        """
        due, sent, completed = (np.asarray(part, np.int64) for part in (loop.due_ns, loop.sent_ns, loop.completed_ns))
        answered = completed > 0
        requests.sort_notes()
        failures = {number: type(error).__name__ for number, error in loop.failures.items()}
        width = max(map(len, (UNANSWERED, *failures.values())))
        outcome = np.where(answered, ANSWERED, UNANSWERED).astype(f"U{width}")
        if failures:
            outcome[list(failures)] = list(failures.values())
        return cls(
            due_s,
            np.where(sent > 0, sent - due, np.nan) / 1e9,
            np.where(answered, completed - due, np.inf) / 1e9,
            outcome,
            {_printable(name): np.array(column) for name, column in requests.stages.items()},
            {_printable(name): np.array(column) for name, column in requests.values.items()},
            {
                _printable(name): np.array(list(map(_printable, column)), np.str_)
                for name, column in requests.labels.items()
            },
            {
                type(error).__name__: _printable(text_of_error(error).partition(": ")[2])
                for _, error in sorted(loop.failures.items(), reverse=True)
            },
        )

    @classmethod
    def merge(cls, records: "Sequence[Record]") -> "Record":
        """Return one record with the requests of several senders."""
        order = np.argsort(np.concatenate([record.due_s for record in records]), kind="stable")

        def joined(parts: list[Any]) -> Any:
            return np.concatenate(parts)[order]

        fields: dict[str, Any] = {name: joined([getattr(record, name) for record in records]) for name in _COLUMNS}
        for group, missing_value in _GROUPS.items():
            columns = [getattr(record, group) for record in records]
            absent = [np.full(len(record), missing_value) for record in records]
            fields[group] = {
                name: joined([column_set.get(name, filler) for column_set, filler in zip(columns, absent, strict=True)])
                for name in dict.fromkeys(name for column_set in columns for name in column_set)
            }
        messages = {name: message for record in reversed(records) for name, message in record.messages.items()}
        return cls(**fields, messages=messages)

    def where(self, selected: NDArray[np.bool_]) -> "Record":
        """Return the record of the chosen requests.

        Args:
            selected: shape (requests,), bool.
        """
        fields: dict[str, Any] = {name: getattr(self, name)[selected] for name in _COLUMNS}
        for group in _GROUPS:
            fields[group] = {name: column[selected] for name, column in getattr(self, group).items()}
        return Record(**fields, messages=self.messages)

    def __len__(self) -> int:
        return int(self.due_s.size)

    def encode(self) -> dict[str, Any]:
        """Return the columns as JSON values: numbers compressed, repeated words as indexes."""
        return {
            "numbers": {name: _encode(getattr(self, name)) for name in _NUMBERS},
            "outcome": _encode(self.outcome),
            **{group: {name: _encode(column) for name, column in getattr(self, group).items()} for group in _GROUPS},
            "messages": dict(self.messages),
        }

    @classmethod
    def decode(cls, stored: Mapping[str, Any]) -> Self:
        """Return the record that :meth:`encode` encoded."""
        fields: dict[str, Any] = {name: _decode(stored["numbers"][name]) for name in _NUMBERS}
        for group in _GROUPS:
            fields[group] = {name: _decode(column) for name, column in stored[group].items()}
        return cls(**fields, outcome=_decode(stored["outcome"]), messages=stored["messages"])


def _printable(text: str) -> str:
    """Return a text that UTF-8 can encode: an error message may quote a file name with undecodable bytes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _encode(column: NDArray[Any]) -> Any:
    if column.dtype.kind == "U":
        words, indexes = np.unique(column, return_inverse=True)
        return {"words": words.tolist(), "indexes": _encode(indexes.astype(np.int32))}
    little_endian = column.astype(column.dtype.newbyteorder("<"))
    return base64.b64encode(zlib.compress(little_endian.tobytes())).decode()


def _decode(stored: Any, kind: str = "<f8") -> Any:
    if isinstance(stored, Mapping):
        return np.array(stored["words"] or [""], np.str_)[_decode(stored["indexes"], "<i4")]
    return np.frombuffer(zlib.decompress(base64.b64decode(stored)), kind).astype(np.dtype(kind).newbyteorder("="))
