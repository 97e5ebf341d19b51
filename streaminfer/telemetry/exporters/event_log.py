"""`EventLog`: logs changes in stacks as `logging` records; `JsonLines` formats records as JSON.

The log compares two snapshots of the metrics that are marked as events, so it adds no cost to requests. A record has
only names, labels and numbers of statistics: no input, output, key or subject can get into it.
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

    Each becomes a record of the logger ``streaminfer.events``, at level WARNING, or INFO for a return to normal such as
    a breaker that closes or an alert that ends. If a value changes and changes back between two looks, only counters
    show it, such as the trips of a breaker.

    Args:
        stacks: as for `metrics_app`.
    """

    def __init__(self, *stacks: Any) -> None:
        self._services = name_services(stacks)
        self._previous = self._read()

    def look(self) -> None:
        """Log what changed since the last look. Call it on the event loop of the stacks."""
        now = self._read()
        for (metric, labels), value in now.items():
            before = self._previous.get((metric, labels), 0)
            if value == before or (metric.states and not value):
                continue  # the record of the new state is enough
            fields = dict(labels) | ({} if metric.states else {"before": before, "value": value})
            text = " ".join(f"{name}={field}" for name, field in fields.items() if field != "")
            event = {"event": metric.name, **fields}
            _LOGGER.log(_level(metric, labels, value), "%s %s", metric.name, text, extra={"event": event})
        self._previous = now

    async def watch(self, every_s: float = 1.0) -> None:
        """Call :meth:`look` periodically, until the task is cancelled.

        Args:
            every_s: seconds between two looks.

        Raises:
            TypeError, ValueError: ``every_s`` is not a positive number.
        """
        every_s = check_duration("every_s", every_s, positive=True)
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
    """Formatter that writes each record as one line of JSON: time, level, logger, and the fields of the event.

    For a record of another logger, the line has the message without its arguments, and the class of its exception. If
    the message is not a string, the line has its class. Data of requests is therefore in no line, unless your code
    wrote it into the message itself.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as a line of JSON."""
        line: dict[str, Any] = {
            "time": dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
        }
        event = record.__dict__.get("event") if record.name == _LOGGER.name else None  # other loggers may use the name
        if isinstance(event, dict):
            line.update(event)
        else:
            line["message"] = record.msg if isinstance(record.msg, str) else type(record.msg).__name__
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__
        return json.dumps(line)
