"""Bursty loss from a seed: the model of Gilbert and Elliott, for devices and networks.

*Design.* A Markov chain has two states: one passes every item, the other loses every item. Two measurable quantities
define it: the share of lost items, and the mean length of a run of losses. The chain leaves the losing state with
probability 1 / run; the probability to enter it follows from the share. A run shorter than that of independent losses
is raised to it, so a run of 1 means independent losses. The chain draws how long it stays in a state.

*Complexity.* Constant per change of the state, not per item.

*References.* E. N. Gilbert, Bell System Technical Journal 39, 1960; E. O. Elliott, the same 42, 1963.
"""

import math
import random

__all__ = ["GilbertElliott"]

LONGEST = 1e18
"""Most items until the state changes."""


class GilbertElliott:
    """Decides for each item in turn whether it is lost.

    Args:
        loss: share of the items that are lost, from 0 to below 1.
        run: mean number of successive items that are lost together.
        chance: source of randomness.
    """

    def __init__(self, loss: float, run: float, rng: random.Random) -> None:
        run = max(run, 1.0 / (1.0 - loss))
        self._rng = rng
        self._lossless = loss == 0.0
        # probability per item to leave each state: passing, losing
        self._exit_probabilities = (loss / (run * (1.0 - loss)), 1.0 / run)
        self._is_losing = not self._lossless and rng.random() < loss
        self._remaining = 0 if self._lossless else self._draw_sojourn()

    def loses(self) -> bool:
        """Return whether the next item is lost."""
        return self.count(1) == 1

    def count(self, items: int) -> int:
        """Return how many of the next items are lost."""
        if self._lossless:
            return 0
        lost = 0
        while items:
            count = min(items, self._remaining)
            if self._is_losing:
                lost += count
            items -= count
            self._remaining -= count
            if not self._remaining:
                self._is_losing = not self._is_losing
                self._remaining = self._draw_sojourn()
        return lost

    def _draw_sojourn(self) -> int:
        """Return the number of items until the state changes, from a geometric distribution."""
        probability = self._exit_probabilities[self._is_losing]
        if probability >= 1.0:
            return 1
        return 1 + int(min(math.log(1.0 - self._rng.random()) / math.log1p(-probability), LONGEST))
