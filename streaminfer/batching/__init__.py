"""Adaptive batching: chooses the requests of a batch and the instant of its release."""

from typing import TYPE_CHECKING

from streaminfer._internal.loading.lazy import lazy_attributes
from streaminfer.batching.batcher import AdaptiveBatcher

if TYPE_CHECKING:
    from streaminfer.batching.assembly.buckets import Buckets
    from streaminfer.batching.batched_function import BatchedFunction
    from streaminfer.batching.batcher_statistics import BatcherStatistics
    from streaminfer.batching.device.device import Device
    from streaminfer.batching.device.statistics import DeviceModelStatistics, DeviceStatistics
    from streaminfer.batching.planner.lookahead import Lookahead
    from streaminfer.batching.policy import Decision, Greedy, Policy, PolicyName
    from streaminfer.batching.service_time.calibration import CalibrationStatistics
    from streaminfer.batching.service_time.learned_service_time import LearnedServiceTime
    from streaminfer.batching.service_time.service_time import ServiceTime
    from streaminfer.simulation import arrivals
    from streaminfer.simulation.decision_log import DecisionLog
    from streaminfer.simulation.offline_optimum import clairvoyant_optimum
    from streaminfer.simulation.profiling import profile
    from streaminfer.simulation.scenarios import Scenario, ScenarioTable, what_if
    from streaminfer.simulation.simulation_result import SimulationResult
    from streaminfer.simulation.simulator import simulate
    from streaminfer.simulation.trace import Trace

__all__ = [
    "AdaptiveBatcher",
    "BatchedFunction",
    "BatcherStatistics",
    "Buckets",
    "CalibrationStatistics",
    "Decision",
    "DecisionLog",
    "Device",
    "DeviceModelStatistics",
    "DeviceStatistics",
    "Greedy",
    "LearnedServiceTime",
    "Lookahead",
    "Policy",
    "PolicyName",
    "Scenario",
    "ScenarioTable",
    "ServiceTime",
    "SimulationResult",
    "Trace",
    "arrivals",
    "clairvoyant_optimum",
    "profile",
    "simulate",
    "what_if",
]

_HOMES = {
    "batching.assembly.buckets": ["Buckets"],
    "batching.batched_function": ["BatchedFunction"],
    "batching.batcher_statistics": ["BatcherStatistics"],
    "batching.device.device": ["Device"],
    "batching.device.statistics": ["DeviceModelStatistics", "DeviceStatistics"],
    "batching.planner.lookahead": ["Lookahead"],
    "batching.policy": ["Decision", "Greedy", "Policy", "PolicyName"],
    "batching.service_time.calibration": ["CalibrationStatistics"],
    "batching.service_time.learned_service_time": ["LearnedServiceTime"],
    "batching.service_time.service_time": ["ServiceTime"],
    "simulation.decision_log": ["DecisionLog"],
    "simulation.offline_optimum": ["clairvoyant_optimum"],
    "simulation.profiling": ["profile"],
    "simulation.scenarios": ["Scenario", "ScenarioTable", "what_if"],
    "simulation.simulation_result": ["SimulationResult"],
    "simulation.simulator": ["simulate"],
    "simulation.trace": ["Trace"],
}


if not TYPE_CHECKING:  # type checkers know the names from the block above, and reject others
    __getattr__, __dir__ = lazy_attributes(__name__, _HOMES, {"arrivals": "simulation.arrivals"})
