"""The current model of an `OnnxBackend`, and its replacement by another.

Invariants:

* A batch runs on the model that is current when a worker thread takes the batch, and ends on that model. One assignment
  changes the model of all threads and the fingerprint, so that a batch that is sent under a new fingerprint never runs
  on an old model. (The cache ensures the converse: it does not store a result if ``fingerprint_changes`` changed while
  the result was computed.)
* A model becomes current only after it has run each batch shape that its predecessor has run.
* No reference to an old model is left once its last batch has ended.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any, Self

import attrs
import numpy as np
import numpy.typing as npt

from streaminfer._internal.forking import new_lock
from streaminfer.backends.onnx.binding import Binding
from streaminfer.backends.onnx.model import Provider
from streaminfer.backends.onnx.session import SessionWorker
from streaminfer.backends.signature import TEXT, Signature, TensorSpec
from streaminfer.backends.worker_pool import Worker
from streaminfer.errors import BackendError

__all__ = ["LoadedModel", "ReloadableWorker", "Serving"]


@attrs.frozen
class LoadedModel:
    """A model with its sessions.

    Attributes:
        name: the model's name, for messages.
        signature: the model's inputs and outputs.
        shared: the inputs that every run is fed, by name.
        providers: the execution providers, best first.
        binding: how its memory is bound.
        has_graphs: whether its sessions replay CUDA graphs.
        file_bytes: size of its file and its external weights, bytes.
        workers: one per worker thread; a list, because a worker that hangs is replaced.
        fingerprint: part of a cache's keys; ``None``: not known.
        background_obstacle: why its batches cannot run at a lower priority; empty: they can.
        number: number of models that were current before it.
        is_loaded: whether its sessions are in memory.
    """

    name: str
    signature: Signature
    shared: Mapping[str, npt.NDArray[Any]]
    providers: Sequence[Provider]
    binding: Binding
    has_graphs: bool
    file_bytes: int
    workers: list[SessionWorker]
    fingerprint: str | None
    background_obstacle: str
    number: int = 0
    is_loaded: bool = True

    def is_same_as(self, other: "LoadedModel") -> bool:
        """Return whether both fingerprints are known and equal: it is one model that was loaded twice."""
        return self.fingerprint is not None and self.fingerprint == other.fingerprint

    def check_replaceable_by(self, other: "LoadedModel") -> None:
        """Check that the other model takes the same inputs and returns the same outputs as this one.

        Raises:
            ValueError: an input or output differs; the message names it. Or the other model lacks a fingerprint, or one
                of them has CUDA graphs.
        """
        if self.has_graphs or other.has_graphs:
            raise ValueError(
                f"{self.name}: a model with CUDA graphs cannot be replaced while it serves, because graphs belong to "
                "the worker thread that recorded them; make another backend, or leave out enable_cuda_graph"
            )
        for kind, ours, theirs in (
            ("inputs", self.signature.inputs, other.signature.inputs),
            ("outputs", self.signature.outputs, other.signature.outputs),
        ):
            if [_comparable(spec) for spec in ours] != [_comparable(spec) for spec in theirs]:
                wanted, received = (", ".join(map(str, specs)) for specs in (ours, theirs))
                raise ValueError(
                    f"path_or_bytes: expected a model with the {kind} {wanted}, got {other.name} with "
                    f"{received}; a model of another kind is a backend of its own"
                )
        if self.fingerprint is not None and other.fingerprint is None:
            raise ValueError(
                f"path_or_bytes: expected the path of a model that has external files, got {other.name}, which have no "
                "fingerprint"
            )


class Serving:
    """Holder of the current model; thread-safe.

    Args:
        model: the first model.

    Attributes:
        model: the current model; it runs every batch that a worker takes.
    """

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self._lock = new_lock()
        self._last: Future[None] | None = None

    def warm(self, model: LoadedModel, check: Callable[[], None]) -> None:
        """Run the warm-up, and zeros of each shape that the current model has run, on every worker of a new model.

        Args:
            model: the new model.
            check: raises if the new model is no longer wanted; called before each batch.

        Raises:
            BackendError: the new model fails on a batch that the current one can run. If the current one is not in
                memory: the new model fails on any batch, and is not the same model.
        """
        # a copy is one step of the interpreter, so threads can add shapes meanwhile
        shapes = dict.fromkeys(each for worker in self.model.workers for each in tuple(worker.shapes))
        batches = [
            {name: np.full(shape, "" if dtype == TEXT else 0, dtype) for name, shape, dtype in each} for each in shapes
        ]
        for worker in model.workers:
            worker.warm(check)
            for inputs in batches:
                check()
                try:
                    worker.try_out(inputs)
                except BackendError:
                    if self._is_fault_of(model, inputs):
                        raise

    def _is_fault_of(self, model: LoadedModel, inputs: Mapping[str, npt.NDArray[Any]]) -> bool:
        """Return whether the current model can run zeros on which another one failed; some models cannot."""
        current = self.model
        if not current.is_loaded:  # the current model has run these shapes, so only the same model may fail on them
            return not model.is_same_as(current)
        try:
            current.workers[0].renew().try_out(inputs)
        except BackendError:
            return False
        return True

    def replace(self, model: LoadedModel, *, is_same: bool = False) -> None:
        """Make another model current, or the same model that was loaded again."""
        self.model = attrs.evolve(model, number=self.model.number + (not is_same))

    def unload(self) -> None:
        """Free the sessions of the model; a session that runs a batch is freed after it."""
        workers = [worker.without_session() for worker in self.model.workers]
        self.model = attrs.evolve(self.model, workers=workers, is_loaded=False)

    def forget(self) -> None:
        """Forget the turns of the parent after a fork, because they never end in this process."""
        self._last = None

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait until all earlier turns have ended, on whichever event loops they are; then take the turn."""
        own: Future[None] = Future()
        own.set_running_or_notify_cancel()  # so that no waiter can cancel it
        with self._lock:
            previous, self._last = self._last, own
        try:
            if previous is not None:
                await asyncio.wrap_future(previous)
            yield
        finally:
            if previous is None or previous.done():
                own.set_result(None)
            else:  # cancelled during the wait
                previous.add_done_callback(lambda _: own.set_result(None))


class ReloadableWorker(Worker):
    """Worker thread's access to the current model.

    Closing keeps the session: loading it again would make every restart slow. Killing is not possible: only
    ``RunOptions.terminate`` ends a run, and it is already set when a run is abandoned.

    Args:
        serving: holder of the current model.
        number: number of the worker in that model.
    """

    def __init__(self, serving: Serving, number: int) -> None:
        self._serving = serving
        self._number = number

    @property
    def current(self) -> SessionWorker:
        """Worker of the current model; a batch runs on the one that is current when it begins."""
        return self._serving.model.workers[self._number]

    def warm(self) -> None:
        """Run the warm-up batches.

        Raises:
            BackendError: the model failed on a warm-up batch.
        """
        self.current.warm()

    def forget(self) -> None:
        """Make all runs raise after a fork, until another model is loaded."""
        self._serving.forget()
        self.current.forget()

    def renew(self) -> Self:
        """Give the worker new reused memory, because a hung run may still write to the old memory."""
        self._serving.model.workers[self._number] = self.current.renew()
        return self


def _comparable(spec: TensorSpec) -> tuple[Any, ...]:
    """Return the parts of a spec that matter to callers; names of free sizes do not."""
    shape = tuple(size if isinstance(size, int) else None for size in spec.shape)
    return spec.name, spec.dtype, spec.is_bfloat16, spec.is_optional, shape, spec.batch_axis
