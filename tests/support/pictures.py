"""Checks that a picture can be printed: no text on other text, on a line or outside, readable sizes, a bounded file."""

import io
import itertools
import re

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

SMALLEST_PT = 7.0
LARGEST_SVG = 600_000


def check_printable(axes, *, largest_svg=LARGEST_SVG):
    """Draw the figure of axes, check it and return its SVG."""
    figure = axes.figure
    FigureCanvasAgg(figure)
    figure.canvas.draw()
    assert figure.get_figwidth() <= 12
    assert figure.get_figheight() <= 9
    renderer = figure.canvas.get_renderer()
    shown = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    shown = [text for text in shown if not _is_clipped(text, axes)]
    hidden = {text for each in figure.axes for axis in (each.xaxis, each.yaxis) for text in _beyond(axis)}
    boxes = [(text.get_text(), _box(text, renderer)) for text in shown if text not in hidden]
    for (one, first), (other, second) in itertools.combinations(boxes, 2):
        assert not _overlap(first, second), f"{one!r} overlaps {other!r}"
    for text, box in boxes:
        assert box.x0 >= -1, f"{text!r} sticks out"
        assert box.y0 >= -1, f"{text!r} sticks out"
        assert box.x1 <= figure.bbox.x1 + 1, f"{text!r} sticks out"
        assert box.y1 <= figure.bbox.y1 + 1, f"{text!r} sticks out"
        assert not re.search(r"\b(nan|inf|ks)\b|\de[-+\d]", text), f"{text!r} is no label"
    assert min((text.get_fontsize() for text in shown), default=SMALLEST_PT) >= SMALLEST_PT
    legend = axes.get_legend()
    if legend is not None:
        assert legend.get_window_extent(renderer).y0 >= axes.bbox.y1 - 1, "the legend covers data"
    for text, line in itertools.product(axes.texts, axes.lines):
        path = line.get_transform().transform_path(line.get_path())
        assert not path.intersects_bbox(_box(text, renderer), filled=False), f"a line crosses {text.get_text()!r}"
    svg = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none"}):
        figure.savefig(svg, format="svg")
    assert len(svg.getvalue()) <= largest_svg
    return svg.getvalue()


def _beyond(axis):
    """Yield the tick labels outside the view, which exist but are not drawn."""
    low, high = sorted(axis.get_view_interval())
    slack = 1e-9 * max(abs(low), abs(high), 1.0)
    for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
        if not low - slack <= tick.get_loc() <= high + slack:
            yield from (tick.label1, tick.label2)


def _is_clipped(text, axes):
    """Return whether the axes cut off a text among the data; labels of axes have no clip."""
    has_clip = text.get_clip_box() is not None or text.get_clip_path() is not None
    return text.get_clip_on() and has_clip and not axes.bbox.overlaps(text.get_window_extent())


def _box(text, renderer):
    return text.get_window_extent(renderer)


def _overlap(one, other):
    """Return whether two texts overlap; without a gap of about a letter, two texts side by side read as one."""
    gap, lead = 3.0, 0.5
    return (
        min(one.x1, other.x1) - max(one.x0, other.x0) > -gap and min(one.y1, other.y1) - max(one.y0, other.y0) > -lead
    )
