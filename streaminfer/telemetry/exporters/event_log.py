"""`EventLog`: what changes in stacks, as records of `logging`; `JsonLines` writes them as JSON.

Events come from comparing two looks at the metrics that the table marks as events, so that requests pay nothing, and
no input, output, key or subject can get into a record: it has names, labels and numbers of statistics.
"""

import asyncio
import datetime as dt
import json
import logging
from typing import Any

from streaminfer._internal.error_log import Log
from streaminfer._internal.validation import check_duration
from streaminfer.telemetry.exporters.collection import Collection, Labels
from streaminfer.telemetry.exporters.metric import Metric
from streaminfer.telemetry.services import name_services

__all__ = ["EventLog", "JsonLines"]

_LOGGER = Log("streaminfer.events")


class EventLog:
    """Logs breaker transitions, rejections, alerts, route changes and states of replicas and stacks.

    Each becomes a record of the logger ``streaminfer.events``, at level WARNING, or INFO for a return to normal: a
    breaker that closes, an alert that ends. What changed and changed back between two looks is seen only by counters,
    such as the trips of a breaker.

    Args:
        stacks: as of `metrics_app`.
    """

    def __init__(self, *stacks: Any) -> None:
        self._services = name_services(stacks)
        self._seen = self._read()

    def look(self) -> None:
        """Log what changed since the last look. Call it on the event loop of the stacks."""
        now = self._read()
        for (metric, labels), value in now.items():
            before = self._seen.get((metric, labels), 0)
            if value == before or (metric.states and not value):
                continue  # a state that ended is told by the one that began
            fields = {"event": metric.name, **dict(labels), "before": before, "value": value}
            if metric.states:
                del fields["before"], fields["value"]
            text = " ".join(f"{name}={field}" for name, field in fields.items() if name != "event" and field != "")
            _LOGGER.log(_level(metric, labels, value), "%s %s", metric.name, text, extra={"event": fields})
        self._seen = now

    async def watch(self, every_s: float = 1.0) -> None:
        """Look again and again, until this is cancelled.

        Args:
            every_s: seconds between two looks.

        Raises:
            TypeError, ValueError: not a positive number.
        """
        check_duration("every_s", every_s, positive=True)
        while True:
            await asyncio.sleep(every_s)
            self.look()

    def _read(self) -> dict[tuple[Metric, Labels], float]:
        collection = Collection.of(self._services, None)
        return {
            (metric, labels): value
            for metric, samples in collection.families.items()
            if metric.event
            for labels, value in samples
            if isinstance(value, (int, float))
        }


_NORMAL = {"closed", "automatic", "active", "running", "starting", "new"}


def _level(metric: Metric, labels: Labels, value: float) -> int:
    normal = labels[-1][1] in _NORMAL if metric.states else metric.kind == "gauge" and value == metric.normal
    return logging.INFO if normal else logging.WARNING


class JsonLines(logging.Formatter):
    """Formatter that makes one line of JSON of each record: time, level, logger, and the fields of the event.

    A record of another logger has its message without the arguments, and the class of its exception; a message that is
    no text has its class. So what a request brought is in none of them, unless your code wrote it into the message.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "time": dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
        }
        event = record.__dict__.get("event") if record.name == _LOGGER.name else None  # others may mean anything by it
        if isinstance(event, dict):
            line.update(event)
        else:
            line["message"] = record.msg if isinstance(record.msg, str) else type(record.msg).__name__
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__
        return json.dumps(line)
