"""Bursty loss by seed: the model of Gilbert and Elliott, for devices and networks.

*Design.* A chain with two states, of which one passes everything and the other loses everything. It is given by what
can be measured: the share that is lost, and the mean length of a run of losses. The chain leaves the losing state with
probability 1 / run and enters it so that the share is kept. A run shorter than that of independent losses is raised to
it, so that a run of 1 means independent losses.

*References.* E. N. Gilbert, Bell System Technical Journal 39, 1960; E. O. Elliott, the same 42, 1963.
"""

import random

__all__ = ["GilbertElliott"]


class GilbertElliott:
    """Decides for one item after the other whether it is lost.

    Args:
        loss: share of the items that is lost, from 0 to below 1.
        run: mean number of successive items that are lost together.
        chance: source of randomness.
    """

    def __init__(self, loss: float, run: float, chance: random.Random) -> None:
        run = max(run, 1.0 / (1.0 - loss))
        self._leave = 1.0 / run
        self._enter = loss / (run * (1.0 - loss))
        self._chance = chance
        self._losing = loss > 0.0 and chance.random() < loss
        self._lossless = loss == 0.0

    def loses(self) -> bool:
        """Return whether the next item is lost."""
        if self._lossless:
            return False
        losing = self._losing
        self._losing = self._chance.random() >= self._leave if losing else self._chance.random() < self._enter
        return losing
