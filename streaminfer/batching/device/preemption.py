"""Foreground and background of a preemptive device, and pauses: a state machine without loop, thread or clock.

*Design*. The models with the tightest objective are in the *foreground*: the operating system runs their batches at
once, even while a batch of another model runs. All other models are in the *background*, including those without an
objective.

A foreground that begins each batch at once has small batches, and their extra cost is time that the background lacks.
So while the background has work, two foreground batches of a model begin at least a certain time apart, the *pace*, and
the second batch grows meanwhile. The pace is a product of three numbers:

* a fifth of the model's objective, which bounds the cost to the foreground;
* the share of a single request's time that a full batch saves: if that is zero, no pause helps;
* the *pressure* of the background, from 0 to 1. It rises by a step with each batch that was late, or was promoted in
  order not to be, and falls while the background is idle or in good time. A burst that the background survives in time
  adds no pressure. A load with which it always falls behind leads to short pauses that last, which serve both better
  than long ones that come and go (integral control, like TCP's windows and PIE's drop rate).

A request that arrives after the pace has passed begins at once, as does a full batch, or one with a request that has no
time for a pause.

*Complexity*. O(models) when one enters or leaves, O(requests) at the end of a background batch. Synchronous, takes the
time as an argument.
"""

from weakref import WeakKeyDictionary

from streaminfer.batching.device.member import DeviceMember
from streaminfer.batching.queue._ticket_cy import NEVER, Execution

__all__ = ["Preemption"]

MOST_PACE = 0.2
"""Share of the objective."""

_STEP = 0.1
"""Added to the pressure for each batch that was late or promoted."""

_RELEASE = 0.2e-9
"""Taken from the pressure for each nanosecond in which the background is idle or in good time."""

_GOOD_TIME = 0.5
"""A request is in good time if it takes at most this share of its time until the deadline."""

_LATE = 0.9
"""A request is late if it takes more than this share of its time until the deadline."""


class Preemption:
    """Foreground and background of one device.

    Attributes:
        pressure: of the background, from 0 to 1.
    """

    def __init__(self) -> None:
        self.pressure = 0.0
        self._ended_ns = 0  # end of the last background batch
        self._is_background: WeakKeyDictionary[DeviceMember, bool] = WeakKeyDictionary()
        # end of the pause of each, and the time before its deadline from which a request ends the pause
        self._pauses: WeakKeyDictionary[DeviceMember, tuple[int, int]] = WeakKeyDictionary()

    def enter(self, member: DeviceMember) -> None:
        """Add a model.

        Raises:
            ValueError: a model would be in the background whose batches cannot run there; nothing has changed then.
        """
        members = {*self._is_background, member}
        tightest_ns = min(each.claim.slo_ns for each in members)
        for each in members:
            if each.claim.slo_ns > tightest_ns and (obstacle := each.claim.runs.obstacle()):
                raise ValueError(
                    f"{each.source} cannot run in the background of a preemptive device, as all models without the "
                    f"tightest slo_s must: {obstacle}"
                )
        self._is_background.setdefault(member, False)
        member.claim.changed = self.update
        self.update()

    def leave(self, member: DeviceMember) -> None:
        """Remove a model."""
        if self._is_background.pop(member, False):
            _move_to_foreground(member)
        member.claim.changed = None
        self._pauses.pop(member, None)
        self.update()

    def forget(self) -> None:
        """Remove all models, because their loop was closed."""
        for member in list(self._is_background):
            self.leave(member)
        self.pressure = 0.0
        self._ended_ns = 0

    def update(self) -> None:
        """Choose the background again, because a model has entered or left, or its objective has changed."""
        tightest_ns = min((member.claim.slo_ns for member in self._is_background), default=NEVER)
        for member, before in list(self._is_background.items()):
            # objectives may change while requests run: a model whose batches cannot be lowered stays in the foreground
            now = member.claim.slo_ns > tightest_ns and not member.claim.runs.obstacle()
            if now != before:
                self._is_background[member] = now
                if now:
                    member.claim.runs.set_background(True)
                else:
                    _move_to_foreground(member)

    def is_background(self, member: DeviceMember) -> bool:
        """Return whether a model is in the background."""
        return self._is_background.get(member, False)

    def background(self) -> list[DeviceMember]:
        """Return the models in the background."""
        return [member for member, is_background in self._is_background.copy().items() if is_background]

    def end_foreground(self, member: DeviceMember, started_ns: int, now_ns: int) -> None:
        """Note that a foreground batch ended, so the next one may have to pause."""
        claim = member.claim
        pace_ns = round(self.pressure * MOST_PACE * claim.saving() * claim.slo_ns) if claim.slo_ns < NEVER else 0
        self._pauses[member] = started_ns + pace_ns, 2 * (now_ns - started_ns)

    def end_background(self, execution: Execution, now_ns: int, *, is_promoted: bool) -> None:
        """Note that a background batch ended, and whether it was promoted before its deadline."""
        tickets = execution.tickets
        used_share = max((now_ns - it.enqueued_ns) / max(it.deadline_ns - it.enqueued_ns, 1) for it in tickets)
        relaxed_until_ns = now_ns if used_share <= _GOOD_TIME else execution.started_ns
        pressure = max(self.pressure - _RELEASE * max(relaxed_until_ns - self._ended_ns, 0), 0.0)
        self.pressure = min(pressure + _STEP * (is_promoted or used_share > _LATE), 1.0)
        self._ended_ns = now_ns

    def pause_ends_ns(self, member: DeviceMember) -> int:
        """Return the end of a foreground model's pause while the background has work; 0: it does not pause."""
        pause = self._pauses.get(member)
        if pause is None or member.claim.is_full:
            return 0
        ends_ns, needs_ns = pause
        return min(ends_ns, member.claim.next_deadline_ns - needs_ns)


def _move_to_foreground(member: DeviceMember) -> None:
    """Return the batches of a model, including running ones, to the usual priority."""
    member.claim.runs.set_background(False)
    member.claim.runs.raise_running()
