"""Description of the machine, and the processor time that was used on it."""

import os
import platform
import threading
import time
from pathlib import Path

import attrs

__all__ = ["CpuClock", "CpuUse", "describe_machine", "processors"]


def processors() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_machine() -> str:
    """Return processors and software, on one line."""
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
        wall_s: time between the moments.
        process_s: time used by this process.
        faces_s: part of it that the face detector's thread used.
        others_s: time used by all other processes, or taken by the host; NaN if the system does not report it.
    """

    wall_s: float
    process_s: float
    faces_s: float
    others_s: float


class CpuClock:
    """Measures processor time from its creation on.

    Args:
        thread_name: part of the name of the face detector's thread.
    """

    def __init__(self, thread_name: str) -> None:
        self._thread_name = thread_name
        self._began = self._read()

    def read(self) -> CpuUse:
        """Return the processor time since the creation of this object."""
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
    """Return the processor time that was used on the machine since its start."""
    statistics = Path("/proc/stat")
    if not statistics.exists():
        return float("nan")
    fields = [int(field) for field in statistics.read_text().splitlines()[0].split()[1:9]]
    idle, waiting_for_disk = fields[3], fields[4]
    return (sum(fields) - idle - waiting_for_disk) / os.sysconf("SC_CLK_TCK")
