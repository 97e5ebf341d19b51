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
        workers: how many batches keep it busy.
        bill_ns: nanoseconds paid for.
        busy_ns: of these, shares of requests; ``running_ns`` included.
        padding_ns: of these, work on what no request brought.
        idle_ns: of these, without a batch.
        running_ns: charged to batches that have not ended, which no request has a share of yet.
    """

    per_second: float
    workers: int
    bill_ns: int
    busy_ns: int
    padding_ns: int
    idle_ns: int
    running_ns: int

    def money(self, nanoseconds: int) -> float:
        """Return the price of so much time."""
        return nanoseconds / 1e9 * self.per_second


@attrs.frozen(kw_only=True)
class CostRow(Snapshot):
    """Cost of a model, route, tenant or stream, and what its callers got.

    Attributes:
        cost: shares of batches that ended, without padding and idle time.
        cost_ns: the same in nanoseconds by device.
        setup: of the cost, what does not depend on the number of rows; of models only.
        padding: cost of padding in its batches, in addition; of models only.
        rows: in batches that ended.
        responses: that callers got; 0 for models that share a route, whose responses do not tell which one made them.
        on_time: responses by their deadline; a request without a deadline is on time.
        degraded: responses that were degraded.
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
    """What a service cost since its start, and for what.

    Counting rule: a batch is charged to its rows when it ends, failed or not; rows whose callers have left are charged
    too. A response counts as cached if no batch ran for it.

    Attributes:
        name: of the meter.
        currency: of all amounts.
        devices: bills by device.
        models: by name of the model.
        routes: by route, or by model where there is no router; ``"cache"`` is one.
        tenants: by tenant, of requests that name one.
        streams: by stream, of requests that belong to one.
        total: of all requests.
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
        """For exporters: amounts of different currencies must not be added up."""
        return (("currency", self.currency),)

    @property
    def bill(self) -> float:
        """What was paid for the devices."""
        return sum(device.money(device.bill_ns) for device in self.devices.values())

    @property
    def busy(self) -> float:
        """Of the bill, shares of requests."""
        return sum(device.money(device.busy_ns) for device in self.devices.values())

    @property
    def padding(self) -> float:
        """Of the bill, work on what no request brought."""
        return sum(device.money(device.padding_ns) for device in self.devices.values())

    @property
    def idle(self) -> float:
        """Of the bill, time without a batch."""
        return sum(device.money(device.idle_ns) for device in self.devices.values())

    @property
    def settled(self) -> Mapping[str, float]:
        """Of the bill, what was for batches that ended and for idle time, by use: amounts that never fall.

        What a running batch was charged is busy until it ends; then a part of it may turn out to be padding.
        """
        busy = sum(device.money(device.busy_ns - device.running_ns) for device in self.devices.values())
        return {"busy": busy, "padding": self.padding, "idle": self.idle}

    @property
    def per_1000_on_time(self) -> float:
        """The whole bill for 1,000 responses on time; NaN before the first."""
        return self.bill / self.total.on_time * 1000 if self.total.on_time else float("nan")

    @property
    def saved_by_cache(self) -> float:
        """What the cached responses would have cost at the mean of a row; 0.0 before the first row.

        An estimate, and an upper one: in the same batches more rows would have shared the set-up.
        """
        return self.total.cost / self.total.rows * self.total.cached if self.total.rows else 0.0

    def plot(self, ax: Any = None) -> Any:
        """Draws the bill: the cost of each model by what it was for, and idle time.

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
        for what in ("models", "routes", "tenants", "streams"):
            found: Mapping[str, CostRow] = getattr(self, what)
            if found:
                tables.append(html_table((_cells(name, row) for name, row in found.items()), head=(what, *head)))
        if not self.bill:
            return "".join(tables)
        from streaminfer._internal.display.figures import inline_svg  # noqa: PLC0415 - serving does not need it

        return inline_svg(self.plot, f"Cost by model: {self!r}") + "".join(tables)


def _cells(name: str, row: CostRow) -> tuple[str, ...]:
    per_1000 = f"{row.per_1000_on_time:.4g}" if row.on_time else ""
    counts = (row.rows, row.responses, row.on_time, row.degraded, row.cached)
    return (name, f"{row.cost:.4g}", per_1000, *(f"{count:,}" for count in counts))
