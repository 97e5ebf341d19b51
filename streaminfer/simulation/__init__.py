"""Simulation of batching: arrivals, traces, scenarios, the offline optimum and decision logs."""

from typing import TYPE_CHECKING

from streaminfer._internal.loading.lazy import lazy_attributes

if TYPE_CHECKING:
    from streaminfer.simulation import arrivals
    from streaminfer.simulation.decision_log import DecisionLog
    from streaminfer.simulation.devices.model_load import ModelLoad
    from streaminfer.simulation.devices.optimum import device_optimum
    from streaminfer.simulation.devices.simulator import DeviceResult, simulate_device
    from streaminfer.simulation.offline_optimum import clairvoyant_optimum
    from streaminfer.simulation.profiling import profile
    from streaminfer.simulation.scenarios import Scenario, ScenarioTable, what_if
    from streaminfer.simulation.simulation_result import SimulationResult
    from streaminfer.simulation.simulator import simulate
    from streaminfer.simulation.trace import Trace

__all__ = [
    "DecisionLog",
    "DeviceResult",
    "ModelLoad",
    "Scenario",
    "ScenarioTable",
    "SimulationResult",
    "Trace",
    "arrivals",
    "clairvoyant_optimum",
    "device_optimum",
    "profile",
    "simulate",
    "simulate_device",
    "what_if",
]

_HOMES = {
    "simulation.decision_log": ["DecisionLog"],
    "simulation.devices.model_load": ["ModelLoad"],
    "simulation.devices.optimum": ["device_optimum"],
    "simulation.devices.simulator": ["DeviceResult", "simulate_device"],
    "simulation.offline_optimum": ["clairvoyant_optimum"],
    "simulation.profiling": ["profile"],
    "simulation.scenarios": ["Scenario", "ScenarioTable", "what_if"],
    "simulation.simulation_result": ["SimulationResult"],
    "simulation.simulator": ["simulate"],
    "simulation.trace": ["Trace"],
}


if not TYPE_CHECKING:  # type checkers know the names from the block above, and reject others
    __getattr__, __dir__ = lazy_attributes(__name__, _HOMES, {"arrivals": "simulation.arrivals"})
