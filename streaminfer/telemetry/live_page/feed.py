"""Feed of the live page: server-sent events, made once for all clients, when a client is due for an update.

*Design*: there is no task and no queue per client. A client that is due calls `refresh`. The first client makes the
update, and the others find it. A ring holds the last updates, and each client takes all updates after its last one.
So nothing runs without clients, a slow client costs nothing, and a client that was away for a few seconds misses
nothing.

A ``schema`` event names services, panels and labels; the updates after it are arrays of numbers in the same order, with
the instant of the update, and for each service the one at which its counters were read: not each update reads them. A
new label makes a new schema. The id of an event consists of the feed's id, by which a browser notices a restart, and a
number.
"""

import json
import math
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from streaminfer._internal.forking import new_lock
from streaminfer._internal.validation import check_duration_ns
from streaminfer.telemetry.live_page.panels import PANELS
from streaminfer.telemetry.live_page.snapshot import ServiceReader
from streaminfer.telemetry.services import name_services

__all__ = ["Feed"]

_MAX_UPDATES = 100


class Feed:
    """Updates of several services; thread-safe.

    Args:
        services: stacks, or other services.
        interval_s: seconds between two updates.
        clock: returns monotonic nanoseconds.
    """

    def __init__(
        self, services: Sequence[Any], interval_s: float, clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self.interval_ns = check_duration_ns("interval_s", interval_s, positive=True)
        self._clock = clock
        named = name_services(services)
        self._names = [name for name, _ in named]
        self._readers = [ServiceReader(parts) for _, parts in named]
        self._id = secrets.token_hex(4)
        self._number = 0
        self._ring: deque[tuple[int, bytes, bytes]] = deque(maxlen=_MAX_UPDATES)
        self._encoded: list[dict[str, _Encoded]] = [{} for _ in named]
        self._due_ns = 0
        self._lock = new_lock()

    def refresh(self) -> float:
        """Make an update if one is due.

        Returns:
            Seconds until the next update is due.
        """
        with self._lock:
            now_ns = self._clock()
            if now_ns >= self._due_ns:
                # a multiple of the interval, so that a late update does not delay all later ones
                self._due_ns = (now_ns // self.interval_ns + 1) * self.interval_ns
                self._update(now_ns)
            return (self._due_ns - now_ns) / 1e9

    def after(self, last_id: str) -> tuple[bytes, str]:
        """Return the events after the one with an id, and the id of the last event.

        Args:
            last_id: id of the client's last event. If it is empty, too old, or from another feed, the client gets the
                schema and the latest update.
        """
        with self._lock:
            feed, _, text = last_id.partition("-")
            last = int(text) if text.isascii() and text.isdigit() and len(text) < 19 else -1
            first = self._ring[0][0] if self._ring else 0
            if feed == self._id and first - 1 <= last <= self._number:
                events = b"".join(schema + update for number, schema, update in self._ring if number > last)
            else:
                events = self._schema_event() + self._ring[-1][2] if self._ring else b""
            return events, f"{self._id}-{self._number}"

    def _update(self, now_ns: int) -> None:
        before = self._encoded
        self._encoded = [
            {panel: _encode(numbers, last.get(panel)) for panel, numbers in reader.read(now_ns).items()}
            for reader, last in zip(self._readers, before, strict=True)
        ]
        self._number += 1
        is_new = self._number == 1 or _labels(self._encoded) != _labels(before)
        schema = self._schema_event() if is_new else b""
        services = "],[".join([",".join([it.text for it in panels.values() if it.text]) for panels in self._encoded])
        time_ms = time.time_ns() // 1_000_000
        read_ms = ",".join(str(time_ms - (now_ns - it.charts_read_ns) // 1_000_000) for it in self._readers)
        update = self._event(f"[{time_ms},[[{services}]],[{read_ms}]]")
        self._ring.append((self._number, schema, update))

    def _schema_event(self) -> bytes:
        panels_by_id = {panel.id: panel for panel in PANELS}
        services = [
            {
                "name": name,
                "panels": [{**panels_by_id[panel]._asdict(), "labels": it.labels} for panel, it in panels.items()],
            }
            for name, panels in zip(self._names, self._encoded, strict=True)
        ]
        schema = {"interval_s": self.interval_ns / 1e9, "services": services}
        return b"event: schema\n" + self._event(json.dumps(schema, separators=(",", ":")))

    def _event(self, data: str) -> bytes:
        return f"id: {self._id}-{self._number}\ndata: {data}\n\n".encode()


class _Encoded(NamedTuple):
    """The numbers of a panel, encoded once and reused until they change."""

    numbers: dict[str, Any]
    labels: list[str]
    text: str


def _labels(encoded: list[dict[str, _Encoded]]) -> list[dict[str, list[str]]]:
    return [{panel: it.labels for panel, it in panels.items()} for panels in encoded]


def _encode(numbers: dict[str, Any], last: _Encoded | None) -> _Encoded:
    """Return the encoded numbers of a panel; reuse the last encoding if the numbers are equal."""
    if last is not None and last.numbers == numbers:
        return last
    texts = [str(number) if type(number) is int else _json(number) for number in numbers.values()]
    return _Encoded(numbers, list(numbers), ",".join(texts))


def _json(value: Any) -> str:
    """Return strict JSON, with at most six decimals of a number."""
    if isinstance(value, float):  # NumPy floats too; `json.dumps` would write "NaN"
        return str(round(float(value), 6)) if math.isfinite(value) else "null"
    return json.dumps(value, separators=(",", ":"))
