"""Runs scripts in the environment that has Ray."""

import os
import subprocess
from pathlib import Path

from servers.environments import ENVIRONMENTS

__all__ = ["ROOT", "run_with_ray"]

ROOT = Path(__file__).parents[2]


def run_with_ray(*arguments):
    """What Python there did with these arguments."""
    path = os.pathsep.join((str(ROOT), str(ROOT / "examples")))
    return subprocess.run(
        [ENVIRONMENTS["ray"].make().python, *arguments],
        env={
            **os.environ,
            "PYTHONPATH": path,
            # a router of Serve outlives `ray.shutdown`, and its next call would connect again to the cluster that ends
            "RAY_ENABLE_AUTO_CONNECT": "0",
            # Ray's is 15: beside any other process its workers would get nearly no time
            "RAY_worker_niceness": "0",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
