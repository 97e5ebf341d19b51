"""Runs scripts in the environment that has Ray."""

import os
import subprocess
from pathlib import Path

from servers.environments import ENVIRONMENTS

__all__ = ["ROOT", "run_with_ray"]

ROOT = Path(__file__).parents[2]


def run_with_ray(*arguments):
    """What Python there did with these arguments."""
    return subprocess.run(
        [ENVIRONMENTS["ray"].make().python, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "examples")))},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
