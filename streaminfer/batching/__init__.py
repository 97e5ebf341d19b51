"""Adaptive batching: which requests share a batch, and when it goes."""

from streaminfer.batching import arrivals
from streaminfer.batching.batcher import AdaptiveBatcher
from streaminfer.batching.learning import LearnedServiceTime
from streaminfer.batching.lookahead import Lookahead
from streaminfer.batching.optimum import clairvoyant_optimum
from streaminfer.batching.policy import Decision, Greedy, Policy, Timer
from streaminfer.batching.service_time import ServiceTime
from streaminfer.batching.simulation_result import SimulationResult
from streaminfer.batching.simulator import simulate
from streaminfer.batching.statistics import BatcherStatistics

__all__ = [
    "AdaptiveBatcher",
    "BatcherStatistics",
    "Decision",
    "Greedy",
    "LearnedServiceTime",
    "Lookahead",
    "Policy",
    "ServiceTime",
    "SimulationResult",
    "Timer",
    "arrivals",
    "clairvoyant_optimum",
    "simulate",
]
