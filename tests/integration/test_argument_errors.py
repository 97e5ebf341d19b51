"""Errors of wrong arguments name the argument."""

import math
from types import MappingProxyType

import attrs
import numpy as np
import pytest
from placement_problems import small_problem

import streaminfer as si
from streaminfer.batching import ServiceTime
from streaminfer.caching import RetentionLog
from streaminfer.caching.tiers import DiskTier, StoredKeys
from streaminfer.compliance.retention_log import verify_file
from streaminfer.http_edge import NginxFolder
from streaminfer.loadtest.path import DelayTrace, DeviceGroup, NetworkProfile
from streaminfer.loadtest.path import Link as NetworkLink
from streaminfer.placement import Distribution, FittedAccess, Outages
from streaminfer.testing import run

load, simulation, telemetry = si.loadtest, si.simulation, si.telemetry
PROBLEM = small_problem(0, "plain")
SERVICE_TIME = ServiceTime.affine(0.001, 0.0005)
MODEL_LOAD = simulation.ModelLoad([0.0, 0.1], slo_s=0.1, service_time=SERVICE_TIME, max_batch_size=2)
TRACE = simulation.Trace([0.0, 0.1])
RECORD = load.Record(np.zeros(1), np.zeros(1), np.ones(1), np.array(["ok"]))
REPORT = load.Report(RECORD, slo_s=0.1, duration_s=1.0)
ACCESS = {"name": "a", "runs": [0.1], "messages": [1]}
OUTAGES = Outages(per_hour=1.0, length_s=Distribution.of(1.0), calm_s=Distribution.of(0.1))
SCENARIO = MappingProxyType(
    {
        "name": "a",
        "service": load.ServiceSettings(make="os.path:join"),
        "inputs": "os.path:join",
        "arrivals": load.Poisson(1.0),
        "duration_s": 1.0,
        "slo_s": 0.1,
    }
)


async def answer(number):
    return number


def closed_loop(call):
    return run(lambda _loop: load.closed_loop(call, 1, 1.0))


def interleave(**settings):
    return run(lambda _loop: load.interleave(answer, answer, pairs=1, **settings))


