"""ONNX models through onnxruntime.

Idea: a batch takes one hop to a worker thread, one ``run`` of a session there, and one view per row. ``sessions``
batches can run at the same time, each on ``threads`` cores. One thread each gives the most predictable tail if the
event loop shares the cores. Idle onnxruntime threads spin by default, on cores that the event loop needs; the backend
switches that off. A model that takes about as long as the hop can run on the event loop (``executor="inline"``): each
hop also passes the interpreter lock on twice, while the loop wants it.

On the CPU all threads run one session, so that the weights are in memory once. onnxruntime allows that, and it costs no
throughput (``benchmarks/run.py sessions``). On other devices each thread has a separate session, because providers such
as TensorRT's lock their compiled model while it runs.

A reload makes and warms another :class:`LoadedModel` off the event loop. One assignment then makes it the model of
every batch that a thread begins from there on, and of the fingerprint.

If the callers of a running batch have left, the backend sets ``RunOptions.terminate``; onnxruntime reads it between
two nodes of the graph.
"""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, Literal

import attrs
import numpy.typing as npt

from streaminfer._internal.display.html_table import html_table
from streaminfer._internal.loading.extras import require
from streaminfer._internal.validation import check_choice, check_count, check_duration, check_instance, expected
from streaminfer.backends.job import Done, Job, wait_for_job
from streaminfer.backends.onnx.binding import Binding
from streaminfer.backends.onnx.loader import ModelLoader
from streaminfer.backends.onnx.serving import LoadedModel, ReloadableWorker, Serving
from streaminfer.backends.priority import BatchPriority
from streaminfer.backends.signature import NonFinite, describe_shape, free_axes, guess_inputs
from streaminfer.backends.statistics import BackendRecorder, BackendStatistics, Busy, Counted
from streaminfer.backends.workers import HANG_GRACE_S, MAX_WORKERS, WorkerThreads, call_apart
from streaminfer.protocols import Capabilities, Clock, ExampleInputs, ModelTensors, Node, Residency
from streaminfer.request import Batch, Request

__all__ = ["OnnxBackend"]


