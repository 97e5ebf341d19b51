"""Services and inputs of the scenarios in this folder: a model of 2 ms plus 0.2 ms a row, behind a batcher."""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np

import streaminfer as si

__all__ = ["frames", "make_detector"]


class Detector:
    """A model whose batches take a set-up time and a time per row."""

    async def infer(self, batch: si.Batch) -> Sequence[Any]:
        """Return the mean of each row."""
        await asyncio.sleep(0.002 + 0.0002 * len(batch))
        return list(np.asarray(batch.inputs).mean(axis=1))


def make_detector() -> si.Stack:
    """Return the detector with batches of at most 32 rows."""
    return si.Stack(si.AdaptiveBatcher(max_batch_size=32, slo_s=0.05), Detector())


def frames() -> list[si.loadtest.Sample]:
    """Return frames of two kinds of cameras, labeled."""
    rng = np.random.default_rng(0)
    return [
        si.loadtest.Sample(rng.random(160, np.float32), labels={"camera": camera}) for camera in ("door", "street") * 16
    ]
