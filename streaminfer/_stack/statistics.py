"""The statistics of a `Stack`: those of its layers, and its start."""

from collections.abc import Mapping
from typing import Any, Literal

import attrs

from streaminfer._internal.snapshot import Snapshot
from streaminfer._stack.start_report import StartReport

__all__ = ["StackState", "StackStatistics"]

StackState = Literal["new", "starting", "running", "stopping", "stopped"]


@attrs.frozen
class StackStatistics(Snapshot):
    """Snapshots of the layers of a `Stack`, by the name of their class.

    Attributes:
        state: ``"new"``, ``"starting"``, ``"running"``, ``"stopping"`` or ``"stopped"``.
        layers: class name → the layer's own frozen statistics, outermost first; a second layer of one class has ``#2``
            behind its name.
        start: how long the parts of the latest start took, and what was measured; ``None`` before it ended.
    """

    state: StackState
    layers: Mapping[str, Any]
    start: StartReport | None = None

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
            drawn = getattr(statistics, "_repr_html_", None)
            body = drawn() if drawn else f"<pre>{html.escape(repr(statistics))}</pre>"
            parts.append(f"<h4>{html.escape(name)}</h4>{body}")
        return f"<div><p>Stack, {self.state}</p>{''.join(parts)}</div>"
