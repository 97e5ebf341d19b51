"""Snapshot of a `CostMeter`: joins the accounts of devices and of responses by name."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from streaminfer.telemetry.cost._bill_cy import CostAccount
from streaminfer.telemetry.cost.statistics import CostRow, CostStatistics, DeviceCost
from streaminfer.telemetry.families.routes import OTHER

if TYPE_CHECKING:
    from streaminfer.telemetry.cost.cost_meter import CostMeter, Device

__all__ = ["cost_statistics"]


def cost_statistics(meter: "CostMeter") -> CostStatistics:
    """Return the statistics of a meter, billed up to now."""
    devices, now_ns = meter.devices, meter.clock()
    by_device: dict[str, DeviceCost] = {}
    for name, device in devices.items():
        bill_ns, finished_ns, running_ns, padding_ns, idle_ns = device.bill.read(now_ns)
        by_device[name] = DeviceCost(
            per_second=device.per_second,
            workers=device.bill.workers,
            bill_ns=bill_ns,
            busy_ns=finished_ns + running_ns,
            padding_ns=padding_ns,
            idle_ns=idle_ns,
            running_ns=running_ns,
        )
    totals = list(_models(devices, lambda route, model: "total"))  # noqa: ARG005 - they are one
    return CostStatistics(
        name=meter.name,
        currency=meter.currency,
        devices=by_device,
        models=_rows(devices, _models(devices, lambda _, model: model), _responses_of_models(meter)),
        routes=_rows(devices, _models(devices, lambda route, model: route or model), _children(meter.routes)),
        tenants=_callers(devices, meter.tenants),
        streams=_callers(devices, meter.streams),
        total=_rows(devices, totals, [("total", meter.ledger.total)])["total"],
        failed=meter.ledger.failed,
        overflowed=sum(family.overflowed for family in (meter.routes, meter.tenants, meter.streams))
        + _charges_beyond_bound(meter),
    )


_Charges = Iterator[tuple[str, str, CostAccount]]  # name, device, account


def _models(devices: "dict[str, Device]", name_of: Callable[[str, str], str]) -> _Charges:
    for label, device in devices.items():
        for (route, model), account in device.models.copy().items():
            yield name_of(route, model), label, account


def _callers(devices: "dict[str, Device]", family: Any) -> dict[str, CostRow]:
    """Return the rows of tenants or streams."""
    children = list(_children(family))
    charges = (
        (name, label, accounts[device.index])
        for label, device in devices.items()
        for name, accounts in children
        if accounts[device.index].rows
    )
    return _rows(devices, charges, ((name, accounts[0]) for name, accounts in children))


def _charges_beyond_bound(meter: "CostMeter") -> int:
    """Count the batch rows charged to ``"other"``, for the lack of a row for their route or their model."""
    bounded = [
        OTHER not in row_names for row_names in (meter.routes.children()[0], meter.models)
    ]  # "other" may be a user's name
    return sum(
        account.rows
        for device in meter.devices.values()
        for names, account in device.models.copy().items()
        for name, is_bounded in zip(names, bounded, strict=True)
        if is_bounded and name == OTHER
    )


def _children(family: Any) -> Iterator[tuple[str, Any]]:
    children, other = family.children()
    for name, account in children.items():
        yield str(name), account
    if other is not None:
        yield OTHER, other


def _responses_of_models(meter: "CostMeter") -> Iterator[tuple[str, CostAccount]]:
    """Yield response accounts by model, for sources that identify the model: its name, or a route with one model."""
    models_of: dict[str, set[str]] = {}
    for device in meter.devices.values():
        for route, model in device.models.copy():
            models_of.setdefault(route, set()).add(model)
    models = set().union(*models_of.values())
    ambiguous = models_of.get(OTHER, set()).union(
        *(route_models for route, route_models in models_of.items() if route and len(route_models) > 1)
    )
    if not meter.routes.overflowed:
        for route, account in _children(meter.routes):
            candidates = models_of.get(route, models & {route}) if route else set()
            for model in candidates - ambiguous:
                yield model, account


def _rows(
    devices: "dict[str, Device]",
    charges: Iterable[tuple[str, str, CostAccount]],
    responded: Iterable[tuple[str, CostAccount]] = (),
) -> dict[str, CostRow]:
    rows: dict[str, Any] = defaultdict(Counter)
    costs_ns: dict[str, Counter[str]] = defaultdict(Counter)
    for name, label, account in charges:
        row, per_ns = rows[name], devices[label].per_second / 1e9
        costs_ns[name][label] += account.cost_ns
        row["setup"] += account.setup_ns * per_ns
        row["padding"] += account.padding_ns * per_ns
        row["rows"] += account.rows
    for name, account in responded:
        for count in ("responses", "on_time", "degraded", "cached"):
            rows[name][count] += getattr(account, count)
    for name, row in rows.items():
        row["cost"] = sum(ns / 1e9 * devices[label].per_second for label, ns in costs_ns[name].items())
    return {name: CostRow(cost_ns=dict(costs_ns[name]), **row) for name, row in sorted(rows.items())}
