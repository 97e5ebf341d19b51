"""The latency objective of a service, from which a `Stack` stamps deadlines."""

from typing import Any

import attrs

from streaminfer.request import timeout_ns

__all__ = ["find_slo"]


@attrs.frozen
class _FixedSlo:
    """The objective of something that names it in seconds once and for all."""

    slo_ns: int


def find_slo(outermost: Any) -> Any:
    """Whose ``slo_ns`` is the deadline of requests that bring none: read at each request, since it may change."""
    current = outermost
    while current is not None:
        if hasattr(current, "slo_ns"):
            return current
        slo_s = getattr(current, "slo_s", None)
        if slo_s is not None:
            return _FixedSlo(timeout_ns(slo_s))
        current = getattr(current, "inner", None)
    return None
