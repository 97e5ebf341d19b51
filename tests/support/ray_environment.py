"""Runner of scripts in the environment that has Ray."""

import os
import subprocess
import tempfile
from pathlib import Path

from servers.environments import ENVIRONMENTS

__all__ = ["ROOT", "run_with_ray"]

ROOT = Path(__file__).parents[2]
HAPROXY = {
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "haproxy.cfg",
    "RAY_SERVE_HAPROXY_SOCKET_PATH": "admin.sock",
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": ".",
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "server-state",
    "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": "metrics.sock",
}
"""Files whose default folder is the same for all clusters and users of the machine."""


def run_with_ray(*arguments):
    """Run Python in that environment with these arguments; return the completed process."""
    path = os.pathsep.join((str(ROOT), str(ROOT / "examples")))
    with tempfile.TemporaryDirectory(prefix="haproxy-") as folder:
        return subprocess.run(
            [ENVIRONMENTS["ray"].make().python, *arguments],
            env={
                **os.environ,
                "PYTHONPATH": path,
                # a router of Serve outlives `ray.shutdown`, and its next call would connect again to the cluster that ends
                "RAY_ENABLE_AUTO_CONNECT": "0",
                # Ray's default is 15, with which its workers would get nearly no time beside any other process
                "RAY_worker_niceness": "0",
                **{name: f"{folder}/{file}" for name, file in HAPROXY.items()},
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
