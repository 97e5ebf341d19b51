"""`CostMeter`: what each request cost in a shared batch, and what padding and idle time cost."""

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

_ALL = "device"  # the name of a device that everything runs on
_log = Log("streaminfer.telemetry")
_Account = thread_safe(CostAccount, ("respond", "charge"))
_Bill = thread_safe(DeviceBill, ("open", "close", "advance", "begin", "end", "pad", "read"))
_Family = thread_safe(LabelFamilyState, ("child", "children"))
_Ledger = thread_safe(ResponseLedger, ("fail", "respond"))


class Device:
    """One device, and the accounts of the models that run on it.

    Args:
        per_second: price of a second.
        bill: of its time.
        place: of its account in those of a tenant or stream.
    """

    def __init__(self, per_second: float, bill: DeviceBill, place: int) -> None:
        self.per_second = per_second
        self.bill = bill
        self.place = place
        self.models: dict[tuple[str, str], CostAccount] = {}  # by route and model


class CostMeter(StackClock, Node):
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
        max_label_sets: the most models, tenants, streams and routes with a row of their own; the rest share
            ``"other"``.
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
        self._accept_clock(clock)
        check_count("workers", workers, at_most=sys.maxsize)
        sets = check_count("max_label_sets", max_label_sets, at_most=sys.maxsize)
        prices = per_second if isinstance(per_second, Mapping) else {_ALL: per_second}
        if not prices:
            raise ValueError(expected("per_second", "the price of at least one model or route", per_second))
        what = "a finite price > 0"
        for price in prices.values():
            check_number("per_second", price, what, lambda it: 0.0 < it < float("inf"))
        self.name = name
        self.currency = currency
        self.clock: Clock = clock or time.monotonic_ns  # of the bill
        self.request_clock = self.clock  # of deadlines: the stack's
        self._is_one = not isinstance(per_second, Mapping)
        self.devices = {
            name: Device(float(price), _Bill(workers), place) for place, (name, price) in enumerate(prices.items())
        }
        self._bill_clock = clock
        self.models: set[str] = set()  # with a row of their own
        self.routes = _Family(_Account, sets)
        self.tenants, self.streams = (_Family(lambda: [_Account() for _ in prices], sets) for _ in range(2))
        self.ledger = _Ledger(self.routes, self.tenants, self.streams)
        self.failures = ListenerFailures("streaminfer", f"cost meter {name!r}")
        self._watched: set[weakref.WeakMethod[Any]] = set()

    def wrap(self, inner: Any) -> MeteredService:
        """Put the meter in front of a service.

        Args:
            inner: a service. Where there is no batcher in it, each call is charged as a batch of one.

        Raises:
            TypeError: not a service: stand outside the batcher.
            ValueError: ``per_second`` names neither a model in it nor its route.
        """
        check_instance("inner", inner, is_service, "a service (outside the batcher)")
        if self.watch(inner):
            return MeteredService(self, inner, None)
        name = name_of(inner)
        return MeteredService(self, inner, self._batch_meter("", name))

    def watch(self, thing: Any) -> int:
        """Charge the batches of every batcher in an object; `wrap` and the start of a `Stack` do that.

        Replicas that are added later are found by themselves.

        Args:
            thing: a service, a `Stack`, or an `AdaptiveBatcher` that wraps something.

        Returns:
            How many batchers there are.

        Raises:
            ValueError: ``per_second`` names neither a model in it nor its route.
        """
        return self._watch(thing, "")

    def _watch(self, thing: Any, route: str) -> int:
        found: dict[Any, str] = {}
        grows: dict[Any, str] = {}
        for part, node, _, _, label in walk(thing, set(), route=route):
            offered = node.capabilities()
            if offered.observe_batches is not None:
                found[offered.observe_batches] = label
            elif label and is_service(part) and not node.children:
                self._note_uncharged(label, name_of(part))
            if offered.new_children is not None:
                grows[offered.new_children] = label
        for observe, label in self._not_yet(found):
            observe(lambda model, label=label: self._batch_meter(label, model))
        for tell, label in self._not_yet(grows):
            tell(lambda name, child, label=label: self._join(child, label or name))
        return len(found)

    def _not_yet(self, found: dict[Any, str]) -> Iterator[tuple[Any, str]]:
        """Iterate over methods that were not called yet; they are then taken to be."""
        self._watched = {known for known in self._watched if known() is not None}
        for method, label in found.items():
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
        """Begin to pay, unless that was so; a `Stack` does it when it has started."""
        now_ns = self.clock()
        for device in self.devices.values():
            device.bill.open(now_ns)

    def close(self) -> None:
        """Cease to pay, once called as often as :meth:`open`; a `Stack` does it when it stops."""
        now_ns = self.clock()
        for device in self.devices.values():
            device.bill.close(now_ns)

    def statistics(self) -> "CostStatistics":
        """Return a frozen snapshot."""
        from streaminfer.telemetry.cost.snapshot import cost_statistics  # noqa: PLC0415 - serving does not need it

        return cost_statistics(self)

    def bind_clock(self, clock: Clock) -> None:
        """Take over the clock of a `Stack`; for the bill only if none was given."""
        self.request_clock = clock
        super().bind_clock(clock)

    def _use_clock(self, clock: Clock) -> None:
        self.clock = clock

    def _batch_meter(self, route: str, model: str) -> BatchMeter:
        """Return an observer of the batches of a model, and take its place among the rows of routes and of models."""
        device = self._device(route, model)
        row, known, most = route or model, self.routes.children()[0], self.routes.max_sets
        if row in known or len(known) < most:
            self.routes.child(row)
        else:
            row = route = OTHER  # replicas come and go under ever new names
        if model in self.models or len(self.models) < most:
            self.models.add(model)
        else:
            route, model = row, OTHER  # and so do their models
        account = device.models.setdefault((route, model), _Account())
        return BatchMeter(device.bill, account, self.tenants, self.streams, device.place, self._bill_clock)

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
