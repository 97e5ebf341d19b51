"""A real NVIDIA Triton on loopback, without Docker or GPU: the binaries of a wheel, and its Python backend.

with TritonServer(["mlp"]) as server: ...       server.grpc_url, server.http_url, server.metrics_url

python benchmarks/servers/triton_server.py [MODEL ...]     runs a server until Ctrl-C

At its start the server writes its model repository from :mod:`servers.models`: one ``NAME.pbtxt`` for each model, one
``.py`` for each kind. Models load on demand, so that a server with one model starts in two seconds.
"""

import logging
import os
import re
import shutil
import signal
import string
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from servers.environments import ENVIRONMENTS
from servers.mlp import write_mlp
from servers.process import HOST, ServerProcess, group_members

__all__ = ["MODELS", "TritonServer"]

SOURCES = Path(__file__).with_name("models")
# code of each model; an ensemble has none
MODELS = {
    "mlp": "mlp",
    "mlp_batched": "mlp",
    "affine": "affine",
    "mlp_ensemble": None,
    "accumulate": "accumulate",
    "repeat": "repeat",
    "slow_echo": "slow_echo",
    "echo": "echo",
    "image_identity": "image_identity",
    "image_ends": "image_ends",
    "priority": "priority",
    "versioned": "versioned",
}
NEEDED = {"mlp_ensemble": ("mlp", "affine")}
IN_WHEEL = "pytriton/tritonserver"
STUB_CRASH = "boost::interprocess::lock_exception"
"""Text in Triton's log if it ended because a model's process, ``triton_python_backend_stub``, crashed at its start.

This happens at times with version 2.51 on a busy machine, and is reported for later versions
(triton-inference-server/server#8882).
"""
STARTS = 3
END_TIMEOUT_S = 10.0  # for a server that has closed its connections
PROBE = "import sys, sysconfig; print(sysconfig.get_config_var('LIBDIR')); print('%d.%d' % sys.version_info[:2])"


