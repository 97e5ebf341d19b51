"""Servers of models over HTTP, each in a separate process."""

import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from servers.environments import ENVIRONMENTS
from servers.process import ServerProcess

__all__ = ["HttpServer", "asgi_server", "cpu_s", "free_port"]

READY_TIMEOUT_S = 5.0
BENCHMARKS = Path(__file__).resolve().parents[1]


def free_port() -> int:
    """Return a free port of the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


class HttpServer(ServerProcess):
    """A Python server in a separate environment; see :class:`~servers.process.ServerProcess`.

    A process can accept connections before its workers are ready, so a request tests readiness.

    Args:
        arguments: arguments of Python; ``{port}`` in them is the server's port.
        path: path of a request to which the server responds with 200 once it is ready.
        body: body of this request, a POST; empty for a GET.
        headers: headers of this request.
        variables: further environment variables of the process.
        installed_in: name of the environment that has the server.

    Attributes:
        port: port on loopback.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] = MappingProxyType({}),
        variables: Mapping[str, str] = MappingProxyType({}),
        installed_in: str = "serving",
    ) -> None:
        super().__init__(1)
        (self.port,) = self.ports
        self.path, self.body, self.headers = path, body, headers
        self._arguments = arguments
        self._variables = variables
        self._installed_in = installed_in

    def prepare(self) -> tuple[Sequence[str], Mapping[str, str]]:
        """Install the servers at first use; return the command and its environment variables."""
        python = ENVIRONMENTS[self._installed_in].make().python
        folders = os.pathsep.join([str(BENCHMARKS.parent), str(BENCHMARKS)])
        variables = os.environ | {"PYTHONPATH": folders, "BENTOML_DO_NOT_TRACK": "True", **self._variables}
        return [str(python), *(one.format(port=self.port) for one in self._arguments)], variables

    def is_ready(self) -> bool:
        """Return true if the server responds to the request with 200."""
        method = "POST" if self.body else "GET"
        status, _ = self.answers(
            self.port, self.path, method=method, body=self.body, headers=self.headers, timeout_s=READY_TIMEOUT_S
        )
        return status == 200


def asgi_server(
    server: str,
    app: str,
    path: str = "/v2/health/ready",
    body: bytes = b"",
    headers: Mapping[str, str] = MappingProxyType({}),
) -> HttpServer:
    """Return an app of `http_apps` under ``uvicorn`` or ``granian``; see `HttpServer` for the request."""
    arguments = {
        "uvicorn": ["-m", "uvicorn", "--log-level", "critical"],
        "granian": ["-m", "granian", "--interface", "asgi", "--no-ws", "--log-level", "critical"],
    }[server]
    return HttpServer([*arguments, "--port", "{port}", f"servers.http_apps:{app}"], path, body, headers)


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process and its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    children = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return own + sum(cpu_s(int(child)) for some in children for child in some)
