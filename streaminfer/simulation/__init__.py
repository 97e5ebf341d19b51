"""Simulation of batching: arrivals, traces, scenarios, the offline optimum, decision logs."""

from typing import TYPE_CHECKING

from streaminfer._internal.lazy import lazy_attributes

if TYPE_CHECKING:
    from streaminfer.batching.decision_log import DecisionLog
    from streaminfer.simulation import arrivals
    from streaminfer.simulation.offline_optimum import clairvoyant_optimum
    from streaminfer.simulation.profiling import profile
    from streaminfer.simulation.scenarios import Scenario, ScenarioTable, what_if
    from streaminfer.simulation.simulation_result import SimulationResult
    from streaminfer.simulation.simulator import simulate
    from streaminfer.simulation.trace import Trace

__all__ = [
    "DecisionLog",
    "Scenario",
    "ScenarioTable",
    "SimulationResult",
    "Trace",
    "arrivals",
    "clairvoyant_optimum",
    "profile",
    "simulate",
    "what_if",
]

_HOMES = {
    "DecisionLog": "batching.decision_log",
    "Scenario": "simulation.scenarios",
    "SimulationResult": "simulation.simulation_result",
    "Trace": "simulation.trace",
    "ScenarioTable": "simulation.scenarios",
    "clairvoyant_optimum": "simulation.offline_optimum",
    "profile": "simulation.profiling",
    "simulate": "simulation.simulator",
    "what_if": "simulation.scenarios",
}


if not TYPE_CHECKING:  # type checkers know the names from the block above, and refuse others
    __getattr__, __dir__ = lazy_attributes(__name__, _HOMES, {"arrivals": "simulation.arrivals"})