class TritonServer(ServerProcess):
    """Triton 2.51 with models of ours; see :class:`~servers.process.ServerProcess` for the rest.

    Args:
        models: models to load at start, of :data:`MODELS`; the models that an ensemble needs are added.
        hidden: hidden units of the MLP, which set its cost.
        max_batch_size: maximum batch size of the two MLP models.
        max_queue_delay_us: microseconds that ``mlp_batched`` waits for more rows.
        options: further options of ``tritonserver``.

    Attributes:
        grpc_url: ``host:port``, as ``tritonclient`` takes it.
        http_url: the same for HTTP.
        metrics_url: URL that Prometheus scrapes.
    """

    def __init__(
        self,
        models: Iterable[str] = MODELS,
        *,
        hidden: int = 16,
        max_batch_size: int = 64,
        max_queue_delay_us: int = 2000,
        options: Sequence[str] = (),
    ) -> None:
        wanted = [part for name in models for part in (*NEEDED.get(name, ()), name)]
        if unknown := set(wanted) - set(MODELS):
            raise ValueError(f"models must be of {', '.join(MODELS)}, got {', '.join(sorted(unknown))}")
        super().__init__(3)
        self.models = tuple(dict.fromkeys(wanted))
        self.repository = self.folder / "models"
        self._options = tuple(options)
        self._hidden = hidden
        self._values = {"max_batch_size": max_batch_size, "max_queue_delay_us": max_queue_delay_us}
        self._http_port, grpc_port, self._metrics_port = self.ports
        self.http_url = f"{HOST}:{self._http_port}"
        self.grpc_url = f"{HOST}:{grpc_port}"
        self.metrics_url = f"http://{HOST}:{self._metrics_port}/metrics"

    def prepare(self) -> tuple[Sequence[str], Mapping[str, str]]:
        """Install Triton at first use, and write the model repository and the backend's folder.

        Returns:
            The command and its environment variables.
        """
        environment = ENVIRONMENTS["triton"].make()
        asked = subprocess.run([environment.python, "-c", PROBE], capture_output=True, text=True, check=True)
        libpython, version = asked.stdout.splitlines()
        triton = environment.packages / IN_WHEEL
        backend = self.folder / "backends" / "python"
        backend.mkdir(parents=True)
        # the wheel keeps the stubs, one for each version of Python, apart from the rest of the backend
        for part in (
            "backends/python/libtriton_python.so",
            "backends/python/triton_python_backend_utils.py",
            f"python_backend_stubs/{version}/triton_python_backend_stub",
        ):
            (backend / Path(part).name).symlink_to(triton / part)
        for name in MODELS:
            self._write(name)
        variables = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME"}}
        # the embedded interpreter finds its packages by the first python of PATH
        variables["PATH"] = f"{environment.python.parent}:{variables['PATH']}"
        variables["LD_LIBRARY_PATH"] = f"{libpython}:{environment.packages / 'nvidia_pytriton.libs'}"
        return self._command_line(triton), variables

    def start(self) -> None:
        """Start the server, and start it again if Triton's process for a model crashed as it started.

        Raises:
            RuntimeError: it ended, or was not ready in time; the message has its log.
        """
        for starts_left in reversed(range(STARTS)):
            try:
                super().start()
            except RuntimeError as error:
                if STUB_CRASH not in str(error) or not starts_left:
                    raise
                logging.getLogger(__name__).warning("Triton's process for a model crashed; it is started again")
            else:
                return

    def is_ready(self) -> bool:
        """Return true if HTTP and metrics respond; HTTP reports ready before the metrics port is bound."""
        ready, _ = self.answers(self._http_port, "/v2/health/ready", timeout_s=2.0)
        return ready == 200 and self.answers(self._metrics_port, "/metrics", timeout_s=2.0)[0] == 200

    def is_whole(self) -> bool:
        """Return true if it is ready and each model with code has its process, which readiness alone does not show."""
        coded = (name for name in self.models if MODELS[name])
        return self.running and self.is_ready() and all(map(self.model_pids, coded))

    def load(self, model: str) -> None:
        """Load a model, or load it again if its files changed.

        Raises:
            RuntimeError: the server did not load it; the message has its reason.
        """
        self._repository_call(model, "load")

    def unload(self, model: str) -> None:
        """Unload a model, and return when its processes have ended.

        Raises:
            RuntimeError: the server did not unload it, with its reason, or a process still runs.
        """
        self._repository_call(model, "unload")
        deadline = time.perf_counter() + 30.0
        while self.model_pids(model):
            if time.perf_counter() > deadline:
                raise RuntimeError(f"{model} is still there 30 s after it was unloaded")
            time.sleep(0.01)

    def set_versions(self, model: str, *versions: int) -> None:
        """Set the versions of a model with one load call; return when the server has them.

        Raises:
            RuntimeError: the server did not load them; the message has its reason.
        """
        folder = self.repository / model
        there = {int(path.name) for path in folder.iterdir() if path.is_dir()}
        for version in set(versions) - there:
            shutil.copytree(folder / str(max(there)), folder / str(version), ignore=shutil.ignore_patterns("__*"))
        for version in there - set(versions):
            shutil.rmtree(folder / str(version))
        self.load(model)

    def repair(self, model: str) -> None:
        """Unload and load a model whose process was killed."""
        self.unload(model)
        self.load(model)

    def set_max_queue_delay(self, delay_us: int) -> None:
        """Load ``mlp_batched`` again with another ``max_queue_delay``, in microseconds."""
        self._values["max_queue_delay_us"] = delay_us
        self._write("mlp_batched")
        self.load("mlp_batched")

    def model_pids(self, model: str) -> list[int]:
        """Return the ids of the processes that run a model's code."""
        mark = re.compile(f"/{re.escape(model)}/[0-9]+/model.py")
        return [pid for pid, command in group_members(self.pid).items() if mark.search(command)]

    def kill_model(self, model: str) -> None:
        """Kill the process that runs a model's code; the server continues and reports the model as ready."""
        pids = self.model_pids(model)
        if not pids:
            raise RuntimeError(f"no process runs {model}")
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    def metrics(self) -> str:
        """Return the metrics as Prometheus would scrape them."""
        return self.answers(self._metrics_port, "/metrics")[1].decode()

    def _write(self, name: str) -> None:
        folder = self.repository / name
        (folder / "1").mkdir(parents=True, exist_ok=True)
        config = string.Template((SOURCES / f"{name}.pbtxt").read_text()).substitute(self._values)
        (folder / "config.pbtxt").write_text(config)
        if code := MODELS[name]:
            shutil.copyfile(SOURCES / f"{code}.py", folder / "1" / "model.py")
        if code == "mlp":
            write_mlp(folder / "1" / "model.onnx", self._hidden)

    def _command_line(self, triton: Path) -> list[str]:
        http, grpc, metrics = self.ports
        return [
            str(triton / "bin" / "tritonserver"),
            "--id=streaminfer",
            f"--model-repository={self.repository}",
            "--model-control-mode=explicit",
            *(f"--load-model={name}" for name in self.models),
            f"--backend-directory={self.folder / 'backends'}",
            *(f"--{kind}-address={HOST}" for kind in ("http", "grpc", "metrics")),
            f"--http-port={http}",
            f"--grpc-port={grpc}",
            f"--metrics-port={metrics}",
            "--allow-gpu-metrics=false",
            "--metrics-config=summary_latencies=true",
            "--backend-config=python,shm-default-byte-size=1048576",
            f"--backend-config=python,shm-region-prefix-name={self.shm_prefix}",
            "--exit-timeout-secs=5",
            "--http-thread-count=2",
            *self._options,
        ]

    def _repository_call(self, model: str, what: str) -> None:
        path = f"/v2/repository/models/{model}/{what}"
        status, body = self.answers(self._http_port, path, method="POST")
        if status == 0 and self._has_crashed():
            logging.getLogger(__name__).warning("Triton's process for a model crashed; the server is restarted")
            self.restart()
            status, body = self.answers(self._http_port, path, method="POST")
        if status != 200:
            raise RuntimeError(f"{what} of {model}: HTTP {status} {body.decode(errors='replace')}")

    def _has_crashed(self) -> bool:
        """Return true if the server ended because the process of a model crashed as it started."""
        try:
            self.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return False
        return STUB_CRASH in self._said()


def main() -> None:
    with TritonServer(sys.argv[1:] or MODELS) as server:
        print(f"gRPC {server.grpc_url}  HTTP {server.http_url}  metrics {server.metrics_url}  log {server.log}")
        print(f"pid {server.pid}, ready after {server.start_s:.1f} s; Ctrl-C ends it", flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    main()
