"""A real Prometheus on loopback that scrapes servers of a test."""

import json
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, Self

__all__ = ["PROMETHEUS", "PROMTOOL", "PrometheusServer"]

PROMETHEUS = shutil.which("prometheus")
PROMTOOL = shutil.which("promtool")


class PrometheusServer:
    """Prometheus with native histograms, scraping every 0.2 s."""

    def __init__(self, folder: Path, addresses: list[str]) -> None:
        self.folder = folder
        self.addresses = addresses
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]

    def __enter__(self) -> Self:
        config = {
            "global": {"scrape_interval": "200ms", "scrape_timeout": "200ms"},
            "scrape_configs": [
                {
                    "job_name": "test",
                    "scrape_classic_histograms": True,
                    "static_configs": [{"targets": self.addresses}],
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
            text=True,
        )
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if "Server is ready" in line:
                return self
        raise AssertionError("Prometheus did not start")

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stderr is not None
        self._process.stderr.close()

    def get(self, path: str, **parameters: str) -> Any:
        """The data of a call of the HTTP API."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=30) as response:
            return json.load(response)["data"]

    def query(self, expression: str) -> dict[str, float]:
        """Values of an instant query by their label ``service``; of a sum by the empty text."""
        found = self.get("query", query=expression)["result"]
        return {series["metric"].get("service", ""): float(series["value"][1]) for series in found}
