"""`CostMeter`: measures the cost of each request in a shared batch, of padding and of idle time."""

import sys
import time
import weakref
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from streaminfer._internal.error_log import Log
from streaminfer._internal.listeners import LISTENER_ERRORS, ListenerFailures
from streaminfer._internal.locking import thread_safe
from streaminfer._internal.validation import check_count, check_instance, check_number, expected
from streaminfer._runtime.stack_clock import StackClock
from streaminfer.protocols import Clock, Node, is_service, name_of
from streaminfer.telemetry.cost._bill_cy import BatchMeter, CostAccount, DeviceBill, ResponseLedger
from streaminfer.telemetry.cost._metered_service_cy import MeteredService
from streaminfer.telemetry.families._label_family_cy import LabelFamilyState
from streaminfer.telemetry.families.routes import OTHER
from streaminfer.telemetry.services import walk

if TYPE_CHECKING:
    from streaminfer.telemetry.cost.statistics import CostStatistics

__all__ = ["CostMeter", "Device"]

_ALL = "device"  # name of the device if there is only one
_log = Log("streaminfer.telemetry")
_Account = thread_safe(CostAccount)
_Bill = thread_safe(DeviceBill)
_Family = thread_safe(LabelFamilyState)
_Ledger = thread_safe(ResponseLedger)


class Device:
    """One device, and the accounts of the models that run on it.

    Args:
        per_second: price of a second.
        bill: bill of its time.
        place: index of its account in the accounts of a tenant or stream.
    """

    def __init__(self, per_second: float, bill: DeviceBill, index: int) -> None:
        self.per_second = per_second
        self.bill = bill
        self.index = index
        self.models: dict[tuple[str, str], CostAccount] = {}  # by route and model


