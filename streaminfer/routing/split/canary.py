"""`Canary`: sends a share of the requests to another service."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import attrs

from streaminfer._internal.snapshot import Snapshot
from streaminfer._internal.validation import check_instance
from streaminfer._runtime.lifecycle import start_all, stop_all
from streaminfer._runtime.response_source import nested_source
from streaminfer.protocols import Admission, Capabilities, Clock, Node, adapt, are_idempotent
from streaminfer.request import Request, Response
from streaminfer.routing.fallback.route import as_service
from streaminfer.routing.full_loads import spread_load_of_all
from streaminfer.routing.split.share import RequestShare, check_share
from streaminfer.routing.stream_states import states_of_all

__all__ = ["Canary", "CanaryStatistics", "SideStatistics"]


@attrs.frozen(kw_only=True)
class SideStatistics(Snapshot):
    """Counters of one of the two services.

    Counting rule: each request is counted in ``requests``, and when it ends, in one of ``succeeded``, ``failed`` and
    ``cancelled``.

    Attributes:
        requests: requests that the service got.
        succeeded: how many of them succeeded.
        failed: how many ended with an error, including rejections and missed deadlines.
        cancelled: how many their callers cancelled.
    """

    requests: int
    succeeded: int
    failed: int
    cancelled: int


@attrs.frozen(kw_only=True)
class CanaryStatistics(Snapshot):
    """Both services of a `Canary` at one moment.

    Attributes:
        share: share of the requests that the canary gets.
        stable: counters of the stable service.
        canary: counters of the canary.
    """

    share: float
    stable: SideStatistics
    canary: SideStatistics


class Canary(Node):
    """Two services as one; the second one gets a fixed share of the requests.

    A canary is a service: use it as the last layer of a `Stack`, or of a route, which starts and stops both services.
    Each tenant, or stream, stays with one service. ``source`` of a response begins with ``"stable"`` or ``"canary"``.

    Args:
        stable: the service that gets most requests: a `Stack`, any other service, a backend, or a sequence of layers,
            outermost first, that ends with one.
        canary: the service on trial, in the same forms.
        share: share of the requests, or of the tenants, that the canary gets, from 0 to 1.
        by: function of the `Request` that returns a key; requests with the same key stay with one service, and requests
            with the key ``None`` are spread evenly. ``None``: the key is the ``tenant``, else the ``stream_id``.
        name: for reports; canaries of different names get different tenants.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.

    Not thread-safe: for one event loop.
    """

    def __init__(
        self,
        stable: Any,
        canary: Any,
        *,
        share: float,
        by: Callable[[Request], Hashable] | None = None,
        name: str = "",
    ) -> None:
        check_instance("by", by, lambda it: it is None or callable(it), "a function of a Request, or None")
        check_instance("name", name, str, "a string")
        self.name = name
        self._clock: Clock = time.monotonic_ns
        self._by = by or (lambda request: request.stream_id if request.tenant is None else request.tenant)
        self._share = RequestShare(check_share(share), name)
        self._stable = _Side("stable", as_service(stable, "stable"), offers_its_check=True)
        self._canary = _Side("canary", as_service(canary, "canary"), offers_its_check=False)
        offered = adapt(self._stable.service).capabilities()
        self._objective = offered.slo
        self.validate = offered.validate
        counters = (adapt(service).capabilities().fingerprint_changes for service in self.services)
        self._changes = [changes for changes in counters if changes is not None]

    @property
    def services(self) -> tuple[Any, Any]:
        """The stable service and the canary."""
        return self._stable.service, self._canary.service

    @property
    def children(self) -> Mapping[str, Any]:
        """Both services."""
        return dict(zip(("stable", "canary"), self.services, strict=True))

    def capabilities(self) -> Capabilities:
        """Return the capabilities of both services, with the objective and the check of the stable one."""
        offered = [adapt(service).capabilities() for service in self.services]  # once: routers may nest
        stable = offered[0]
        return Capabilities(
            validate=self.validate,
            admission=self.admission,
            slo=self,
            fingerprint_changes=self.fingerprint_changes,
            enforces_deadline=all(each.enforces_deadline for each in offered),
            idempotent=are_idempotent(offered),
            spread_load=lambda: spread_load_of_all(self.services),
            stream_states=states_of_all(lambda: self.services, offered),
            many_answers=stable.many_answers,
            model_tensors=stable.model_tensors,
        )

    def fingerprint_changes(self) -> int:
        """Return how often the models of both sides have changed, for caches around the canary."""
        return sum(changes() for changes in self._changes)

    @property
    def share(self) -> float:
        """The share of the requests that the canary gets."""
        return self._share.share

    def set_share(self, share: float) -> None:
        """Change the share; while it grows, the tenants of the canary stay there.

        Raises:
            TypeError, ValueError: ``share`` is not a number from 0 to 1.
        """
        self._share.share = check_share(share)

    @property
    def slo_ns(self) -> int | None:
        """The objective of the stable service, from which the `Stack` stamps a deadline."""
        return None if self._objective is None else self._objective.slo_ns

    async def call(self, request: Request) -> Response:
        """Send the request to the service that it belongs to.

        Raises:
            BaseException: the error that this service raised.
        """
        key = self._by(request)
        belongs = self._share.take() if key is None else self._share.has_key(key)
        return await (self._canary if belongs else self._stable).call(request, self._clock)

    def admission(self, request: Request, now_ns: int) -> Admission:
        """Return the admission of the service that the request would go to; changes nothing."""
        key = self._by(request)
        belongs = self._share.would_take() if key is None else self._share.has_key(key)
        admission = (self._canary if belongs else self._stable).admission
        return Admission(True) if admission is None else admission(request, now_ns)

    def bind_clock(self, clock: Clock) -> None:
        """Use the clock of a `Stack`, for both services too."""
        self._clock = clock
        super().bind_clock(clock)

    async def start(self) -> None:
        """Start both services; if one fails, the other one is stopped again."""
        await start_all(self, self.services)

    async def stop(self, *, drain: bool = True) -> None:
        """Stop both services.

        Args:
            drain: let their requests in flight complete first; otherwise they end with `Closed`.
        """
        await stop_all(self, self.services, drain=drain)

    def statistics(self) -> CanaryStatistics:
        """Return a frozen snapshot."""
        return CanaryStatistics(share=self.share, stable=self._stable.statistics(), canary=self._canary.statistics())

    def __repr__(self) -> str:
        return f"<Canary: {self.share:.1%} to {self._canary.service!r}, else {self._stable.service!r}>"

    def _repr_html_(self) -> str:
        return self.statistics()._repr_html_()


class _Side:
    """One of the two services, with its counters."""

    def __init__(self, name: str, service: Any, *, offers_its_check: bool) -> None:
        self.name = name
        self.service = service
        offered = adapt(service).capabilities()
        self.admission = offered.admission
        # the surrounding stack makes the check of the stable side
        self._validate = None if offers_its_check else offered.validate
        self._counts = dict.fromkeys(("requests", "succeeded", "failed", "cancelled"), 0)

    async def call(self, request: Request, clock: Clock) -> Response:
        self._counts["requests"] += 1
        try:
            if self._validate is not None:
                self._validate(request)
            response: Response = await self.service.call(request)
        except Exception:
            self._counts["failed"] += 1
            raise
        except BaseException:
            if request.deadline_ns is None or clock() < request.deadline_ns:
                self._counts["cancelled"] += 1
            else:  # the surrounding stack cancels a request that does not end in time
                self._counts["failed"] += 1
            raise
        self._counts["succeeded"] += 1
        source = nested_source(self.name, response.source)
        return Response(response.outputs, response.degraded, source, response.timings)

    def statistics(self) -> SideStatistics:
        return SideStatistics(**self._counts)
