"""Builder of an image without a container engine: Buildah's ``chroot`` isolation, and a base of Debian.

mmdebstrap makes the base from the package sources of the machine, so no image registry is needed. The base also gets
the certificates and variables with which pip reaches its registry on this machine.
"""

import os
import resource
import shutil
import subprocess
from pathlib import Path

NETAVARK = Path("/usr/lib/podman/netavark")
"""Buildah requires it even if it makes no network."""
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
FASTEST_BUILD = "-O0 -g0"
"""Optimization takes most of the time of the package's build, and the other tests run the package optimized."""
PYTHON_PACKAGES = "python3,python3-venv,ca-certificates"


def missing_parts():
    """Return the parts that a build needs and this machine lacks."""
    from servers import lossy_network

    lacks = [f"apt-get install {name}" for name in ("buildah", "mmdebstrap") if not shutil.which(name)]
    if not NETAVARK.exists():
        lacks.append("apt-get install netavark")
    if "\toverlay\n" not in Path("/proc/filesystems").read_text():
        lacks.append("the file system overlay")
    return lossy_network.missing_parts() + lacks


def _packages_of_this_machine():
    """Return the release of this machine, and the files that name the sources of its packages."""
    lines = Path("/etc/os-release").read_text().splitlines()
    release = dict(line.split("=", 1) for line in lines if "=" in line)["VERSION_CODENAME"].strip('"')
    folder = Path("/etc/apt/sources.list.d")
    sources = [Path("/etc/apt/sources.list"), *folder.glob("*.list"), *folder.glob("*.sources")]
    # a folder of this machine does not exist inside the base
    return release, [str(path) for path in sources if path.exists() and "file:" not in path.read_text(encoding="utf-8")]


class ImageBuilder:
    """Builder of images in a folder of its own.

    Args:
        folder: folder of images, containers and a log of the commands.
    """

    def __init__(self, folder):
        self.folder = folder
        self.log = folder / "log.txt"
        options = f"--root {folder}/images --runroot {folder}/run --storage-driver overlay"
        self._buildah = ["buildah", *options.split()]

    def close(self):
        """Remove all that was built."""
        self.buildah("umount", "--all")
        shutil.rmtree(self.folder)

    def buildah(self, command, *arguments):
        """Run a command of Buildah; return its output."""
        return self._run(*self._buildah, command, *arguments).strip()

    def make_base(self):
        """Make an image with this machine's Python; return its name."""
        release, sources = _packages_of_this_machine()
        copy = [f'--customize-hook=cp {CERTIFICATES} "$1{CERTIFICATES}"'] if CERTIFICATES.exists() else []
        container = self.buildah("from", "scratch")
        root = self.buildah("mount", container)
        self._run("mmdebstrap", "--variant=minbase", f"--include={PYTHON_PACKAGES}", *copy, release, root, *sources)
        self.buildah("umount", container)
        variables = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        for name, value in {**variables, "CFLAGS": FASTEST_BUILD}.items():
            self.buildah("config", "--env", f"{name}={value}", container)
        self.buildah("commit", "--quiet", "--rm", container, "localhost/base")
        return "localhost/base"

    def build(self, containerfile, context, base):
        """Build an image; return the root folder of a new container."""
        limits = {"nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC}
        # Buildah would raise the limits, which an unprivileged user may not do
        same = [f"--ulimit={name}={':'.join(map(str, resource.getrlimit(kind)))}" for name, kind in limits.items()]
        how = ["--isolation=chroot", "--network=host", f"--build-arg=BASE={base}", *same]
        image = self.buildah("build", "--quiet", *how, f"--file={containerfile}", str(context)).splitlines()[-1]
        container = self.buildah("from", "--pull-never", image)
        return Path(self.buildah("mount", container))

    def _run(self, *command):
        with self.log.open("a") as log:
            done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, stderr=log, text=True, check=False)
        assert done.returncode == 0, "".join(self.log.read_text(encoding="utf-8").splitlines(keepends=True)[-30:])
        return done.stdout
