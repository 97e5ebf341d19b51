"""Scenarios: from TOML to a run, with messages that name the field."""

import importlib
import io
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from streaminfer.__main__ import main
from streaminfer.loadtest import Poisson, Replay, Report, Scenario, Verdict, cli, compare
from streaminfer.loadtest.capacity.search import CapacitySearch, Step
from streaminfer.loadtest.cli import FAILED, PASSED, UNDECIDED
from streaminfer.loadtest.scenario import ServiceSettings

EXAMPLES = Path(__file__).parents[2] / "examples"

SMALL = """
name = "small"
duration_s = 0.3
slo_s = {slo_s}
[service]
make = "services_of_a_test:make_echo"
[arrivals]
kind = "constant"
rate = 50
[inputs]
make = "services_of_a_test:frames"
"""

INPUTS, ARRIVALS = 'make = "services_of_a_test:frames"', 'kind = "constant"\nrate = 50'

SERVICES = """
import streaminfer as si

async def echo(x):
    return x

def make_echo():
    return echo

def score(outputs, position_s):
    return 0.25

def frames():
    return [si.loadtest.Sample(1.0, labels={"camera": camera}) for camera in ("door", "street")]
"""


@pytest.fixture
def scenario(tmp_path, monkeypatch):
    """Return a function that writes a scenario file."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "services_of_a_test.py").write_text(SERVICES)

    def write(text=SMALL, slo_s=2.0):
        path = tmp_path / "scenario.toml"
        path.write_text(text.replace("{slo_s}", str(slo_s)))
        return path

    return write


@pytest.mark.parametrize("path", sorted((EXAMPLES / "scenarios").glob("*.toml")), ids=lambda path: path.stem)
def test_examples_load(path, monkeypatch, tmp_path):
    """Every scenario of the examples is valid, and its functions exist."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setenv("STREAMINFER_TRACES", str(tmp_path))
    monkeypatch.setenv("STREAMINFER_RTT", str(tmp_path))
    drives = {"send_ms": np.arange(61), "rtt_ms": np.full(61, 20), "offsets": np.arange(62)}
    np.savez(tmp_path / "cicv5g_first_runs.npz", **drives)
    np.savez(tmp_path / "arrivals_azure_code_2023.npz", t=np.arange(100.0))
    np.savez(tmp_path / "counts_azure_functions_2019.npz", per_minute=np.ones((3, 50), np.uint32))

    loaded = Scenario.load(path)

    assert callable(loaded.service.maker())
    if loaded.devices:
        assert all(group.source.exists() for group in loaded.devices)
        return
    assert len(loaded.make_inputs()) > 0
    assert loaded.arrivals.schedule(1.0, 0).size > 0


def test_tables_become_objects(scenario):
    """Tables of the file become objects with the values of the file."""
    text = SMALL.replace('kind = "constant"', 'kind = "poisson"') + "[capacity]\nlow = 20\nhigh = 40\n"

    loaded = Scenario.load(scenario(text))

    assert loaded.arrivals == Poisson(50)
    assert loaded.capacity.high == 40
    assert loaded.objective == 0.99


