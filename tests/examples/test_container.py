"""What the Containerfile runs, as in its container: a read-only root, a user without rights, a network of its own.

The root is made of read-only mounts of this machine. Building the image compiles the whole package and needs a base
image, so no test does it.
"""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONTAINERFILE = (ROOT / "examples" / "container" / "Containerfile").read_text()
LAST_STAGE = CONTAINERFILE.rpartition("\nFROM ")[2]

ENTER = """
set -e
root=$1 user=$2; shift 2
ip link set lo up
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
mount -t tmpfs -o mode=1777 tmp "$root/tmp"
mount --bind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount -o remount,ro root "$root"
exec chroot --userspec="$user:$user" "$root" env -C /app "$@"
"""


def instruction(name):
    """The last instruction of that name in the image that is run."""
    return re.findall(rf"^{name} (.*)$", LAST_STAGE, re.MULTILINE)[-1]


class Container:
    """What the image runs, in namespaces of its own."""

    def __init__(self, folder):
        bin_folder = Path(sys.executable).parent.resolve()
        if sys.prefix != sys.base_prefix:
            bin_folder = Path(sys.prefix).resolve() / "bin"
        mounted = [
            "/usr",
            "/bin",
            "/sbin",
            "/lib",
            "/lib64",
            "/etc",
            sys.base_prefix,
            os.path.realpath(sys.prefix),
            ROOT,
        ]
        environment = {name: value for name, _, value in (pair.partition("=") for pair in instruction("ENV").split())}
        environment["PATH"] = f"{bin_folder}:{os.environ['PATH']}"
        environment |= {"PYTHONPATH": str(ROOT), "READ_ONLY": " ".join(map(str, mounted))}
        inside = ["sh", "-c", ENTER, "sh", folder, instruction("USER"), *json.loads(instruction("CMD"))]
        command = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", *inside]
        self.process = subprocess.Popen(command, env=environment, cwd=ROOT)
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        while not (found := children.read_text().split()):
            assert self.process.poll() is None
        self.first = int(found[0])

    def run(self, *command, user=0):
        """Run a command of this machine in the container's network, or, as its user, inside it."""
        where = ["--net"] if user == 0 else ["--net", "--mount", "--root", f"--setuid={user}", f"--setgid={user}"]
        enter = ["nsenter", f"--target={self.first}", *where, *command]
        return subprocess.run(enter, capture_output=True, text=True, timeout=120, check=False)

    def python(self, code):
        """What a Python program prints in the container's network."""
        done = self.run(sys.executable, "-c", f"from urllib.request import *\n{code}")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def is_healthy(self):
        _, *command = json.loads(instruction("HEALTHCHECK CMD"))
        return self.run(sys.executable, *command).returncode == 0


@pytest.fixture(scope="module")
def container(tmp_path_factory):
    container = Container(tmp_path_factory.mktemp("root"))
    try:
        while not container.is_healthy():
            assert container.process.poll() is None, "the server ended"
        yield container
    finally:
        container.process.kill()
        container.process.wait()


pytestmark = pytest.mark.needs("network namespaces")
POST = "Request('http://127.0.0.1:8000/double', b'{\"x\": [1, 2, 3, 4]}', {'content-type': 'application/json'})"


def test_the_container_answers_and_has_one_tail(container):
    answer = container.python(f"print(urlopen({POST}).read().decode())")
    counts = [0]
    while counts[-1] == 0:  # the other worker learns it within a second
        counts.append(container.python("print(urlopen('http://127.0.0.1:8000/tail').read().decode())")["count"])

    assert answer["y"] == [2.0, 4.0, 6.0, 8.0]
    assert counts[-1] == 1


def test_the_container_has_no_rights(container):
    """Its processes are a user's without capabilities, and only /tmp can be written."""
    status = Path(f"/proc/{container.first}/status").read_text()
    user = instruction("USER")

    assert re.search(r"^Uid:\t(\d+)\t(\d+)", status, re.MULTILINE).groups() == (user, user)
    assert re.search(r"^CapEff:\t(\w+)", status, re.MULTILINE)[1].strip("0") == ""
    for place, allowed in (("/app/x", False), ("/x", False), (f"{ROOT}/x", False), ("/tmp/x", True)):  # noqa: S108 - of the container
        assert (container.run("touch", place, user=user).returncode == 0) == allowed, place


def test_the_container_stops_on_sigterm(container):
    """The first process gets the signal, as from a container engine, and ends its workers."""
    os.kill(container.first, signal.SIGTERM)

    assert container.process.wait(60) == 0
