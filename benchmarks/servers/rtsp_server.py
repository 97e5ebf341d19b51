"""An RTSP camera on loopback, over TCP and UDP: the package ``rtsp``, in a process of its own.

``python rtsp_server.py PORT`` serves a picture that changes: each frame has one gray value, its number modulo 8 times
32.
"""

import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from servers.process import HOST, ServerProcess

__all__ = ["RATE", "SIZE", "RtspServer"]

RATE = 25
SIZE = (64, 48)
DESCRIBE = b"DESCRIBE rtsp://127.0.0.1/live RTSP/1.0\r\nCSeq: 1\r\n\r\n"


class RtspServer(ServerProcess):
    """A camera that can be killed, frozen and restarted.

    Attributes:
        url: of its one stream.
    """

    def __init__(self) -> None:
        super().__init__(ports=1)
        self.url = f"rtsp://{HOST}:{self.ports[0]}/live"

    def prepare(self) -> tuple[Sequence[str], Mapping[str, str]]:
        folders = os.pathsep.join(str(path) for path in (Path(__file__).parents[1],))
        return [sys.executable, __file__, str(self.ports[0])], os.environ | {"PYTHONPATH": folders}

    def is_ready(self) -> bool:
        """Whether it describes a stream whose first picture is encoded."""
        try:
            with socket.create_connection((HOST, self.ports[0]), timeout=5.0) as client:
                client.sendall(DESCRIBE)
                return b"sprop-parameter-sets" in client.recv(65_536)
        except OSError:
            return False


def serve(port: int) -> None:
    """Serve until the process ends."""
    import rtsp
    from PIL import Image

    pictures = [Image.new("RGB", SIZE, (32 * number,) * 3) for number in range(8)]
    with rtsp.Source(f"rtsp://{HOST}:{port}/live", fps=RATE, frame_buffer=pictures) as source:
        source.serve_forever()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
