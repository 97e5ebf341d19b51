"""Load tests: open-loop sending, tails measured from the intended send time, capacity at an SLO, verdicts on tails."""

from typing import TYPE_CHECKING

from streaminfer._internal.loading.lazy import lazy_attributes

if TYPE_CHECKING:
    from streaminfer.loadtest.arrivals import (
        Arrivals,
        Bursts,
        Cameras,
        Constant,
        Diurnal,
        Gamma,
        OnOff,
        Poisson,
        Ramp,
        Rates,
        Replay,
    )
    from streaminfer.loadtest.capacity.find import find_capacity
    from streaminfer.loadtest.capacity.search import Capacity, Step
    from streaminfer.loadtest.mlperf import MlperfResult, run_mlperf
    from streaminfer.loadtest.report.report import Report, Tail
    from streaminfer.loadtest.runner import run
    from streaminfer.loadtest.sample import Measured, Sample
    from streaminfer.loadtest.scenario import CapacitySettings, RandomInput, Scenario, ServiceSettings, inference_server
    from streaminfer.loadtest.sending.loops import OpenLoop, closed_loop
    from streaminfer.loadtest.sending.record import Record
    from streaminfer.loadtest.sending.sender import Progress
    from streaminfer.loadtest.verdict.interleave import interleave
    from streaminfer.loadtest.verdict.verdict import Verdict, compare

__all__ = [
    "Arrivals",
    "Bursts",
    "Cameras",
    "Capacity",
    "CapacitySettings",
    "Constant",
    "Diurnal",
    "Gamma",
    "Measured",
    "MlperfResult",
    "OnOff",
    "OpenLoop",
    "Poisson",
    "Progress",
    "Ramp",
    "RandomInput",
    "Rates",
    "Record",
    "Replay",
    "Report",
    "Sample",
    "Scenario",
    "ServiceSettings",
    "Step",
    "Tail",
    "Verdict",
    "closed_loop",
    "compare",
    "find_capacity",
    "inference_server",
    "interleave",
    "run",
    "run_mlperf",
]

_HOMES = {
    "loadtest.arrivals": [
        "Arrivals",
        "Bursts",
        "Cameras",
        "Constant",
        "Diurnal",
        "Gamma",
        "OnOff",
        "Poisson",
        "Ramp",
        "Rates",
        "Replay",
    ],
    "loadtest.capacity.find": ["find_capacity"],
    "loadtest.capacity.search": ["Capacity", "Step"],
    "loadtest.mlperf": ["MlperfResult", "run_mlperf"],
    "loadtest.report.report": ["Report", "Tail"],
    "loadtest.runner": ["run"],
    "loadtest.sample": ["Measured", "Sample"],
    "loadtest.scenario": ["CapacitySettings", "RandomInput", "Scenario", "ServiceSettings", "inference_server"],
    "loadtest.sending.loops": ["OpenLoop", "closed_loop"],
    "loadtest.sending.record": ["Record"],
    "loadtest.sending.sender": ["Progress"],
    "loadtest.verdict.interleave": ["interleave"],
    "loadtest.verdict.verdict": ["Verdict", "compare"],
}

if not TYPE_CHECKING:  # type checkers read the names from the block above and report others
    __getattr__, __dir__ = lazy_attributes(__name__, _HOMES)
