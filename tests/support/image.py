"""Builds the image of a Containerfile without a container engine: Buildah's ``chroot`` isolation, and a base of Debian.

The base comes from the machine's own packages (mmdebstrap), as no registry of images need be there. What pip needs to
reach its registry on this machine (certificates, variables) goes into the base.
"""

import os
import resource
import shutil
import subprocess
from pathlib import Path

NETAVARK = Path("/usr/lib/podman/netavark")
"""Buildah asks for it even where it makes no network."""
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
FASTEST_BUILD = "-O0 -g0"
"""Optimizing the package takes most of the time of its build; the suite's other tests run it optimized."""
PYTHON_PACKAGES = "python3,python3-venv,ca-certificates"


def missing_parts():
    """What a build needs and this machine lacks."""
    from servers import lossy_network

    lacks = [f"apt-get install {name}" for name in ("buildah", "mmdebstrap") if not shutil.which(name)]
    if not NETAVARK.exists():
        lacks.append("apt-get install netavark")
    if "\toverlay\n" not in Path("/proc/filesystems").read_text():
        lacks.append("the file system overlay")
    return lossy_network.missing_parts() + lacks


def _packages_of_this_machine():
    """Its release, and the files that name where its packages come from."""
    lines = Path("/etc/os-release").read_text().splitlines()
    release = dict(line.split("=", 1) for line in lines if "=" in line)["VERSION_CODENAME"].strip('"')
    folder = Path("/etc/apt/sources.list.d")
    sources = [Path("/etc/apt/sources.list"), *folder.glob("*.list"), *folder.glob("*.sources")]
    # a folder of this machine's is not there inside
    return release, [str(path) for path in sources if path.exists() and "file:" not in path.read_text(encoding="utf-8")]


class ImageBuilder:
    """Builds images in a folder of its own.

    Args:
        folder: where images, containers and a log of the commands lie.
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
        """What a command prints, in one line."""
        return self._run(*self._buildah, command, *arguments).strip()

    def make_base(self):
        """The name of an image with this machine's Python."""
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
        """Build an image, and return the folder of the root of a new container of it."""
        limits = {"nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC}
        # Buildah would raise them, which a user without rights over the machine may not
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
