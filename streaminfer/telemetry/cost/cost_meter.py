"""`CostMeter`: what each request cost in a shared batch, and what padding and idle time cost."""

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from streaminfer._internal.listeners import ListenerFailures
from streaminfer._internal.locking import thread_safe
from streaminfer._internal.validation import check_count, check_instance, check_number, expected
from streaminfer.protocols import Clock, Node, adapt, is_service, name_of
from streaminfer.telemetry.cost._bill_cy import BatchMeter, CostAccount, DeviceBill, ResponseLedger
from streaminfer.telemetry.cost._metered_service_cy import MeteredService
from streaminfer.telemetry.families._label_family_cy import LabelFamilyState

if TYPE_CHECKING:
    from streaminfer.telemetry.cost.statistics import CostStatistics

__all__ = ["CostMeter", "Device"]

_ALL = "device"  # the name of a device that everything runs on
_Account = thread_safe(CostAccount, ("respond", "charge"))
_Bill = thread_safe(DeviceBill, ("open", "close", "advance", "begin", "end", "pad"))
_Family = thread_safe(LabelFamilyState, ("child", "children"))
_Ledger = thread_safe(ResponseLedger, ("fail", "respond"))


class Device:
    """One device, and the accounts of what runs on it.

    Args:
        per_second: price of a second.
        workers: how many batches keep it busy.
        max_label_sets: the most tenants, and the most streams, with an account of their own.
    """

    def __init__(self, per_second: float, workers: int, max_label_sets: int) -> None:
        self.per_second = per_second
        self.bill = _Bill(workers)
        self.models: dict[tuple[str, str], CostAccount] = {}  # by route and model
        self.tenants = _Family(_Account, max_label_sets)
        self.streams = _Family(_Account, max_label_sets)

    def meter(self, route: str, model: str) -> BatchMeter:
        """Return an observer of the batches of a model."""
        account = self.models.setdefault((route, model), _Account())
        return BatchMeter(self.bill, account, self.tenants, self.streams)


