"""Results of the whole demo, and their tables."""

import math
import statistics
from collections.abc import Sequence

import attrs
import numpy as np
from numpy.typing import NDArray

from demo.audio import CHUNK_S, Clip
from demo.budget import Budget
from demo.comparison import Comparison, compare
from demo.findings import Hold, LoadPoint, Served, Sweep, Visited
from demo.meter import Meter
from demo.overload import Overload
from demo.recognition import Pictures, Speech, compare_speech, count_faces
from demo.video import Frames

__all__ = ["STREAMS_HEAD", "SWEEP_HEAD", "Outcome", "describe_left", "make_rows", "make_sweep_rows", "render_table"]

STREAMS_HEAD = (
    "",
    "streams",
    "requests/s",
    "p50",
    "p99",
    "p99.9",
    "on time",
    "SLO",
    "budget left",
    "mean batch",
    "CPU/request",
)
SWEEP_HEAD = ("load", "microphones", "batched: on time", "p99", "unbatched: on time", "p99")


@attrs.frozen(eq=False)
class Outcome:
    """Results of the whole demo.

    Attributes:
        machine: description of the machine.
        clip: clip that the microphones played.
        frames: frames that the cameras played.
        cameras: number of cameras.
        reference: speech probabilities of the clip, run once in batches of one.
        rates: saturated rate of each unbatched way, in chunks per second, by name.
        ``sweep``: both ways at the same offered loads.
        holds: batched and unbatched with the same number of microphones, and cameras beside them.
        overload: results of the temporary overload; ``None`` if that part was left out.
        visited: results for the visitors without and with a cache; ``None`` if that part was left out.
    """

    machine: str
    clip: Clip
    frames: Frames
    cameras: int
    reference: NDArray[np.float32]
    rates: dict[str, float]
    sweep: Sweep
    holds: Sequence[Hold]
    overload: Overload | None = None
    visited: Visited | None = None

    @property
    def comparison(self) -> Comparison:
        """Comparison of both ways, as far as the repeats support it."""
        return compare(self.sweep)

    @property
    def served(self) -> list[Served]:
        """Results of each way of serving the visitors."""
        return [] if self.visited is None else [self.visited.plain, self.visited.cached]

    @property
    def budgets(self) -> list[Budget]:
        """Every error budget, in the order of the table."""
        return [served.budget for served in self.served]

    @property
    def speech(self) -> Speech:
        """Speech results of the batched way."""
        return compare_speech(self.holds[0].heard, self.reference)

    @property
    def pictures(self) -> Pictures:
        """Face results of the cameras beside the batched way."""
        return count_faces(self.holds[0].faces)


def make_sweep_rows(sweep: Sweep) -> list[tuple[str, ...]]:
    """Return the rows under :data:`SWEEP_HEAD`: median and range of the repeats at each load."""
    return [
        (
            f"{batched[0].load:.2f}×",
            f"{batched[0].microphones:,}",
            *_describe_points(batched),
            *_describe_points(unbatched),
        )
        for batched, unbatched in zip(*(curve.by_load() for curve in sweep.curves), strict=True)
    ]


def make_rows(outcome: Outcome) -> list[tuple[str, ...]]:
    """Return the rows under :data:`STREAMS_HEAD`: microphones and cameras of each way, and visitors."""
    rows = []
    for hold in outcome.holds:
        rows.append(
            (
                f"microphones, {hold.way.name}",
                f"{hold.microphones}",
                *_figures(hold.chunks, hold.seconds, CHUNK_S),
                "",
                "1.0" if hold.counted is None else f"{hold.counted.voice.mean_batch_size:.1f}",
                f"{1e6 * hold.cpu_per_chunk_s:,.0f} µs",
            )
        )
        if hold.pictures is not None:
            rows.append(
                (
                    "cameras beside them",
                    f"{outcome.cameras}",
                    *_figures(hold.pictures, hold.seconds, 1 / outcome.frames.rate),
                    "",
                    "1.0",
                    f"{1e6 * hold.cpu_per_picture_s:,.0f} µs",
                )
            )
    rows += [
        (
            served.name,
            "",
            *_figures(served.meter, served.seconds, served.meter.slo_ns / 1e9),
            describe_left(served.budget),
            "1.0",
            f"{1e6 * served.cpu_per_request_s:,.0f} µs",
        )
        for served in outcome.served
    ]
    return rows


def render_table(head: Sequence[str], rows: Sequence[tuple[str, ...]]) -> str:
    """Return the table as text in columns."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = []
    for row in (head, *rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells))
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def describe_left(budget: Budget) -> str:
    """Return the remaining error budget in percent, or how many times it was spent."""
    left = budget.statistics.budget_remaining
    return f"spent {1 - left:.1f}×" if budget.overspent else f"{left:.0%}"


def _describe_points(points: Sequence[LoadPoint]) -> tuple[str, str]:
    shares = [point.share_on_time for point in points]
    p99_s = statistics.median(point.p99_s for point in points)
    share = f"{statistics.median(shares):.1%} ({100 * min(shares):.1f} to {100 * max(shares):.1f})"
    return share, _describe_latency(p99_s)


def _describe_latency(latency_s: float) -> str:
    return "lost" if math.isinf(latency_s) else f"{1e3 * latency_s:.1f} ms"


def _figures(meter: Meter, seconds: float, slo_s: float) -> tuple[str, ...]:
    """Return requests per second, three percentiles over all that were due, the share on time and the objective."""
    return (
        f"{meter.latency.count / seconds:,.0f}",
        *(_describe_latency(meter.quantile_s(q)) for q in (0.5, 0.99, 0.999)),
        f"{meter.share_on_time:.2%}",
        f"{1e3 * slo_s:.0f} ms",
    )
