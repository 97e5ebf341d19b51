"""Backend that follows a script."""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from streaminfer._internal.validation import check_duration, check_instance
from streaminfer.protocols import ExampleInputs
from streaminfer.request import Batch

__all__ = ["HANG", "ScriptedBackend"]

HANG: Any = object()
"""A step of a :class:`ScriptedBackend` that waits until it is cancelled."""


class ScriptedBackend:
    """Backend that follows a script: each batch returns results, fails or hangs; records all batches.

    Args:
        *steps: one per batch, in order: an exception to raise, :data:`HANG`, a function of the batch that returns the
            results, or the results. After the last step, ``then`` makes the results.
        then: a function of the batch that returns the results; ``None``: each row's result is its inputs.
        duration_s: seconds that a batch takes: a number, or a function of the batch size. The time is the event loop's,
            so it is virtual on a :class:`~streaminfer.testing.VirtualLoop`.
        batch_axes: the axis on which the batcher stacks each input, by name; 0 for inputs that are not named.
        example: one request's inputs. With an example, a batcher measures batches of it before it accepts requests.
            These batches take ``duration_s``, use no step and are not in ``batches``. ``None``: no measurement.

    Attributes:
        batches: all batches, in order.
        calibration_sizes: sizes of the batches that were measured before requests were accepted, in order.
        running: number of batches that are running.
    """

    returns_new_arrays = True

    def __init__(
        self,
        *steps: Any,
        then: Callable[[Batch], Sequence[Any]] | None = None,
        duration_s: float | Callable[[int], float] = 0.0,
        batch_axes: Mapping[str, int] | None = None,
        example: Any = None,
    ) -> None:
        if not callable(duration_s):
            duration_s = check_duration("duration_s", duration_s)
        check_instance("then", then, lambda it: it is None or callable(it), "a function of the batch or None")
        check_instance("batch_axes", batch_axes, Mapping | None, "a mapping or None")
        self.batches: list[Batch] = []
        self.batch_axes = dict(batch_axes or {})
        self.calibration_sizes: list[int] = []
        self.running = 0
        self._example = example
        self._steps = deque(steps)
        self._then = then or _echo
        self._duration_s = duration_s

    async def infer(self, batch: Batch) -> Any:
        """Return the next result of the script."""
        self.batches.append(batch)
        return await self._run(batch, self._steps.popleft() if self._steps else self._then)

    def example_inputs(self) -> ExampleInputs | None:
        """Return the constructor's ``example``, with the function that measures it."""
        return None if self._example is None else ExampleInputs(self._example, self._calibrate)

    async def _calibrate(self, batch: Batch) -> Any:
        self.calibration_sizes.append(len(batch))
        return await self._run(batch, self._then)

    async def _run(self, batch: Batch, step: Any) -> Any:
        self.running += 1
        try:
            _ = batch.inputs  # read first, as real backends do: rows that cannot be stacked fail here
            duration_s = self._duration_s
            if callable(duration_s):
                duration_s = check_duration("duration_s(size)", duration_s(len(batch)))
            if duration_s:
                await asyncio.sleep(duration_s)
            if step is HANG:
                await asyncio.Event().wait()
            if isinstance(step, BaseException):
                raise step
            return step(batch) if callable(step) else step
        finally:
            self.running -= 1

    @property
    def batch_sizes(self) -> list[int]:
        """Sizes of all batches, in order."""
        return [len(batch) for batch in self.batches]

    def __repr__(self) -> str:
        return f"<ScriptedBackend: {len(self.batches)} batches seen>"


def _echo(batch: Batch) -> Sequence[Any]:
    inputs = batch.inputs
    if isinstance(inputs, Mapping):
        return [row.inputs for row in batch.rows]
    return list(np.asarray(inputs)) if isinstance(inputs, np.ndarray) else list(inputs)
