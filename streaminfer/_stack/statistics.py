"""Statistics of a `Stack`: those of its layers, and its start."""

from collections.abc import Mapping
from typing import Any, Literal

import attrs

from streaminfer._internal.snapshot import Snapshot
from streaminfer._stack.start_report import StartReport
from streaminfer.protocols import adapt

__all__ = ["PartStatistics", "StackState", "StackStatistics", "statistics_inside"]

StackState = Literal["new", "starting", "running", "stopping", "stopped"]


@attrs.frozen
class StackStatistics(Snapshot):
    """Snapshots of the layers of a `Stack`, by the name of their class.

    Attributes:
        state: ``"new"``, ``"starting"``, ``"running"``, ``"stopping"`` or ``"stopped"``. A stack is also stopped after
            its event loop was closed, and in a forked process.
        layers: class name → the layer's own frozen statistics, outermost first. A second layer of the same class has
            the suffix ``#2``.
        start: durations and measurements of the latest start; ``None`` before it ended.
        children: class name → label → statistics of an object inside a layer: the routes of a router, replicas, both
            sides of a `Canary`, the copy of a `Shadow`. A value is a `StackStatistics`, a `PartStatistics`, or the
            statistics of an object without inner objects.
    """

    state: StackState
    layers: Mapping[str, Any]
    start: StartReport | None = None
    children: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)

    def __getitem__(self, name: str) -> Any:
        try:
            return self.layers[name]
        except KeyError:
            names = ", ".join(map(repr, self.layers)) or "none"
            raise KeyError(f"no layer of this stack is {name!r}; those that keep statistics: {names}") from None

    def _repr_html_(self) -> str:
        import html  # noqa: PLC0415 - a notebook's need, not every import's

        parts = [] if self.start is None else [self.start._repr_html_()]
        for name, statistics in self.layers.items():
            parts.append(f"<h4>{html.escape(name)}</h4>{_html(statistics)}")
            parts.append(_children_html(self.children.get(name, {})))
        parts += [_children_html(inside) for name, inside in self.children.items() if name not in self.layers]
        return f"<div><p>Stack, {self.state}</p>{''.join(parts)}</div>"


@attrs.frozen
class PartStatistics(Snapshot):
    """Snapshots of an object that is inside a layer and has inner objects itself.

    Attributes:
        statistics: its own statistics; ``None`` if it has none.
        children: label → statistics, as in a `StackStatistics`.
    """

    statistics: Any
    children: Mapping[str, Any]

    def _repr_html_(self) -> str:
        return ("" if self.statistics is None else _html(self.statistics)) + _children_html(self.children)


def statistics_inside(part: Any) -> dict[str, Any]:
    """Return the statistics of the objects inside a layer or service, by label; skip objects without statistics."""
    by_label = {label: _statistics_of(child) for label, child in adapt(part).children.items()}
    return {label: statistics for label, statistics in by_label.items() if statistics is not None}


def _statistics_of(part: Any) -> Any:
    own = adapt(part).statistics()
    if isinstance(own, StackStatistics):
        return own
    inside = statistics_inside(part)
    return PartStatistics(own, inside) if inside else own


def _html(statistics: Any) -> str:
    import html  # noqa: PLC0415 - a notebook's need, not every import's

    draw = getattr(statistics, "_repr_html_", None)
    return str(draw()) if draw else f"<pre>{html.escape(repr(statistics))}</pre>"


def _children_html(children: Mapping[str, Any]) -> str:
    import html  # noqa: PLC0415 - the same

    return "".join(
        f"<details><summary>{html.escape(label)}</summary>{_html(statistics)}</details>"
        for label, statistics in children.items()
    )
