"""KServe's Python server on loopback: the inference protocol without versions and without Triton's extensions.

with KServe() as server: ...       server.grpc_url, server.http_url
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from servers.environments import ENVIRONMENTS
from servers.mlp import mlp_weights
from servers.process import HOST, ServerProcess

__all__ = ["KServe"]

SOURCE = Path(__file__).with_name("models") / "kserve_mlp.py"


class KServe(ServerProcess):
    """KServe 0.21 with the model ``mlp``.

    Attributes:
        grpc_url: ``host:port``.
        http_url: the same for HTTP.
    """

    def __init__(self) -> None:
        super().__init__(2)
        self._http_port, grpc_port = self.ports
        self.http_url = f"{HOST}:{self._http_port}"
        self.grpc_url = f"{HOST}:{grpc_port}"

    def prepare(self) -> tuple[Sequence[str], Mapping[str, str]]:
        """Install KServe at first use, and write the model; return the command and its environment variables."""
        environment = ENVIRONMENTS["kserve"].make()
        weights = self.folder / "weights.npz"
        np.savez(weights, **mlp_weights())  # type: ignore[arg-type]  # all values are arrays
        script = self.folder / "serve.py"
        shutil.copyfile(SOURCE, script)
        variables = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME"}}
        return [str(environment.python), str(script), str(weights), *map(str, self.ports)], variables

    def is_ready(self) -> bool:
        """Return true if HTTP is ready; the server starts gRPC first."""
        return self.answers(self._http_port, "/v2/health/ready", timeout_s=2.0)[0] == 200
