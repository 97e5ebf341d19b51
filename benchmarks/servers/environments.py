"""Python environments of servers and frameworks, whose dependencies conflict with the package's; made at first use.

python benchmarks/servers/environments.py triton pipecat     makes these in parallel; without a name, all of them

Each is a folder ``.venv-NAME`` at the repository's root, made under a lock between processes, with a stamp of the
installed packages. If the stamp matches, nothing is installed. An environment that runs our compiled modules exists for
each Python, ``.venv-NAME-3.x``, so that `make test-all` tests the right version.
"""

import fcntl
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import attrs

__all__ = ["ENVIRONMENTS", "Environment", "find_python", "supported"]

ROOT = Path(__file__).resolve().parents[2]
INSTALL = Path(__file__).with_name("install.py")
MAX_STEP_S = 1800.0
# versions for which Triton's python backend has a stub, best first
SERVER_PYTHONS = ("3.11", "3.12", "3.10")
# environments that import streaminfer from this checkout need the Python for which its modules were compiled
THIS_PYTHON = (f"{sys.version_info.major}.{sys.version_info.minor}",)
PROBE = (
    "import sys, sysconfig, os.path; g = sysconfig.get_config_var; "
    "print('%d.%d' % sys.version_info[:2]); "
    "print(sys.executable); "
    "print(os.path.exists(os.path.join(g('LIBDIR') or '', g('INSTSONAME') or '.')) and g('Py_ENABLE_SHARED'))"
)


