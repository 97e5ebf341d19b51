"""Which models of a preemptive device go first, and when they pause: a state machine without loop, thread or clock.

*Design*. The models with the tightest objective are in the *foreground*: the operating system runs their batches at
once, also while a batch of another model runs. All others are in the *background*, also those without an objective.

A foreground that begins each batch at once has small ones, and what these cost more is time that the background lacks.
So while the background has work, the begins of two foreground batches of a model have a least distance, its *pace*, and
the second batch grows meanwhile. The pace is a product of three numbers:

* a fifth of the model's objective, which bounds what the foreground pays;
* the share of a single request's time that a full batch saves: no pause helps where that is nothing;
* the *pressure* of the background, from 0 to 1. It rises by a step with each batch that was late, or had to be promoted
  so that it was not, and falls while the background is idle or in good time. So a burst that the background gets
  through puts on none, and one that it always falls behind in leads to short pauses that last. Those serve both better
  than long ones that come and go (integral control, as TCP's windows and PIE's drop rate).

A request that comes after the pace has passed begins at once, as do a full batch and one with a request that has no
time for a pause.

*Complexity*. O(models) when one comes or goes, O(requests) at the end of a batch of the background. Synchronous, takes
the time as an argument.
"""

from typing import NamedTuple
from weakref import WeakKeyDictionary

from streaminfer.batching.device.member import DeviceMember
from streaminfer.batching.queue._ticket_cy import NEVER, Execution

__all__ = ["Preemption"]

MOST_PACE = 0.2
"""Share of the objective."""

_STEP = 0.1
"""Of pressure, for each batch that was late or promoted."""

_RELEASE = 0.2e-9
"""Of pressure, for each nanosecond in which the background is idle or in good time."""

_GOOD_TIME = 0.5
"""Share of its time until the deadline that a request takes that is in good time."""

_LATE = 0.9
"""Share of its time until the deadline that one takes that is late."""


class Preemption:
    """Foreground and background of one device.

    Attributes:
        pressure: of the background, from 0 to 1.
    """

    def __init__(self) -> None:
        self.pressure = 0.0
        self._ended_ns = 0  # the last batch of the background
        self._is_background: WeakKeyDictionary[DeviceMember, bool] = WeakKeyDictionary()
        self._pauses: WeakKeyDictionary[DeviceMember, _Pause] = WeakKeyDictionary()

    def enter(self, member: DeviceMember) -> None:
        """Add a model.

        Raises:
            ValueError: one would be in the background whose batches cannot be lowered; nothing is changed then.
        """
        members = {*self._is_background, member}
        tightest_ns = min(each.claim.slo_ns for each in members)
        for each in members:
            if each.claim.slo_ns > tightest_ns and (obstacle := each.claim.obstacle):
                raise ValueError(
                    f"{each.source} cannot run in the background of a preemptive device, as all models without the "
                    f"tightest slo_s must: {obstacle}"
                )
        self._is_background.setdefault(member, False)
        member.claim.changed = self.update
        self.update()

    def leave(self, member: DeviceMember) -> None:
        """Take a model away."""
        if self._is_background.pop(member, False):
            _bring_forward(member)
        member.claim.changed = None
        self._pauses.pop(member, None)
        self.update()

    def forget(self) -> None:
        """Take all models away: their loop was closed."""
        for member in list(self._is_background):
            self.leave(member)
        self.pressure = 0.0
        self._ended_ns = 0

    def update(self) -> None:
        """Choose who is in the background again, because a model has come or gone, or has another objective."""
        tightest_ns = min((member.claim.slo_ns for member in self._is_background), default=NEVER)
        for member, before in list(self._is_background.items()):
            # an objective may change while requests run: a model whose batches cannot be lowered stays in front
            now = member.claim.slo_ns > tightest_ns and not member.claim.obstacle
            if now != before:
                self._is_background[member] = now
                if now:
                    member.claim.set_background(True)
                else:
                    _bring_forward(member)

    def is_background(self, member: DeviceMember) -> bool:
        """Return whether a model is in the background."""
        return self._is_background.get(member, False)

    def background(self) -> list[DeviceMember]:
        """Return the models in the background."""
        return [member for member, is_background in self._is_background.copy().items() if is_background]

    def end_foreground(self, member: DeviceMember, started_ns: int, now_ns: int) -> None:
        """Note that a batch of the foreground ended: the next one may have to wait."""
        claim = member.claim
        pace_ns = round(self.pressure * MOST_PACE * claim.saving() * claim.slo_ns) if claim.slo_ns < NEVER else 0
        self._pauses[member] = _Pause(started_ns + pace_ns, needs_ns=2 * (now_ns - started_ns))

    def end_background(self, execution: Execution, now_ns: int, *, is_promoted: bool) -> None:
        """Note that a batch of the background ended, and whether it was promoted before its deadline."""
        tickets = execution.tickets
        taken = max((now_ns - it.enqueued_ns) / max(it.deadline_ns - it.enqueued_ns, 1) for it in tickets)
        well_until_ns = now_ns if taken <= _GOOD_TIME else execution.started_ns
        pressure = max(self.pressure - _RELEASE * max(well_until_ns - self._ended_ns, 0), 0.0)
        self.pressure = min(pressure + _STEP * (is_promoted or taken > _LATE), 1.0)
        self._ended_ns = now_ns

    def pause_ends_ns(self, member: DeviceMember) -> int:
        """Return until when a model of the foreground pauses, while the background has work; 0: it does not."""
        pause = self._pauses.get(member)
        if pause is None or member.claim.is_full:
            return 0
        return min(pause.ends_ns, member.claim.next_deadline_ns - pause.needs_ns)


def _bring_forward(member: DeviceMember) -> None:
    """Let the batches of a model run at the usual priority, those that run included."""
    member.claim.set_background(False)
    member.claim.raise_running()


class _Pause(NamedTuple):
    """When a pause ends, and how long before its deadline a request ends it."""

    ends_ns: int
    needs_ns: int