def evolved_failures(failures):
    return attrs.evolve(PROBLEM, failures=failures)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: closed_loop(None), "call"),
        (lambda: load.OpenLoop(answer, None), "due_ns"),
        (lambda: load.OpenLoop(answer, [0], errors=Exception), "errors"),
        (lambda: load.OpenLoop(answer, [0], on_result="x"), "on_result"),
        (lambda: interleave(seed=None), "seed"),
        (lambda: load.compare([10**400], [1.0]), "before"),
        (lambda: load.compare([1.0], [1, [2]]), "after"),
        (lambda: load.compare([1.0], [1.0], false_alarm=1e-300), "false_alarm"),
        (lambda: load.Report(None, slo_s=0.1, duration_s=1.0), "record"),
        (lambda: load.Report(RECORD, slo_s="x", duration_s=1.0), "slo_s"),
        (lambda: load.Report(RECORD, slo_s=0.1, duration_s=1.0, objective=10**400), "objective"),
        (lambda: load.Report(RECORD, slo_s=0.1, duration_s=None), "duration_s"),
        (lambda: list(REPORT.windows(10**39)), "count"),
        (lambda: REPORT.save(None), "path"),
        (lambda: load.Report.load(None), "path"),
        (lambda: load.Replay.load(3), "path"),
        (lambda: load.Replay.load("\0"), "path"),
        (lambda: load.RandomInput(shape=[10**400]), "shape"),
        (lambda: load.Scenario.from_dict(None), "scenario"),
        (lambda: load.Scenario.from_dict({}, None), "folder"),
        (lambda: load.Scenario(**{**SCENARIO, "inputs": {"x": None}}), "inputs"),
        (lambda: load.Scenario(**{**SCENARIO, "inputs": 5}), "inputs"),
        (lambda: load.Scenario(**{**SCENARIO, "service": None}), "service"),
        (lambda: DelayTrace([0.0], "x"), "delay_s"),
        (lambda: DelayTrace.from_round_trips([0.0], [[1], 2]), "rtt_ms"),
        (lambda: NetworkLink(None), "profile"),
        (lambda: NetworkLink(NetworkProfile(name="a", rate=10**6)).send_burst(1, 10**39, 0), "packets"),
        (lambda: NetworkLink(NetworkProfile(name="a", rate=10**6)).send(math.inf, 0), "size"),
        (lambda: DeviceGroup(source=None, device="webcam", network="lte"), "source"),
        (lambda: simulation.what_if(TRACE, service_time=SERVICE_TIME, max_batch_size=2, slo_s=[[0.1]]), "slo_s"),
        (lambda: simulation.simulate_device({"a": MODEL_LOAD, 1: MODEL_LOAD}), "loads"),
        (lambda: simulation.device_optimum({"a": MODEL_LOAD, 1: MODEL_LOAD}), "loads"),
        (lambda: simulation.Trace([0.0], [[0.1], 2]), "limits_s"),
        (lambda: evolved_failures([[["s0"]]]), r"failures\[0\]"),
        (lambda: Distribution.of(0.1).sample(2**63, np.random.default_rng(1)), "count"),
        (lambda: Distribution.of(0.1).sample(1, None), "rng"),
        (lambda: FittedAccess.from_json(None), "profile"),
        (lambda: FittedAccess.from_json({}), "profile"),
        (lambda: FittedAccess.from_json({**ACCESS, "runs": None}), r"profile\.runs"),
        (lambda: FittedAccess.from_json({**ACCESS, "messages": []}), r"profile\.messages"),
        (lambda: FittedAccess.from_json({**ACCESS, "outages": {"per_hour": 1.0}}), r"profile\.outages"),
        (lambda: FittedAccess.fit("a", None), "runs_s"),
        (lambda: FittedAccess.fit("a", [[0.1]], sent_s=0.1), "sent_s"),
        (lambda: FittedAccess.fit("a", [[0.1]], sent_s=["x"]), r"sent_s\[0\]"),
        (lambda: OUTAGES.sample(10, period_s=1e300, rng=np.random.default_rng(1)), "period_s"),
        (lambda: telemetry.Telemetry().statistics().since(None), "earlier"),
        (lambda: telemetry.LatencyHeatMap.of_requests("x", [0.1]), "at_s"),
        (lambda: telemetry.LatencyHeatMap.of_intervals([None]), "intervals"),
        (lambda: next(telemetry.read_interval_log("/dev/null", since_s=None)), "since_s"),
        (lambda: next(telemetry.read_interval_log(None)), "path"),
        (lambda: telemetry.LatencyHistogram().record_many([1, [2]]), "seconds"),
        (lambda: telemetry.IntervalLog("\0"), "path"),
        (lambda: telemetry.WorkerHistograms(None, {"a": telemetry.LatencyHistogram()}), "folder"),
        (lambda: DiskTier("\0", max_bytes=2**20), "folder"),
        (lambda: StoredKeys("\0", master=bytes(32)), "path"),
        (lambda: StoredKeys(None, master=bytes(32)), "path"),
        (lambda: RetentionLog("\0", secret=bytes(32)), "path"),
        (lambda: verify_file(None, secret=bytes(32)), "path"),
        (lambda: NginxFolder("\0"), "path"),
    ],
)
def test_wrong_argument_is_named(call, name):
    """The message begins with the name of the argument, and says what is expected and what came."""
    with pytest.raises((TypeError, ValueError), match=f"^{name}: expected .*, got "):
        call()


def test_wrong_name_of_an_array_is_named(tmp_path):
    """A name of an array that is no text is an error like an unknown name."""
    np.savez(tmp_path / "trace.npz", t=np.zeros(1))

    with pytest.raises(ValueError, match=r"^key: expected one of 't', got \[\]"):
        load.Replay.load(tmp_path / "trace.npz", key=[])
