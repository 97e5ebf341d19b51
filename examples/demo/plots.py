"""Figures of the report below the first one; each function makes one form of one figure."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, NullLocator
from numpy.typing import NDArray

from demo.audio import CHUNK_S, RATE, Clip
from demo.budget import Budget
from demo.drawing import BATCHED, GOOD, INK, MUTED, SHARED_COLOR, UNBATCHED_COLOR, Size, legend_above, new
from demo.faces import Face
from demo.findings import COMPUTED, KEPT, LOST, SHARED, Hold, Visited
from demo.meter import Meter
from demo.recognition import SPEECH, Speech
from demo.video import Frames
from streaminfer.telemetry import TelemetryStatistics, plot_budget

__all__ = [
    "make_batch_size_figure",
    "make_budget_figure",
    "make_cache_figure",
    "make_faces_figure",
    "make_latency_figure",
    "make_parts_figure",
    "make_speech_figure",
]

COLORS = (BATCHED, UNBATCHED_COLOR)
QUANTILES = {"p50": (0.5, GOOD), "p99": (0.99, BATCHED), "p99.9": (0.999, UNBATCHED_COLOR)}
NINES = np.concatenate([np.linspace(0.01, 0.9, 90), 1 - np.logspace(-1, -3, 60)])
BIN_S = 0.25
OUTCOMES = {
    KEPT: ("from the cache", BATCHED),
    SHARED: ("shared", SHARED_COLOR),
    COMPUTED: ("computed", UNBATCHED_COLOR),
    LOST: ("lost", MUTED),
}


def make_latency_figure(holds: Sequence[Hold], size: Size) -> Figure:
    """Draw latency from the instant at which a chunk was due, by percentile of all chunks, lost ones included."""
    figure, (axes,) = new(size, 2.6)
    for hold, color in zip(holds, COLORS, strict=False):
        lost = sum(hold.chunks.lost.values()) / max(hold.chunks.ended, 1)
        _draw_quantiles(axes, hold.chunks, color, f"{hold.way.name}: {lost:.1%} lost")
    axes.axhline(1e3 * CHUNK_S, color=MUTED, linestyle="--", linewidth=0.8)
    axes.set_ylabel("latency, ms")
    return figure


def _draw_quantiles(axes: Axes, meter: Meter, color: str, label: str) -> None:
    """Draw latency against percentile on an axis of nines; late and lost chunks are above the objective."""
    slo_ms = meter.slo_ns / 1e6
    quantiles_s = [meter.quantile_s(q) for q in NINES.tolist()]
    values = [1.4 * slo_ms if math.isinf(value) else min(1e3 * value, 1.4 * slo_ms) for value in quantiles_s]
    axes.plot(1 / (1 - NINES), values, color=color, linewidth=1.8, label=label)
    axes.set_xscale("log")
    axes.set_xticks([2, 10, 100, 1000], ["50%", "90%", "99%", "99.9%"])
    axes.xaxis.set_minor_locator(NullLocator())
    ticks = np.linspace(0, slo_ms, 5)
    axes.set_yticks([*ticks, 1.4 * slo_ms], [*(f"{tick:g}" for tick in ticks), f"> {slo_ms:g}"])
    axes.set_ylim(0, 1.5 * slo_ms)
    axes.set_xlabel("percentile of all that were due")
    legend_above(axes)


def make_parts_figure(voice: TelemetryStatistics, size: Size) -> Figure:
    """Draw percentiles of each part of the latency; the axis is logarithmic, because parts differ by magnitudes."""
    figure, (axes,) = new(size, 2.4)
    parts = {part: histogram for part, histogram in voice.parts().items() if histogram.count}
    for place, (name, (q, color)) in enumerate(QUANTILES.items()):
        heights = [1e3 * histogram.quantile(q) for histogram in parts.values()]
        axes.bar(np.arange(len(parts)) + 0.25 * (place - 1), heights, width=0.23, label=name, color=color)
    axes.set_xticks(range(len(parts)), list(parts))
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("ms")
    legend_above(axes, columns=3)
    return figure


def make_batch_size_figure(voice: TelemetryStatistics, size: Size) -> Figure:
    """Draw the share of the chunks by the size of their batch."""
    figure, (axes,) = new(size, 2.0)
    sizes = voice.batch_sizes
    total = sum(sizes.values())
    axes.bar(list(sizes), [100 * count / total for count in sizes.values()], width=0.9, color=BATCHED)
    axes.set_xlabel("chunks in the batch")
    axes.set_ylabel("share of chunks, %")
    axes.grid(visible=False, axis="x")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def make_cache_figure(visited: Visited, size: Size) -> Figure:
    """Draw latency by percentile without and with the cache, and the outcomes of the uploads over time."""
    figure, (left, right) = new(size, 2.6, columns=2)
    for served, color in zip((visited.cached, visited.plain), COLORS, strict=True):
        _draw_quantiles(left, served.meter, color, served.name.removeprefix("visitors, "))
    left.axhline(visited.plain.meter.slo_ns / 1e6, color=MUTED, linestyle="--", linewidth=0.8)
    left.set_ylabel("latency, ms")
    legend_above(left, columns=2)
    uploads = visited.uploads
    edges = np.linspace(0, uploads.seconds, max(2, round(uploads.seconds / BIN_S) + 1))
    total = np.maximum(np.histogram(uploads.due_s, edges)[0], 1)
    below = np.zeros(len(edges) - 1)
    for outcome, (name, color) in OUTCOMES.items():
        share = 100 * np.histogram(uploads.due_s[visited.cached.became == outcome], edges)[0] / total
        if share.any():
            right.stairs(below + share, edges, baseline=below, fill=True, color=color, label=name)
        below += share
    right.set_xlabel("time, s")
    right.set_ylabel("uploads with the cache, %")
    right.set_ylim(0, 100)
    right.margins(x=0)
    legend_above(right, columns=3)
    return figure


def make_budget_figure(budgets: Sequence[Budget], size: Size) -> Figure:
    """Draw the remaining error budgets over time, and their burn rates."""
    figure, panels = new(size, 2.1, columns=len(budgets))
    for budget, axes in zip(budgets, panels, strict=True):
        statistics = budget.statistics
        plot_budget(axes, statistics.name, budget.noted, budget.width_ns, 1 - statistics.objective)
        axes.set_title(f"{statistics.name}: within {1e3 * statistics.threshold_s:.0f} ms")
        axes.set_xlabel("time before the end, s")
        axes.set_ylabel("budget left, %")
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:,.0f}".replace("-", "\N{MINUS SIGN}"))
        burn_rate = axes.figure.axes[-1]  # its twin
        burn_rate.set_ylim(0, max(1.0, burn_rate.get_ylim()[1]))
        burn_rate.set_ylabel("burn rate")
        burn_rate.grid(visible=False)
        burn_rate.spines["right"].set_visible(True)
    return figure


def make_speech_figure(clip: Clip, speech: Speech, size: Size) -> Figure:
    """Draw the recording, and the probability of speech from one of the microphones."""
    figure, (axes,) = new(size, 2.1)
    every = 80 if size.narrow else 40
    loudest = max(float(np.abs(clip.samples).max()), 1e-9)
    samples = clip.samples[: len(clip.samples) // every * every].reshape(-1, every) / loudest
    at_s = np.arange(len(samples)) * every / RATE
    # the recording is scaled to 0 to 1, around 0.5, so that both share one axis
    axes.fill_between(
        at_s, 0.5 + samples.min(axis=1) / 2, 0.5 + samples.max(axis=1) / 2, color=MUTED, alpha=0.5, linewidth=0
    )
    axes.plot([], [], color=MUTED, alpha=0.5, linewidth=4, label="recording")
    axes.plot(
        np.arange(len(speech.probabilities)) * CHUNK_S,
        speech.probabilities,
        color=BATCHED,
        linewidth=1.5,
        label="probability",
    )
    axes.axhline(SPEECH, color=MUTED, linestyle="--", linewidth=0.8)
    for number, (start_s, end_s) in enumerate(speech.segments):
        axes.axvspan(start_s, end_s, color=GOOD, alpha=0.15, label="" if number else "speech")
    axes.set_ylim(-0.03, 1.03)
    axes.margins(x=0)
    axes.set_xlabel("time, s")
    axes.set_ylabel("probability of speech")
    legend_above(axes, columns=3)
    return figure


def make_faces_figure(frames: Frames, faces: Mapping[int, Sequence[Face]], size: Size) -> Figure:
    """Draw some frames with the faces found in them."""
    rows, columns = (2, 3) if size.narrow else (1, 6)
    seen = [place for place, found in faces.items() if found] or list(faces)
    count = min(rows * columns, len(seen))
    chosen = [seen[index] for index in np.linspace(0, len(seen) - 1, count).round().astype(int)]
    figure = Figure(figsize=(size.width, rows * (size.width / columns * 0.75 + 0.25)), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    for axes, place in zip(panels, chosen, strict=False):
        shown = _without_bars(frames.pixels[place])
        axes.imshow(shown)
        bars = (frames.pixels.shape[1] - shown.shape[0]) // 2
        for face in faces[place]:
            width, height = face.right - face.left, face.bottom - face.top
            corner = (face.left, face.top - bars)
            axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor="#39ff14", linewidth=1.2))
        axes.set_title(f"{place / frames.rate:.1f} s", color=INK)
    return figure


def _without_bars(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    rows = np.flatnonzero(pixels.any(axis=(1, 2)))
    return pixels[rows[0] : rows[-1] + 1] if len(rows) else pixels