class OnnxBackend(Node):
    """Runs batches on an ONNX model; needs the extra ``onnx``.

    A request has one array if the model reads one input, or a mapping of input name to array, never with a batch axis.
    Its result is one array if the model has one output, or a ``dict`` of output name to array. These arrays are views
    of the batch's outputs: copy an array that you store for long. :meth:`validate` checks a request against the model
    before it is queued; read-only and non-contiguous arrays are accepted.

    A model whose batch axis is fixed at 1 is run once per row, in one hop; if a row fails, only its request fails. If
    the batch axis is fixed at another size, copies of the last row fill up each batch, and their outputs are dropped.

    Strings are arrays of ``str`` objects, or one ``str`` for a row without axes. Callers send and get bfloat16 as
    float32. A request may leave out an input that has the batch axis and a default in the model.

    Thread-safety: all methods can be called from any thread; :meth:`infer` also from several event loops.

    Args:
        path_or_bytes: the model's file, or its bytes.
        providers: onnxruntime execution providers, best first, as names or ``(name, options)``; ``None``: the CPU.
            If a provider is not available or fails, that is an error; there is no silent fallback. A provider from a
            plugin is named like any other, after ``onnxruntime.register_execution_provider_library``.
        threads: threads that compute a batch, its worker thread included; ``None`` means 1. On the CPU, running batches
            share all ``sessions * threads``.
        sessions: how many batches can run at the same time, at most 10,000, each in a worker thread. On the CPU they
            share the weights; on other devices each has a session with a copy of them.
        executor: ``"thread"``; or ``"inline"``: batches run on the event loop, which is blocked meanwhile, for a
            model whose full batch takes a few milliseconds at most. Such a batch cannot be interrupted.
        warmup: batch sizes that :meth:`start` runs on every session. Not needed behind a batcher, because it runs all
            sizes that it may send.
        batch_axes: the batch axis of inputs and outputs, by name. The default for inputs is axis 0; for outputs, the
            axis for which the model declares the same symbol as for the inputs' batch axis.
        shared_inputs: inputs that the whole batch shares (a sample rate), by name: arrays of the model's dtype and
            shape. Requests do not have them.
        shared_outputs: names of outputs that belong to the whole batch: each caller gets the whole output, read-only;
            a sequence as a separate list.
        outputs: names of the outputs to compute and return, in this order; ``None``: all, in the model's order.
        session_options: an ``onnxruntime.SessionOptions`` that replaces the backend's own. It then sets the threads
            (on the CPU those of all batches together), and the providers if it has any. onnxruntime then reads external
            files of weights itself, and maps them: never write into such a file while the model is loaded.
        example: one request's inputs, for the warm-up and for the batches that a batcher measures before it accepts
            requests. ``None``: zeros. For sizes that the model leaves open, ``warmup`` uses 1, and a batcher measures
            nothing unless its length buckets name them.
        binding: ``"pinned"``, the default on a GPU: inputs and outputs lie in reused memory, one set per batch shape,
            and go to the GPU from page-locked memory; ``"pageable"``: the same without page-locked memory; ``"off"``,
            the default elsewhere: onnxruntime allocates memory for each batch. ``None`` means the default. Reused
            memory relies on the output shapes that the model declares.
        non_finite: ``"reject"`` rejects requests with a float that is NaN or infinite, ``"allow"`` does not check.
        hang_grace_s: seconds that a batch may continue to run after it was interrupted; then it hangs, a new thread
            replaces its thread on the same session, and a warning is logged.
        memory_bytes: memory that the model takes on its device, for a `Device` whose models do not all fit; ``None``:
            the size of its file and its external weights.
        clock: monotonic nanoseconds, for ``busy_s``; ``None``: the system's.

    Attributes:
        inputs: what the model reads, in its order.
        outputs: the outputs that callers get; ``batch_axis`` is ``None`` for shared ones.
        batch_axes: the axis on which a batcher stacks each input of a request, by name.
        max_batch_size: the size above 1 at which the model's batch axis is fixed; ``None``: any size.
        fingerprint: identity of the model and its settings; :meth:`reload` changes it.
        queued_workers: ``sessions``, which take batches from one queue; ``None`` if batches run on the event loop.

    Raises:
        MissingExtra: onnxruntime is not installed.
        FileNotFoundError: there is no such file.
        ValueError: an argument does not fit the model, or the model cannot be loaded.
        TypeError: an argument is of the wrong type.
    """

    returns_new_arrays = True
    idempotent: bool | None = None

    def __init__(
        self,
        path_or_bytes: str | os.PathLike[str] | bytes,
        *,
        providers: Sequence[str | tuple[str, Mapping[str, Any]]] | None = None,
        threads: int | None = None,
        sessions: int = 1,
        executor: Literal["thread", "inline"] = "thread",
        warmup: Sequence[int] = (),
        batch_axes: Mapping[str, int] | None = None,
        shared_inputs: Mapping[str, npt.NDArray[Any]] | None = None,
        shared_outputs: Sequence[str] = (),
        outputs: Sequence[str] | None = None,
        session_options: Any = None,
        example: Any = None,
        binding: Binding | None = None,
        non_finite: NonFinite = "allow",
        hang_grace_s: float = HANG_GRACE_S,
        memory_bytes: int | None = None,
        clock: Clock | None = None,
    ) -> None:
        runtime = require("onnxruntime", extra="onnx", purpose="OnnxBackend")
        sessions = check_count("sessions", sessions, at_most=MAX_WORKERS)
        check_choice("executor", executor, ("thread", "inline"))
        if executor == "inline" and sessions != 1:
            raise ValueError(expected("sessions", "1 with executor='inline'", sessions))
        hang_grace_s = check_duration("hang_grace_s", hang_grace_s)
        check_choice("non_finite", non_finite, ("allow", "reject"))
        check_instance("warmup", warmup, Sequence, "a sequence of batch sizes")
        self._new_options = functools.partial(_run_options, runtime)
        self._loader = ModelLoader(
            runtime=runtime,
            new_options=self._new_options,
            providers=providers,
            threads=threads,
            sessions=sessions,
            warmup_sizes=[check_count("warmup", size) for size in warmup],
            batch_axes=_by_name("batch_axes", batch_axes),
            shared_inputs=_by_name("shared_inputs", shared_inputs),
            shared_outputs=shared_outputs,
            outputs=outputs,
            session_options=session_options,
            example=example,
            binding=binding,
            non_finite=non_finite,
        )
        self._example = example
        self._source: Any = path_or_bytes
        self._serving = Serving(self._loader.load(path_or_bytes))
        # a copy: a reload must not see later changes to the user's arrays
        self._loader = attrs.evolve(self._loader, shared_inputs=self._serving.model.shared)
        self._signature = self._serving.model.signature
        self._check = self._signature.request_check()
        self._memory_bytes = self._serving.model.file_bytes
        if memory_bytes is not None:
            self._memory_bytes = check_count("memory_bytes", memory_bytes)
        self.inputs = self._signature.inputs
        self.outputs = self._signature.outputs
        self.batch_axes = self._signature.batch_axes
        fixed = self._signature.rows_per_run
        self.max_batch_size = None if fixed == 1 else fixed
        self.queued_workers = sessions if executor == "thread" else None
        self._recorder = BackendRecorder(sessions, clock)
        workers = [ReloadableWorker(self._serving, number) for number in range(sessions)]
        self._inline = workers[0] if executor == "inline" else None
        if self._inline is not None and type(self).infer is OnnxBackend.infer:
            self.infer_now = self._infer_now
        name = f"OnnxBackend({self._serving.model.name})"
        self._threads = WorkerThreads(workers, name, hang_grace_s=hang_grace_s)

    @property
    def fingerprint(self) -> str | None:
        """Identity, equal for backends with equal results in any process and on any machine: part of a cache's keys.

        It is a digest of the model's bytes and its external files of weights (not their paths), the batch axes and the
        shared inputs. It includes the providers with those of their options that change results, but neither
        ``session_options`` nor the version of onnxruntime. The files are read when the model is loaded, about a second
        per gigabyte. ``None`` for a model that was given as bytes and has external files.
        """
        return self._serving.model.fingerprint

    def fingerprint_changes(self) -> int:
        """Return how often the model was replaced: by :meth:`reload`, or by a :meth:`load` of a changed file."""
        return self._serving.model.number

    async def reload(self, path_or_bytes: str | os.PathLike[str] | bytes) -> None:
        """Replace the model by another one without losing a request.

        The new model is loaded on another thread, where it also runs a batch of each shape that the current model has
        run. Then it runs every batch that no worker has begun, and ``fingerprint`` becomes that of the new model.
        Running batches end on the model that began them. If anything fails, the current model stays. Reloads take
        effect one after another, in the order of the calls. A cancelled reload has no effect; its thread ends after the
        session that it makes, or the batch that it runs. Both models are in memory until the old one's last batch ends.

        The arguments of the constructor also apply to the new model. A reload before :meth:`start` or after
        :meth:`stop` also replaces the model, for the next start. After :meth:`unload`, the new model is tried out and
        unloaded again, until :meth:`load`.

        Args:
            path_or_bytes: the model's file, or its bytes; the same path again reads the file again.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the model cannot be loaded, its inputs or outputs differ, or it has CUDA graphs.
            TypeError: the argument is neither a path nor bytes.
            BackendError: the new model failed on a batch of the warm-up.
        """
        async with self._serving.turn():
            current = self._serving.model
            name = f"reload of OnnxBackend({current.name})"
            self._serving.replace(await call_apart(name, self._prepare, path_or_bytes))
            self._source = path_or_bytes
            if not current.is_loaded:  # its device has given the memory to other models
                self._serving.unload()

    async def load(self) -> None:
        """Create the sessions again after :meth:`unload`, and run each shape that the model has run; else do nothing.

        A path is read again: if the file was replaced meanwhile, this counts as a :meth:`reload`.

        Raises:
            FileNotFoundError, ValueError, BackendError: as :meth:`reload`.
        """
        async with self._serving.turn():
            current = self._serving.model
            if not current.is_loaded:
                model = await call_apart(f"load of OnnxBackend({current.name})", self._prepare, self._source)
                self._serving.replace(model, is_same=model.is_same_as(current))

    async def unload(self) -> None:
        """Free the sessions, and with them the model's memory; batches fail until :meth:`load`.

        The backend remembers the model's inputs, outputs and batch shapes. A `Device` that is short of memory calls
        this between batches. A running batch keeps the session until it ends.

        Raises:
            ValueError: the model has CUDA graphs.
        """
        async with self._serving.turn():
            model = self._serving.model
            if model.has_graphs:
                model.check_replaceable_by(model)
            self._serving.unload()

    def _prepare(self, check: Callable[[], None], path_or_bytes: object) -> LoadedModel:
        model = self._loader.load(path_or_bytes, check)
        self._serving.model.check_replaceable_by(model)
        self._serving.warm(model, check)
        return model

    def capabilities(self) -> Capabilities:
        """Return the model's optional features, for batchers, caches and the `Stack`."""
        return Capabilities(
            validate=self._check.check if type(self).validate is OnnxBackend.validate else self.validate,
            validates_kinds=self._signature.checks_kinds,
            fingerprint=self.fingerprint,
            fingerprint_changes=self.fingerprint_changes,
            max_batch_size=self.max_batch_size,
            shared_outputs=any(spec.batch_axis is None for spec in self.outputs),
            returns_new_arrays=self.returns_new_arrays,
            queued_workers=self.queued_workers,
            example_inputs=self.example_inputs,
            idempotent=self.idempotent,
            batch_axes=self.batch_axes,
            model_tensors=self.model_tensors,
            residency=None if self._serving.model.has_graphs else Residency(self._memory_bytes, self.load, self.unload),
            background_runs=self._loader.priority.capability(
                "it runs on the event loop" if self._inline is not None else self._serving.model.background_obstacle
            ),
        )

    def model_tensors(self) -> ModelTensors:
        """Return the inputs of a request, and the outputs."""
        per_request = [spec for spec in self.inputs if spec.batch_axis is not None]
        return ModelTensors(per_request, self.outputs, takes_one_array=self._signature.only_input is not None)

    def validate(self, request: Request) -> None:
        """Check a request's inputs against the model.

        Raises:
            InvalidInput: names the input, what was expected, and what came.
        """
        self._check.check(request)

    def example_inputs(self) -> ExampleInputs | None:
        """Return ``example``, else zeros; ``None`` if the model reads anything but arrays."""
        example = ExampleInputs(
            self._example,
            self._infer_uncounted,
            infer_on_each=self._infer_on_each if self._loader.sessions > 1 else None,
            infer_now=None if self.infer_now is None else self._infer_now_uncounted,
        )
        if self._example is not None:
            return example
        guessed, axes = self._guess_inputs(1), free_axes(self.inputs)
        if guessed is None:
            return None
        return example._replace(inputs=guessed, is_given=False, free_axes=axes, resize=self._guess_inputs)

    async def start(self) -> None:
        """Start the worker threads (one if batches run on the event loop), and run the warm-up on every session.

        Raises:
            BackendError: the model failed on a warm-up batch; no thread is left running.
        """
        await self._threads.start()

    async def infer(self, batch: Batch) -> Any:
        """Return one result per row; starts the threads, without a warm-up, if :meth:`start` was not called.

        Raises:
            BackendError: the model failed on this batch.
            Closed: the backend is stopped.
        """
        with Counted(self._recorder, len(batch.rows)):
            return await self._infer(batch, self._run)

    @property
    def begin_infer(self) -> Callable[[Batch, Done], Job] | None:
        """Function that begins a batch in a thread; ``None`` if inline or if a subclass replaces ``infer``."""
        return self._begin_infer if self._inline is None and type(self).infer is OnnxBackend.infer else None

    def _infer_now(self, batch: Batch) -> Any:
        """Run a batch on the event loop."""
        with Counted(self._recorder, len(batch.rows)):
            return self._run_inline(batch, self._run)

    def _begin_infer(self, batch: Batch, done: Done) -> Job:
        return self._recorder.begin(len(batch.rows), done, self._begin, batch, self._run)

    async def stop(self, *, drain: bool = True) -> None:
        """Stop the worker threads and wait for them; :meth:`start` starts new ones on the same sessions.

        At the time limit of the stack that stops, else after 30 seconds, batches that still run end with
        :class:`~streaminfer.errors.Closed`, and their threads are abandoned.

        Args:
            drain: wait for queued and running batches; ``False``: they end with
                :class:`~streaminfer.errors.Closed`.
        """
        await self._threads.stop(drain=drain)

    def statistics(self) -> BackendStatistics:
        """Return the counters of the batches so far."""
        return self._recorder.snapshot()

    def _guess_inputs(self, free_size: int) -> Any:
        guessed = guess_inputs(self.inputs, free_size)
        only_input = self._signature.only_input
        return guessed if guessed is None or only_input is None else guessed[only_input]

    async def _infer_on_each(self, batch: Batch) -> None:
        await self._threads.run_for_each(_record, batch, self._new_options())

    async def _infer_uncounted(self, batch: Batch) -> Any:
        return await self._infer(batch, _record)

    def _infer_now_uncounted(self, batch: Batch) -> Any:
        return self._run_inline(batch, _record)

    def _run_inline(self, batch: Batch, run: Callable[..., Any]) -> Any:
        self._threads.check_open()
        return run(self._inline, batch, self._new_options())

    async def _infer(self, batch: Batch, run: Callable[..., Any]) -> Any:
        if self._inline is not None:
            return self._run_inline(batch, run)
        return await wait_for_job(functools.partial(self._begin, batch, run))

    def _begin(self, batch: Batch, run: Callable[..., Any], done: Done) -> Job:
        options = self._new_options()
        end_early = functools.partial(_end_early, options, self._loader.priority)
        return self._threads.begin(run, (batch, options), done, interrupt=end_early)

    def _run(self, worker: ReloadableWorker, batch: Batch, options: Any) -> Any:
        with Busy(self._recorder):
            return worker.current.infer(batch, options)

    def __repr__(self) -> str:
        inputs = ", ".join(map(str, self.inputs))
        outputs = ", ".join(map(str, self.outputs))
        return f"OnnxBackend({self._serving.model.name}: {inputs} → {outputs}; {self._describe_execution()})"

    def _repr_html_(self) -> str:
        rows = [
            (
                kind,
                spec.name,
                describe_shape(spec.dtype, spec.shape),
                "shared" if spec.batch_axis is None else spec.batch_axis,
            )
            for kind, specs in (("input", self.inputs), ("output", self.outputs))
            for spec in specs
        ]
        caption = f"OnnxBackend({self._serving.model.name}): {self._describe_execution()}"
        return html_table(rows, head=("", "name", "type", "batch axis"), caption=caption)

    def _describe_execution(self) -> str:
        sessions, model = self._loader.sessions, self._serving.model
        names = [name for name, _ in model.providers]
        fixed = self._signature.rows_per_run
        rows = "" if fixed is None else f", {'one row' if fixed == 1 else f'{fixed} rows'} a run"
        bound = "" if model.binding == "off" else f", {model.binding} memory bound"
        inline = "" if self._inline is None else ", inline"
        return f"{sessions} session{'s' if sessions > 1 else ''} on {', '.join(names)}{rows}{bound}{inline}"


def _by_name(argument: str, value: Any) -> dict[str, Any]:
    check_instance(argument, value, Mapping | None, "a mapping by name, or None")
    return dict(value or {})


def _record(worker: ReloadableWorker, batch: Batch, options: Any) -> Any:
    return worker.current.infer(batch, options, record=True)


def _run_options(runtime: ModuleType) -> Any:
    options = runtime.RunOptions()
    # only fatal errors: other errors arrive as exceptions, so that a copy on stderr tells nothing more
    options.log_severity_level = 4
    return options


def _end_early(options: Any, priority: BatchPriority) -> None:
    """End a run between two of its nodes; raise its priority first, because a thread at the lowest may wait long."""
    options.terminate = True
    priority.raise_running()
