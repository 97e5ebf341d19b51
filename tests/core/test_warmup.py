"""Kernels compiled ahead."""

import subprocess
import sys


def test_warmup_compiles_what_the_first_use_would_otherwise():
    code = (
        "import sys, streaminfer as si, numpy as np\n"
        "assert 'numba' not in sys.modules\n"
        "si.warmup(); si.warmup()\n"
        "assert 'numba' in sys.modules\n"
        "from streaminfer.telemetry import kernels\n"
        "assert kernels._compiled().signatures\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
