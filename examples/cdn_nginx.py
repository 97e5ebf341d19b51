"""nginx with ``cdn_edge.conf``, in a folder and on ports of its own, for as long as a block runs."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from streaminfer.loadtest.path.nginx import Nginx, find_nginx, run_nginx

__all__ = ["Nginx", "find_nginx", "nginx"]

CONFIGURATION = Path(__file__).with_name("cdn_edge.conf")


@contextlib.contextmanager
def nginx(folder: Path, origin_port: int, *, configuration: str | None = None) -> Iterator[Nginx]:
    """Runs it in a process group of its own, which ends with the block.

    Args:
        folder: empty; holds all that it writes.
        origin_port: where the application listens, on loopback.
        configuration: instead of ``cdn_edge.conf``, with the same two ports in it.

    Raises:
        FileNotFoundError: there is no nginx.
        RuntimeError: it does not start; with what it says.
    """
    text = CONFIGURATION.read_text() if configuration is None else configuration
    text = text.replace("127.0.0.1:8000", "127.0.0.1:{port}").replace("127.0.0.1:8001", f"127.0.0.1:{origin_port}")
    with run_nginx(folder, text) as running:
        yield running
