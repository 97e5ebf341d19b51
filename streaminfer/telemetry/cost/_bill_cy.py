"""Bill of one device: every nanosecond of the device is charged exactly once, to a batch, to padding or to idle time.

*Design.* A device has ``workers`` places. While ``k`` batches run, each is charged ``1 / max(k, workers)`` of the time
that passes. If fewer batches run than there are places, the remainder is idle time. The rule is the same for pipelined
batches, several models and several replicas on one device, and the charges never exceed the time that passed. The
charge of a batch is the difference of one running total, so an event costs O(1) however many batches run.

*Integers.* All times are nanoseconds of the device as 64-bit integers, enough for 292 years. If a duration does not
divide by the number of places, the rest is idle time if a place was idle; otherwise it goes to the batch that ends
next. So ``finished + running + padding + idle = bill`` holds exactly at every moment.

*Rows.* The set-up of a batch is the part of its duration that does not depend on its rows. All requests of the batch
share it equally, because the batch ran for all of them. The marginal part is shared by work; padding counts as work,
and its share is reported as padding. Shares are rounded by their running sum, so they add up to the charge.

*Complexity.* O(1) for an event, O(rows) at the end of a batch. The same source is compiled with the C types of
``_bill_cy.pxd`` or runs uncompiled. It is synchronous, and takes the time as an argument.

*Reference.* Demers, Keshav, Shenker, "Analysis and simulation of a fair queueing algorithm", 1989: the running total is
its virtual time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from streaminfer._request_cy import Request, Response
from streaminfer._runtime.batch_observer import BatchWork
from streaminfer.telemetry.families._label_family_cy import LabelFamilyState
from streaminfer.telemetry.families.routes import route_of

__all__ = ["BatchMeter", "CostAccount", "DeviceBill", "ResponseLedger", "split_ns"]


class CostAccount:
    """Cost and responses of one model, route, tenant or stream.

    Attributes:
        cost_ns: its shares of batches, without padding.
        setup_ns: part of ``cost_ns`` that does not depend on the number of rows; for models only.
        padding_ns: time of its batches spent on padding; for models only.
        rows: rows in batches that ended, failed ones included.
        responses: responses that its callers got.
        on_time: responses by their deadline.
        degraded: degraded responses.
        cached: responses for which no batch ran.
    """

    def __init__(self) -> None:
        self.cost_ns = 0
        self.setup_ns = 0
        self.padding_ns = 0
        self.rows = 0
        self.responses = 0
        self.on_time = 0
        self.degraded = 0
        self.cached = 0

    def respond(self, on_time: bool, degraded: bool, cached: bool) -> None:
        """Count a response."""
        self.responses += 1
        self.on_time += on_time
        self.degraded += degraded
        self.cached += cached

    def charge(self, rows: int, cost_ns: int, setup_ns: int, padding_ns: int) -> None:
        """Charge rows of a batch that ended."""
        self.rows += rows
        self.cost_ns += cost_ns
        self.setup_ns += setup_ns
        self.padding_ns += padding_ns


class DeviceBill:
    """Time of one device.

    Args:
        workers: number of batches that keep the device busy.

    Attributes:
        workers: as given.
        bill_ns: time that passed while the bill was open or a batch ran.
        finished_ns: charges of batches that ended, without padding.
        padding_ns: charges of padding in these batches.
        idle_ns: time of places without a batch.
        in_flight: running batches.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.bill_ns = 0
        self.finished_ns = 0
        self.padding_ns = 0
        self.idle_ns = 0
        self.in_flight = 0
        self._openings = 0
        self._now_ns = 0
        self._total = 0  # charge of a batch that had run from the start
        self._start_totals = 0  # sum over running batches of the total at their start
        self._remainder_ns = 0  # for the batch that ends next

    def open(self, now_ns: int) -> None:
        """Open the bill, if it is not open; it stays open until :meth:`close` has been called as often."""
        self.advance(now_ns)
        self._openings += 1

    def close(self, now_ns: int) -> None:
        """Undo one :meth:`open`, if any is left; after the last one, time is billed only while a batch runs."""
        self.advance(now_ns)
        if self._openings:
            self._openings -= 1

    def advance(self, now_ns: int) -> None:
        """Bill the time that passed; if the clock jumps back, bill nothing until it has caught up."""
        if self._openings == 0 and self.in_flight == 0:
            self._now_ns = now_ns  # a stack may have brought another clock
            return
        passed_ns = now_ns - self._now_ns
        if passed_ns <= 0:
            return
        self._now_ns = now_ns
        self.bill_ns += passed_ns
        slots = self.workers if self.workers > self.in_flight else self.in_flight
        each_ns = passed_ns // slots
        self._total += each_ns
        remainder_ns = passed_ns - each_ns * self.in_flight
        if slots > self.in_flight:
            self.idle_ns += remainder_ns
        else:
            self._remainder_ns += remainder_ns

    def begin(self, now_ns: int) -> int:
        """Record the start of a batch.

        Returns:
            A token for :meth:`end`.
        """
        self.advance(now_ns)
        self.in_flight += 1
        self._start_totals += self._total
        return self._total

    def end(self, start_total: int, now_ns: int) -> int:
        """Record the end of a batch, and return its charge."""
        self.advance(now_ns)
        self.in_flight -= 1
        self._start_totals -= start_total
        charge_ns = self._total - start_total + self._remainder_ns
        self._remainder_ns = 0
        self.finished_ns += charge_ns
        return charge_ns

    def pad(self, padding_ns: int) -> None:
        """Move a part of the finished charges to padding."""
        self.finished_ns -= padding_ns
        self.padding_ns += padding_ns

    def read(self, now_ns: int) -> tuple[int, int, int, int, int]:
        """Bill up to now, and return the bill and its parts in nanoseconds.

        Returns:
            The bill; the charges of finished and of running batches, padding, and idle time, which add up to the bill.
        """
        self.advance(now_ns)
        running_ns = self.in_flight * self._total - self._start_totals + self._remainder_ns
        return self.bill_ns, self.finished_ns, running_ns, self.padding_ns, self.idle_ns


