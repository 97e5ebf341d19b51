"""A real Prometheus on loopback that scrapes servers of a test."""

import json
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, Self

from servers.asgi_server import AsgiServer

__all__ = ["PROMETHEUS", "PROMTOOL", "PrometheusServer"]

PROMETHEUS = shutil.which("prometheus")
PROMTOOL = shutil.which("promtool")


class PrometheusServer:
    """Prometheus with native histograms, scraping every second.

    Args:
        folder: folder of its files.
        servers: servers that it scrapes; enter them before Prometheus.

    Attributes:
        at_s: Unix time of all queries, at which Prometheus had a scrape of each server.
    """

    def __init__(self, folder: Path, servers: list[AsgiServer]) -> None:
        self.folder = folder
        self.servers = servers
        self.at_s = 0.0
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]

    def __enter__(self) -> Self:
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
            "scrape_configs": [
                {
                    "job_name": "test",
                    "scrape_classic_histograms": True,
                    "static_configs": [{"targets": [server.address for server in self.servers]}],
                }
            ],
        }
        path = self.folder / "prometheus.yml"
        path.write_text(json.dumps(config))
        self._process = subprocess.Popen(
            [
                PROMETHEUS or "prometheus",
                f"--config.file={path}",
                f"--storage.tsdb.path={self.folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{self.port}",
                "--enable-feature=native-histograms,exemplar-storage",
            ],
            stderr=subprocess.PIPE,
            encoding="utf-8",  # durations in the log have "µs", whatever the locale
        )
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if "Server is ready" in line:
                break
        for _ in range(60):  # a busy machine may be too slow for a scrape
            for server in self.servers:
                server.wait_for_requests(2)  # one scrape is stored before the next one begins
            self.at_s = time.time()
            if self.query("sum(up)") == {"": len(self.servers)}:
                return self
        raise AssertionError("Prometheus had no scrape of each server")

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stderr is not None
        self._process.stderr.close()

    def get(self, path: str, **parameters: str) -> Any:
        """Return the data of a call of the HTTP API."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=30) as response:
            return json.load(response)["data"]

    def query(self, expression: str) -> dict[str, float]:
        """Return the values of an instant query by label ``service``; the key of a sum is the empty text."""
        found = self.get("query", query=expression, time=str(self.at_s))["result"]
        return {series["metric"].get("service", ""): float(series["value"][1]) for series in found}
