"""Devices as data: groups, a load test with them, and a scenario that names them."""

import asyncio
import threading
from pathlib import Path

import pytest

import streaminfer as si
from streaminfer.loadtest.path import DeviceGroup, run_devices
from streaminfer.loadtest.report.sentences import describe_schedule
from streaminfer.loadtest.scenario import Scenario
from streaminfer.testing import run

ASSETS = Path(__file__).parents[3] / "examples" / "assets"
SCENARIO = """
name = "devices"
duration_s = 1
slo_s = 0.5

[service]
make = "builtins:object"

[[devices]]
source = "clip.mp4"
device = "webcam"
network = "wifi"
count = 3
size = [64, 48]
seconds = 1.0

[[devices]]
source = "speech.wav"
device = "mine.toml"
network = "lte"
"""


class Size:
    async def call(self, request):
        return si.Response(request.inputs.size)


def test_report_has_devices_and_networks():
    groups = [
        DeviceGroup(
            source=ASSETS / "astronaut_pan.mp4",
            device="phone-old",
            network="lte",
            count=2,
            size=(32, 24),
            pixel_format="gray",
            seconds=1.0,
        ),
        DeviceGroup(source=ASSETS / "librivox_0870.wav", device="telephone", network="wired"),
    ]

    report = run(lambda _loop: run_devices(Size(), groups, duration_s=2.0, slo_s=0.5, seed=3))
    by_device = {tail.name: tail for tail in report.by_label("device")}

    assert set(by_device) == {"phone-old", "telephone"}
    assert {tail.name for tail in report.by_label("network")} == {"lte", "wired"}
    assert by_device["telephone"].count == pytest.approx(100, abs=10)
    assert report.means("device")["phone-old"]["encode_cpu_s"] > 0
    assert by_device["phone-old"].quantiles_s["p50"] > by_device["telephone"].quantiles_s["p50"]


def test_no_verdict_where_the_encoders_are_behind():
    """A report has no verdict if the encoders are behind: the test's machine was the bottleneck, not the service."""
    released = threading.Event()

    def prepare(picture):
        released.wait()
        return picture

    group = DeviceGroup(
        source=ASSETS / "astronaut_pan.mp4", device="phone-old", network="wired", seconds=1.0, prepare=prepare
    )
    report = asyncio.run(
        run_devices(Size(), [group], duration_s=1.2, slo_s=2.0, progress=lambda _progress: released.set())
    )

    assert report.outcomes["LostAtEncoder"] > 1
    assert report.passed is None
    assert "% of the requests were not sent" in describe_schedule(report)


@pytest.mark.parametrize("groups", [[], [3], "phone", 3], ids=repr)
def test_groups_of_another_type_are_rejected(groups):
    """Groups of another type are an error before anything starts."""
    with pytest.raises(TypeError, match="groups: expected a sequence of DeviceGroup, at least one, got"):
        run(lambda _loop: run_devices(Size(), groups, duration_s=1.0, slo_s=0.5))


def test_devices_of_a_group_begin_at_other_places():
    group = DeviceGroup(
        source=ASSETS / "astronaut_pan.mp4", device="phone-old", network="lte", count=3, size=(32, 24), seconds=1.0
    )

    assert [path._start for path in group.make_paths()] == [0, 5, 10]


@pytest.mark.parametrize("transport", ["webrtc", "packets"])
def test_real_packets_need_real_time(transport):
    group = DeviceGroup(
        source=ASSETS / "librivox_0870.wav", device="headset", network="lte", seconds=1.0, transport=transport
    )

    with pytest.raises(ValueError, match="transport: expected 'simulated' with an edge or in virtual time"):
        run(lambda _loop: run_devices(Size(), [group], duration_s=1.0, slo_s=0.5))


def test_scenario_has_devices_networks_and_transports(tmp_path):
    """A scenario has the device, the network and the transport of each group."""
    (tmp_path / "mine.toml").write_text('kind = "microphone"\nname = "mine"\n')
    (tmp_path / "scenario.toml").write_text(SCENARIO + 'transport = "webrtc"\n')

    first, second = Scenario.load(tmp_path / "scenario.toml").devices

    assert (first.device.name, first.network.name, first.count, first.wanted.size) == ("webcam", "wifi", 3, (64, 48))
    assert (second.device.name, second.source) == ("mine", tmp_path / "speech.wav")
    assert (first.transport, second.transport) == ("simulated", "webrtc")


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ('device = "webcam"', 'device = "fax"', "device: expected"),
        ("count = 3", "number = 3", "devices: expected"),
        ('source = "clip.mp4"\n', "", "devices: expected the key 'source'"),
        ('source = "clip.mp4"', "source = 3", "devices.source: expected a path, got 3"),
        ('network = "wifi"', "network = 3", "devices.network: expected the name of a profile, or a path, got 3"),
        ('network = "wifi"', 'network = "list.json"', r"devices.network: .*list\.json: profile: expected a table"),
        ('network = "wifi"', 'network = "cut.json"', r"devices.network: .*cut\.json: Expecting"),
        ("count = 3", "prepare = 3", "devices.prepare: expected"),
        ("count = 3", 'transport = "pigeon"', "transport: expected"),
        (
            'device = "webcam"',
            'device = "webcam"\ntransport = "webrtc"',
            "transport: expected 'webrtc' with a codec of",
        ),
        (
            '[service]\nmake = "builtins:object"',
            '[service]\nmake = "builtins:object"\n[arrivals]\nkind = "constant"\nrate = 1',
            "devices: expected no",
        ),
    ],
    ids=[
        *("device", "field", "no source", "source", "network", "file", "no JSON", "prepare", "transport"),
        *("codec", "arrivals"),
    ],
)
def test_wrong_scenario_is_explained(tmp_path, before, after, named):
    (tmp_path / "mine.toml").write_text('kind = "microphone"\nname = "mine"\n')
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "cut.json").write_text("[1")
    (tmp_path / "scenario.toml").write_text(SCENARIO.replace(before, after))

    with pytest.raises(ValueError, match=named):
        Scenario.load(tmp_path / "scenario.toml")


def test_devices_of_all_groups_have_seeds_of_their_own(monkeypatch):
    """Seeds continue across groups, so that two groups do not have the same delays of the network at the same time."""
    group = DeviceGroup(source=ASSETS / "librivox_0870.wav", device="telephone", network="lte", count=2, seconds=1.0)
    seeds, make_path = [], DeviceGroup._make_path

    def noted(self, *arguments, **place):
        seeds.append(place["seed"])
        return make_path(self, *arguments, **place)

    monkeypatch.setattr(DeviceGroup, "_make_path", noted)

    run(lambda _loop: run_devices(Size(), [group, group], duration_s=0.2, slo_s=0.5, seed=5))

    assert seeds == [5, 6, 7, 8]


@pytest.mark.parametrize("devices", [3, [3], {"source": "x"}], ids=str)
def test_devices_must_be_a_list_of_tables(devices):
    with pytest.raises(TypeError, match="devices: expected a list of tables"):
        Scenario.from_dict({"name": "n", "duration_s": 1, "slo_s": 1, "devices": devices})
