"""Python and Numba functions as backends: inline on the event loop, in threads, or in processes.

Choose *inline* for a function that is ``async``, or takes less time than a hop to a thread (some 50 µs). Choose
*thread* for a function that releases the interpreter lock (NumPy, ``numba.njit(nogil=True)``, most native code).
Choose *process* for a function that holds the lock; the batch is then copied through a pipe.
"""

import asyncio
import functools
import inspect
import pickle
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from streaminfer._internal.own_arrays import own_arrays
from streaminfer._internal.validation import check_choice, check_count, check_duration, check_instance, expected
from streaminfer._runtime.lifecycle import STOP_LIMIT_S, seconds_left
from streaminfer._runtime.wrapped_kind import check_no_generator
from streaminfer.backends.cpu.worker_error import text_of_failure
from streaminfer.backends.fingerprint import fingerprint_of_function
from streaminfer.backends.job import Done, Job
from streaminfer.backends.priority import BatchPriority
from streaminfer.backends.signature import Signature, inputs_of_example, outputs_of_answer, signature_of_example
from streaminfer.backends.statistics import BackendRecorder, BackendStatistics, Busy, Counted
from streaminfer.backends.worker_pool import Worker
from streaminfer.backends.workers import HANG_GRACE_S, MAX_WORKERS, WorkerThreads
from streaminfer.errors import BackendError, Closed, InvalidInput, StreamInferError
from streaminfer.protocols import Capabilities, Clock, ExampleInputs, ModelTensors, Node, Residency
from streaminfer.request import Batch, Request

if TYPE_CHECKING:
    from streaminfer.backends.cpu.processes import ProcessWorker

__all__ = ["CpuBackend"]


_BACKGROUND_OBSTACLES = {
    "thread": "",
    "process": "it runs in processes of its own, whose priority cannot be changed: executor='thread' can",
    "inline": "it runs on the event loop",
}


class _FunctionWorker(Worker):
    """Runs a function in this process, at the priority of the batches.

    It has no warm-up: only the author of a function knows what it needs before its first call.
    """

    def __init__(self, function: Callable[[Any], Any], priority: BatchPriority) -> None:
        self._function = function
        self._priority = priority

    def run(self, inputs: Any) -> Any:
        """Call the function."""
        return self._priority.call(self._function, inputs)


