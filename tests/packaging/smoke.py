"""Use an installed streaminfer in a separate interpreter, and write the results as JSON.

Arguments: the dotted names of modules; the output has the paths of their files.
"""

import asyncio
import importlib
import json
import logging
import sys

import numpy as np

import streaminfer as si
from streaminfer import _compiled_kernels


class _Warnings(logging.Handler):
    """Log handler that collects the messages of warnings and errors."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.messages = []

    def emit(self, record):
        self.messages.append(record.getMessage())


async def _answer_eight_at_once():
    batcher = si.AdaptiveBatcher(max_batch_size=8, slo_s=60.0)
    async with si.Stack(si.Telemetry("smoke"), batcher, si.CpuBackend(np.negative)) as service:
        answers = await asyncio.gather(*(service(np.float32(number)) for number in range(8)))
    return [float(answer) for answer in answers], batcher.statistics()


warnings = _Warnings()
logging.getLogger("streaminfer").addHandler(warnings)
asyncio.run(_answer_eight_at_once())
answers, statistics = asyncio.run(_answer_eight_at_once())
histogram = si.LatencyHistogram()
histogram.record_many(np.full(5000, 0.001))  # enough values for the kernel
kernels = _compiled_kernels.load()
json.dump(
    {
        "package": si.__file__,
        "compiled": si.compiled,
        "warnings": warnings.messages,
        "files": {name: importlib.import_module(name).__file__ for name in sys.argv[1:]},
        "answers": answers,
        "batch_sizes": list(statistics.batch_sizes.items()),
        "released": dict(statistics.released),
        "recorded": histogram.count,
        "kernels": kernels and kernels.variant,
        "numba": "numba" in sys.modules,
    },
    sys.stdout,
)
