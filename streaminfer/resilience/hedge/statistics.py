"""Frozen snapshot of a hedge."""

import attrs

from streaminfer._internal.snapshot import Snapshot

__all__ = ["HedgeStatistics"]


@attrs.frozen(kw_only=True)
class HedgeStatistics(Snapshot):
    """Counters of a `Hedge` since it was made.

    Counting rule: each time the delay of a request passed, an extra one was sent and counted in ``hedges``, or counted
    in one of ``throttled``, ``rejected`` and ``infeasible``.

    Attributes:
        name: the hedge's.
        requests: requests, extra ones not included.
        hedges: extra requests.
        won: requests whose response came from an extra one.
        throttled: extra requests that were not sent because the budget was spent.
        rejected: extra requests that were not sent because their service would reject them.
        infeasible: extra requests that were not sent because they would miss the deadline.
        cancelling: losing requests that were cancelled and have not ended yet.
        delay_s: seconds after which a request is hedged; ``None``: too little is known.
    """

    name: str
    requests: int
    hedges: int
    won: int
    throttled: int
    rejected: int
    infeasible: int
    cancelling: int
    delay_s: float | None

    @property
    def extra(self) -> float:
        """Extra requests per request; 0.0 without any."""
        return self.hedges / self.requests if self.requests else 0.0

    def _repr_html_(self) -> str:
        import html  # noqa: PLC0415 - a notebook's need, not every import's

        counters = ("requests", "hedges", "won", "throttled", "rejected", "infeasible", "cancelling")
        delay = "unknown yet" if self.delay_s is None else f"{self.delay_s * 1e3:.2f} ms"
        rows = [
            ("delay", delay),
            ("extra load", f"{self.extra:.2%}"),
            *((name.replace("_", " "), f"{getattr(self, name):,}") for name in counters),
        ]
        cells = "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in rows)
        return f"<table><caption>{html.escape(self.name or 'hedge')}</caption>{cells}</table>"
