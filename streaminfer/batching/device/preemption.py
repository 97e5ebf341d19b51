"""Which models of a preemptive device go first, and when they pause: a state machine without loop, thread or clock.

*Design*. The models with the tightest objective are in the *foreground*: the operating system runs their batches at
once, also while a batch of another model runs. All others are in the *background*, those without an objective too.

A foreground that begins each batch at once has small ones, and what these cost more takes the core from the background.
So a foreground model *pauses* after a batch while the background has work, and its next batch grows meanwhile. It
leaves the background the share of the time that its arrivals need there, at most a half: where that share is ``s``, a
batch that took ``t`` is followed by a pause of ``t * s / (1 - s)``. A model that has not just run never pauses, nor does
one with a full batch, or with a request that has no time for it.

What the background needs is the arrivals of each model times the time of one request: that of its batches, less the
time for which a batch of the foreground ran.

*Complexity*. O(models) at the end of a batch. Synchronous, takes the time as an argument.
"""

import math
from collections.abc import Hashable
from weakref import WeakKeyDictionary

from streaminfer.batching.device.member import DeviceMember
from streaminfer.batching.queue._ticket_cy import NEVER

__all__ = ["Preemption"]

MOST_PACE = 0.1
"""Share of its objective that a model of the foreground leaves between the begins of two batches, at most."""
PATIENT = 0.5
MEMORY_NS = 250_000_000


class Preemption:
    """Foreground and background of one device.

    Args:
        concurrency: how many batches of either may run at once.
    """

    def __init__(self, concurrency: int) -> None:
        self._concurrency = concurrency
        self._is_background: WeakKeyDictionary[DeviceMember, bool] = WeakKeyDictionary()
        self._pause_ends_ns: WeakKeyDictionary[DeviceMember, tuple[int, int]] = WeakKeyDictionary()
        self._busy_share = 0.0
        self._was_busy = False
        self._updated_ns = 0
        self._began: dict[Hashable, int] = {}

    def enter(self, member: DeviceMember) -> None:
        """Add a model.

        Raises:
            ValueError: one would be in the background whose batches cannot be lowered; nothing is changed then.
        """
        members = {*self._is_background, member}
        tightest_ns = min(_slo_ns(each) for each in members)
        for each in members:
            if _slo_ns(each) > tightest_ns and (obstacle := _obstacle(each)):
                raise ValueError(
                    f"{each.source} cannot run in the background of a preemptive device, where models without the "
                    f"tightest slo_s run: {obstacle}"
                )
        self._is_background.setdefault(member, False)
        self.update()

    def leave(self, member: DeviceMember) -> None:
        """Take a model away."""
        if self._is_background.pop(member, False):
            _set_background(member, False)
        self._pause_ends_ns.pop(member, None)
        self.update()

    def update(self) -> None:
        """Tell the models what they are, because one has come or gone, or has another objective."""
        tightest_ns = min(map(_slo_ns, self._is_background), default=NEVER)
        for member, before in list(self._is_background.items()):
            # an objective may change while requests run: a model whose batches cannot be lowered stays in front
            now = _slo_ns(member) > tightest_ns and not _obstacle(member)
            if now != before:
                self._is_background[member] = now
                _set_background(member, now)

    def is_background(self, member: DeviceMember) -> bool:
        """Return whether a model is in the background."""
        return self._is_background.get(member, False)

    def begin(self, execution: Hashable, *, is_background: bool, now_ns: int) -> None:
        """Note that a batch begins."""
        self._began[execution] = now_ns

    def end(
        self, execution: Hashable, member: DeviceMember, rows: int, *, is_background: bool, succeeded: bool, now_ns: int
    ) -> None:
        """Note that a batch ended, and learn from it."""
        began_ns = self._began.pop(execution)
        took_ns = now_ns - began_ns
        if not is_background:
            self._pause_ends_ns[member] = began_ns + self._pace_ns(member), 2 * took_ns

    def pause_ends_ns(self, member: DeviceMember) -> int:
        """Return until when a model pauses while the background has work; 0: it does not."""
        ends_ns, needs_ns = self._pause_ends_ns.get(member, (0, 0))
        return 0 if member.is_full else min(ends_ns, member.next_deadline_ns - needs_ns)

    def forget(self) -> None:
        """Forget the models and the batches that run: their loop was closed."""
        for member in list(self._is_background):
            self.leave(member)
        self._began.clear()

    def _pace_ns(self, member: DeviceMember) -> int:
        """Return the least time between the begins of two batches of a model, from what the background needs."""
        pressure = max(self._busy_share - PATIENT, 0.0) / (1.0 - PATIENT)
        return 0 if member.slo_ns is None else round(pressure * MOST_PACE * member.batching_gain() * member.slo_ns)

    def pass_time(self, now_ns: int, *, is_busy: bool) -> None:
        """Note whether the background had work since the last call."""
        passed_ns = max(now_ns - self._updated_ns, 0)
        self._updated_ns = max(now_ns, self._updated_ns)
        self._busy_share += (self._was_busy - self._busy_share) * -math.expm1(-passed_ns / MEMORY_NS)
        self._was_busy = is_busy


def _slo_ns(member: DeviceMember) -> int:
    return NEVER if member.slo_ns is None else member.slo_ns


def _obstacle(member: DeviceMember) -> str:
    return "its backend has no BackgroundRuns" if member.background_runs is None else member.background_runs.obstacle()


def _set_background(member: DeviceMember, is_background: bool) -> None:  # noqa: FBT001 - of a function of the backend
    if member.background_runs is not None:
        member.background_runs.set_background(is_background)
