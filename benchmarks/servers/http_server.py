"""Servers of models over HTTP, each in a process of its own, in the environment ``serving``."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from servers.environments import ENVIRONMENTS

__all__ = ["asgi_server", "command_server", "cpu_s", "free_port"]

BENCHMARKS = Path(__file__).resolve().parents[1]


def free_port() -> int:
    """Return a port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def asgi_server(server: str, app: str) -> contextlib.AbstractContextManager[tuple[int, int]]:
    """Run an app of `http_apps` under ``uvicorn`` or ``granian``; gives its port and process id."""
    arguments = {
        "uvicorn": ["-m", "uvicorn", "--log-level", "critical"],
        "granian": ["-m", "granian", "--interface", "asgi", "--no-ws", "--log-level", "critical"],
    }[server]
    return command_server(*arguments, "--port", "{port}", f"servers.http_apps:{app}")


@contextlib.contextmanager
def command_server(*arguments: str) -> Iterator[tuple[int, int]]:
    """Run Python with these arguments, in which ``{port}`` is a free port; gives the port and the process id."""
    python, port = ENVIRONMENTS["serving"].make().python, free_port()
    command = [str(python), *(one.format(port=port) for one in arguments)]
    folders = os.pathsep.join([str(BENCHMARKS.parent), str(BENCHMARKS)])
    environment = os.environ | {"PYTHONPATH": folders, "BENTOML_DO_NOT_TRACK": "True"}
    process = subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        for _ in range(1200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            if process.poll() is not None:
                raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
            time.sleep(0.1)
        else:
            raise RuntimeError(f"{' '.join(command)} does not listen")
        yield port, process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # workers that it started are in its session
        process.wait()


def cpu_s(pid: int) -> float:
    """Return the CPU time of a process and its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    children = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return own + sum(cpu_s(int(child)) for some in children for child in some)
