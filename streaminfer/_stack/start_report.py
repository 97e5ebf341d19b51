"""Durations of the start of a `Stack` and its parts, for statistics and the log."""

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any, Self

import attrs

from streaminfer._internal.error_log import Log
from streaminfer._internal.snapshot import Snapshot
from streaminfer._runtime.loops import is_virtual
from streaminfer.batching.service_time.calibration import CalibrationStatistics
from streaminfer.protocols import adapt

__all__ = ["PartStart", "StartReport", "StartTimer"]

PROGRESS_INTERVAL_S = 5.0
"""Seconds between two log lines during a long start."""
KERNELS_FROM_S = 0.1
"""Seconds of loading from which kernels are in the report; kernels compiled ahead of time take milliseconds."""

_LOGGER = Log("streaminfer")


@attrs.frozen
class PartStart(Snapshot):
    """Start of one layer.

    Attributes:
        name: name of its class; ``"kernels"`` for the layers' kernels, which come first if they took long.
        duration_s: seconds of the start.
        calibration: measurements of a batcher; ``None`` if it measured nothing, and for other layers.
    """

    name: str
    duration_s: float
    calibration: CalibrationStatistics | None = None

    def __str__(self) -> str:
        detail = str(self.calibration or "")
        return f"{self.name} {self.duration_s:.3f} s{f' ({detail})' if detail else ''}"


@attrs.frozen
class StartReport(Snapshot):
    """Latest start of a `Stack`.

    Attributes:
        duration_s: its seconds, on the real clock or in a loop's virtual time.
        parts: the kernels, if they took at least 0.1 s, and the layers with a ``start``, innermost first.
    """

    duration_s: float
    parts: tuple[PartStart, ...]

    @property
    def calibration(self) -> CalibrationStatistics | None:
        """Measurements of the batcher; ``None`` without a batcher, or without an example request of its backend."""
        return next((part.calibration for part in self.parts if part.calibration is not None), None)

    def __str__(self) -> str:
        return f"ready after {self.duration_s:.3f} s{self.list_parts()}"

    def list_parts(self) -> str:
        """Return a colon and the parts; empty if there are none."""
        return f": {', '.join(map(str, self.parts))}" if self.parts else ""


class StartTimer:
    """Measures the start of a stack part by part, and logs its progress every 5 s.

    Belongs to one event loop.

    Args:
        stack_name: name of the stack in the log.
    """

    def __init__(self, stack_name: str) -> None:
        self._stack_name = stack_name
        self._loop = asyncio.get_running_loop()
        self._parts: list[PartStart] = []
        self._part: Any = None
        self._name = ""
        self._began_s = self._now_s()

    def __enter__(self) -> Self:
        self._schedule()
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.cancel()

    @contextlib.contextmanager
    def time(self, part: Any, name: str) -> Iterator[None]:
        """Measure the start of a part; ignore a part without ``start``.

        Args:
            part: the part; ``None``: the kernels, which are in the report only if they took long.
            name: its name in the report and in the log.
        """
        self._part, self._name, began_s = part, name, self._now_s()
        yield
        self._part = None
        seconds = self._now_s() - began_s
        if adapt(part).starts or (part is None and seconds >= KERNELS_FROM_S):
            reported = adapt(part).calibration
            calibration = reported if isinstance(reported, CalibrationStatistics) else None
            self._parts.append(PartStart(name, seconds, calibration))

    def report(self) -> StartReport:
        """Return the report of all parts, innermost first, and log it in one line."""
        report = StartReport(self._now_s() - self._began_s, tuple(self._parts))
        # a log that stores only the message template still shows the event
        _LOGGER.info("%s ready after %.3f s%s", self._stack_name, report.duration_s, report.list_parts())
        return report

    def _now_s(self) -> float:
        return self._loop.time() if is_virtual(self._loop) else time.monotonic()

    def _schedule(self) -> None:
        self._handle = self._loop.call_later(PROGRESS_INTERVAL_S, self._log_progress)

    def _log_progress(self) -> None:
        progress = adapt(self._part).start_progress
        doing = f"{self._name}{f', {progress}' if progress else ''}"
        _LOGGER.info("%s starts, for %.0f s now: %s", self._stack_name, self._now_s() - self._began_s, doing)
        self._schedule()


def names_of_parts(parts: Sequence[Any], layers: Sequence[Any], single: Any) -> list[str]:
    """Return the names of the parts of a stack in its report: those of its layers.

    Args:
        parts: the parts, innermost first: those that the last layer leaves to its owner, then the wrapped objects.
        layers: the layers from which they were made, outermost first.
        single: the part that makes batches of one and comes from no layer; or ``None``.
    """
    inside = parts[: len(parts) - len(layers) - (single is not None)]
    names = iter([type(layer).__name__ for layer in (*inside, *reversed(layers))])
    return ["batches of one" if part is single else next(names) for part in parts]