def test_random_inputs_depend_on_the_seed(scenario):
    """Random inputs have the given shape and type, and the same seed draws the same inputs."""
    text = SMALL.replace('make = "services_of_a_test:frames"', "").replace(
        "[inputs]", '[inputs.random.x]\nshape = [2, 3]\n[inputs.random.n]\nshape = [1]\ndtype = "int64"'
    )
    loaded = Scenario.load(scenario(text))

    one, other = loaded.make_inputs(), loaded.make_inputs()

    assert one[0]["x"].shape == (2, 3)
    assert one[0]["n"].dtype == "int64"
    assert (one[5]["x"] == other[5]["x"]).all()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rate = 50", "rate = -1", r"scenario\.toml: arrivals\.rate: expected a finite number > 0"),
        ("rate = 50", "speed = 50", "arrivals: expected keys among rate, got 'speed'"),
        ("rate = 50", "", "arrivals: expected the key 'rate'"),
        ('"constant"', '"often"', "arrivals.kind: expected one of 'constant'"),
        ("duration_s = 0.3", "", "scenario: expected the key 'duration_s'"),
        ("make_echo", "make_nothing", r"scenario\.toml: service\.make: expected"),
        (":frames", ":nothing", r"scenario\.toml: inputs\.make: expected"),
        (
            'make = "services_of_a_test:make_echo"',
            'url = "10.0.0.1:8001"\nmodel = "m"',
            r"scenario\.toml: service\.url: tls: .*10\.0\.0\.1:8001 is not this machine",
        ),
        (
            'make = "services_of_a_test:make_echo"',
            'url = "http://localhost"\nmodel = "m"',
            r"scenario\.toml: service\.url: expected no scheme, grpc:// or grpcs://",
        ),
        (
            'make = "services_of_a_test:make_echo"',
            'url = "x"',
            r"toml: service\.make: expected either make, or url and model",
        ),
        (f"[arrivals]\n{ARRIVALS}", "", "toml: arrivals: expected inputs and arrivals, or devices, got None"),
        (f"[inputs]\n{INPUTS}", "", "toml: inputs: expected inputs and arrivals, or devices, got None"),
        ("\nname", "\ncapacity = 5\nname", "capacity: expected a table, got 5"),
        (
            "[inputs]",
            "[capacity]\nlow = 50\nhigh = 20\n[inputs]",
            r"scenario\.toml: capacity\.high: expected a number above low, got 20",
        ),
        (
            "[inputs]",
            "[capacity]\nlow = 50\nhigh = 90\nstep_s = 1\n[inputs]",
            r"scenario\.toml: capacity\.step_s: expected enough seconds for 200 requests",
        ),
        ("[inputs]", "[inputs]\nshape = [1]", "inputs: expected either make or random"),
        (INPUTS, "random = 3", "inputs.random: expected a table, got 3"),
        (INPUTS, "random.x = 3", "inputs.random.x: expected a table, got 3"),
        (INPUTS, "random.shape = 3", "inputs.random.shape: expected a list of whole numbers"),
        (INPUTS, 'random = {shape = [1], dtype = "foo"}', "inputs.random.dtype: expected a type of real numbers"),
        (ARRIVALS, 'kind = "replay"\npath = 3', "arrivals.path: expected a path, got 3"),
        (ARRIVALS, 'kind = "replay"\npath = "scenario.toml"', r"arrivals.path: expected an \.npz file"),
        (ARRIVALS, 'kind = "replay"\npath = "scenario.toml"\nunit_s = "ms"', "arrivals.unit_s: expected"),
        (ARRIVALS, 'kind = "replay"\npath = "absent.npz"', r"scenario\.toml: arrivals: .*No such file.*absent\.npz"),
        (
            "\nname",
            '\ndevices = [{source = "x.wav", device = "absent.toml", network = "lte"}]\nname',
            r"scenario\.toml: devices: .*No such file.*absent\.toml",
        ),
        ("\nname", '\nscore = "services_of_a_test:score"\nname', "score: expected devices"),
        ("\nname", '\nscore = "nothing"\nname', 'score: expected "module:function"'),
        ("[inputs]", "[edge]\n[inputs]", "edge: expected devices, all with transport 'simulated'"),
        ("[inputs]", "[edge]\nconsumers = 0\n[inputs]", "edge.consumers: expected a whole number"),
        ("name", "=", "scenario.toml: "),
    ],
)
def test_wrong_scenario(scenario, capsys, old, new, message):
    """The command names the file and the field, and exits with 2."""
    status = main(["loadtest", str(scenario(SMALL.replace(old, new, 1)))])

    assert status == 2
    assert re.search(message, capsys.readouterr().err)


def test_file_that_is_no_text(scenario, capsys):
    """The error for a file that is no text names the file."""
    path = scenario()
    path.write_bytes(b"\xff")

    assert main(["loadtest", str(path)]) == 2
    assert re.search("scenario.toml: 'utf-8' codec can't decode", capsys.readouterr().err)


@pytest.fixture
def services(scenario, monkeypatch):
    """Return the module that the scenario names, so that a test can change it."""
    module = types.ModuleType("services_of_a_test")
    monkeypatch.setitem(sys.modules, "services_of_a_test", module)
    exec(SERVICES, vars(module))  # noqa: S102 - the service of this test
    return module


