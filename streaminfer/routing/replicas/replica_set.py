"""`Replicas`: several replicas of one model as one service.

`P2CBalancer` chooses, learns and ejects; this module reads the clock, sends requests to replicas, records outcomes, and
retries at another replica if the first failed and there is time. Each attempt is recorded exactly once; a removed
replica keeps its slot until its last attempt has ended.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from streaminfer._internal.validation import check_count, check_duration_ns, check_instance, check_number
from streaminfer._runtime.lifecycle import raise_first, seconds_left, stop_together
from streaminfer._runtime.response_source import nested_source
from streaminfer._runtime.stack_clock import StackClock
from streaminfer.errors import Closed, DeadlineExceeded, InvalidInput, Overloaded
from streaminfer.protocols import (
    Admission,
    AdmissionReason,
    Capabilities,
    Clock,
    ModelTensors,
    Node,
    StreamStates,
    adapt,
    are_idempotent,
)
from streaminfer.request import Request, Response, passed_on_arrival
from streaminfer.resilience._call_budget_cy import CallBudget
from streaminfer.routing.full_loads import spread_load_of_all
from streaminfer.routing.replicas._ejection_cy import OutlierEjection
from streaminfer.routing.replicas._p2c_cy import FAILURE, IGNORED, REJECTED, SUCCESS, P2CBalancer
from streaminfer.routing.replicas.discovery import DnsDiscovery, Finder
from streaminfer.routing.replicas.health import HealthCheck, ReplicaProbes
from streaminfer.routing.replicas.membership import Membership, is_above_1
from streaminfer.routing.replicas.replica import Replica
from streaminfer.routing.replicas.statistics import ReplicasStatistics, replica_statistics
from streaminfer.routing.replicas.stream_homes import StreamHomes
from streaminfer.routing.stable_hash import stable_hash
from streaminfer.routing.verdicts import first_accepting

__all__ = ["Replica", "Replicas"]

_SLOT = 2**16 - 1
_RETRY_SHARE, _RETRIES_PER_S = 0.2, 1.0  # second attempts that fail: if all replicas fail, they only add to the load
_IGNORED_ERRORS = (asyncio.CancelledError, DeadlineExceeded, InvalidInput)


class Replicas(StackClock, Node):
    """Several replicas of one model as one service; of two replicas, the one expected to respond sooner gets a request.

    ::

        faces = Replicas(Replica("a", stack_a), Replica("b", stack_b))
        async with Stack(Telemetry("faces"), faces) as service:
            boxes = await service(image, timeout_s=0.05)

    It starts and stops its replicas. The rules are in the documentation.

    Args:
        *replicas: at least one replica, with different names; or none, if ``discovery`` finds them.
        zone: zone of this process; ``""`` is the zone of replicas without a zone.
        zone_penalty: factor, above 1, by which a replica of another zone must be expected to respond sooner: one for
            all other zones, or a mapping of zone to factor, with 2.0 for a zone that it does not name.
        choices: how many replicas are drawn and compared for each request. With as many as there are replicas, or
            more, all are compared: the tail is shorter, unless batching replicas of unequal speed are near saturation.
        retry: try another replica once, if the first failed or rejected and time remains. Turn it off for a model that
            must not get a request twice. A request is never retried if the service declares ``idempotent = False``, if
            it has a ``stream_id``, or beyond a fifth of the requests of the last ten seconds and ten more.
        consecutive_failures: failures in a row that eject a replica; ``None``: failures never eject.
        latency_factor: ejects a replica that is this many times slower than most others of its zone; above 1; ``None``:
            latency never ejects.
        eject_s: how long the first ejection lasts; the n-th lasts n times as long.
        max_eject_s: the longest ejection; never less than ``eject_s``.
        max_ejected: the largest share of the replicas that requests may eject, 0 to 1. Of two or more replicas, one may
            always be ejected unless the share is 0, but never the last one.
        slow_start_s: how long a replica that was added or returned takes to its full share; 0: no time.
        health: a `HealthCheck`, which probes each replica; ``None``: only requests show failures.
        discovery: a `DnsDiscovery`, which adds and removes replicas as a name resolves; ``None``: none.
        decay_s: how fast the measurements of a replica without requests are forgotten.
        seed: seed of the draws, for runs that replay; ``None``: from the operating system.
        clock: returns monotonic nanoseconds; ``None``: the `Stack`'s clock, else ``time.monotonic_ns``.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.

    Not thread-safe: for one event loop.
    """

    def __init__(
        self,
        *replicas: Replica,
        zone: str = "",
        zone_penalty: float | Mapping[str, float] = 2.0,
        choices: int = 2,
        retry: bool = True,
        consecutive_failures: int | None = 5,
        latency_factor: float | None = 3.0,
        eject_s: float = 1.0,
        max_eject_s: float = 30.0,
        max_ejected: float = 0.5,
        slow_start_s: float = 5.0,
        health: HealthCheck | None = None,
        discovery: DnsDiscovery | None = None,
        decay_s: float = 10.0,
        seed: int | None = None,
        clock: Clock | None = None,
    ) -> None:
        if not replicas and discovery is None:
            raise TypeError("replicas: expected at least one Replica, got none")
        check_instance("health", health, HealthCheck | None, "a HealthCheck or None")
        check_instance("discovery", discovery, DnsDiscovery | None, "a DnsDiscovery or None")
        check_instance("zone", zone, str, "a string")
        check_instance("retry", retry, bool, "True or False")
        share = check_number("max_ejected", max_ejected, "a share from 0 to 1", lambda it: 0.0 <= it <= 1.0)
        factor = 0.0
        if latency_factor is not None:
            factor = check_number("latency_factor", latency_factor, "a number above 1, or None", is_above_1)
        in_a_row = 0 if consecutive_failures is None else check_count("consecutive_failures", consecutive_failures)
        eject_ns = check_duration_ns("eject_s", eject_s, positive=True)
        slow_start_ns = check_duration_ns("slow_start_s", slow_start_s)
        max_eject_ns = max(check_duration_ns("max_eject_s", max_eject_s, positive=True), eject_ns)
        seed = None if seed is None else check_count("seed", seed, at_least=0)
        ejection = OutlierEjection(min(in_a_row, 2**31), factor, eject_ns, max_eject_ns, share, slow_start_ns)
        self._balancer = P2CBalancer(
            check_count("choices", choices, at_most=_SLOT),
            check_duration_ns("decay_s", decay_s, positive=True),
            ejection,
            slow_start_ns,
            random.getrandbits(62) if seed is None else seed % 2**62,
        )
        self.zone = zone
        self.clock: Clock = self._accept_clock(clock) or time.monotonic_ns
        self._retry = retry
        self._retries = CallBudget(_RETRY_SHARE, _RETRIES_PER_S)
        self._members = Membership(self._balancer, self._now, zone, zone_penalty)
        self._by_slot = self._members.by_slot  # the same mapping, which each request reads
        self._homes = StreamHomes(self._members.all, self._states_for)
        self._probes = None if health is None else ReplicaProbes(health, self._balancer, self._now, seed)
        self._finder: Finder | None = None
        if discovery is not None:
            self._finder = Finder(discovery, self.add, self.remove, lambda: self._members.by_name)
        self._running = self._stopped = False
        self._closed = not replicas
        self._retried = 0
        self._child_listeners: list[Callable[[str, Any], None]] = []
        for replica in replicas:
            self._members.check_new(replica)
            self._members.put(self._members.handle_of(replica), slowly=False)
        if self._clock_given:
            self._bind(self.clock)

    # -- callers ------------------------------------------------------------------------------------------------

    async def call(self, request: Request) -> Response:
        """Serve one request; ``source`` of the response begins with the name of the replica.

        Raises:
            Closed: the replicas do not run.
            DeadlineExceeded: the deadline passed.
            BaseException: the error of the last replica that was tried.
        """
        if self._closed:
            raise Closed("these replicas do not run")
        now_ns = self.clock()
        deadline_ns = request.deadline_ns
        if deadline_ns is not None and now_ns >= deadline_ns:
            raise DeadlineExceeded(passed_on_arrival(now_ns, deadline_ns))
        self._retries.count(now_ns)
        if request.stream_id is None:
            token = self._balancer.choose(-1, now_ns)
            may_retry = self._retry
        else:
            token = self._choose_for_stream(request.stream_id, now_ns)
            may_retry = False
        is_second = False
        while True:
            handle = self._by_slot[token & _SLOT]
            started_ns = now_ns
            try:
                response = await handle.call(request)
            except BaseException as error:
                now_ns = self.clock()
                outcome = self._record_error(token, error, started_ns, deadline_ns, now_ns)
                handle.check_drained()
                may_retry = may_retry and handle.is_idempotent and outcome != IGNORED
                if not may_retry or (deadline_ns is not None and now_ns >= deadline_ns):
                    raise
                token = self._second(token & _SLOT, now_ns)
                if token < 0:
                    raise
                may_retry, is_second = False, True
                continue
            now_ns = self.clock()
            if is_second:
                self._retries.refund(now_ns)
            self._balancer.done(token, SUCCESS, max(now_ns - started_ns, 0), now_ns)
            if handle.is_draining:
                handle.check_drained()
            source = nested_source(handle.replica.name, response.source)
            return Response(response.outputs, response.degraded, source, response.timings)

    def admission(self, request: Request, now_ns: int) -> Admission:
        """Return the admission of the first replica that accepts, in the order of their expected response."""
        if self._closed:
            return Admission(False, AdmissionReason.CLOSED)
        if request.stream_id is not None:
            return self._admission_at(self._balancer.of_stream(stable_hash(request.stream_id), now_ns), request, now_ns)
        verdicts = (self._admission_at(slot, request, now_ns) for slot in self._balancer.ranked(now_ns))
        return first_accepting(verdicts) or Admission(False, AdmissionReason.NO_REPLICA)

    def validate(self, request: Request) -> None:
        """Check a request as the first replica does; all replicas serve the same model."""
        first = self._members.first()
        if first is not None and first.validate is not None:
            first.validate(request)

    def fingerprint_changes(self) -> int:
        """Return how often the models of the replicas have changed, for caches around the replicas."""
        return self._members.fingerprint_changes()

    @property
    def children(self) -> Mapping[str, Any]:
        """The services of the replicas by name; the name of a replica that drains has the suffix ``(leaving)``."""
        return self._members.services()

    def capabilities(self) -> Capabilities:
        """Return the capabilities of the first replica (all serve the same model), and of the set itself."""
        handles = self._members.by_name.values()
        offered = [adapt(handle.replica.service).capabilities() for handle in handles]  # once: routers may nest
        return Capabilities(
            validate=self.validate,
            admission=self.admission,
            slo=self,
            fingerprint_changes=self._members.fingerprint_changes,  # read for each request of a cache
            spread_load=lambda: spread_load_of_all(it.replica.service for it in self._members.by_name.values()),
            new_children=self.new_children,
            enforces_deadline=True,
            idempotent=are_idempotent(offered),
            stream_states=self._homes if self._homes.get_states() else None,
            many_answers=bool(offered) and offered[0].many_answers,
            model_tensors=self._model_tensors,
        )

    def _model_tensors(self) -> ModelTensors | None:
        first = self._members.first()
        describe = None if first is None else adapt(first.replica.service).capabilities().model_tensors
        return None if describe is None else describe()

    def new_children(self, listener: Callable[[str, Any], None]) -> None:
        """Call ``listener`` with the name and the service of each replica that is added from now on."""
        self._child_listeners.append(listener)

    @property
    def slo_ns(self) -> int | None:
        """The latency objective of the first replica, nanoseconds; ``None``: it has none."""
        first = self._members.first()
        return None if first is None or first.slo is None else first.slo.slo_ns

    # -- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start all replicas at once; if one fails, the others are stopped again, and its error is raised.

        Raises:
            BaseException: the error of a replica's start; or why the discovery found no replica, if there is no other.
        """
        self._stopped = False
        failure = None if self._finder is None else await self._finder.look_up(strict=True)
        if self._stopped:
            return
        if failure is not None and not self._members.by_name:
            raise failure
        self._running = True  # from here on, `add` starts the new replica, and `remove` stops the removed one
        try:
            raise_first(await self._members.start_all())
        except BaseException:
            self._running = False
            await stop_together(it.stop(drain=False) for it in self._members.by_name.values() if it.is_started)
            raise
        if self._stopped:
            return  # a concurrent stop has stopped them again
        self._closed = False
        if self._probes is not None:
            for handle in self._members.by_name.values():
                self._probes.watch(handle)
        if self._finder is not None:
            self._finder.begin()

    async def stop(self, *, drain: bool = True) -> None:
        """Accept no more requests and stop all replicas.

        Args:
            drain: let the requests in flight complete first; otherwise they end with `Closed`.
        """
        self._closed, self._running, self._stopped = True, False, True
        self._homes.forget()
        ending = [task for part in (self._finder, self._probes) if part is not None for task in part.cancel()]
        try:
            await stop_together(handle.stop(drain=drain) for handle in self._members.all())
        finally:
            if ending:
                _, pending = await asyncio.wait(ending, timeout=seconds_left())
                for task in pending:
                    task.cancel()  # the end of a replica that leaves

    async def add(self, replica: Replica) -> None:
        """Add a replica; if the others have been started, it is started first and then starts slowly.

        Raises:
            TypeError, ValueError: ``replica`` is not a `Replica`, or its name is taken.
            BaseException: the replica could not be started; nothing has changed.
        """
        self._members.check_new(replica)
        handle = self._members.handle_of(replica)
        if self._clock_given:
            adapt(replica.service).bind_clock(self.clock)
        if self._running:
            await handle.start()
            if replica.name in self._members.by_name or not self._running:
                await handle.stop(drain=False)
                self._members.check_new(replica)
                raise Closed("these replicas were stopped while one was added")
        for listener in self._child_listeners:
            listener(replica.name, replica.service)
        self._members.put(handle, slowly=self._running)
        if self._running and self._probes is not None:
            self._probes.watch(handle)

    async def remove(self, name: str, *, drain: bool = True) -> None:
        """Remove a replica: it gets no more requests, completes those in flight, and is stopped if it was started.

        The state of its streams goes to the replicas that get their next requests; without a place there, it is lost.

        Args:
            name: name of the replica.
            drain: let its requests in flight complete first; otherwise they end with `Closed`.

        Raises:
            ValueError: there is no replica of this name, or no other replica.
        """
        handle = self._members.take_out(name)
        if self._probes is not None:
            self._probes.forget(handle)
        try:
            if drain:
                await handle.drained()
            if handle.states is not None:
                await self._homes.leave(handle.states)
        except BaseException:
            drain = False
            raise
        finally:
            try:
                # a stop of all replicas after its last request does not include it
                if self._running or handle.is_started:
                    await handle.stop(drain=drain)
            finally:
                handle.check_drained()

    def _use_clock(self, clock: Clock) -> None:
        self.clock = clock
        self._balancer.begin(clock())
        self._bind(clock)

    def statistics(self) -> ReplicasStatistics:
        """Return a frozen snapshot."""
        now_ns = self.clock()
        self._balancer.settle(now_ns)
        return ReplicasStatistics(
            replicas=tuple(replica_statistics(handle, self._balancer, now_ns) for handle in self._members.all()),
            retried=self._retried,
            ejected=self._balancer.ejected,
            panics=self._balancer.panics,
            lost_states=self._homes.lost,
            probes=0 if self._probes is None else self._probes.sent,
            failed_probes=0 if self._probes is None else self._probes.failed,
            lookups=0 if self._finder is None else self._finder.lookups,
            failed_lookups=0 if self._finder is None else self._finder.failed,
        )

    def __repr__(self) -> str:
        return f"<Replicas: {', '.join(self._members.by_name)}>"

    # -- inside -------------------------------------------------------------------------------------------------

    def _now(self) -> int:
        return self.clock()

    def _bind(self, clock: Clock) -> None:
        for handle in self._members.by_name.values():
            adapt(handle.replica.service).bind_clock(clock)

    def _choose_for_stream(self, stream_id: Hashable, now_ns: int) -> int:
        """Choose the replica of a stream and move its state there; the state's last replica may cause an error."""
        token = self._balancer.choose_for_stream(stable_hash(stream_id), now_ns)
        try:
            self._homes.move(stream_id, self._by_slot[token & _SLOT].states)
        except BaseException as error:
            self._balancer.done(token, REJECTED if isinstance(error, Overloaded) else IGNORED, 0, now_ns)
            raise
        return token

    def _states_for(self, stream_id: Hashable) -> StreamStates | None:
        """Return the stream states of the replica that gets the next request of a stream; ``None``: there are none."""
        slot = self._balancer.of_stream(stable_hash(stream_id), self.clock())
        return None if slot < 0 else self._by_slot[slot].states

    def _record_error(
        self, token: int, error: BaseException, started_ns: int, deadline_ns: int | None, now_ns: int
    ) -> int:
        """Record an attempt without response; return its outcome."""
        outcome = FAILURE
        took_ns = max(now_ns - started_ns, 0)
        if isinstance(error, Overloaded):
            outcome = REJECTED
        elif isinstance(error, _IGNORED_ERRORS) or not isinstance(error, Exception):
            outcome = IGNORED
            if isinstance(error, InvalidInput):
                took_ns = 0  # the time until this error says nothing about the replica
            elif isinstance(error, DeadlineExceeded) and deadline_ns is not None:
                took_ns = deadline_ns - started_ns  # at least: a batcher rejects at once a request it cannot do in time
        self._balancer.done(token, outcome, took_ns, now_ns)
        return outcome

    def _second(self, first: int, now_ns: int) -> int:
        """Choose another replica for a request that failed at the first one; -1: no replica, or no retry left."""
        if self._closed or self._balancer.best(first, now_ns) < 0 or not self._retries.grant(now_ns):
            return -1
        token = self._balancer.choose(first, now_ns)
        self._retried += token >= 0
        return token

    def _admission_at(self, slot: int, request: Request, now_ns: int) -> Admission:
        admission = self._by_slot[slot].admission
        verdict = Admission(True) if admission is None else admission(request, now_ns)
        if not verdict.ok or verdict.predicted_finish_ns is not None:
            return verdict
        expected_ns = self._balancer.expected_ns(slot, now_ns)
        return verdict._replace(predicted_finish_ns=now_ns + expected_ns) if expected_ns else verdict
