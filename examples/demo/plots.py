"""The pictures of the report, each an SVG that stands in the page itself."""

import io
import re
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from demo.audio import CHUNK_NS, CHUNK_S, RATE, Clip
from demo.budget import Budget
from demo.faces import Face
from demo.findings import COMPUTED, ENOUGH, KEPT, LOST, SHARED, Hold, Search, Visited
from demo.recognition import SPEECH, Speech
from demo.video import Frames
from streaminfer.telemetry.slo_plot import plot_budget

__all__ = [
    "draw_batch_sizes",
    "draw_budgets",
    "draw_cache",
    "draw_faces",
    "draw_latency",
    "draw_parts",
    "draw_search",
    "draw_speech",
    "draw_timeline",
]

COLOURS = ("#1f6fb4", "#d1622b")
QUANTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
WIDTH = 9.0
BIN_S = 0.25
BECAME = {
    KEPT: ("from the cache", "#1f6fb4"),
    SHARED: ("shared", "#7fb2dd"),
    COMPUTED: ("computed", "#d1622b"),
    LOST: ("lost", "#555555"),
}


def draw_search(searches: Sequence[Search]) -> str:
    """Share of chunks on time by number of microphones; steps of the ramp, and holds."""
    figure, axes = _new(3.2)
    for search, colour in zip(searches, COLOURS, strict=False):
        ramp = [step for step in search.steps if not step.held]
        holds = [step for step in search.steps if step.held]
        axes.plot(
            [step.microphones for step in ramp],
            [100 * step.share_on_time for step in ramp],
            ".-",
            color=colour,
            alpha=0.5,
            label=f"{search.hold.way.name}: ramp",
        )
        axes.plot(
            [step.microphones for step in holds],
            [100 * step.share_on_time for step in holds],
            "D",
            color=colour,
            label=f"{search.hold.way.name}: holds",
        )
    axes.axhline(100 * ENOUGH, color="grey", linestyle=":", label="99 %")
    axes.set_xlabel("microphones")
    axes.set_ylabel("chunks on time, %")
    axes.set_xlim(left=0)
    axes.legend(fontsize=8)
    return _svg(figure)


def draw_latency(holds: Sequence[Hold]) -> str:
    """Latency from the instant a chunk was due, by percentile."""
    figure, axes = _new(3.2)
    for hold, colour in zip(holds, COLOURS, strict=False):
        if hold.chunks.latency.count:
            hold.chunks.latency.plot(axes)
            axes.lines[-1].set(color=colour, label=f"{hold.way.name}, {hold.microphones} microphones")
    axes.axhline(CHUNK_NS / 1e9, color="grey", linestyle=":", label="the next chunk is due")
    axes.set_ylabel("latency from when it was due")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    return _svg(figure)


def draw_parts(holds: Sequence[Hold]) -> str:
    """Percentiles of each part of the latency; on a logarithmic axis, since they differ by orders of magnitude."""
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    panels = figure.subplots(1, len(holds), sharey=True, squeeze=False)[0]
    for hold, axes in zip(holds, panels, strict=True):
        for place, (name, q) in enumerate(QUANTILES.items()):
            parts = {part: histogram for part, histogram in hold.voice.parts().items() if histogram.count}
            axes.bar(
                np.arange(len(parts)) + 0.25 * (place - 1),
                [1e3 * histogram.quantile(q) for histogram in parts.values()],
                width=0.23,
                label=name,
                color=f"C{place}",
            )
            axes.set_xticks(range(len(parts)), list(parts))
        axes.set_yscale("log")
        axes.set_title(hold.way.name, fontsize=9)
        axes.grid(visible=True, axis="y", alpha=0.3)
    panels[0].set_ylabel("ms")
    panels[-1].legend(fontsize=8)
    return _svg(figure)


def draw_batch_sizes(hold: Hold) -> str:
    """How many chunks were answered from batches of which size."""
    figure, axes = _new(2.6)
    sizes = hold.voice.batch_sizes
    total = sum(sizes.values())
    axes.bar(list(sizes), [100 * count / total for count in sizes.values()], width=1.0, color=COLOURS[0])
    axes.set_xlabel("size of the batch")
    axes.set_ylabel("chunks, %")
    return _svg(figure)


