"""Feed of the live page: server-sent events, made once for all clients, when one of them is due.

*Design*: there is no task and no queue per client. A client that is due calls `refresh`; the first one makes the
update, the others find it. The last updates stay in a ring, from which each client takes what follows the one it has.
So nothing runs without clients, a slow client costs nothing, and one that was away for a few seconds misses nothing.

An event ``schema`` names services, panels and labels; the updates behind it are arrays of numbers in that order. A new
label makes a new schema. An event's id is that of this feed, so that a browser notices a restart, and a number.
"""

import json
import math
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from streaminfer.telemetry.live_page.panels import PANELS
from streaminfer.telemetry.live_page.snapshot import ServiceReader
from streaminfer.telemetry.services import name_services

__all__ = ["Feed"]

_KEPT = 100


class Feed:
    """Updates of several services; thread-safe.

    Args:
        services: stacks, or other services.
        interval_s: seconds between two updates.
        clock: monotonic nanoseconds.
    """

    def __init__(
        self, services: Sequence[Any], interval_s: float, clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self.interval_ns = round(interval_s * 1e9)
        self._clock = clock
        named = name_services(services)
        self._names = [name for name, _ in named]
        self._readers = [ServiceReader(parts) for _, parts in named]
        self._id = secrets.token_hex(4)
        self._number = 0
        self._ring: deque[tuple[int, bytes, bytes]] = deque(maxlen=_KEPT)
        self._labels: list[dict[str, list[str]]] = []
        self._due_ns = 0
        self._lock = threading.Lock()

    def refresh(self) -> float:
        """Make an update if one is due.

        Returns:
            Seconds until the next one is.
        """
        with self._lock:
            now_ns = self._clock()
            if now_ns >= self._due_ns:
                # a multiple of the interval, so that an update that comes late does not delay all that follow
                self._due_ns = (now_ns // self.interval_ns + 1) * self.interval_ns
                self._update(now_ns)
            return (self._due_ns - now_ns) / 1e9

    def after(self, last_id: str) -> tuple[bytes, str]:
        """Return the events behind the one of an id, and the id of the last of them.

        Args:
            last_id: of the last event that the client has; of another feed, too old, or empty: the client gets the
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
        read = [reader.read(now_ns) for reader in self._readers]
        labels = [{panel: list(numbers) for panel, numbers in panels.items()} for panels in read]
        self._number += 1
        schema = b""
        if self._labels != labels:
            self._labels = labels
            schema = self._schema_event()
        numbers = [[_plain(number) for panel in panels.values() for number in panel.values()] for panels in read]
        update = self._event(json.dumps([time.time_ns() // 1_000_000, numbers], separators=(",", ":")))
        self._ring.append((self._number, schema, update))

    def _schema_event(self) -> bytes:
        known = {panel.id: panel for panel in PANELS}
        services = [
            {
                "name": name,
                "panels": [{**known[panel]._asdict(), "labels": texts} for panel, texts in panels.items()],
            }
            for name, panels in zip(self._names, self._labels, strict=True)
        ]
        schema = {"interval_s": self.interval_ns / 1e9, "services": services}
        return b"event: schema\n" + self._event(json.dumps(schema, separators=(",", ":")))

    def _event(self, data: str) -> bytes:
        return f"id: {self._id}-{self._number}\ndata: {data}\n\n".encode()


def _plain(number: Any) -> Any:
    """What strict JSON has for a number, and no more digits than a page shows."""
    if type(number) is not float:
        return number
    return round(number, 6) if math.isfinite(number) else None
