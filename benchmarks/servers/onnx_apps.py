"""Real ONNX models of one input as stacks, and their servers.

uvicorn --factory onnx_apps:http_app      over HTTP
python -m servers.onnx_apps PORT          over gRPC

The environment variable ``STREAMINFER_MODELS`` names the folder of the model files.
"""

import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import attrs

import streaminfer as si
from servers.process import HOST, ServerProcess

__all__ = ["FOLDER", "MAX_BATCH_SIZE", "MODELS", "GrpcServer", "OnnxModel", "http_app", "stacks"]

FOLDER = "STREAMINFER_MODELS"
MAX_BATCH_SIZE = 32


@attrs.frozen
class OnnxModel:
    """File of a model, name and row shape of its input and of its first output, and the executor of its batches."""

    file: str
    input: str
    row: tuple[int, ...]
    output: str
    answer: tuple[int, ...]
    executor: Literal["thread", "inline"]


MODELS = {
    # a row takes 0.1 ms, as long as a hop to a thread
    "silero": OnnxModel("silero_vad_16k_op15.onnx", "input", (576,), "output", (1,), "inline"),
    "blaze_full": OnnxModel("blaze_full.onnx", "input", (192, 192, 3), "boxes", (2304, 16), "thread"),
}


def stacks(folder: Path) -> Mapping[str, si.Stack]:
    """Return a stack for each model, not started."""
    return {
        name: si.Stack(
            si.AdaptiveBatcher(max_batch_size=MAX_BATCH_SIZE),
            si.OnnxBackend(folder / model.file, outputs=[model.output], executor=model.executor),
        )
        for name, model in MODELS.items()
    }


def http_app() -> Any:
    """Return the app of all models."""
    return si.serving.asgi_app(stacks(Path(os.environ[FOLDER])))


async def serve_grpc(port: int) -> None:
    """Serve all models over gRPC until the process ends."""
    import grpc

    models = stacks(Path(os.environ[FOLDER]))
    for stack in models.values():
        await stack.start()
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((si.serving.grpc_servicer(models),))
    server.add_insecure_port(f"{HOST}:{port}")
    await server.start()
    await server.wait_for_termination()


class GrpcServer(ServerProcess):
    """Server of the models of a folder over gRPC.

    Its process has its own session, like those of other servers. The kernel gives each session the same share of a busy
    machine, so a server in the session of its client would have to divide its share with the client.

    Args:
        folder: folder of the model files.

    Attributes:
        url: ``host:port``.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(1)
        self._models = folder
        self.url = f"{HOST}:{self.ports[0]}"

    def prepare(self) -> tuple[Sequence[str], Mapping[str, str]]:
        """Return the command, which runs in the Python environment of this process, and its environment variables."""
        benchmarks = Path(__file__).resolve().parents[1]
        folders = os.pathsep.join([str(benchmarks.parent), str(benchmarks)])
        variables = os.environ | {"PYTHONPATH": folders, FOLDER: str(self._models)}
        return [sys.executable, "-m", "servers.onnx_apps", str(self.ports[0])], variables

    def is_ready(self) -> bool:
        """Return true if the server listens, which it does once the models have started."""
        with socket.socket() as probe:
            return probe.connect_ex((HOST, self.ports[0])) == 0


if __name__ == "__main__":
    import uvloop

    uvloop.run(serve_grpc(int(sys.argv[1])))
