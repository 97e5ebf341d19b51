"""HTTP load by Debian's ``wrk``: one thread, many connections that each wait for the response."""

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

__all__ = ["Wrk"]

GRACE_S = 30.0


class Wrk:
    """``wrk`` with one kind of request.

    Args:
        folder: folder for the script of ``wrk``.
        body: body of each request.
        headers: headers of each request.
        connections: number of connections.

    Raises:
        RuntimeError: ``wrk`` is not installed.
    """

    def __init__(self, folder: Path, body: bytes, headers: Mapping[str, str], connections: int) -> None:
        found = shutil.which("wrk")
        if found is None:
            raise RuntimeError("wrk is not on PATH: apt-get install wrk")
        self._command = [found, "-t1", f"-c{connections}", "-s", str(folder / "request.lua")]
        (folder / "body").write_bytes(body)
        lines = ['wrk.method = "POST"', f'wrk.body = io.open({json.dumps(str(folder / "body"))}, "rb"):read("*a")']
        lines += [f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}" for name, value in headers.items()]
        (folder / "request.lua").write_text("\n".join(lines))

    def run(self, port: int, path: str, seconds: float) -> tuple[int, float]:
        """Return the number of responses, and the seconds in which they came.

        Raises:
            RuntimeError: a response was an error, there was none, or ``wrk`` did not end.
        """
        command = [*self._command, f"-d{max(1, round(seconds))}s", f"http://127.0.0.1:{port}{path}"]
        try:
            printed = subprocess.run(
                command, capture_output=True, text=True, check=True, timeout=seconds + GRACE_S
            ).stdout
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"{' '.join(command)} did not end in {error.timeout:.0f} s") from None
        counted = re.search(r"(\d+) requests in ([\d.]+)(ms|s),", printed)
        if counted is None or "Non-2xx" in printed or counted[1] == "0":
            raise RuntimeError(printed)
        return int(counted[1]), float(counted[2]) * (1e-3 if counted[3] == "ms" else 1.0)
