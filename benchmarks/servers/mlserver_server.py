"""A real MLServer on loopback: the inference protocol without Triton's extensions.

with MLServer() as server: ...       server.grpc_url, server.http_url
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from servers.environments import ENVIRONMENTS
from servers.mlp import mlp_weights
from servers.process import HOST, ServerProcess

__all__ = ["MLServer"]

_Rows = tuple[str, Sequence[int]]
SOURCE = Path(__file__).with_name("models") / "mlserver_mlp.py"


def _tensor(name: str, datatype: str, *shape: int) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": list(shape)}


class MLServer(ServerProcess):
    """MLServer 1.7 with the models ``mlp`` and ``echo`` (``number`` → ``number_out``, int64), and further models.

    Args:
        onnx: further models (`models.onnx_rows`) by name: file, then name and row shape of its input and its output.
        max_batch_size: maximum batch size of the further models.

    Attributes:
        grpc_url: ``host:port``.
        http_url: the same for HTTP.
    """

    def __init__(
        self,
        onnx: Mapping[str, tuple[Path, _Rows, _Rows]] = MappingProxyType({}),
        *,
        max_batch_size: int = 32,
    ) -> None:
        super().__init__(3)
        self._onnx = onnx
        self._max_batch_size = max_batch_size
        self._http_port, grpc_port, self._metrics_port = self.ports
        self.http_url = f"{HOST}:{self._http_port}"
        self.grpc_url = f"{HOST}:{grpc_port}"

    def prepare(self) -> tuple[Sequence[str], Mapping[str, str]]:
        """Install MLServer at first use, and write settings and models; return command and environment variables."""
        environment = ENVIRONMENTS["mlserver"].make()
        http, grpc, metrics = self.ports
        settings = {
            "host": HOST,
            "http_port": http,
            "grpc_port": grpc,
            "metrics_port": metrics,
            "parallel_workers": 0,
            "load_models_at_startup": True,
        }
        models = self.folder / "models"
        models.mkdir()
        (models / "settings.json").write_text(json.dumps(settings))
        path = self._model("mlp", "Mlp", [_tensor("x", "FP32", -1, 8)], [_tensor("y", "FP32", -1, 4)])
        weights = mlp_weights()
        np.savez(path, w1=weights["w1"], b1=weights["b1"], w2=weights["w2"], b2=weights["b2"])
        self._model("echo", "Echo", [_tensor("number", "INT64", -1, -1)], [_tensor("number_out", "INT64", -1, -1)])
        for name, (file, *ends) in self._onnx.items():
            inputs, outputs = ([_tensor(tensor, "FP32", -1, *row)] for tensor, row in ends)
            path = self._model(name, "Rows", inputs, outputs, source=SOURCE.with_name("onnx_rows.py"),
                               max_batch_size=self._max_batch_size, max_batch_time=0.001)  # fmt: skip
            shutil.copyfile(file, path)
        variables = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME"}}
        return [str(environment.python.with_name("mlserver")), "start", str(models)], variables

    def is_ready(self) -> bool:
        """Return true if HTTP is ready; gRPC then is too, because one event loop serves both protocols."""
        return self.answers(self._http_port, "/v2/health/ready", timeout_s=2.0)[0] == 200

    def _model(
        self,
        name: str,
        kind: str,
        inputs: list[dict[str, Any]],
        outputs: list[dict[str, Any]],
        *,
        source: Path = SOURCE,
        **more: Any,
    ) -> Path:
        folder = self.folder / "models" / name
        folder.mkdir()
        module = f"streaminfer_{name}"
        shutil.copyfile(source, folder / f"{module}.py")
        settings = {
            "name": name,
            "implementation": f"{module}.{kind}",
            "parameters": {"uri": "./weights.npz", "version": "1"},
            "inputs": inputs,
            "outputs": outputs,
            **more,
        }
        (folder / "model-settings.json").write_text(json.dumps(settings))
        return folder / "weights.npz"
