"""Loop in virtual time that runs an action in one of its turns, and a runner of a scenario for each turn."""

import asyncio
import itertools

from streaminfer.testing import VirtualLoop

__all__ = ["PATIENCE_S", "TurnLoop", "at_every_turn", "cancel", "cancel_every_task", "cancel_twice"]

PATIENCE_S = 1000.0


class TurnLoop(VirtualLoop):
    """Loop that runs an action in one of its turns, before or after the ready callbacks."""

    turns_left = -1

    def act_in(self, turns, place, action):
        self.turns_left, self._place, self._action = turns, place, action

    async def acted_too_late(self):
        """Return whether the turn of the action has not come, and drop the action in this case."""
        is_over, self.turns_left = self.turns_left >= 0, -1
        await asyncio.sleep(0)  # the action may run later in this turn
        return is_over

    def _run_once(self):
        if self.turns_left == 0:
            handle = asyncio.Handle(self._action, (), self)
            self._ready.insert(0 if self._place == "first" else len(self._ready), handle)
        self.turns_left -= 1
        super()._run_once()


def cancel(victim, bystanders, kept):
    victim.cancel()


def cancel_twice(victim, bystanders, kept):
    victim.cancel()
    asyncio.get_running_loop().call_soon(victim.cancel)


def cancel_every_task(victim, bystanders, kept):
    """Cancel all tasks, also those that layers have for themselves, as ``asyncio.run`` does at its end."""
    bystanders.clear()
    for task in asyncio.all_tasks() - {kept}:
        task.cancel()


def at_every_turn(scenario, *arguments):
    for place in ("first", "last"):
        for turns in itertools.count():
            with asyncio.Runner(loop_factory=TurnLoop) as runner:
                if runner.run(scenario(runner.get_loop(), *arguments[:1], turns, place, *arguments[1:])):
                    break