class TestCommand:
    @pytest.fixture(autouse=True)
    def _keep_schedule(self, monkeypatch):
        """Let each run keep its schedule, however busy this machine is."""
        monkeypatch.setattr(Report, "schedule_limit_s", property(lambda _: 10.0))

    def test_writes_reports(self, scenario, tmp_path, capsys):
        """A run that keeps its schedule and its objective passes, and writes its reports."""
        out = {name: tmp_path / f"run.{name}" for name in ("html", "json", "junit")}

        status = main(["loadtest", str(scenario()), *(f"--{name}={path}" for name, path in out.items())])

        assert status == PASSED
        assert "100.00% of 15 requests within 2 s" in capsys.readouterr().out
        assert Report.load(out["json"]).by_label("camera")[0].name == "door"
        assert "<svg" in out["html"].read_text(encoding="utf-8")
        assert "<testsuite" in out["junit"].read_text(encoding="utf-8")

    def test_missed_objective(self, scenario, capsys):
        """A missed objective exits with 1."""

        assert main(["loadtest", str(scenario(slo_s=1e-9))]) == FAILED
        assert "Missed" in capsys.readouterr().out

    def test_comparison_without_a_verdict(self, scenario, tmp_path, capsys):
        """A comparison of too few requests has no verdict, and exits with 3."""
        main(["loadtest", str(scenario()), f"--json={tmp_path / 'before.json'}"])

        assert main(["loadtest", str(scenario()), f"--compare={tmp_path / 'before.json'}"]) == UNDECIDED
        assert "p99 undecided: a run has 15 requests" in capsys.readouterr().out

    @pytest.mark.parametrize(("times", "status"), [(1.5, FAILED), (1.0, PASSED)], ids=["regressed", "unchanged"])
    def test_status_of_a_comparison(self, scenario, tmp_path, capsys, monkeypatch, times, status):
        """A comparison exits with 1 if a tail regressed, even with the objective met, and with 0 if it is unchanged."""
        latencies = np.random.default_rng(1).lognormal(0, 0.4, 20_000)
        verdict = compare(latencies, times * np.random.default_rng(2).lognormal(0, 0.4, 20_000))
        monkeypatch.setattr("streaminfer.loadtest.cli.compare", lambda _before, _after: verdict)
        main(["loadtest", str(scenario()), f"--json={tmp_path / 'before.json'}"])

        assert main(["loadtest", str(scenario()), f"--compare={tmp_path / 'before.json'}"]) == status
        assert str(verdict) in capsys.readouterr().out

    def test_devices(self, scenario, tmp_path, capsys):
        """Devices of a scenario go through their encoders; the report has their stages and CPU."""
        source = EXAMPLES / "assets" / "librivox_0870.wav"
        (tmp_path / "slow.toml").write_text(
            'kind = "microphone"\nname = "slow"\ncodec = "pcm"\nsample_rate = 16000\nframe_s = 0.1\n'
        )
        device = f'source = "{source}"\ndevice = "slow.toml"\nnetwork = "wired"\nseconds = 1.0\n'
        text = SMALL[: SMALL.index("[arrivals]")] + f"[[devices]]\n{device}"
        file = tmp_path / "report.json"

        assert main(["loadtest", str(scenario(text)), f"--json={file}"]) == PASSED
        assert "of 3 requests" in capsys.readouterr().out
        report = Report.load(file)
        assert [tail.name for tail in report.by_stage("device", "slow")] == [
            "capture", "encode", "uplink", "decode", "service",
        ]  # fmt: skip
        assert report.means("device")["slow"]["encode_cpu_s"] > 0

    def test_devices_with_score_and_edge(self, scenario, tmp_path, capsys):
        """Frames pass through nginx, and the report has the scores of the scenario's function."""
        source = EXAMPLES / "assets" / "librivox_0870.wav"
        device = f'source = "{source}"\ndevice = "telephone"\nnetwork = "wired"\nseconds = 1.0\n'
        asked = 'score = "services_of_a_test:score"\n'
        text = f"{asked}{SMALL[: SMALL.index('[arrivals]')]}[edge]\nconsumers = 2\n[[devices]]\n{device}"
        file = tmp_path / "report.json"

        status = main(["loadtest", str(scenario(text)), f"--json={file}"])

        assert status in {PASSED, UNDECIDED}  # real encoders on a busy machine may lose one of 15 frames
        report = Report.load(file)
        assert [tail.name for tail in report.by_stage()] == [
            "capture", "encode", "uplink", "edge", "decode", "service",
        ]  # fmt: skip
        assert report.means("device")["telephone"]["accuracy"] == 0.25

    def test_capacity(self, scenario, tmp_path, capsys, monkeypatch):
        """The search gets the settings of the scenario, and its result is printed and saved."""
        asked = {}

        async def find(service, **settings):
            asked.update(settings)
            search = CapacitySearch(10.0, 1000.0, tolerance=0.05)
            while (rate := search.next_rate) is not None:
                search.add(Step.of(rate, np.full(100, rate > 321.0)))
            settings["on_step"](types.SimpleNamespace(rate=10.0, on_time=0.995))
            return search.result()

        monkeypatch.setattr("streaminfer.loadtest.cli.find_capacity", find)
        text = SMALL + "[capacity]\nlow = 400\nhigh = 800\nstep_s = 0.5\n"
        main(["loadtest", str(scenario(text)), f"--json={tmp_path / 'run.json'}"])

        said = capsys.readouterr()
        assert (asked["low"], asked["high"], asked["step_s"], asked["slo_s"]) == (400, 800, 0.5, 2.0)
        assert "95% interval" in said.out
        assert Report.load(tmp_path / "run.json").capacity.rate == pytest.approx(321.0, rel=0.06)
        assert "10/s: 99.50% on time" in said.err

    def test_folder_that_does_not_exist(self, scenario, tmp_path, capsys):
        """A report path that cannot be written is rejected before the run."""
        assert main(["loadtest", str(scenario()), f"--html={tmp_path / 'no' / 'x.html'}"]) == 2
        assert main(["loadtest", str(scenario()), f"--junit={tmp_path}"]) == 2
        said = capsys.readouterr().err
        assert "--html: expected a file in a folder that exists" in said
        assert "--junit: expected a file in a folder that exists" in said

    def test_report_cannot_be_written(self, scenario, tmp_path, capsys, monkeypatch):
        """A full disk exits with 2, and not as a missed objective; the result is printed."""

        def save(_report, path):
            raise OSError(28, "No space left on device", str(path))

        monkeypatch.setattr(Report, "save", save)

        assert main(["loadtest", str(scenario()), f"--json={tmp_path / 'run.json'}"]) == 2
        said = capsys.readouterr()
        assert "streaminfer loadtest: [Errno 28] No space left on device" in said.err
        assert "of 15 requests within 2 s" in said.out

    def test_report_cannot_be_drawn(self, scenario, tmp_path, capsys, monkeypatch):
        """If matplotlib cannot be loaded, the command exits with 2, and not as a missed objective."""
        plain_import = importlib.import_module

        def import_module(name, *package):
            if name.startswith("matplotlib"):
                raise OSError(24, "Too many open files")
            return plain_import(name, *package)

        monkeypatch.setattr(importlib, "import_module", import_module)

        assert main(["loadtest", str(scenario()), f"--html={tmp_path / 'run.html'}"]) == 2
        assert "which could not be loaded: [Errno 24] Too many open files" in capsys.readouterr().err

    def test_terminal_with_ascii_only(self, scenario, tmp_path, monkeypatch):
        """A terminal with ASCII only shows "µs" and the arrow as escapes; the exit status is that of the verdict."""
        scenario, saved = str(scenario()), str(tmp_path / "run.json")
        assert main(["loadtest", scenario, f"--json={saved}"]) == 0
        verdict = Verdict("regressed", 1.0, (0.9, 1.1), 0.99, 0.01, 0.02, 0.02, 0.1)
        monkeypatch.setattr(cli, "compare", lambda _before, _after: verdict)
        monkeypatch.setattr(Report, "schedule_error_s", lambda _: 1e-6)
        stdout = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(stdout, encoding="ascii", write_through=True))

        assert main(["loadtest", scenario, f"--compare={saved}"]) == 1

        said = stdout.getvalue().decode("ascii")
        assert "99 % of the requests were sent within 1 \\xb5s" in said
        assert "p99 regressed: 10 ms \\u2192 20 ms" in said

    def test_closed_standard_output(self, scenario, monkeypatch):
        """If standard output is closed, the exit status is that of the run."""
        monkeypatch.setattr(sys, "stdout", None)

        assert main(["loadtest", str(scenario())]) == 0

    def test_service_that_does_not_start(self, scenario, capsys):
        """If the service does not start, the command exits with 2 and says so in one line, without a traceback."""
        url = SMALL.replace('make = "services_of_a_test:make_echo"', 'url = "localhost:9"\nmodel = "none"')

        assert main(["loadtest", str(scenario(url))]) == 2
        assert re.fullmatch("streaminfer loadtest: the service does not start: .+\n", capsys.readouterr().err)

    @pytest.mark.parametrize("failing", ["make_echo", "frames"])
    def test_function_that_raises(self, scenario, services, capsys, monkeypatch, failing):
        """An error of the scenario's function exits with 2, not as a missed objective; a traceback shows its place."""
        monkeypatch.setattr(services, failing, {}.popitem)

        assert main(["loadtest", str(scenario())]) == 2
        said = capsys.readouterr().err
        assert "Traceback" in said
        assert "streaminfer loadtest: service or inputs of the scenario failed: KeyError(" in said

    @pytest.mark.parametrize("status", [0, 1])
    def test_function_that_exits(self, scenario, services, capsys, monkeypatch, status):
        """An exit of the scenario's function exits with 2; its status is not taken for a verdict."""
        monkeypatch.setattr(services, "make_echo", lambda: sys.exit(status))

        assert main(["loadtest", str(scenario())]) == 2
        assert f"service or inputs of the scenario failed: SystemExit({status})" in capsys.readouterr().err

    def test_no_request_within_the_duration(self, scenario, capsys):
        """If `run` rejects its arguments, the command exits with 2 and prints one line, which names the file."""
        text = SMALL.replace("rate = 50", "rate = 0.001").replace('kind = "constant"', 'kind = "poisson"')

        assert main(["loadtest", str(scenario(text))]) == 2
        said = capsys.readouterr().err
        assert re.fullmatch(
            r"streaminfer loadtest: \S+scenario\.toml: arrivals: expected at least one request.*\n", said
        )

    def test_interrupted(self, scenario, services, capsys, monkeypatch):
        """Ctrl-C ends the run without a traceback."""

        async def interrupted(_x):
            raise KeyboardInterrupt

        monkeypatch.setattr(services, "echo", interrupted)

        assert main(["loadtest", str(scenario())]) == 130
        assert capsys.readouterr().err == "streaminfer loadtest: interrupted\n"