class CpuBackend(Node):
    """Runs batches with a function: ``fn(inputs)`` returns outputs with the batch axis, or one result per row.

    ``inputs`` is what a batch holds: one array with a leading batch axis, a mapping of name to such arrays, or, if the
    batcher has ``stack=False``, the list of the requests' inputs. The function returns one of these:

    * an array with a leading batch axis, or a mapping or tuple of such arrays, which is split row by row;
    * a list with one result per row, in which an exception goes only to that row's caller.

    Numba functions work like Python functions, with arrays as arguments and results. Compile them before live traffic
    (with one call, or with explicit signatures), and with ``nogil=True`` for threads.

    A function cannot be interrupted: if a running batch is cancelled, or stopped with ``drain=False``, it keeps its
    worker until the function returns. If the function then runs for more than ``hang_grace_s``, it hangs: its process
    is killed, or a new thread replaces its thread, and a warning is logged. A worker process that dies is replaced. The
    batch that it had begun fails; a batch that it had not begun goes to its replacement.

    Thread-safety: all methods can be called from any thread; :meth:`infer` also from several event loops.

    Args:
        fn: the function. With ``executor="inline"`` it may be ``async``; with ``"process"`` it must be importable by
            name.
        executor: ``"thread"``, ``"process"``, or ``"inline"``: on the event loop, which is blocked meanwhile.
        workers: number of threads or processes, at most 10,000, and so of batches that can run at the same time. An
            inline function runs wherever it is awaited.
        version: version of the function's behavior. Change it when the same name returns other results, so that caches
            do not return old ones.
        example: one request's inputs, without a batch axis. With an example, a batcher measures batches of it before it
            accepts requests; with ``None``, it measures the first live batches.
            If the example is an array, or a mapping of arrays, it also fixes dtype and shape of every request:
            others are `InvalidInput` before they are queued. Other numbers and text, bytes, lists and objects check
            neither.
            Servers take the names and types of inputs and outputs from the example and its results.
        free_axes: axes whose size may differ from the example's, such as that of length buckets: a sequence of axes
            for every input, or a mapping of input name to such sequences.
        copy_outputs: copy the arrays that the function returns, on its worker and before the next batch, so that a
            function may reuse its output memory. ``False`` is for a function that returns new arrays. With
            ``"process"``, outputs are sent through the pipe, and not copied again.
        hang_grace_s: seconds that a batch may continue to run after it was cancelled. A batcher cancels a batch when
            the last of its deadlines has passed.
        residency: how the function's model is loaded into a `Device`'s memory and unloaded; ``None``: the model is
            always in memory.
        clock: monotonic nanoseconds, for ``busy_s``; ``None``: the system's.

    Attributes:
        batch_axes: empty: every input is stacked on a new leading axis.
        fingerprint: module, qualified name and version of the function, part of a cache's keys: the same in every
            process. ``None`` for a function that these do not identify: a lambda, a method, a closure, or a function
            that was typed into a prompt.

        validate: raises `InvalidInput` for a request that does not fit ``example``; ``None``: nothing is checked.
        returns_new_arrays: true: no later batch writes to arrays that callers received.
        queued_workers: ``workers``, which take batches from one queue; ``None`` if the function runs inline.

    Raises:
        TypeError, ValueError: an argument is invalid; with ``"process"``, the function cannot be pickled.
    """

    batch_axes: Mapping[str, int] = MappingProxyType({})
    returns_new_arrays = True
    idempotent: bool | None = None

    def __init__(
        self,
        fn: Callable[[Any], Any],
        *,
        executor: Literal["thread", "process", "inline"] = "thread",
        workers: int = 1,
        version: str | None = None,
        example: Any = None,
        free_axes: Sequence[int] | Mapping[str, Sequence[int]] = (),
        copy_outputs: bool = True,
        hang_grace_s: float = HANG_GRACE_S,
        residency: Residency | None = None,
        clock: Clock | None = None,
    ) -> None:
        check_instance("fn", fn, callable, "a function of a batch's inputs")
        check_no_generator("fn", fn)
        check_choice("executor", executor, ("thread", "process", "inline"))
        workers = check_count("workers", workers, at_most=MAX_WORKERS)
        hang_grace_s = check_duration("hang_grace_s", hang_grace_s)
        check_instance("version", version, str | None, "a string, or None")
        check_instance("residency", residency, Residency | None, "a Residency, or None")
        self.residency = residency
        self.fingerprint = fingerprint_of_function(fn, version)
        self._name = _name(fn)
        check_instance("copy_outputs", copy_outputs, bool, "True or False")
        self._example = example
        expectation = "a sequence of axes, or a mapping of input name to such"
        check_instance("free_axes", free_axes, Sequence | Mapping, expectation)
        if example is None and free_axes:
            raise ValueError(expected("free_axes", "none without an example, whose axes they are", free_axes))
        signature = signature_of_example(example, free_axes)
        inputs = inputs_of_example(example) if signature is None else signature.inputs
        self._tensors = ModelTensors(inputs, takes_one_array=not isinstance(example, Mapping)) if inputs else None
        self.validate: Callable[[Request], None] | None = None
        if signature is not None:
            self.validate = functools.partial(_check_request, signature)
        elif self._tensors is not None and self._tensors.takes_one_array:
            self.validate = _check_unnamed
        self._executor = executor
        self._asynchronous = inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(type(fn).__call__)
        copies = copy_outputs and executor != "process"
        self._own: Callable[[Any], Any] = own_arrays if copies else lambda outputs: outputs
        self._recorder = BackendRecorder(workers, clock)
        self._uncounted = BackendRecorder(workers, clock)  # never read
        self.queued_workers = None if executor == "inline" else workers
        self._priority = BatchPriority()
        # a cancelled function still blocks its worker, so it gets a higher priority; a process has a separate one
        self._raise_priority = self._priority.raise_running if executor == "thread" else None
        self._threads: WorkerThreads[_FunctionWorker | ProcessWorker] | None = None
        self._closed = False
        self._awaited: set[Future[None]] = set()  # inline and async: one per batch, done when the batch ends
        self._function = _FunctionWorker(fn, self._priority)
        # SystemExit of a worker must not end the event loop; that of an inline function, and Ctrl-C in it, may
        self._failures: type[BaseException] = Exception if executor == "inline" else BaseException
        if executor == "inline":
            if workers != 1:
                raise ValueError(expected("workers", "1 with executor='inline'", workers))
            if not self._asynchronous:
                self.infer_now = self._infer_now
            return
        if self._asynchronous:
            raise TypeError(
                expected("fn", f"a synchronous function with executor={executor!r} ('inline' awaits an async one)", fn)
            )
        resources: list[_FunctionWorker | ProcessWorker] = [self._function] * workers
        if executor == "process":
            resources = _process_workers(fn, self._name, workers)
        self._threads = WorkerThreads(resources, f"CpuBackend({self._name})", hang_grace_s=hang_grace_s)

    async def start(self) -> None:
        """Start the threads; or start the processes, and wait until each has imported the function.

        Raises:
            BackendError: a process could not be started or could not import the function; no worker is left running.
        """
        self._closed = False
        if self._threads is not None:
            await self._threads.start()

    async def infer(self, batch: Batch) -> Any:
        """Return the function's results for the batch; starts the workers if :meth:`start` was not called.

        Raises:
            BackendError: the function raised, or its process died.
            Closed: the backend is stopped.
        """
        with Counted(self._recorder, len(batch.rows)):
            return await self._answer(batch, self._recorder)

    def capabilities(self) -> Capabilities:
        """Return the function's optional features, for batchers and caches."""
        return Capabilities(
            validate=self.validate,
            fingerprint=self.fingerprint,
            returns_new_arrays=self.returns_new_arrays,
            queued_workers=self.queued_workers,
            example_inputs=self.example_inputs,
            idempotent=self.idempotent,
            batch_axes=self.batch_axes,
            model_tensors=self.model_tensors,
            residency=self.residency,
            background_runs=self._priority.capability(_BACKGROUND_OBSTACLES[self._executor]),
        )

    def model_tensors(self) -> ModelTensors | None:
        """Return the inputs, from ``example``, and the outputs, once a batcher has called the function with it.

        ``None`` without an example of numbers or text. A size of an input is open if it is not checked; sizes of
        outputs are open if a size of an input is.
        """
        return self._tensors

    def _infer_now(self, batch: Batch) -> Any:
        with Counted(self._recorder, len(batch.rows)):
            return self._call_inline(batch, self._recorder)

    @property
    def begin_infer(self) -> Callable[[Batch, Done], Job] | None:
        """Function that begins a batch in a thread; ``None`` without threads or if a subclass replaces ``infer``."""
        begins = self._threads is not None and type(self).infer is CpuBackend.infer
        return self._begin_infer if begins else None  # made on each call: a stored bound method would be a cycle

    def _begin_infer(self, batch: Batch, done: Done) -> Job:
        return self._recorder.begin(len(batch.rows), done, self._begin, batch, self._recorder)

    def _begin(self, batch: Batch, recorder: BackendRecorder, done: Done) -> Job:
        threads: Any = self._threads
        return threads.begin(self._call, (batch, recorder), done, interrupt=self._raise_priority)  # type: ignore[no-any-return]

    def example_inputs(self) -> ExampleInputs | None:
        """Return the constructor's ``example``, with the function that measures it."""
        if self._example is None:
            return None
        infer_on_each = self._infer_on_each if self.queued_workers is not None and self.queued_workers > 1 else None
        now = None if self.infer_now is None else self._infer_now_uncounted
        return ExampleInputs(self._example, self._infer_uncounted, infer_on_each=infer_on_each, infer_now=now)

    async def stop(self, *, drain: bool = True) -> None:
        """Stop the workers and wait for them; :meth:`start` starts new ones.

        At the time limit of the stack that stops, else after 30 seconds, batches that still run end with
        :class:`~streaminfer.errors.Closed`: processes are killed, and threads abandoned. Until then the backend also
        waits for batches of an async function on the event loop; after that, these continue for their callers.

        Args:
            drain: run queued batches first; ``False``: they end with
                :class:`~streaminfer.errors.Closed`.
        """
        self._closed = True
        if self._threads is not None:
            await self._threads.stop(drain=drain)
        elif self._awaited:
            # they may belong to other event loops, whose asyncio futures could not wake this loop
            waits = [asyncio.wrap_future(ended) for ended in tuple(self._awaited)]
            await asyncio.wait(waits, timeout=seconds_left(STOP_LIMIT_S))

    def statistics(self) -> BackendStatistics:
        """Return the counters of the batches so far."""
        return self._recorder.snapshot()

    def __repr__(self) -> str:
        workers = self._recorder.snapshot().workers
        return f"CpuBackend({self._name}, executor={self._executor!r}, workers={workers})"

    async def _infer_uncounted(self, batch: Batch) -> Any:
        return self._learn_outputs(batch, await self._answer(batch, self._uncounted))

    def _infer_now_uncounted(self, batch: Batch) -> Any:
        return self._learn_outputs(batch, self._call_inline(batch, self._uncounted))

    def _learn_outputs(self, batch: Batch, answer: Any) -> Any:
        if self._tensors is not None and not self._tensors.outputs:
            sizes_vary = any(None in spec.row_shape for spec in self._tensors.inputs)
            self._tensors = self._tensors._replace(outputs=outputs_of_answer(answer, batch.size, sizes_vary=sizes_vary))
        return answer

    async def _answer(self, batch: Batch, recorder: BackendRecorder) -> Any:
        if self._threads is not None:
            return await self._threads.run(self._call, batch, recorder, interrupt=self._raise_priority)
        return await self._await_inline(batch, recorder) if self._asynchronous else self._call_inline(batch, recorder)

    async def _infer_on_each(self, batch: Batch) -> None:
        if self._threads is not None:
            await self._threads.run_for_each(self._call, batch, self._uncounted)

    def _call(self, worker: "_FunctionWorker | ProcessWorker", batch: Batch, recorder: BackendRecorder) -> Any:
        try:
            with Busy(recorder):
                return self._own(worker.run(batch.inputs))
        except StreamInferError:
            raise
        except self._failures as error:
            raise self._failure(batch, error) from error

    def _call_inline(self, batch: Batch, recorder: BackendRecorder) -> Any:
        self._check_open()
        return self._call(self._function, batch, recorder)

    async def _await_inline(self, batch: Batch, recorder: BackendRecorder) -> Any:
        self._check_open()
        ended: Future[None] = Future()
        ended.set_running_or_notify_cancel()  # so that a stop whose wait times out cannot cancel it
        self._awaited.add(ended)
        try:
            with Busy(recorder):
                return self._own(await self._function.run(batch.inputs))
        except StreamInferError:
            raise
        except Exception as error:
            raise self._failure(batch, error) from error
        finally:
            self._awaited.discard(ended)
            ended.set_result(None)

    def _check_open(self) -> None:
        if self._closed:
            raise Closed(f"CpuBackend({self._name}) is stopped")

    def _failure(self, batch: Batch, error: BaseException) -> BackendError:
        return BackendError(f"{self._name} failed on a batch of {len(batch.rows)}: {text_of_failure(error)}")


