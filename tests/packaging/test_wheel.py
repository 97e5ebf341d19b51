"""The wheel with the compiled modules of the checkout, installed without extras into an empty environment."""

import email
import importlib.machinery
import json
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from streaminfer._compiled_kernels import VARIANTS

ROOT = Path(__file__).parents[2]
SMOKE = Path(__file__).with_name("smoke.py")
KERNELS = [f"streaminfer._compiled_kernels.{variant}" for variant in VARIANTS]
SHARED = "streaminfer._internal._cython_shared"
SUFFIX = importlib.machinery.EXTENSION_SUFFIXES[0]


@pytest.fixture(scope="module")
def wheel(build_wheel):
    done, path = build_wheel(compiled=True, STREAMINFER_REQUIRE_COMPILED="1")
    assert done.returncode == 0, done.stdout + done.stderr
    return path


@pytest.fixture(scope="module")
def interpreter(wheel, tmp_path_factory):
    """Return the Python of an environment with the wheel and its core dependencies."""
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, with_pip=False, symlinks=True)
    python = environment / "bin" / "python"
    installed = subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-compile", wheel],
        capture_output=True,
        text=True,
        check=False,
    )
    assert installed.returncode == 0, installed.stderr
    return python


@pytest.fixture(scope="module")
def smoke(interpreter, run_python, compiled_names):
    return json.loads(run_python(interpreter, SMOKE, *compiled_names))


def test_wheel_holds_the_package_and_nothing_else(wheel, compiled_names):
    on_disk = {
        path.relative_to(ROOT).as_posix()
        for pattern in ("*.py", "*.pxd", "py.typed")
        for path in (ROOT / "streaminfer").rglob(pattern)
    }
    static = ROOT / "streaminfer" / "telemetry" / "live_page" / "static"
    on_disk |= {path.relative_to(ROOT).as_posix() for path in static.rglob("*") if path.is_file()}
    on_disk.add("streaminfer/placement/network/access_profiles.json")
    on_disk |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "streaminfer" / "loadtest").rglob("*.toml")}
    built = {name.replace(".", "/") + SUFFIX for name in [*compiled_names, *KERNELS, SHARED]}
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == on_disk | built


def test_every_compiled_source_has_its_types_beside_it(compiled_names):
    for name in compiled_names:
        assert ROOT.joinpath(*name.split(".")).with_suffix(".pxd").exists(), name


def test_metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (metadata_path,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(metadata_path))
        licence = archive.read(metadata_path.replace("METADATA", "licenses/LICENSE"))
        assert any(name.endswith("uPlot-LICENSE.txt") and ".dist-info/" in name for name in archive.namelist())
    core = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert sorted(line.split(">")[0] for line in core) == ["attrs", "numba", "numpy"]
    assert {"all", "onnx", "plot"} <= set(metadata.get_all("Provides-Extra"))
    assert metadata["License-Expression"] == "Apache-2.0 AND MIT AND CC-BY-4.0"
    assert licence == (ROOT / "LICENSE").read_bytes()
    assert metadata.get_payload(decode=True).decode() == (ROOT / "README.md").read_text(encoding="utf-8")


def test_installed_package_is_the_compiled_one(smoke, interpreter):
    environment = interpreter.parents[1]
    assert Path(smoke["package"]).is_relative_to(environment)
    assert smoke["compiled"] is True
    assert smoke["warnings"] == []
    for name, file in smoke["files"].items():
        assert Path(file).is_relative_to(environment), name
        assert file.endswith(SUFFIX), name


def test_installed_package_answers_a_batch(smoke):
    assert smoke["answers"] == [-float(number) for number in range(8)]
    assert smoke["batch_sizes"] == [[8, 1]]
    assert smoke["released"] == {"exploration": 1}
    assert smoke["recorded"] == 5000
    assert smoke["kernels"] in VARIANTS
    assert not smoke["numba"]


def test_wheel_has_the_command(interpreter):
    command = interpreter.with_name("streaminfer")
    done = subprocess.run([command, "warmup"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("kernels: compiled ahead of time")


@pytest.mark.parametrize(
    ("use", "extra"),
    [
        ("si.OnnxBackend('model.onnx')", "onnx"),
        ("si.LatencyHistogram().plot()", "plot"),
        ("import streaminfer.fastapi", "fastapi"),
    ],
)
def test_missing_extra_says_the_install_command(use, extra, interpreter, run_python):
    script = f"import streaminfer as si\ntry:\n    {use}\nexcept si.MissingExtra as error:\n    print(error)\n"
    assert f"pip install 'streaminfer[{extra}]'" in run_python(interpreter, "-c", script)
