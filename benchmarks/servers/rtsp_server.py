"""RTSP camera on loopback, over TCP and UDP: the package ``rtsp``, in a separate process.

``python rtsp_server.py PORT [CLIP]`` serves some pictures of a clip in turn. Without a clip it serves uniform gray
pictures, whose gray value is the number of the frame modulo 8, times 32.
"""

import itertools
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from servers.process import HOST, ServerProcess

__all__ = ["RATE", "SIZE", "RtspServer"]

RATE = 25
SIZE = (64, 48)
CLIP_FRAMES = (100, 150)
DESCRIBE = b"DESCRIBE rtsp://127.0.0.1/live RTSP/1.0\r\nCSeq: 1\r\n\r\n"


class RtspServer(ServerProcess):
    """Camera that can be killed, frozen and restarted.

    Args:
        clip: clip that the camera shows; ``None``: gray pictures of `SIZE`.

    Attributes:
        url: URL of its only stream.
    """

    def __init__(self, clip: Path | None = None) -> None:
        super().__init__(ports=1)
        self._clip = clip
        self.url = f"rtsp://{HOST}:{self.ports[0]}/live"

    def prepare(self) -> tuple[Sequence[str], Mapping[str, str]]:
        folders = os.pathsep.join(str(path) for path in (Path(__file__).parents[1],))
        clip = [] if self._clip is None else [str(self._clip)]
        return [sys.executable, __file__, str(self.ports[0]), *clip], os.environ | {"PYTHONPATH": folders}

    def is_ready(self) -> bool:
        """Return true if the camera describes a stream whose first picture is encoded."""
        try:
            with socket.create_connection((HOST, self.ports[0]), timeout=5.0) as client:
                client.sendall(DESCRIBE)
                return b"sprop-parameter-sets" in client.recv(65_536)
        except OSError:
            return False


def serve(port: int, clip: str | None = None) -> None:
    """Serve until the process ends."""
    import rtsp
    from PIL import Image

    pictures = [Image.new("RGB", SIZE, (32 * number,) * 3) for number in range(8)]
    if clip is not None:
        import av

        with av.open(clip) as container:
            frames = itertools.islice(container.decode(video=0), *CLIP_FRAMES)
            pictures = [Image.fromarray(frame.to_ndarray(format="rgb24")) for frame in frames]
    with rtsp.Source(f"rtsp://{HOST}:{port}/live", fps=RATE, frame_buffer=pictures) as source:
        source.serve_forever()


if __name__ == "__main__":
    serve(int(sys.argv[1]), *sys.argv[2:])
