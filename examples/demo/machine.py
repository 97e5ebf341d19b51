"""The machine that everything runs on, and who used its processors meanwhile."""

import os
import platform
import threading
import time
from pathlib import Path

import attrs

__all__ = ["CpuClock", "CpuUse", "describe_machine", "processors"]


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_machine() -> str:
    """Processors and software, on one line."""
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        models = [
            line.partition(":")[2].strip() for line in information.read_text().splitlines() if "model name" in line
        ]
        model = models[0] if models else model
    return f"{processors()} processors ({model}), Python {platform.python_version()}, {platform.system()}"


@attrs.frozen
class CpuUse:
    """Processor time between two moments, in seconds.

    Attributes:
        wall_s: how far apart they are.
        process_s: used by this process.
        faces_s: of that, by the face detector's thread.
        others_s: used by everything else on the machine, or taken by its host; NaN where the system does not tell.
    """

    wall_s: float
    process_s: float
    faces_s: float
    others_s: float


class CpuClock:
    """Reads processor time from now on.

    Args:
        thread_name: a part of the name of the face detector's thread.
    """

    def __init__(self, thread_name: str) -> None:
        self._thread_name = thread_name
        self._began = self._read()

    def read(self) -> CpuUse:
        """What was used since it was made."""
        wall_s, process_s, faces_s, machine_s = (
            now - then for now, then in zip(self._read(), self._began, strict=True)
        )
        return CpuUse(wall_s, process_s, faces_s, max(machine_s - process_s, 0.0))

    def _read(self) -> tuple[float, float, float, float]:
        faces_s = 0.0
        if hasattr(time, "pthread_getcpuclockid"):
            for thread in threading.enumerate():
                if self._thread_name in thread.name and thread.ident is not None:
                    faces_s += time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
        return time.monotonic(), time.process_time(), faces_s, _machine_cpu_s()


def _machine_cpu_s() -> float:
    """Processor time that was used on the machine since it started."""
    statistics = Path("/proc/stat")
    if not statistics.exists():
        return float("nan")
    fields = [int(field) for field in statistics.read_text().splitlines()[0].split()[1:9]]
    idle, waiting_for_disk = fields[3], fields[4]
    return (sum(fields) - idle - waiting_for_disk) / os.sysconf("SC_CLK_TCK")
