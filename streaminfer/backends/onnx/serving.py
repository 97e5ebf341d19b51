"""The model that an `OnnxBackend` serves with, and its replacement by another.

Invariants:

* A batch runs on the model that serves when a worker thread takes it, and ends on that model. One assignment changes
  the model of all threads and the fingerprint, so that a batch that is sent under a new fingerprint never runs on an
  old model. (The converse is the cache's: it does not store what was computed while ``fingerprint_changes`` changed.)
* A model serves only after it has run each shape of batch that its predecessor has run.
* Nothing refers to an old model once its last batch has ended.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any, Self

import attrs
import numpy as np
import numpy.typing as npt

from streaminfer.backends.onnx.binding import Binding
from streaminfer.backends.onnx.model import Provider
from streaminfer.backends.onnx.session import SessionWorker
from streaminfer.backends.signature import TEXT, Signature, TensorSpec
from streaminfer.backends.worker_pool import Worker
from streaminfer.errors import BackendError
from streaminfer.request import Batch

__all__ = ["LoadedModel", "ReloadableWorker", "Serving"]


@attrs.frozen
class LoadedModel:
    """A model with its sessions.

    Attributes:
        name: for messages.
        signature: what it reads and returns.
        shared: the inputs that every run is fed, by name.
        providers: what it runs on, best first.
        binding: how its memory is bound.
        has_graphs: its sessions replay CUDA graphs.
        file_bytes: of its file and its external weights.
        workers: one for each worker thread; a list, in which one that hangs is replaced.
        fingerprint: part of a cache's keys; ``None``: not known.
        background_obstacle: why its batches cannot run at a lower priority; empty: they can.
        number: how many models served before it.
        is_loaded: its sessions are in memory.
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
        """Return whether both are known to be one model that was loaded twice."""
        return self.fingerprint is not None and self.fingerprint == other.fingerprint

    def check_replaceable_by(self, other: "LoadedModel") -> None:
        """Check that callers can send the other model what they send this one, and get what they get from it.

        Raises:
            ValueError: they cannot; names the input or output.
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
                raise ValueError(
                    f"path_or_bytes: expected a model with the {kind} {_described(ours)}, got {other.name} with "
                    f"{_described(theirs)}; a model of another kind is a backend of its own"
                )
        if self.fingerprint is not None and other.fingerprint is None:
            raise ValueError(
                f"path_or_bytes: expected the path of a model that has external files, got {other.name}, which have no "
                "fingerprint"
            )


class Serving:
    """Which model serves; thread-safe.

    Args:
        model: the first one.

    Attributes:
        model: the one that runs what a worker takes now.
    """

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self._lock = threading.Lock()
        self._last: Future[None] | None = None

    def warm(self, model: LoadedModel, check: Callable[[], None]) -> None:
        """Run the warm-up batches, and zeros of each shape that the present model has run, on every worker of a model.

        Args:
            model: that is to serve.
            check: raises where it is wanted no more; called between the batches.

        Raises:
            BackendError: it fails on one that the present model can run, or on any where another one is not in memory.
        """
        # a copy is one step of the interpreter: the threads note further shapes meanwhile
        shapes = dict.fromkeys(each for worker in self.model.workers for each in tuple(worker.shapes))
        batches = [{name: _zeros(shape, dtype) for name, shape, dtype in each} for each in shapes]
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
        """Return whether the present model takes zeros on which another one failed: some models do not."""
        present = self.model
        if not present.is_loaded:  # of another model it is not known what this one took
            return not model.is_same_as(present)
        try:
            present.workers[0].renew().try_out(inputs)
        except BackendError:
            return False
        return True

    def replace(self, model: LoadedModel, *, is_same: bool = False) -> None:
        """Let another model serve from here on, or the same one that was loaded again."""
        self.model = attrs.evolve(model, number=self.model.number + (not is_same))

    def unload(self) -> None:
        """Let the sessions of the model go, each behind the batch that runs on it."""
        workers = [worker.without_session() for worker in self.model.workers]
        self.model = attrs.evolve(self.model, workers=workers, is_loaded=False)

    def forget(self) -> None:
        """In a forked process: no turn of the parent ends here."""
        self._lock = threading.Lock()
        self._last = None

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait until all earlier turns have ended, on whichever event loops they are."""
        mine: Future[None] = Future()
        mine.set_running_or_notify_cancel()  # so that no waiter can cancel it
        with self._lock:
            before, self._last = self._last, mine
        try:
            if before is not None:
                await asyncio.wrap_future(before)
            yield
        finally:
            if before is None or before.done():
                mine.set_result(None)
            else:  # cancelled while it waited
                before.add_done_callback(lambda _: mine.set_result(None))


class ReloadableWorker(Worker):
    """A worker thread's place at the model that serves.

    Closing leaves the session: loading it again would make every restart slow. Killing is not possible:
    ``RunOptions.terminate`` is all that ends a run, and whatever gives it up has set it.

    Args:
        serving: says which.
        number: of the worker there.
    """

    def __init__(self, serving: Serving, number: int) -> None:
        self._serving = serving
        self._number = number

    @property
    def _worker(self) -> SessionWorker:
        return self._serving.model.workers[self._number]

    def infer(self, batch: Batch, options: Any) -> Any:
        """Return one result per row, of the model that serves when this begins.

        Raises:
            BackendError: the model failed.
        """
        return self._worker.infer(batch, options)

    def record(self, batch: Batch, options: Any) -> Any:
        """Run a batch that warms up or is measured, as :meth:`SessionWorker.record` does."""
        return self._worker.record(batch, options)

    def warm(self) -> None:
        """Run the warm-up batches.

        Raises:
            BackendError: the model failed on one of them.
        """
        self._worker.warm()

    def forget(self) -> None:
        """In a forked process, raise until another model is loaded."""
        self._serving.forget()
        self._worker.forget()

    def renew(self) -> Self:
        """Give the worker memory of its own, because a run that hangs may still write to what it has."""
        self._serving.model.workers[self._number] = self._worker.renew()
        return self


def _comparable(spec: TensorSpec) -> tuple[Any, ...]:
    """Without the names of free sizes, which say nothing to callers."""
    shape = tuple(size if isinstance(size, int) else None for size in spec.shape)
    return spec.name, spec.dtype, spec.is_bfloat16, spec.is_optional, shape, spec.batch_axis


def _zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    return np.full(shape, "" if dtype == TEXT else 0, dtype)


def _described(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(map(str, specs))
