"""The statistics of a `Stack`: those of its layers, and its start."""

from collections.abc import Mapping
from typing import Any

import attrs

from streaminfer._start_report import StartReport

__all__ = ["StackStatistics"]


@attrs.frozen
class StackStatistics:
    """Snapshots of the layers of a `Stack`, by the name of their class.

    Attributes:
        state: ``"new"``, ``"running"``, ``"stopping"`` or ``"stopped"``.
        layers: class name → the layer's own frozen statistics, outermost first; a second layer of one class has ``#2``
            behind its name.
        start: how long the parts of the latest start took, and what was measured; ``None`` before it ended.
    """

    state: str
    layers: Mapping[str, Any]
    start: StartReport | None = None

    def __getitem__(self, name: str) -> Any:
        try:
            return self.layers[name]
        except KeyError:
            names = ", ".join(map(repr, self.layers)) or "none"
            raise KeyError(f"no layer of this stack is {name!r}; those that keep statistics: {names}") from None

    def to_dict(self) -> dict[str, Any]:
        """The same as dictionaries, lists, numbers and strings, for JSON; arrays become lists."""
        plain: dict[str, Any] = _as_plain(self)
        return plain

    def _repr_html_(self) -> str:
        import html  # noqa: PLC0415 - a notebook's need, not every import's

        parts = [] if self.start is None else [self.start._repr_html_()]
        for name, statistics in self.layers.items():
            drawn = getattr(statistics, "_repr_html_", None)
            body = drawn() if drawn else f"<pre>{html.escape(repr(statistics))}</pre>"
            parts.append(f"<h4>{html.escape(name)}</h4>{body}")
        return f"<div><p>Stack, {self.state}</p>{''.join(parts)}</div>"


def _as_plain(value: Any) -> Any:  # noqa: PLR0911 - one for each kind
    if attrs.has(type(value)):
        names = (field.name for field in attrs.fields(type(value)) if not field.name.startswith("_"))
        return {name: _as_plain(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else str(key): _as_plain(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return _as_plain(value._asdict())
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_as_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _as_plain(value.tolist())
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    plain = getattr(value, "to_dict", None)
    return str(value) if plain is None else _as_plain(plain())