def draw_timeline(hold: Hold) -> str:
    """Every batch: when it began, how large it was and how long the model took."""
    figure = Figure(figsize=(WIDTH, 4.0), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    batches = np.array(hold.chunks.batches, np.int64).reshape(-1, 3)
    began_s = (batches[:, 0] - hold.began_ns) / 1e9
    # thousands of points: drawn as pixels
    upper.plot(began_s, batches[:, 2], ".", markersize=2, color=COLOURS[0], rasterized=True)
    upper.set_ylabel("chunks in the batch")
    lower.plot(began_s, (batches[:, 1] - batches[:, 0]) / 1e6, ".", markersize=2, color=COLOURS[1], rasterized=True)
    lower.set_ylabel("ms until answered")
    lower.set_xlabel("seconds")
    for axes in (upper, lower):
        axes.set_ylim(bottom=0)
        axes.grid(visible=True, alpha=0.3)
    return _svg(figure)


def draw_cache(visited: Visited) -> str:
    """Latency by percentile without and with the cache, and what became of the uploads as time went by."""
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for served, colour in zip((visited.plain, visited.cached), reversed(COLOURS), strict=True):
        if served.meter.latency.count:
            served.meter.latency.plot(left)
            left.lines[-1].set(color=colour, label=served.name)
    left.axhline(visited.plain.meter.slo_ns / 1e9, color="grey", linestyle=":", label="objective")
    left.set_yscale("log")
    left.set_ylabel("latency from when it was due")
    left.legend(fontsize=8)
    uploads = visited.uploads
    edges = np.linspace(0, uploads.seconds, max(2, round(uploads.seconds / BIN_S) + 1))
    all_of_them = np.maximum(np.histogram(uploads.due_s, edges)[0], 1)
    below = np.zeros(len(edges) - 1)
    for what, (name, colour) in BECAME.items():
        share = 100 * np.histogram(uploads.due_s[visited.cached.became == what], edges)[0] / all_of_them
        if share.any():
            right.stairs(below + share, edges, baseline=below, fill=True, color=colour, label=name)
        below += share
    right.set_xlabel("seconds")
    right.set_ylabel("uploads, with the cache, %")
    right.set_ylim(0, 100)
    right.margins(x=0)
    right.legend(fontsize=8, loc="lower right")
    return _svg(figure)


def draw_budgets(budgets: Sequence[Budget]) -> str:
    """What was left of each error budget as the trial went by, and how fast it burned."""
    columns = min(len(budgets), 2)
    rows = -(-len(budgets) // columns)
    figure = Figure(figsize=(WIDTH, 2.7 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for budget, axes in zip(budgets, panels, strict=False):
        stands = budget.statistics
        plot_budget(axes, stands.name, budget.noted, budget.width_ns, 1 - stands.objective)
        axes.set_title(f"{stands.name}: within {1e3 * stands.threshold_s:.0f} ms", fontsize=9)
        axes.set_xlabel("seconds before the end")
        burn_rate = figure.axes[-1]  # its twin
        burn_rate.set_ylim(0, max(1.0, burn_rate.get_ylim()[1]))
    for axes in panels[len(budgets) :]:
        axes.set_axis_off()
    return _svg(figure)


def draw_speech(clip: Clip, speech: Speech) -> str:
    """The recording, and the probability of speech as one of the microphones heard it."""
    figure, axes = _new(2.6)
    every = 40
    axes.plot(
        np.arange(0, len(clip.samples), every) / RATE, clip.samples[::every], color="grey", linewidth=0.4, alpha=0.7
    )
    axes.plot(np.arange(len(speech.probabilities)) * CHUNK_S, speech.probabilities, color=COLOURS[0], linewidth=1)
    axes.axhline(SPEECH, color="grey", linestyle=":")
    for start_s, end_s in speech.segments:
        axes.axvspan(start_s, end_s, color=COLOURS[0], alpha=0.12)
    axes.set_xlabel("seconds")
    axes.set_ylabel("probability of speech")
    return _svg(figure)


def draw_faces(frames: Frames, faces: dict[int, list[Face]], count: int = 6) -> str:
    """Some frames with the faces found in them."""
    seen = [place for place, found in faces.items() if found] or list(faces)
    chosen = [seen[index] for index in np.linspace(0, len(seen) - 1, min(count, len(seen))).round().astype(int)]
    figure = Figure(figsize=(WIDTH, WIDTH / count + 0.3), layout="constrained")
    for axes, place in zip(figure.subplots(1, max(len(chosen), 1), squeeze=False)[0], chosen, strict=False):
        axes.imshow(_without_bars(frames.pixels[place]))
        bars = (frames.pixels.shape[1] - _without_bars(frames.pixels[place]).shape[0]) // 2
        for face in faces[place]:
            axes.add_patch(
                Rectangle(
                    (face.left, face.top - bars),
                    face.right - face.left,
                    face.bottom - face.top,
                    fill=False,
                    edgecolor="#39ff14",
                )
            )
        axes.set_title(f"{place / frames.rate:.1f} s", fontsize=8)
        axes.set_axis_off()
    return _svg(figure)


def _without_bars(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    rows = np.flatnonzero(pixels.any(axis=(1, 2)))
    return pixels[rows[0] : rows[-1] + 1] if len(rows) else pixels


def _new(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots()
    axes.grid(visible=True, alpha=0.3)
    return figure, axes


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}, dpi=110)
    drawn = text.getvalue()
    # inside a page it needs no prologue; identifiers get a mark, since those of two pictures may be the same
    mark = f"f{abs(hash(drawn)):x}-"
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r'\bid="', f'id="{mark}', drawn)
    drawn = re.sub(r'href="#', f'href="#{mark}', drawn)
    return re.sub(r"url\(#", f"url(#{mark}", drawn)
