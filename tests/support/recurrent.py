"""Recurrent model of whole numbers, whose state identifies all its inputs and their order."""

import numpy as np

from streaminfer.testing import ScriptedBackend

__all__ = ["AXIS", "EXAMPLE", "Recurrent", "Reference", "recurrent", "step"]

AXIS = 1
SHAPE = (2, 3)
EXAMPLE = {"x": np.zeros((), np.int64), "h": np.zeros(SHAPE, np.int64)}


def step(batch):
    """Return the outputs of the model: h' = 31 h + x, y = the sum of h'."""
    state = batch.inputs["h"] * 31 + batch.inputs["x"][None, :, None] * np.arange(1, 4)
    return {"y": state.sum(axis=(0, 2)), "h2": state}


class Recurrent(ScriptedBackend):
    """Scripted backend with two workers that take a batch each."""

    queued_workers = 2


def recurrent(*steps, duration_s=0.0, then=step):
    """Return the model with a script of failures."""
    return Recurrent(*steps, then=then, duration_s=duration_s, batch_axes={"x": 0, "h": AXIS}, example=EXAMPLE)


class Reference:
    """Expected results of one stream alone."""

    def __init__(self):
        self.state = np.zeros(SHAPE, np.int64)

    def __call__(self, x):
        self.state = self.state * 31 + x * np.arange(1, 4)
        return int(self.state.sum())
