"""Adaptive batching: which requests share a batch, and when it goes."""

import importlib
from typing import TYPE_CHECKING, Any

from streaminfer.batching.batcher import AdaptiveBatcher, BatchedFunction
from streaminfer.batching.policy import Decision, Greedy, Policy, PolicyName, Timer

if TYPE_CHECKING:
    from streaminfer.batching import arrivals
    from streaminfer.batching.alternatives import Outcome, WhatIf, what_if
    from streaminfer.batching.buckets import Buckets
    from streaminfer.batching.calibration import CalibrationStatistics
    from streaminfer.batching.decision_log import DecisionLog
    from streaminfer.batching.learned_service_time import LearnedServiceTime
    from streaminfer.batching.lookahead import Lookahead
    from streaminfer.batching.optimum import clairvoyant_optimum
    from streaminfer.batching.profiling import profile
    from streaminfer.batching.service_time import ServiceTime
    from streaminfer.batching.simulation_result import SimulationResult
    from streaminfer.batching.simulator import simulate
    from streaminfer.batching.statistics import BatcherStatistics
    from streaminfer.batching.trace import Trace

__all__ = [
    "AdaptiveBatcher",
    "BatchedFunction",
    "BatcherStatistics",
    "Buckets",
    "CalibrationStatistics",
    "Decision",
    "DecisionLog",
    "Greedy",
    "LearnedServiceTime",
    "Lookahead",
    "Outcome",
    "Policy",
    "PolicyName",
    "ServiceTime",
    "SimulationResult",
    "Timer",
    "Trace",
    "WhatIf",
    "arrivals",
    "clairvoyant_optimum",
    "profile",
    "simulate",
    "what_if",
]

_LATER = {
    "BatcherStatistics": "statistics",
    "Buckets": "buckets",
    "CalibrationStatistics": "calibration",
    "DecisionLog": "decision_log",
    "LearnedServiceTime": "learned_service_time",
    "Lookahead": "lookahead",
    "ServiceTime": "service_time",
    "Outcome": "alternatives",
    "SimulationResult": "simulation_result",
    "Trace": "trace",
    "WhatIf": "alternatives",
    "clairvoyant_optimum": "optimum",
    "profile": "profiling",
    "simulate": "simulator",
    "what_if": "alternatives",
}
"""What serving does not need is loaded when it is asked for."""


if not TYPE_CHECKING:  # type checkers know the names from the block above, and refuse others

    def __getattr__(name: str) -> Any:
        if name in _LATER:
            value = getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
            globals()[name] = value
            return value
        if name == "arrivals":
            return importlib.import_module(f"{__name__}.arrivals")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