def test_replay_path_is_relative_to_the_file(scenario, tmp_path):
    """A relative path of a trace starts at the folder of its scenario."""
    np.savez(tmp_path / "trace.npz", t=[0.0, 0.1, 0.2])
    text = SMALL.replace('kind = "constant"\nrate = 50', 'kind = "replay"\npath = "trace.npz"')

    arrivals = Scenario.load(scenario(text)).arrivals

    assert isinstance(arrivals, Replay)
    assert arrivals.schedule(1.0, 0).size == 3


def test_input_that_is_named_shape(scenario):
    """A table with the name ``shape`` is an input of that name; a list would be the shape of the only input."""
    text = SMALL.replace(INPUTS, "random = {shape = {shape = [2]}}")

    assert Scenario.load(scenario(text)).make_inputs()[0]["shape"].shape == (2,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"devices": 5}, "devices: expected a tuple of DeviceGroup, got 5"),
        ({"devices": (5,)}, r"devices: expected a tuple of DeviceGroup, got \(5"),
        ({"duration_s": 1e300}, "duration_s: expected seconds > 0 and ≤ 1,000,000,000"),
    ],
)
def test_wrong_field_is_named_at_construction(changes, message):
    fields = {"name": "echo", "service": ServiceSettings(make="services:make"), "duration_s": 1.0, "slo_s": 1.0}
    with pytest.raises((TypeError, ValueError), match=message):
        Scenario(**fields | {"inputs": "services:frames", "arrivals": Poisson(10)} | changes)