def _check_request(signature: Signature, request: Request) -> None:
    inputs = request.inputs
    if type(inputs) is not np.ndarray and not isinstance(inputs, (np.ndarray, Mapping)):
        try:
            inputs = np.asarray(inputs)  # as a batcher does
        except ValueError:  # a ragged list: the check says what is expected
            inputs = request.inputs
    signature.check(inputs)


def _check_unnamed(request: Request) -> None:
    """Reject a mapping if the example is not one: servers make a mapping of an input with an unexpected name."""
    if isinstance(request.inputs, Mapping):
        raise InvalidInput(expected("inputs", "one input, without a name or as 'inputs'", request.inputs))


def _name(function: Callable[[Any], Any]) -> str:
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    return repr(function) if name is None else f"{module}.{name}"


def _process_workers(function: Callable[[Any], Any], name: str, count: int) -> "list[_FunctionWorker | ProcessWorker]":
    # imported late: multiprocessing takes longer to import than everything else here
    from streaminfer.backends.cpu.processes import ProcessWorker  # noqa: PLC0415

    try:
        pickled = pickle.dumps(function)
    except Exception as error:
        expectation = "a function that a worker process can import by name (defined at the top level of a module)"
        raise TypeError(f"{expected('fn', expectation, function)}: {error}") from error
    return [ProcessWorker(pickled, name) for _ in range(count)]
