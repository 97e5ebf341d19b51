"""Which route a request goes to, and until when: what a `FallbackRouter` decides, apart from how it ends."""

import asyncio
import functools
from asyncio import get_running_loop
from typing import Any

from streaminfer._internal.instants import NEVER_NS
from streaminfer.protocols import Admission, AdmissionReason, Clock
from streaminfer.request import Request
from streaminfer.routing.fallback._degradation_cy import NEUTRAL, DegradationController
from streaminfer.routing.fallback._fast_path_cy import FastPath
from streaminfer.routing.fallback.attempt_history import AttemptHistory
from streaminfer.routing.fallback.route_state import RouteState

__all__ = ["TOOK_IT", "Chooser", "deadline_of"]

TOOK_IT = Admission(True)
_RESERVE_LOOKS_NS = 5_000_000
_JITTER_NS = 500_000
_PATIENCE = 10


def deadline_of(request: Request) -> int:
    """The deadline, or ``NEVER_NS``."""
    return NEVER_NS if request.deadline_ns is None else request.deadline_ns


class Chooser:
    """Looks at the routes; sends nothing there but probes."""

    clock: Clock
    _lanes: list[RouteState]
    _ladder: DegradationController
    _gate: FastPath
    _probes: bool
    _shadows: set["asyncio.Task[Any]"]

    def _choose(self, request: Request, journey: AttemptHistory, now_ns: int) -> RouteState | None:
        """The best route that was not asked yet and takes the request now."""
        held_back: list[RouteState] = []
        for lane in self._lanes:
            position = lane.position
            if position in journey.tried:
                continue
            offered = journey.offered.get(position)
            if offered is None:
                offered = journey.offered[position] = lane.rung.offers()
            if not offered:
                journey.note(lane, "burning" if lane.rung.closed else "share")
                held_back.append(lane)
            elif lane.rung.stalled and lane.rung.in_flight:
                journey.note(lane, "stalled")
                held_back.append(lane)
            elif self._takes(lane, request, journey, now_ns):
                return lane
        # better a route beyond its share, or one that may hang, than no answer, unless that takes others' time
        for lane in held_back:
            if not journey.busy >> lane.rung.device & 1 and self._takes(lane, request, journey, now_ns):
                return lane
        return self._nothing_to_lose(journey)

    def _nothing_to_lose(self, journey: AttemptHistory) -> RouteState | None:
        """The cheapest route that has nothing to do and would be late as far as it knows: now it can find out."""
        for lane in reversed(self._lanes):
            late = (
                journey.reasons.get(lane.position) == AdmissionReason.INFEASIBLE and lane.position not in journey.tried
            )
            if late and lane.rung.in_flight == 0:
                journey.finish_ns = 0
                return lane
        return None

    def _takes(self, lane: RouteState, request: Request, journey: AttemptHistory, now_ns: int) -> bool:
        verdict = TOOK_IT if lane.admission is None else lane.admission(request, now_ns)
        finish_ns = verdict.predicted_finish_ns or 0
        if verdict.ok and not (finish_ns and lane.rung.risks(now_ns, deadline_of(request), finish_ns)):
            journey.finish_ns = finish_ns
            return True
        self._refused(lane, request, journey, verdict, now_ns)
        return False

    def _refused(
        self, lane: RouteState, request: Request, journey: AttemptHistory, verdict: Admission, now_ns: int
    ) -> None:
        rung = lane.rung
        late = verdict.ok or verdict.reason == AdmissionReason.INFEASIBLE
        if verdict.ok:  # too close to the deadline
            journey.note(lane, AdmissionReason.INFEASIBLE)
        else:
            journey.skip(lane, verdict)
        if (
            late
            and lane.position < len(self._lanes) - 1
            and rung.in_flight == 0
            and now_ns - rung.idle_since_ns >= self._ladder.step_ns
            and request.stream_id is None
            and self._probes
            and lane.is_idempotent
        ):
            self._probe(lane, request, now_ns)

    def _switch_ns(
        self, lane: RouteState, request: Request, journey: AttemptHistory, now_ns: int, deadline_ns: int
    ) -> int:
        """When a request gives up on a route; ``NEVER_NS`` where the route itself ends it in time."""
        if deadline_ns == NEVER_NS:
            return NEVER_NS
        if now_ns >= lane.reserve_until_ns:
            lane.reserve_until_ns = now_ns + _RESERVE_LOOKS_NS
            lane.reserve_ns = self._time_behind_ns(lane, request, now_ns)
            if lane.position == 0:
                self._gate.reserve_ns, self._gate.reserve_until_ns = lane.reserve_ns, lane.reserve_until_ns
        left = len(self._lanes) - len(journey.tried) - 1
        reserve_ns = lane.reserve_ns if left else 0
        return self._gate.switch_ns(now_ns, deadline_ns, journey.finish_ns, reserve_ns, lane.enforces)

    def _time_behind_ns(self, lane: RouteState, request: Request, now_ns: int) -> int:
        """What the next route that would take the request needs, and a little more.

        Returns:
            An eighth and half a millisecond more than it says or took lately; 0: none would take it; -1: unknown.
        """
        for other in self._lanes[lane.position + 1 :]:
            if other.rung.closed:
                continue
            verdict = TOOK_IT if other.admission is None else other.admission(request, now_ns)
            if not verdict.ok:
                continue
            if verdict.predicted_finish_ns is not None:
                needs_ns = verdict.predicted_finish_ns - now_ns
            elif other.rung.latency_ns:
                needs_ns = other.rung.latency_ns * 3 // 2
            else:
                return -1
            return needs_ns + (needs_ns >> 3) + _JITTER_NS
        return 0

    def _probe(self, lane: RouteState, request: Request, now_ns: int) -> None:
        """Sends a copy of a request to a route that would be late, to see whether that is still so."""
        left_ns = max((request.deadline_ns or now_ns) - now_ns, 1)
        patient = request.replace(deadline_ns=now_ns + _PATIENCE * left_ns, store=False)
        lane.rung.take()
        lane.probes += 1
        shadow = get_running_loop().create_task(self._shadow(lane, patient, _PATIENCE * left_ns / 1e9))
        self._shadows.add(shadow)
        shadow.add_done_callback(functools.partial(self._probed, lane))

    def _probed(self, lane: RouteState, shadow: "asyncio.Task[Any]") -> None:
        # not in the task: one that is cancelled before its first step runs none of its code
        self._shadows.discard(shadow)
        lane.rung.settle(NEUTRAL, 0, 0, self.clock())

    async def _shadow(self, lane: RouteState, request: Request, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await lane.call(request)
        except Exception:  # noqa: BLE001 - a probe that fails has told the route's own primitives all there is to tell
            lane.skipped["probe_failed"] += 1