def split_ns(charge_ns: int, rows: int, work: BatchWork) -> tuple[list[int], int, int]:
    """Divide the charge of a batch among its rows.

    Args:
        charge_ns: nanoseconds ≥ 0.
        rows: number of requests, at least 1.
        work: set-up share of the duration, work of each row, and padding.

    Returns:
        The share of each row, the share of padding, and the part of the rows' shares that is set-up. Shares and padding
        add up to the charge.
    """
    _, weights, _ = work
    padding_ns, setup_ns, total = _common_parts(charge_ns, rows, work)
    marginal_ns = charge_ns - setup_ns - padding_ns
    shares: list[int] = []
    left_ns = setup_ns
    if weights is None or total <= 0.0:
        left_ns += marginal_ns
        marginal_ns = 0
    each_ns = left_ns // rows
    leftover_ns = left_ns - each_ns * rows
    done = 0.0
    assigned_ns = 0
    for row in range(rows):
        share_ns = each_ns + (1 if row < leftover_ns else 0)
        if marginal_ns:
            done += weights[row]  # type: ignore[index]  # only where there are some
            upto_ns = int(marginal_ns * (done / total)) if row < rows - 1 else marginal_ns
            share_ns += upto_ns - assigned_ns
            assigned_ns = upto_ns
        shares.append(share_ns)
    return shares, padding_ns, setup_ns


def _common_parts(charge_ns: int, rows: int, work: BatchWork) -> tuple[int, int, float]:
    """Return the padding and the set-up in nanoseconds, and the total work of the rows."""
    setup_share, weights, padding = work
    total = 0.0
    if weights is None:
        total = rows
    else:
        for weight in weights:
            total += weight
    setup_ns = int(charge_ns * setup_share)
    if padding <= 0.0:
        return 0, setup_ns, total
    return int((charge_ns - setup_ns) * (padding / (total + padding))), setup_ns, total


