"""The live page in a real browser: CPU of the server, updates dropped, growth; beside updates as whole JSON snapshots.

python benchmarks/run.py dashboard                   two minutes
python benchmarks/run.py dashboard --seconds 600     ten minutes, for which the bars hold

Needs Debian's chromium and chromium-driver. The server runs in a separate process; its CPU is that of the process,
minus that of the traffic, and minus that of the same server without a browser. Growth is that of the browser's heap and
nodes after a garbage collection, between two moments at which the histories of the page are equally long: the page cuts
a history of 720 updates back to 600.
"""

import argparse
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from _lib.figures import Figure

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "tests" / "support"))
from browser import Browser  # type: ignore[import-not-found]  # noqa: E402 - the client of the tests

SERVICES, PER_SECOND = 10, 10
FULL_S = 75.0
"""Seconds after which the browser's history, at most 720 points, is full."""
POINTS = "return +(document.body.dataset.points ?? 0)"
SHARE = Figure("CPU of the live page's server, share of a core", form="{:.1f} %", at_most=2)
OVER_JSON = Figure("CPU of the live page's server with one browser", over="whole JSON snapshots")
DROPPED = Figure("updates that the browser of the live page dropped", form="{:.0f}", at_most=0)
TROUBLE = Figure("restarts and errors of the live page in its browser", form="{:.0f}", at_most=0)
HEAP = Figure("growth of the heap of the live page's browser", form="{:+.1f} %", at_most=5)
NODES = Figure("growth of the live page's document, in nodes", form="{:+.1f} %", at_most=1)


@contextmanager
def serve(kind: str, port: int) -> Iterator[str]:
    command = [sys.executable, str(HERE / "dashboard_server.py"), kind, str(SERVICES), str(1 / PER_SECOND), str(port)]
    server = subprocess.Popen(command)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                cpu_s(url)
                break
            except OSError:
                time.sleep(0.05)
        yield url
    finally:
        server.terminate()
        server.wait(30)


def cpu_s(url: str) -> float:
    with urllib.request.urlopen(f"{url}/cpu", timeout=10) as answer:  # noqa: S310 - our own server
        return float(answer.read())


def share_of_a_core(url: str, seconds: float) -> float:
    before, began_s = cpu_s(url), time.monotonic()
    time.sleep(seconds)
    return (cpu_s(url) - before) / (time.monotonic() - began_s)


def weigh(browser: Browser) -> tuple[float, int]:
    """Return the browser's heap in bytes, and the nodes of its document, after a garbage collection."""
    browser.cdp("HeapProfiler.collectGarbage")
    metrics = {it["name"]: it["value"] for it in browser.cdp("Performance.getMetrics")["metrics"]}
    return metrics["JSHeapUsedSize"], int(browser.run("return document.getElementsByTagName('*').length"))


def measure(kind: str, seconds: float, port: int) -> dict[str, Any]:
    with serve(kind, port) as url, Browser() as browser:
        idle = share_of_a_core(url, 5.0)
        browser.cdp("Performance.enable")
        browser.show(1280)
        browser.open(url)
        browser.until("return +document.body.dataset.updates > 5")
        full_s = min(FULL_S, seconds / 2) if kind == "page" else 0.0
        shares = [share_of_a_core(url, full_s)] if full_s else []
        heap, nodes = weigh(browser)
        points = browser.run(POINTS)
        updates, began_s = int(browser.run("return document.body.dataset.updates")), time.monotonic()
        rounds = 5
        shares += [share_of_a_core(url, (seconds - full_s) / rounds) for _ in range(rounds)]
        seen, ended_s = int(browser.run("return document.body.dataset.updates")) - updates, time.monotonic()
        if kind == "page":
            # the page updates this number once per second, in steps of ten
            browser.until("return Math.abs(document.body.dataset.points - arguments[0]) <= 5", points)
        later, later_nodes = weigh(browser)
        return {
            "shares": [share - idle for share in shares],
            "idle": idle,
            "rate": seen / (ended_s - began_s),
            "missed": browser.run("return document.body.dataset.missed ?? '-'"),
            "restarts": browser.run("return document.body.dataset.restarts ?? '-'"),
            "points": points,
            "heap": (heap, later),
            "nodes": (nodes, later_nodes),
            "errors": browser.errors(),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0, help="of the page; the baseline gets a sixth of it")
    options = parser.parse_args()
    print(f"{SERVICES} services, {PER_SECOND} updates a second, one browser")
    found = {"json": measure("json", options.seconds / 6, 8391), "page": measure("page", options.seconds, 8392)}
    for kind, it in found.items():
        print(
            f"  {kind:5} server {statistics.median(it['shares']):7.2%} of a core (without a browser "
            f"{it['idle']:.2%}), {it['rate']:.2f} updates/s in the browser"
        )
    page = found["page"]
    (before, after), (nodes, later) = page["heap"], page["nodes"]
    print(f"  heap {before / 1e6:.2f} → {after / 1e6:.2f} MB, nodes {nodes} → {later}, points {page['points']}")
    case = f"{SERVICES} services at {PER_SECOND} updates/s for {options.seconds:g} s"
    SHARE.report([100 * share for share in page["shares"]], case=case)
    OVER_JSON.report(statistics.median(page["shares"]) / statistics.median(found["json"]["shares"]), case=case)
    DROPPED.report(float(page["missed"]), case=case)
    TROUBLE.report(float(page["restarts"]) + len(page["errors"]), case=case)
    HEAP.report(100 * (after / before - 1), case=case)
    NODES.report(100 * (later / nodes - 1), case=case)


if __name__ == "__main__":
    main()
