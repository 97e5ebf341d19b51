"""Context manager that runs nginx with ``cdn_edge.conf``, in a separate folder and on free ports."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from streaminfer.loadtest.path import Nginx, find_nginx, run_nginx

__all__ = ["Nginx", "find_nginx", "nginx"]

CONFIGURATION = Path(__file__).with_name("cdn_edge.conf")


@contextlib.contextmanager
def nginx(folder: Path, origin_port: int, *, configuration: str | None = None) -> Iterator[Nginx]:
    """Run nginx in a separate process group, which ends with the block.

    Args:
        folder: an empty folder for all files that nginx writes.
        origin_port: port of the application on loopback.
        configuration: text to use instead of ``cdn_edge.conf``, with the same two ports in it.

    Raises:
        FileNotFoundError: nginx is not installed.
        RuntimeError: nginx does not start; the message has its output.
    """
    text = CONFIGURATION.read_text() if configuration is None else configuration
    text = text.replace("127.0.0.1:8000", "127.0.0.1:{port}").replace("127.0.0.1:8001", f"127.0.0.1:{origin_port}")
    with run_nginx(folder, text) as running:
        yield running