class CostMeter(StackClock, Node):
    """Layer that measures what each request costs.

    Place it outside the cache and the router, next to `Telemetry`; every batcher inside reports its batches to it. The
    time of a device costs ``per_second``, used or not. While ``k`` batches run on the device, each is charged
    ``1 / max(k, workers)`` of that time. The requests of a batch share its set-up equally, and the rest by their work
    according to the learned service time. Padding is reported separately.

    Args:
        per_second: price of a second of the device, > 0; if models or routes have separate devices, a mapping of the
            model's or route's name to the price of its device.
        workers: number of batches that keep a device busy: its workers, or those of all replicas that ``per_second``
            pays for.
        currency: currency of the price, for reports.
        name: name of the meter, for reports.
        max_label_sets: most rows each for models, tenants, streams and routes; the rest share the row ``"other"``.
        clock: returns monotonic nanoseconds; ``None``: the `Stack`'s clock, or ``time.monotonic_ns`` without a stack.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Threads: in the compiled build several threads may use a meter at once; one meter may be in several stacks.

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
            check_instance(argument, value, str, "a string")
        clock = self._accept_clock(clock)
        workers = check_count("workers", workers, at_most=sys.maxsize)
        sets = check_count("max_label_sets", max_label_sets, at_most=sys.maxsize)
        prices = per_second if isinstance(per_second, Mapping) else {_ALL: per_second}
        if not prices:
            raise ValueError(expected("per_second", "the price of at least one model or route", per_second))
        expectation = "a finite price > 0"
        for price in prices.values():
            check_number("per_second", price, expectation, lambda it: 0.0 < it < float("inf"))
        self.name = name
        self.currency = currency
        self.clock: Clock = clock or time.monotonic_ns  # clock of the bill
        self.request_clock = self.clock  # clock of deadlines: the stack's
        self._is_one = not isinstance(per_second, Mapping)
        self.devices = {
            name: Device(float(price), _Bill(workers), index) for index, (name, price) in enumerate(prices.items())
        }
        self._bill_clock = clock
        self.models: set[str] = set()  # models with their own row
        self.routes = _Family(_Account, sets)
        self.tenants, self.streams = (_Family(lambda: [_Account() for _ in prices], sets) for _ in range(2))
        self.ledger = _Ledger(self.routes, self.tenants, self.streams)
        self.failures = ListenerFailures("streaminfer", f"cost meter {name!r}")
        self._watched: set[weakref.WeakMethod[Any]] = set()

    def wrap(self, inner: Any) -> MeteredService:
        """Return a service that counts requests for this meter.

        Args:
            inner: a service. If it has no batcher inside, each call is charged as a batch of one.

        Raises:
            TypeError: ``inner`` is not a service; place the meter outside the batcher.
            ValueError: ``per_second`` has no price for a model in ``inner``, nor for its route.
        """
        check_instance("inner", inner, is_service, "a service (outside the batcher)")
        if self.watch(inner):
            return MeteredService(self, inner, None)
        name = name_of(inner)
        return MeteredService(self, inner, self._batch_meter("", name))

    def watch(self, thing: Any) -> int:
        """Charge the batches of every batcher in an object; `wrap` and the start of a `Stack` call this.

        The meter also finds replicas that are added later.

        Args:
            thing: a service, a `Stack`, or an `AdaptiveBatcher` that wraps a service or backend.

        Returns:
            The number of batchers.

        Raises:
            ValueError: ``per_second`` has no price for a model in ``thing``, nor for its route.
        """
        return self._watch(thing, "")

    def _watch(self, root: Any, route: str) -> int:
        observers: dict[Any, str] = {}
        subscriptions: dict[Any, str] = {}
        for part, node, _, _, label in walk(root, set(), route=route):
            capabilities = node.capabilities()
            if capabilities.observe_batches is not None:
                observers[capabilities.observe_batches] = label
            elif label and is_service(part) and not node.children:
                self._note_uncharged(label, name_of(part))
            if capabilities.new_children is not None:
                subscriptions[capabilities.new_children] = label
        for observe, label in self._unwatched(observers):
            observe(lambda model, label=label: self._batch_meter(label, model))
        for subscribe, label in self._unwatched(subscriptions):
            subscribe(lambda name, child, label=label: self._join(child, label or name))
        return len(observers)

    def _unwatched(self, methods: dict[Any, str]) -> Iterator[tuple[Any, str]]:
        """Yield the methods that were not yielded before, with their routes."""
        self._watched = {reference for reference in self._watched if reference() is not None}
        for method, label in methods.items():
            if weakref.WeakMethod(method) not in self._watched:
                yield method, label
                self._watched.add(weakref.WeakMethod(method))

    def _join(self, child: Any, route: str) -> None:
        try:
            self._watch(child, route)
        except LISTENER_ERRORS as failure:
            self.failures.report(self, f"the new replica {route!r}", failure)

    def _note_uncharged(self, route: str, model: str) -> None:
        if route not in self.ledger.uncharged:
            self.ledger.uncharged |= {route}
            _log.warning("cost meter %r: %r has no batcher, so that calls of %r cost nothing", self.name, route, model)

    def open(self) -> None:
        """Open the bill, if it is not open; a `Stack` calls this when it has started."""
        now_ns = self.clock()
        for device in self.devices.values():
            device.bill.open(now_ns)

    def close(self) -> None:
        """Close the bill, once called as often as :meth:`open`; a `Stack` calls this when it stops."""
        now_ns = self.clock()
        for device in self.devices.values():
            device.bill.close(now_ns)

    def statistics(self) -> "CostStatistics":
        """Return a frozen snapshot."""
        from streaminfer.telemetry.cost.snapshot import cost_statistics  # noqa: PLC0415 - serving does not need it

        return cost_statistics(self)

    def bind_clock(self, clock: Clock) -> None:
        """Use the clock of a `Stack` for deadlines, and for the bill if no clock was given."""
        self.request_clock = clock
        super().bind_clock(clock)

    def _use_clock(self, clock: Clock) -> None:
        self.clock = clock

    def _batch_meter(self, route: str, model: str) -> BatchMeter:
        """Return an observer of the batches of a model, and reserve a row for its route and one for the model."""
        device = self._device(route, model)
        row, known_rows, max_sets = route or model, self.routes.children()[0], self.routes.max_sets
        if row in known_rows or len(known_rows) < max_sets:
            self.routes.child(row)
        else:
            row = route = OTHER  # bounded: replicas may come and go under new names
        if model in self.models or len(self.models) < max_sets:
            self.models.add(model)
        else:
            route, model = row, OTHER  # bounded: so may their models
        account = device.models.setdefault((route, model), _Account())
        return BatchMeter(device.bill, account, self.tenants, self.streams, device.index, self._bill_clock)

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