@attrs.frozen
class Environment:
    """Python environment of a server or framework.

    Attributes:
        name: its folder is ``.venv-NAME``, or ``.venv-NAME-3.x`` if it must have this Python.
        steps: arguments of ``pip install``, one call each.
        pythons: versions of Python that it can have, best first.
        shared_libpython: true if the server embeds Python, which it needs as a shared library.
    """

    name: str
    steps: tuple[tuple[str, ...], ...]
    pythons: Sequence[str] = SERVER_PYTHONS
    shared_libpython: bool = False

    @property
    def folder(self) -> Path:
        """Folder of the environment; it differs between versions of Python if the environment needs this version."""
        own = f"-{THIS_PYTHON[0]}" if self.pythons == THIS_PYTHON else ""
        return ROOT / f".venv-{self.name}{own}"

    @property
    def python(self) -> Path:
        """Path of its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def packages(self) -> Path:
        """Path of its site-packages."""
        return next(self.folder.glob("lib/python3*/site-packages"))

    def make(self) -> Self:
        """Install the environment if it is not installed; wait while another process installs it.

        Raises:
            RuntimeError: no Python of this machine fits, or the installation failed.
        """
        stamp, wanted = self.folder / "stamp", repr(self.steps)
        self.folder.mkdir(exist_ok=True)
        with _locked(self.folder):
            if stamp.exists() and stamp.read_text() == wanted:
                return self
            began = time.perf_counter()
            print(f"making {self.folder.name} ...", file=sys.stderr, flush=True)
            python = find_python(self.pythons, shared_libpython=self.shared_libpython)
            _run([python, "-m", "venv", "--clear", "--without-pip", str(self.folder)])
            for step in self.steps:
                _run([sys.executable, str(INSTALL), "--python", str(self.python), *step])
            stamp.write_text(wanted)
            print(f"made {self.folder.name} in {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
        return self


ENVIRONMENTS = {
    "triton": Environment(
        "triton",
        (
            # numpy 2 breaks the stub silently: every output comes back with 0 bytes
            ("onnxruntime==1.31.1", "numpy==1.26.4"),
            # only the binaries of the wheel
            ("--no-deps", "nvidia-pytriton==0.7.0"),
        ),
        shared_libpython=True,
    ),
    "mlserver": Environment("mlserver", (("mlserver==1.7.1", "onnxruntime==1.31.1"),)),
    "kserve": Environment("kserve", (("kserve==0.21.0",),)),
    "serving": Environment(
        "serving",
        (
            # servers of models over HTTP, ours among them, and ASGI servers
            ("bentoml==1.4.40", "litserve==0.2.19", "mosec==0.9.8", "granian==2.8.7", "uvicorn[standard]==0.54.0"),
            ("attrs>=23.2", "numpy>=2", "onnxruntime>=1.24.3", "tritonclient[grpc]==2.73.0"),
        ),
        pythons=THIS_PYTHON,
    ),
    # Triton's load generator: a program in a wheel
    "perf_analyzer": Environment("perf_analyzer", (("--no-deps", "perf-analyzer==2.60.0"),)),
    "pipecat": Environment(
        "pipecat",
        (
            # packages that its voice detectors import; all its dependencies would be 330 MB more
            (
                *(
                    "loguru",
                    "loudness>=0.2",
                    "docstring_parser",
                    "pydantic>=2.10.6",
                    "sentencex==1.0.32",
                    "soxr~=1.0.0",
                ),
                *("wait_for2>=0.4.1; python_version<'3.12'", "audioop-lts; python_version>='3.13'"),
                *("attrs>=23.2", "numpy>=2", "onnxruntime>=1.24.3"),
            ),
            ("--no-deps", "pipecat-ai==1.14.0"),
        ),
        pythons=THIS_PYTHON,
    ),
    "livekit": Environment(
        "livekit",
        (("livekit-agents==1.8.9", "livekit-plugins-silero==1.8.9", "attrs>=23.2", "numpy>=2", "onnxruntime>=1.24.3"),),
        pythons=THIS_PYTHON,
    ),
    "ray": Environment(
        "ray",
        # a test uses the models of KEDA's definitions, which are released separately for each Python
        (("ray[serve]==2.60.0", "attrs>=23.2", "numpy>=2", "cloudcoil-models-keda>=2.16"),),
        pythons=THIS_PYTHON,
    ),
}


def supported() -> bool:
    """Return true if these servers have binaries for this machine."""
    return sys.platform == "linux" and platform.machine() == "x86_64"


def find_python(pythons: Sequence[str] = SERVER_PYTHONS, *, shared_libpython: bool) -> str:
    """Return an interpreter of one of these versions: this one if it fits, else one of ``PATH`` or of pyenv.

    Raises:
        RuntimeError: there is none; the message lists the interpreters that do not fit.
    """
    tried = []
    for candidate in _candidates(pythons):
        try:
            found = subprocess.run([candidate, "-c", PROBE], capture_output=True, text=True, check=True, timeout=60)
        except (OSError, subprocess.SubprocessError):
            continue
        version, executable, shared = found.stdout.splitlines()
        if version in pythons and (shared == "1" or not shared_libpython):
            return executable
        tried.append(f"{candidate} (Python {version}, {'a' if shared == '1' else 'no'} shared libpython)")
    wanted = " or ".join(pythons[:2]) + (" with a shared libpython" if shared_libpython else "")
    raise RuntimeError(f"the environment needs Python {wanted} on PATH; found: {'; '.join(tried) or 'none'}")


def _candidates(pythons: Sequence[str]) -> Iterator[str]:
    yield str(Path(sys.base_prefix, "bin", f"python{sysconfig.get_python_version()}"))
    for version in pythons:
        if found := shutil.which(f"python{version}"):
            yield found
        for folder in sorted(Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser().glob(f"versions/{version}.*")):
            yield str(folder / "bin" / "python")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    # the folder itself is locked, so that no lock file is left
    handle = os.open(folder, os.O_RDONLY)
    give_up_s = time.monotonic() + MAX_STEP_S
    try:
        while not _lock(handle):
            if time.monotonic() > give_up_s:
                raise RuntimeError(f"another process has been making {folder} for {MAX_STEP_S:.0f} s")
            time.sleep(0.1)
        yield
    finally:
        os.close(handle)


def _lock(handle: int) -> bool:
    """Lock the folder; return false if another process holds the lock."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=MAX_STEP_S)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{' '.join(command)}\ndid not end in {MAX_STEP_S:.0f} s") from None
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda name: ENVIRONMENTS[name].make(), sys.argv[1:] or ENVIRONMENTS))
