"""LatencyHistogram against its floors and its peer: ``python benchmarks/run.py histogram``.

Each figure is the minimum of many repetitions, in alternation with its baseline in the same run. The floor of a record
is a method of a Cython class that takes one argument and does nothing, compiled here with the directives and flags of
``setup.py``.
"""

import importlib.util
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _lib.figures import Figure
from hdrh.histogram import HdrHistogram

from streaminfer.telemetry.histograms.latency_histogram import LatencyHistogram

VALUES = 1_000_000
PER_LOOP = 2_000
RECORD = Figure("`LatencyHistogram.record`", over="an empty method of a Cython class", at_most=1.4)
RECORD_MANY = Figure("`LatencyHistogram.record_many`, per value", form="{:.1f} ns", at_most=5)
QUANTILE = Figure("`LatencyHistogram.quantile(0.99)`", form="{:.1f} µs", at_most=5)
SHARES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "p99.99": 0.9999}

FLOOR = """
    class Floor:
        def nothing(self, x):
            pass
"""
BUILD = """
    from Cython.Distutils import Extension, build_ext
    from setuptools import setup

    directives = {"language_level": "3", "annotation_typing": False, "embedsignature": True}
    extension = Extension("floor_cy", ["floor_cy.py"], cython_directives=directives, extra_compile_args=["-O3"])
    setup(name="floor", ext_modules=[extension], cmdclass={"build_ext": build_ext})
"""


def build_floor(folder: Path) -> Any:
    """Compile the empty class, and return an object of it."""
    (folder / "floor_cy.py").write_text(textwrap.dedent(FLOOR))
    (folder / "floor_cy.pxd").write_text("cdef class Floor:\n    pass\n")
    (folder / "setup.py").write_text(textwrap.dedent(BUILD))
    subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=folder, check=True)
    built = next(path for path in folder.glob("floor_cy.*") if path.suffix in {".so", ".pyd"})
    spec = importlib.util.spec_from_file_location("floor_cy", built)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Floor()


def loop_over(values: list[Any], call: str, **names: Any) -> Callable[[], None]:
    """Return a function that runs a statement for every value; it looks a method up at each call, as users do."""
    scope = {"values": values, **names}
    exec(f"def loop():\n    for value in values:\n        {call}", scope)  # noqa: S102 - all statements are constants
    function: Callable[[], None] = scope["loop"]
    return function


def least(functions: dict[str, Callable[[], Any]], *, repeat: int, number: int = 1) -> dict[str, float]:
    """Return the minimum seconds of each function; all of them run in alternation."""
    best = dict.fromkeys(functions, float("inf"))
    for _ in range(repeat):
        for name, function in functions.items():
            started = time.perf_counter()
            for _ in range(number):
                function()
            best[name] = min(best[name], (time.perf_counter() - started) / number)
    return best


def bench_record(floor: Any, sample: list[float]) -> None:
    ours, theirs = LatencyHistogram(), HdrHistogram(1000, 3600 * 10**9, 3)
    whole = [round(value * 1e9) for value in sample]
    best = least(
        {
            "loop": loop_over(sample, "pass"),
            "floor": loop_over(sample, "floor.nothing(value)", floor=floor),
            "record": loop_over(sample, "ours.record(value)", ours=ours),
            "record_ns": loop_over(whole, "ours.record_ns(value)", ours=ours),
        },
        repeat=400,
    )
    peer = least({"hdrhistogram": loop_over(whole, "theirs.record_value(value)", theirs=theirs)}, repeat=10)
    ns = {name: seconds / len(sample) * 1e9 for name, seconds in (best | peer).items()}
    ratio = ns["record"] / ns["floor"]
    net = (ns["record"] - ns["loop"]) / (ns["floor"] - ns["loop"])
    print("One record, ns (the for loop alone takes", f"{ns['loop']:.1f})")
    print(f"  empty Cython method      {ns['floor']:8.1f}   1.00x")
    print(f"  LatencyHistogram.record  {ns['record']:8.1f}   {ratio:.2f}x   (less the loop: {net:.2f}x)")
    print(f"  .record_ns               {ns['record_ns']:8.1f}   {ns['record_ns'] / ns['floor']:.2f}x")
    print(f"  hdrhistogram             {ns['hdrhistogram']:8.1f}   {ns['hdrhistogram'] / ns['floor']:.1f}x")
    RECORD.report(ratio)


def bench_bulk(values: np.ndarray[Any, Any]) -> None:
    ours = LatencyHistogram()
    small = np.ascontiguousarray(values[:32])
    each = least({"ours": lambda: ours.record_many(values)}, repeat=15)["ours"] / values.size * 1e9
    batch = least({"ours": lambda: ours.record_many(small)}, repeat=15, number=200)["ours"]
    print(f"\nBulk, ns a value ({values.size:,} lognormal values)")
    print(f"  LatencyHistogram.record_many  {each:6.2f}")
    print(f"  record_many of 32 values, the whole call: {batch * 1e6:.2f} µs")
    RECORD_MANY.report(each)


def bench_read(ours: LatencyHistogram, theirs: HdrHistogram) -> None:
    ours_twin, theirs_twin = ours.copy(), HdrHistogram.decode(ours.encode())
    text = ours.encode()
    mine = least(
        {
            "p50 query": lambda: ours.quantile(0.5),
            "p99 query": lambda: ours.quantile(0.99),
            "p99.9 query": lambda: ours.quantile(0.999),
            "merge": lambda: ours_twin.merge(ours),
            "encode": ours.encode,
            "decode": lambda: LatencyHistogram.decode(text),
        },
        repeat=20,
        number=50,
    )
    peer = least(
        {
            "p50 query": lambda: theirs.get_value_at_percentile(50.0),
            "p99 query": lambda: theirs.get_value_at_percentile(99.0),
            "p99.9 query": lambda: theirs.get_value_at_percentile(99.9),
            "merge": lambda: theirs_twin.add(theirs),
            "encode": theirs.encode,
            "decode": lambda: HdrHistogram.decode(text),
        },
        repeat=5,
    )
    print("\nReading, µs                 ours   hdrhistogram")
    for name, seconds in mine.items():
        print(f"  {name:<22}{seconds * 1e6:10.2f}{peer[name] * 1e6:15.1f}")
    QUANTILE.report(mine["p99 query"] * 1e6)


def show_errors(values: np.ndarray[Any, Any], ours: LatencyHistogram, theirs: HdrHistogram) -> None:
    print("\nError against np.percentile of the raw values, %")
    print(f"  {'':<18}" + "".join(f"{name:>9}" for name in SHARES))
    exact = {name: float(np.percentile(values, 100 * q, method="inverted_cdf")) for name, q in SHARES.items()}
    for name, quantile in (
        ("LatencyHistogram", ours.quantile),
        ("hdrhistogram", lambda q: theirs.get_value_at_percentile(100 * q) / 1e9),
    ):
        errors = [abs(quantile(q) / exact[label] - 1) * 100 for label, q in SHARES.items()]
        print(f"  {name:<18}" + "".join(f"{error:9.3f}" for error in errors))


def main() -> None:
    values = np.random.default_rng(0).lognormal(-4.6, 1.0, VALUES)  # median 10 ms
    with tempfile.TemporaryDirectory() as folder:
        bench_record(build_floor(Path(folder)), values[:PER_LOOP].tolist())
    bench_bulk(values)
    ours = LatencyHistogram()
    ours.record_many(values)
    theirs = HdrHistogram.decode(ours.encode())
    bench_read(ours, theirs)
    show_errors(values, ours, theirs)


if __name__ == "__main__":
    main()