class BatchMeter:
    """Observer of the batches of one batcher.

    Args:
        bill: bill of the device that the batches run on.
        account: account of the model.
        tenants: lists of accounts by tenant, with one account per device.
        streams: the same by stream.
        place: index of the device in these lists.
        clock: clock of the bill; ``None``: the clock of the batches.
    """

    def __init__(
        self,
        bill: DeviceBill,
        account: CostAccount,
        tenants: LabelFamilyState,
        streams: LabelFamilyState,
        device_index: int = 0,
        clock: Callable[[], int] | None = None,
    ) -> None:
        self._bill = bill
        self._account = account
        self._tenants = tenants
        self._streams = streams
        self._device_index = device_index
        self._clock = clock

    def begin(self, requests: list[Any], now_ns: int) -> tuple[int, list[Any]]:
        """Record the start of a batch, and return a token for :meth:`end`."""
        if self._clock is not None:
            now_ns = self._clock()
        return self._bill.begin(now_ns), requests

    def end(self, token: tuple[int, list[Any]], work: BatchWork, now_ns: int) -> None:
        """Charge the rows of a batch that ended."""
        start_total, requests = token
        rows = len(requests)
        if self._clock is not None:
            now_ns = self._clock()
        charge_ns = self._bill.end(start_total, now_ns)
        padding_ns, setup_ns, _ = _common_parts(charge_ns, rows, work)
        if padding_ns:
            self._bill.pad(padding_ns)
        self._account.charge(rows, charge_ns - padding_ns, setup_ns, padding_ns)
        row = 0
        shares: list[int] | None = None
        for request in requests:
            if request is not None and (request.tenant is not None or request.stream_id is not None):
                if shares is None:
                    shares, _, _ = split_ns(charge_ns, rows, work)
                share_ns = shares[row]
                if request.tenant is not None:
                    _account(self._tenants, request.tenant, self._device_index).charge(1, share_ns, 0, 0)
                if request.stream_id is not None:
                    _account(self._streams, request.stream_id, self._device_index).charge(1, share_ns, 0, 0)
            row += 1


class ResponseLedger:
    """Responses by route, tenant and stream.

    Args:
        routes: accounts by the route that a response came from.
        tenants: lists of accounts by tenant; the first account of a list counts the responses.
        streams: the same by stream.

    Attributes:
        total: account of all responses.
        failed: requests that got no response.
        uncharged: routes without a batcher; their responses have no timings.
    """

    def __init__(self, routes: LabelFamilyState, tenants: LabelFamilyState, streams: LabelFamilyState) -> None:
        self._routes = routes
        self._tenants = tenants
        self._streams = streams
        self.total = CostAccount()
        self.failed = 0
        self.uncharged: frozenset[str] = frozenset()

    def fail(self) -> None:
        """Count a request that got no response."""
        self.failed += 1

    def respond(self, request: Request, response: Response, now_ns: int, sees_batches: bool) -> None:
        """Count a response.

        Args:
            request: the request.
            response: its response.
            now_ns: the present instant.
            sees_batches: whether a batcher is inside: a response without timings then needed no batch. Otherwise only
                the source of the response shows that it was cached.
        """
        deadline_ns = request.deadline_ns
        on_time = deadline_ns is None or deadline_ns >= now_ns
        cached = False
        source = response.source
        route = route_of(source)
        if response.timings is None:
            cached = source == "cache" or (
                sees_batches and not source.startswith("default (") and route not in self.uncharged
            )
        degraded = response.degraded
        self.total.respond(on_time, degraded, cached)
        account = self._routes.child(route)
        account.respond(on_time, degraded, cached)
        if request.tenant is not None:
            _account(self._tenants, request.tenant, 0).respond(on_time, degraded, cached)
        if request.stream_id is not None:
            _account(self._streams, request.stream_id, 0).respond(on_time, degraded, cached)


def _account(family: LabelFamilyState, label: Any, device_index: int) -> CostAccount:
    accounts: list[CostAccount] = family.child(label)
    return accounts[device_index]
