"""Statistics of a `CostMeter`."""

from collections.abc import Mapping
from typing import Any

import attrs

from streaminfer._internal.display.html_table import html_table
from streaminfer._internal.snapshot import Snapshot

__all__ = ["CostRow", "CostStatistics", "DeviceCost"]


@attrs.frozen(kw_only=True)
class DeviceCost(Snapshot):
    """Bill of a device: ``busy_ns + padding_ns + idle_ns == bill_ns``, exactly.

    Attributes:
        per_second: price of a second.
        workers: number of batches that keep the device busy.
        bill_ns: nanoseconds paid for.
        busy_ns: part charged to requests, ``running_ns`` included.
        padding_ns: part spent on padding.
        idle_ns: part without a batch.
        running_ns: part charged to running batches, not yet divided among their requests.
    """

    per_second: float
    workers: int
    bill_ns: int
    busy_ns: int
    padding_ns: int
    idle_ns: int
    running_ns: int

    def money(self, nanoseconds: int) -> float:
        """Return the price of a number of nanoseconds."""
        return nanoseconds / 1e9 * self.per_second


@attrs.frozen(kw_only=True)
class CostRow(Snapshot):
    """Cost and responses of a model, route, tenant or stream.

    Attributes:
        cost: shares of batches that ended, without padding and idle time.
        cost_ns: the same in nanoseconds by device.
        setup: part of ``cost`` that does not depend on the number of rows; for models only.
        padding: cost of padding in its batches, not included in ``cost``; for models only.
        rows: rows in batches that ended.
        responses: responses that callers got; 0 for models that share a route, because their responses do not name the
            model.
        on_time: responses by their deadline; a response to a request without a deadline is on time.
        degraded: degraded responses.
        cached: responses for which no batch ran: from a cache, or computed for another caller.
    """

    cost: float = 0.0
    cost_ns: Mapping[str, int] = attrs.field(factory=dict)
    setup: float = 0.0
    padding: float = 0.0
    rows: int = 0
    responses: int = 0
    on_time: int = 0
    degraded: int = 0
    cached: int = 0

    @property
    def per_1000_on_time(self) -> float:
        """Cost of 1,000 responses on time; NaN before the first."""
        return self.cost / self.on_time * 1000 if self.on_time else float("nan")


@attrs.frozen(kw_only=True)
class CostStatistics(Snapshot):
    """Cost of a service since its start, by use.

    Counting rule: when a batch ends, failed or not, its charge goes to its rows; rows of cancelled requests are charged
    too. A response counts as cached if no batch ran for it.

    Attributes:
        name: name of the meter.
        currency: currency of all amounts.
        devices: bills by device.
        models: rows by name of the model.
        routes: rows by route, or by model without a router; responses from a cache are under ``"cache"``.
        tenants: rows by tenant, for requests with a tenant.
        streams: rows by stream, for requests with a stream.
        total: row of all requests.
        failed: requests that got no response.
        overflowed: charges and responses under ``"other"``, because there were too many models, tenants, streams or
            routes.
    """

    name: str
    currency: str
    devices: Mapping[str, DeviceCost]
    models: Mapping[str, CostRow]
    routes: Mapping[str, CostRow]
    tenants: Mapping[str, CostRow]
    streams: Mapping[str, CostRow]
    total: CostRow
    failed: int
    overflowed: int

    @property
    def labels(self) -> tuple[tuple[str, str], ...]:
        """Labels for exporters: they keep amounts in different currencies apart."""
        return (("currency", self.currency),)

    @property
    def bill(self) -> float:
        """Cost of all devices."""
        return sum(device.money(device.bill_ns) for device in self.devices.values())

    @property
    def busy(self) -> float:
        """Part of the bill charged to requests."""
        return sum(device.money(device.busy_ns) for device in self.devices.values())

    @property
    def padding(self) -> float:
        """Part of the bill spent on padding."""
        return sum(device.money(device.padding_ns) for device in self.devices.values())

    @property
    def idle(self) -> float:
        """Part of the bill for time without a batch."""
        return sum(device.money(device.idle_ns) for device in self.devices.values())

    @property
    def settled(self) -> Mapping[str, float]:
        """Part of the bill for finished batches and idle time, by use; these amounts never fall.

        The charge of a running batch is left out: it counts as busy until the batch ends, when a part of it may become
        padding.
        """
        busy = sum(device.money(device.busy_ns - device.running_ns) for device in self.devices.values())
        return {"busy": busy, "padding": self.padding, "idle": self.idle}

    @property
    def per_1000_on_time(self) -> float:
        """Whole bill per 1,000 responses on time; NaN before the first."""
        return self.bill / self.total.on_time * 1000 if self.total.on_time else float("nan")

    @property
    def saved_by_cache(self) -> float:
        """Estimated cost of the cached responses at the mean cost of a row; 0.0 before the first row.

        The estimate is an upper bound: without the cache, more rows would have shared the set-up of a batch.
        """
        return self.total.cost / self.total.rows * self.total.cached if self.total.rows else 0.0

    def plot(self, ax: Any = None) -> Any:
        """Draw the bill: the cost of each model by use, and idle time.

        Args:
            ax: a matplotlib ``Axes`` to draw on; ``None``: a new figure.

        Returns:
            The axes; money is on the x axis.

        Raises:
            MissingExtra: matplotlib is not installed (``pip install 'streaminfer[plot]'``).
        """
        from streaminfer.telemetry.cost.cost_plot import plot_cost  # noqa: PLC0415 - serving does not need it

        return plot_cost(ax, self.models, self.idle, self.currency)

    def __repr__(self) -> str:
        return (
            f"<CostStatistics {self.name!r}: {self.bill:.4g} {self.currency}, of which busy {self.busy:.4g}, padding "
            f"{self.padding:.4g}, idle {self.idle:.4g}; {self.per_1000_on_time:.4g} per 1,000 responses on time>"
        )

    def _repr_html_(self) -> str:
        parts = {"bill": self.bill, "busy": self.busy, "padding": self.padding, "idle": self.idle}
        parts |= {"per 1,000 on time": self.per_1000_on_time, "saved by the cache": self.saved_by_cache}
        caption = f"{self.name or 'cost'} in {self.currency}; {self.failed:,} requests without a response"
        tables = [html_table(((name, f"{amount:.4g}") for name, amount in parts.items()), caption=caption)]
        head = ("cost", "per 1,000 on time", "rows", "responses", "on time", "degraded", "cached")
        for dimension in ("models", "routes", "tenants", "streams"):
            rows: Mapping[str, CostRow] = getattr(self, dimension)
            if rows:
                tables.append(html_table((_cells(name, row) for name, row in rows.items()), head=(dimension, *head)))
        if not self.bill:
            return "".join(tables)
        from streaminfer._internal.display.figures import inline_svg  # noqa: PLC0415 - serving does not need it

        return inline_svg(self.plot, f"Cost by model: {self!r}") + "".join(tables)


def _cells(name: str, row: CostRow) -> tuple[str, ...]:
    per_1000 = f"{row.per_1000_on_time:.4g}" if row.on_time else ""
    counts = (row.rows, row.responses, row.on_time, row.degraded, row.cached)
    return (name, f"{row.cost:.4g}", per_1000, *(f"{count:,}" for count in counts))