class CostMeter(Node):
    """Layer that counts what each request cost.

    It is around the cache and the router, beside `Telemetry`, and is told of the batches of every batcher inside.
    The time of a device is paid for by the second, used or not. A batch is charged the time that it ran, divided by the
    batches that ran beside it where these were more than ``workers``. Its requests share what does not depend on their
    number equally, and the rest by their work, by the learned service time; what was spent on padding is shown apart.

    Args:
        per_second: price of a second of the device, > 0; where models or routes run on devices of their own, a mapping
            of their name to its price.
        workers: how many batches keep a device busy: its workers, or those of all replicas that ``per_second`` pays.
        currency: for reports.
        name: for reports.
        max_label_sets: the most tenants, streams and sources with a row of their own; the rest share ``"other"``.
        clock: returns monotonic nanoseconds; ``None``: the `Stack`'s clock, else ``time.monotonic_ns``.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.

    Threads: in the compiled build several threads may use it at once; one object may stand in several stacks.

    Example:
        >>> import streaminfer as si
        >>> meter = CostMeter(per_second=1.10 / 3600, currency="EUR")
        >>> stack = si.Stack(meter, si.AdaptiveBatcher(max_batch_size=8), si.CpuBackend(lambda x: x))
    """

    def __init__(
        self,
        *,
        per_second: float | Mapping[str, float],
        workers: int = 1,
        currency: str = "USD",
        name: str = "",
        max_label_sets: int = 256,
        clock: Clock | None = None,
    ) -> None:
        for argument, value in (("currency", currency), ("name", name)):
            check_instance(argument, value, lambda it: isinstance(it, str), "a string")
        check_instance("clock", clock, lambda value: value is None or callable(value), "a callable or None")
        check_count("workers", workers)
        sets = check_count("max_label_sets", max_label_sets)
        prices = per_second if isinstance(per_second, Mapping) else {_ALL: per_second}
        if not prices:
            raise ValueError(expected("per_second", "the price of at least one model or route", per_second))
        what = "a finite price > 0"
        for price in prices.values():
            check_number("per_second", price, what, lambda it: 0.0 < it < float("inf"))
        self.name = name
        self.currency = currency
        self.clock: Clock = clock or time.monotonic_ns
        self._clock_given = clock is not None
        self._is_one = not isinstance(per_second, Mapping)
        self.devices = {name: Device(float(price), workers, sets) for name, price in prices.items()}
        self.sources, self.tenants, self.streams = (_Family(_Account, sets) for _ in range(3))
        self.ledger = _Ledger(self.sources, self.tenants, self.streams)
        self.failures = ListenerFailures("streaminfer", f"cost meter {name!r}")
        self._watched: list[Any] = []

    def wrap(self, inner: Any) -> MeteredService:
        """Put the meter in front of a service.

        Args:
            inner: a service. Where there is no batcher in it, each call is charged as a batch of one.

        Raises:
            TypeError: not a service: stand outside the batcher.
            ValueError: ``per_second`` names neither a model in it nor its route.
        """
        if not is_service(inner):
            raise TypeError(expected("inner", "a service (outside the batcher)", inner))
        if self.watch(inner):
            return MeteredService(self, inner, None)
        name = name_of(inner)
        return MeteredService(self, inner, self._device("", name).meter("", name))

    def watch(self, thing: Any) -> int:
        """Charge the batches of every batcher in an object; `wrap` and the start of a `Stack` do that.

        Args:
            thing: a service, a `Stack`, or an `AdaptiveBatcher` that wraps something.

        Returns:
            How many batchers there are.

        Raises:
            ValueError: ``per_second`` names neither a model in it nor its route.
        """
        found = dict(_batchers(thing, "", set()))
        for observe, route in found.items():
            if observe not in self._watched:
                observe(lambda model, route=route: self._device(route, model).meter(route, model))
                self._watched.append(observe)
        self.ledger.sees_batches = bool(self._watched)
        return len(found)

    def open(self) -> None:
        """Begin to pay, unless that was so; a `Stack` does it when it has started."""
        now_ns = self.clock()
        for device in self.devices.values():
            device.bill.open(now_ns)

    def close(self) -> None:
        """Cease to pay, once called as often as :meth:`open`; a `Stack` does it when it stops."""
        now_ns = self.clock()
        for device in self.devices.values():
            device.bill.close(now_ns)

    def bind_clock(self, clock: Clock) -> None:
        """Take over the clock of a `Stack`, unless one was given."""
        if not self._clock_given:
            self.clock = clock
            self._clock_given = True

    def statistics(self) -> "CostStatistics":
        """Return a frozen snapshot."""
        from streaminfer.telemetry.cost.snapshot import cost_statistics  # noqa: PLC0415 - serving does not need it

        now_ns = self.clock()
        for device in self.devices.values():
            device.bill.advance(now_ns)
        return cost_statistics(self)

    def _device(self, route: str, model: str) -> Device:
        if self._is_one:
            return self.devices[_ALL]
        for name in (route, model):
            if name in self.devices:
                return self.devices[name]
        raise ValueError(
            expected("per_second", f"a price for the model {model!r} or its route {route!r}", [*self.devices])
        )

    def __repr__(self) -> str:
        return f"<CostMeter({self.name!r}): {self.ledger.total.responses} responses>"


def _batchers(thing: Any, route: str, seen: set[int]) -> Iterator[tuple[Any, str]]:
    """Iterate over the batchers in an object, each with the outermost label that a router gave it."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    node = adapt(thing)
    observe = node.capabilities().observe_batches
    if observe is not None:
        yield observe, route
    for label, child in node.children.items():
        yield from _batchers(child, route or ("" if _is_structural(label, child) else label), seen)


def _is_structural(label: str, child: Any) -> bool:
    """Return whether a label says where a child is in a stack, and not what a router calls it."""
    return label in {"inner", "layer"} or label.startswith(type(child).__name__)
