"""For tests of services built on streaminfer, and for its own: a clock, an event loop and a backend that obey the test.

Nothing sleeps and nothing depends on the machine's speed: on a :class:`VirtualLoop` time jumps to the next timer as
soon as nothing else is to be done, and a run with scripted backends replays exactly.
"""

import asyncio
import math
import selectors
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from streaminfer._internal.validation import check_duration, expected
from streaminfer.protocols import ExampleInputs
from streaminfer.request import Batch
from streaminfer.testing import faults

__all__ = ["HANG", "FakeClock", "ScriptedBackend", "VirtualLoop", "faults", "run"]

T = TypeVar("T")


class FakeClock:
    """A clock that stands still until it is moved; give it as ``clock=``.

    Args:
        now_ns: where it starts, monotonic nanoseconds.
    """

    def __init__(self, now_ns: int = 0) -> None:
        self.now_ns = now_ns

    def __call__(self) -> int:
        """The instant it stands at, nanoseconds."""
        return self.now_ns

    def advance(self, seconds: float) -> None:
        """Moves it forward.

        Args:
            seconds: how far, ≥ 0.
        """
        self.now_ns += round(check_duration("seconds", seconds) * 1e9)

    def __repr__(self) -> str:
        return f"FakeClock({self.now_ns})"


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time is an integer that jumps to the next timer when nothing else is to be done.

    When nothing will ever happen again the run ends with ``RuntimeError`` instead of hanging, so that a lost
    wake-up fails a test at once. Threads and processes have no place in virtual time: executors are refused.

    Args:
        now_ns: where time starts, nanoseconds.
    """

    is_virtual = True
    """Work that a start hands to a thread elsewhere is done on this loop, so that a run repeats."""

    def __init__(self, now_ns: int = 0) -> None:
        self.now_ns = now_ns
        super().__init__(_NoWaiting(self))
        self._clock_resolution = 1e-9

    def time(self) -> float:
        """The virtual time in seconds."""
        return self.now_ns / 1e9

    def clock(self) -> int:
        """The virtual time in nanoseconds; give it as ``clock=``."""
        return self.now_ns

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override] # noqa: ARG002
        """Refused: a thread takes real time.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(
            "a VirtualLoop has no executors: a thread or process takes real time, which does not pass here"
        )


class _NoWaiting(selectors.SelectSelector):
    """Instead of waiting, moves the loop's time forward."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("nothing will ever happen on this virtual loop again: somebody waits for a lost wake-up")
        if timeout > 0 or not self._loop._ready:  # type: ignore[attr-defined]
            # a timer due "now" may lie a rounding error ahead: years of seconds have no nanoseconds in a float
            self._loop.now_ns += max(1, math.ceil(timeout * 1e9 - 1e-3))
        return []


def run(main: Callable[[VirtualLoop], Coroutine[Any, Any, T]], *, now_ns: int = 0) -> T:
    """Runs ``main(loop)`` in virtual time and closes the loop; tasks that are left over are cancelled.

    Args:
        main: makes the coroutine; ``loop.clock`` is the clock to give to what it tests.
        now_ns: where time starts.

    Returns:
        What the coroutine returned.

    Raises:
        RuntimeError: an event loop runs in this thread already.
    """
    if asyncio._get_running_loop() is not None:
        raise RuntimeError(
            "testing.run makes an event loop of its own, and one runs in this thread already: call it from a "
            "synchronous function, or in a thread (await asyncio.to_thread(run, main))"
        )
    loop = VirtualLoop(now_ns)
    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(main(loop))
    finally:
        try:
            left = asyncio.all_tasks(loop)
            for task in left:
                task.cancel()
            if left:
                loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            asyncio.set_event_loop(None)
            loop.close()


HANG: Any = object()
"""A step of a :class:`ScriptedBackend` that never answers, until it is cancelled."""


class ScriptedBackend:
    """A backend that answers, fails, hangs or answers nonsense by script, and keeps the batches it saw.

    Args:
        *steps: one for each batch, in turn: an exception to raise, :data:`HANG`, a function of the batch that returns
            the results, or the results themselves. When they have run out, ``then`` answers.
        then: a function of the batch that returns the results; ``None``: each row's own inputs.
        duration_s: seconds that a batch takes: a number, or a function of the batch's size. Loop time, so virtual on a
            :class:`VirtualLoop`.
        batch_axes: the axis on which the batcher stacks each input, 0 where it names none.
        example: what a request brings: a batcher then measures batches of it before it accepts requests. They take
            ``duration_s``, use up no step and are not among ``batches``. ``None``: nothing is measured.

    Attributes:
        batches: the batches it saw.
        calibration_sizes: the sizes of those that were measured before requests were accepted, in order.
        running: batches that run now.
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
            check_duration("duration_s", duration_s)
        if then is not None and not callable(then):
            raise TypeError(expected("then", "a function of the batch or None", then))
        self.batches: list[Batch] = []
        self.batch_axes = dict(batch_axes or {})
        self.calibration_sizes: list[int] = []
        self.running = 0
        self._example = example
        self._steps = deque(steps)
        self._then = then or _echo
        self._duration_s = duration_s

    async def infer(self, batch: Batch) -> Any:
        """The next step of the script."""
        self.batches.append(batch)
        return await self._take(batch, self._steps.popleft() if self._steps else self._then)

    def example_inputs(self) -> ExampleInputs | None:
        """What one request brings, as far as the constructor was told."""
        return None if self._example is None else ExampleInputs(self._example, self._calibrate)

    async def _calibrate(self, batch: Batch) -> Any:
        self.calibration_sizes.append(len(batch))
        return await self._take(batch, self._then)

    async def _take(self, batch: Batch, step: Any) -> Any:
        self.running += 1
        try:
            _ = batch.inputs  # read first, as a real backend would: what cannot be put together fails here
            duration_s = self._duration_s(len(batch)) if callable(self._duration_s) else self._duration_s
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
        """The sizes of the batches it saw, in order."""
        return [len(batch) for batch in self.batches]

    def __repr__(self) -> str:
        return f"<ScriptedBackend: {len(self.batches)} batches seen>"


def _echo(batch: Batch) -> Sequence[Any]:
    inputs = batch.inputs
    if isinstance(inputs, Mapping):
        return [row.inputs for row in batch.rows]
    return list(np.asarray(inputs)) if isinstance(inputs, np.ndarray) else list(inputs)
