"""Server in a separate process group, on separate ports, that never outlives the process that started it.

A keeper (:mod:`servers.keeper`) reads a pipe from this process. When the pipe ends, because the server is stopped or
this process was killed, the keeper kills the server's group and all processes that it started, and removes the server's
files. The server writes its output to a file: a pipe that its processes hold would keep the reader waiting.
"""

import http.client
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

from servers.keeper import kill_family

__all__ = ["ServerProcess", "free_ports", "group_members"]

HOST = "127.0.0.1"
SHM = Path("/dev/shm")  # noqa: S108 shared memory, not a temporary file
KEEPER = Path(__file__).with_name("keeper.py")
START_TIMEOUT_S = 120.0  # generous, because the load of the machine is not under test
POLL_S = 0.02


def free_ports(count: int) -> list[int]:
    """Return ports of loopback without a listener, below the range of outgoing connections.

    A server that restarts finds its ports free, because no outgoing connection takes them in between.
    """
    ports: list[int] = []
    while len(ports) < count:
        port = random.SystemRandom().randrange(12_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        if port not in ports:
            ports.append(port)
    return ports


def group_members(group: int) -> dict[int, str]:
    """Return the live processes of a process group with their command lines."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # the command's name, in parentheses, may contain any characters
            state, _, its_group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


class ServerProcess(ABC):
    """Common part of all servers; a context manager.

    Methods block: call them in a thread if an event loop must keep running.

    Attributes:
        ports: ports of the server, the same after a restart.
        folder: folder of its files; removed at the end.
        log: file with its output.
        shm_prefix: prefix of the names of its files in ``/dev/shm``.
        start_s: seconds that the last start took.
    """

    def __init__(self, ports: int) -> None:
        self.ports = free_ports(ports)
        self.folder = Path(tempfile.mkdtemp(prefix="streaminfer-server-"))
        self.log = self.folder / "server.log"
        self.shm_prefix = f"sis-{os.getpid()}-{secrets.token_hex(4)}-"
        self.start_s = 0.0
        self._server: subprocess.Popen[bytes] | None = None
        self._keeper: subprocess.Popen[str] | None = None

    @abstractmethod
    def prepare(self) -> tuple[Sequence[str], Mapping[str, str]]:
        """Install the server and write its files; return its command and environment variables."""

    @abstractmethod
    def is_ready(self) -> bool:
        """Return true if all parts of the server respond."""

    @property
    def pid(self) -> int:
        """Process id of the server and of its process group."""
        if self._server is None:
            raise RuntimeError("the server was not started")
        return self._server.pid

    @property
    def running(self) -> bool:
        """True while the server's process exists, frozen or not."""
        return self._server is not None and self._server.poll() is None

    def start(self) -> None:
        """Start the server, and return when it is ready.

        Raises:
            RuntimeError: it ended, or was not ready in time; the message has its log.
        """
        began = time.perf_counter()
        if self._keeper is None:
            keeper = [sys.executable, "-I", "-S", str(KEEPER), self.shm_prefix, str(self.folder)]
            self._keeper = subprocess.Popen(
                keeper, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
            )
            self._command, self._environment = self.prepare()
        with self.log.open("ab") as log:
            self._server = subprocess.Popen(
                self._command,
                env=self._environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._tell_keeper("watch")
        while not self.is_ready():
            if not self.running or time.perf_counter() - began > START_TIMEOUT_S:
                message = f"not ready after {time.perf_counter() - began:.1f} s:\n{self._said()}"
                self.stop()
                raise RuntimeError(message)
            time.sleep(POLL_S)
        self.start_s = time.perf_counter() - began

    def stop(self) -> None:
        """Kill the server and all processes that it started, and remove its files; a second call does nothing."""
        if self._keeper is not None:
            keeper, self._keeper = self._keeper, None
            keeper.communicate()
        if self._server is not None:
            self._server.wait(START_TIMEOUT_S)

    def freeze(self) -> None:
        """Stop all processes of the server's group (SIGSTOP): connections stay open, and none of them responds."""
        os.killpg(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let the frozen processes continue (SIGCONT)."""
        os.killpg(self.pid, signal.SIGCONT)

    def terminate(self) -> None:
        """Send SIGTERM to the server, without waiting for its end."""
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Kill all processes of the server (SIGKILL), and remove their files in shared memory."""
        while kill_family([self.pid]):
            time.sleep(POLL_S / 4)
        self.wait(START_TIMEOUT_S)
        for name in self.shm_files():
            (SHM / name).unlink(missing_ok=True)

    def wait(self, timeout_s: float) -> int:
        """Wait until the server has ended; return its exit status.

        Raises:
            subprocess.TimeoutExpired: it still runs after the timeout.
        """
        if self._server is None:
            raise RuntimeError("the server was not started")
        return self._server.wait(timeout_s)

    def restart(self) -> None:
        """Kill the processes that are left, and start the server again on the same ports, also after a failed start."""
        self.kill()
        if self._keeper is not None:
            self._tell_keeper("forget")
        self.start()

    def answers(
        self,
        port: int,
        path: str,
        *,
        method: str = "GET",
        body: bytes | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
        timeout_s: float = 60.0,
    ) -> tuple[int, bytes]:
        """Send one HTTP request; return its status (0: no connection, or no response in time) and body."""
        connection = http.client.HTTPConnection(HOST, port, timeout=timeout_s)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException):
            return 0, b""
        finally:
            connection.close()

    def shm_files(self) -> list[str]:
        """Return the names of the server's files in shared memory."""
        return sorted(path.name for path in SHM.glob(f"{self.shm_prefix}*"))

    def _said(self) -> str:
        """Return the log, or both ends of a long one: errors of options are at the start, later errors at the end."""
        text = self.log.read_text(errors="replace")
        return text if len(text) < 6000 else f"{text[:2000]}\n...\n{text[-4000:]}"

    def _tell_keeper(self, word: str) -> None:
        if self._keeper is None or self._keeper.stdin is None:
            raise RuntimeError("the server was stopped")
        self._keeper.stdin.write(f"{word} {self.pid}\n")
        self._keeper.stdin.flush()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
