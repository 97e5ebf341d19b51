"""The server of the Containerfile, as in its container: read-only root, unprivileged user, network of its own.

The tests run on a root of read-only mounts of this machine and, if the machine can build the image, on the image's
root. The build compiles the whole package.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
from image import ImageBuilder

ROOT = Path(__file__).parents[2]
FILE = ROOT / "examples" / "container" / "Containerfile"
LAST_STAGE = FILE.read_text().rpartition("\nFROM ")[2]

ENTER = """
set -e
root=$1 user=$2; shift 2
ip link set lo up
if [ -n "$IMAGE" ]; then
  mount --bind "$IMAGE" "$root"
else
  mount -t tmpfs -o mode=755 root "$root"
  for folder in $READ_ONLY; do
    if [ -L "$folder" ]; then cp -P "$folder" "$root$folder"; continue; fi
    [ -d "$folder" ] || continue
    mkdir -p "$root$folder"
    mount --bind "$folder" "$root$folder"
    mount -o remount,bind,ro "$root$folder"
  done
  mkdir -p "$root/app" "$root/tmp" "$root/dev" "$root/proc"
  cp examples/prefork.py "$root/app"
fi
mount -t tmpfs -o mode=1777 tmp "$root/tmp"
mount --bind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount -o remount,bind,ro "$root"
exec chroot --userspec="$user:$user" "$root" env -C /app "$@"
"""


def instruction(name):
    """Return the arguments of the last instruction of that name in the final image."""
    return re.findall(rf"^{name} (.*)$", LAST_STAGE, re.MULTILINE)[-1]


@attrs.frozen
class ContainerRoot:
    """Root of a container.

    Attributes:
        image: folder of an image's root; empty for mounts of this machine.
        path: search path of programs.
        package: folder with the package.
        variables: environment variables of the processes, beside those of the Containerfile.
    """

    image: str
    path: str
    package: Path
    variables: dict[str, str]


def this_machine():
    """Return a root of read-only mounts of this machine's folders."""
    bin_folder = Path(sys.executable).parent.resolve()
    if sys.prefix != sys.base_prefix:
        bin_folder = Path(sys.prefix).resolve() / "bin"
    system = ["/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc"]
    mounted = [*system, sys.base_prefix, os.path.realpath(sys.prefix), ROOT]
    variables = {"PYTHONPATH": str(ROOT), "READ_ONLY": " ".join(map(str, mounted))}
    return ContainerRoot("", f"{bin_folder}:{os.environ['PATH']}", ROOT / "streaminfer", variables)


def built_image(builder):
    """Return the root of the image, built from this checkout."""
    root = builder.build(FILE, ROOT, builder.make_base())
    (package,) = root.glob("opt/venv/lib/python3*/site-packages/streaminfer")
    path = "/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return ContainerRoot(str(root), path, package, {})


class Container:
    """Running server of the image, in namespaces of its own."""

    def __init__(self, root, folder):
        self.root = root
        environment = {name: value for name, _, value in (pair.partition("=") for pair in instruction("ENV").split())}
        environment |= {"PATH": root.path, "IMAGE": root.image, **root.variables}
        inside = ["sh", "-c", ENTER, "sh", folder, instruction("USER"), *json.loads(instruction("CMD"))]
        command = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", *inside]
        self.process = subprocess.Popen(command, env=environment, cwd=ROOT)
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        while not (found := children.read_text().split()):
            assert self.process.poll() is None
        self.first = int(found[0])

    def run(self, *command, user=0):
        """Run a command: as root in the container's network only, as another user inside the container."""
        where = ["--net"] if user == 0 else ["--net", "--mount", "--root", f"--setuid={user}", f"--setgid={user}"]
        enter = ["nsenter", f"--target={self.first}", *where, *command]
        return subprocess.run(enter, capture_output=True, text=True, timeout=120, check=False)

    def python(self, code):
        """Run a Python program in the container's network; return the JSON that it prints."""
        done = self.run(sys.executable, "-c", f"from urllib.request import *\n{code}")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def is_healthy(self):
        command = json.loads(instruction("HEALTHCHECK CMD"))
        if self.root.image:
            return self.run("env", f"PATH={self.root.path}", *command, user=instruction("USER")).returncode == 0
        return self.run(sys.executable, *command[1:]).returncode == 0


ROOTS = ["this machine", pytest.param("the image", marks=pytest.mark.needs("an image builder"))]


@pytest.fixture(scope="module", params=ROOTS)
def container(request, tmp_path_factory):
    with contextlib.ExitStack() as stack:
        if request.param == "the image":
            builder = ImageBuilder(tmp_path_factory.mktemp("image"))
            stack.callback(builder.close)
            root = built_image(builder)
        else:
            root = this_machine()
        container = Container(root, tmp_path_factory.mktemp("root"))
        stack.callback(container.process.wait)
        stack.callback(container.process.kill)
        while not container.is_healthy():
            assert container.process.poll() is None, "the server ended"
        yield container


pytestmark = pytest.mark.needs("network namespaces")
POST = "Request('http://127.0.0.1:8000/double', b'{\"x\": [1, 2, 3, 4]}', {'content-type': 'application/json'})"


def test_container_responds_and_merges_tail_of_workers(container):
    """A worker reports the tail latency of all workers of the container."""
    answer = container.python(f"print(urlopen({POST}).read().decode())")
    counts = [0]
    while counts[-1] == 0:  # the other worker learns of the request within a second
        counts.append(container.python("print(urlopen('http://127.0.0.1:8000/tail').read().decode())")["count"])

    assert answer["y"] == [2.0, 4.0, 6.0, 8.0]
    assert counts[-1] == 1


def test_container_has_compiled_modules_and_kernels(container):
    """Each source of a compiled module has its module in the package, and the image has no compiler."""
    package = ROOT / "streaminfer"
    sources = {path.relative_to(package).with_suffix("") for path in package.rglob("*_cy.py")}
    modules = container.root.package.rglob("*.so")
    compiled = {
        (path := module.relative_to(container.root.package)).with_name(path.name.split(".")[0]) for module in modules
    }

    assert sources <= compiled
    assert Path("_compiled_kernels/baseline") in compiled
    if container.root.image:
        assert container.run("sh", "-c", "command -v gcc cc g++", user=instruction("USER")).returncode != 0


def test_container_has_no_privileges(container):
    """The container's processes run as a user without capabilities, who can write only to /tmp."""
    status = Path(f"/proc/{container.first}/status").read_text()
    user = instruction("USER")

    assert re.search(r"^Uid:\t(\d+)\t(\d+)", status, re.MULTILINE).groups() == (user, user)
    assert re.search(r"^CapEff:\t(\w+)", status, re.MULTILINE)[1].strip("0") == ""
    for place, allowed in (("/app/x", False), ("/x", False), ("/usr/x", False), ("/tmp/x", True)):  # noqa: S108 - of the container
        assert (container.run("touch", place, user=user).returncode == 0) == allowed, place


def test_the_container_stops_on_sigterm(container):
    """On SIGTERM to its first process, as from a container engine, the server ends its workers and exits with 0."""
    os.kill(container.first, signal.SIGTERM)

    assert container.process.wait(60) == 0
