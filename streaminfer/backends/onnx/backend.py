"""ONNX models through onnxruntime.

Idea: one batch is one hop to a worker thread, one ``run`` of a session there, and one view a row back. ``sessions``
batches can run at the same time, each on ``threads`` cores; one thread each gives the most predictable tail where the
cores are shared with an event loop. Idle onnxruntime threads spin by default, on cores that the event loop needs; here
they do not. A model that takes about as long as the hop runs on the event loop instead, if its owner says so: each hop
also passes the interpreter lock on twice, while the loop wants it.

On the CPU the threads run one session, so that the weights are in memory once: onnxruntime allows that, and it costs no
throughput (``benchmarks/run.py sessions``). Elsewhere each has a session of its own, because providers lock what they
compiled for as long as it runs, TensorRT's for one.

A reload makes and warms another :class:`LoadedModel` off the loop; one assignment then makes it the model of every
batch that a thread takes from there on, and of the fingerprint.

A batch whose callers have left is told to end (``RunOptions.terminate``): onnxruntime looks at that between
two nodes of the graph.
"""

import functools
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from types import ModuleType
from typing import Any, Literal

import attrs
import numpy.typing as npt

from streaminfer._internal.display.html_table import html_table
from streaminfer._internal.loading.extras import require
from streaminfer._internal.validation import check_choice, check_count, check_duration, check_instance, expected
from streaminfer.backends.job import Done, Job
from streaminfer.backends.onnx.binding import Binding
from streaminfer.backends.onnx.loader import ModelLoader
from streaminfer.backends.onnx.serving import LoadedModel, ReloadableWorker, Serving
from streaminfer.backends.priority import BatchPriority
from streaminfer.backends.signature import NonFinite, describe_shape, free_axes, guess_inputs
from streaminfer.backends.statistics import BackendRecorder, BackendStatistics
from streaminfer.backends.workers import HANG_GRACE_S, MAX_WORKERS, Abandonment, WorkerThreads, call_apart
from streaminfer.protocols import Capabilities, Clock, ExampleInputs, ModelTensors, Node, Residency
from streaminfer.request import Batch, Request

__all__ = ["OnnxBackend"]


class OnnxBackend(Node):
    """Runs batches on an ONNX model; needs the extra ``onnx``.

    A request has one array if the model reads one input, or a mapping of input name to array, never with a
    batch axis. Its result is one array if the model has one output, or a ``dict`` of output name to array. These
    arrays are views of the batch's outputs: copy one that is stored for long.
    :meth:`validate` checks a request against the model before it is queued; read-only and non-contiguous arrays are
    fine.

    A model whose batch axis is fixed at 1 is run once a row, in one hop; a row that fails then fails alone. Where it is
    fixed at another size, copies of the last row fill up each batch, and their outputs are dropped.

    Strings are arrays of ``str`` objects, and one string where a row has no axes. bfloat16 is float32 for callers. An
    input that the model has a default for, and that has the batch axis, may be left out of a request.

    Thread-safety: everything may be called from any thread; :meth:`infer` from several event loops too.

    Args:
        path_or_bytes: the model's file, or its bytes.
        providers: onnxruntime execution providers, best first, as names or ``(name, options)``; ``None``: the CPU.
            One that is not available, or that fails, is an error, not a silent fall-back. A provider that a plugin
            brought is named like any other, after ``onnxruntime.register_execution_provider_library``.
        threads: threads that a batch computes with, its worker thread included; ``None`` means 1. On the CPU the
            batches that run share all ``sessions * threads``.
        sessions: how many batches can run at the same time, at most 10,000, each in a worker thread. On the CPU they
            share the weights; elsewhere each has a session with a copy of them.
        executor: ``"thread"``; or ``"inline"``: batches run on the event loop, which stands still meanwhile, for a
            model whose full batch takes a few milliseconds at most. Such a batch cannot be told to end.
        warmup: batch sizes that :meth:`start` runs on every session. Not needed behind a batcher, which runs all sizes
            that it may send.
        batch_axes: the batch axis of inputs and outputs, by name. Of those it does not name, inputs have axis 0, and
            outputs the axis for which the model declares the same symbol as for the inputs' batch axis.
        shared_inputs: inputs that the whole batch shares (a sample rate), by name: arrays of the model's dtype and
            shape. Requests do not have them.
        shared_outputs: names of outputs that belong to the whole batch: each caller gets such an output whole,
            read-only; a sequence as a list of its own.
        outputs: names of the outputs to compute and return, in this order; ``None``: all, in the model's order.
        session_options: an ``onnxruntime.SessionOptions``, used as it is instead of ours; then it says the threads, on
            the CPU of all batches together, and the providers if it has any. onnxruntime then reads external files of
            weights itself, and maps them: never write into such a file while the model is loaded.
        example: one request's inputs, for the warm-up and for what a batcher measures before it accepts requests.
            ``None``: zeros; where the model leaves sizes open, ``warmup`` sets these to 1, and a batcher measures
            nothing unless its length buckets name them.
        binding: ``"pinned"``, what ``None`` means on a GPU: inputs and outputs lie in reused memory of each
            shape of a batch, and go to the GPU from page-locked memory; ``"pageable"``: the same without page-locked
            memory; ``"off"``, what ``None`` means elsewhere: onnxruntime makes the memory of each batch. Reused memory
            trusts the shapes that the model states for its outputs.
        non_finite: ``"reject"`` rejects requests with a float that is NaN or infinite, ``"allow"`` does not check.
        hang_grace_s: seconds that a batch may run on after it was told to end; then it hangs, another thread takes its
            place on the same session, and a warning says so.
        memory_bytes: what the model takes of its device's memory, for a `Device` whose models do not all fit;
            ``None``: as much as its file and its external weights.
        clock: monotonic nanoseconds, for ``busy_s``; ``None``: the system's.

    Attributes:
        inputs: what the model reads, in its order.
        outputs: the outputs that callers get; ``batch_axis`` is ``None`` for shared ones.
        batch_axes: the axis on which a batcher stacks each input of a request, by name.
        max_batch_size: the batch size at which the model is fixed, above 1; ``None``: any.
        fingerprint: of the model and its settings; :meth:`reload` changes it.
        queued_workers: ``sessions``, which take batches from one queue; ``None`` where batches run on the event loop.

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
        check_duration("hang_grace_s", hang_grace_s)
        check_choice("non_finite", non_finite, ("allow", "reject"))
        check_instance("warmup", warmup, lambda one: isinstance(one, Sequence), "a sequence of batch sizes")
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
        # copies: a reload must not see what the user has written since
        self._loader = attrs.evolve(self._loader, shared_inputs=self._serving.model.shared)
        self._signature = self._serving.model.signature
        self._check = self._signature.request_check()
        self._memory_bytes = self._serving.model.file_bytes
        if memory_bytes is not None:
            self._memory_bytes = check_count("memory_bytes", memory_bytes)
        self.inputs = self._signature.inputs
        self.outputs = self._signature.outputs
        self.batch_axes = self._signature.batch_axes
        fixed = self._signature.rows_a_run
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

        It is made of the model's bytes and its external files of weights, wherever they lie, the batch axes, the shared
        inputs and the providers with those of their options that change results; not of ``session_options``, nor of
        onnxruntime's version. The files are read when the model is loaded, about a second per gigabyte. ``None`` for a
        model that was given as bytes and has external files.
        """
        return self._serving.model.fingerprint

    def fingerprint_changes(self) -> int:
        """How often :meth:`reload` has replaced the model."""
        return self._serving.model.number

    async def reload(self, path_or_bytes: str | os.PathLike[str] | bytes) -> None:
        """Replace the model by another one without losing a request.

        The new model is loaded, and runs a batch of each shape that the present one has run, on another thread. Then
        it runs every batch that no worker has begun, and ``fingerprint`` is its own; batches that run end on the model
        that began them. Whatever fails leaves the present model as it is. Reloads take effect one after another, in the
        order of the calls, and a cancelled one has none: its thread ends after the session that it makes, or the batch
        that it runs. Both models are in memory until the old one's last batch ends.

        The arguments of the constructor hold for the new model as well. Before :meth:`start` and after :meth:`stop` the
        model is replaced too, and is what the next start serves. After :meth:`unload` the new model leaves memory again
        when it has been tried, until :meth:`load`.

        Args:
            path_or_bytes: the model's file, or its bytes; the same path again reads the file again.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the model cannot be loaded, what it reads or returns differs, or there are CUDA graphs.
            TypeError: the argument is no path and no bytes.
            BackendError: it failed on a batch of the warm-up.
        """
        async with self._serving.turn():
            before = self._serving.model
            name = f"reload of OnnxBackend({before.name})"
            self._serving.replace(await call_apart(name, self._prepare, path_or_bytes))
            self._source = path_or_bytes
            if not before.is_loaded:  # its device has given the memory to others
                self._serving.unload()

    async def load(self) -> None:
        """Make the sessions again after :meth:`unload`, and run each shape that the model has run; else nothing.

        A path is read again: a file that was replaced meanwhile counts as :meth:`reload`.

        Raises:
            FileNotFoundError, ValueError, BackendError: as :meth:`reload`.
        """
        async with self._serving.turn():
            before = self._serving.model
            if not before.is_loaded:
                model = await call_apart(f"load of OnnxBackend({before.name})", self._prepare, self._source)
                self._serving.replace(model, is_same=model.is_same_as(before))

    async def unload(self) -> None:
        """Let the sessions go, and with them the model's memory; batches fail until :meth:`load`.

        What is known of the model stays. A `Device` whose memory is short does this between batches. A batch that runs
        keeps the session until it ends.

        Raises:
            ValueError: there are CUDA graphs.
        """
        async with self._serving.turn():
            model = self._serving.model
            if model.has_graphs:
                model.check_replaceable_by(model)
            self._serving.unload()

    def _prepare(self, abandonment: Abandonment, path_or_bytes: object) -> LoadedModel:
        model = self._loader.load(path_or_bytes, abandonment.check)
        self._serving.model.check_replaceable_by(model)
        self._serving.warm(model, abandonment.check)
        return model

    def capabilities(self) -> Capabilities:
        """What a batcher, caches and the `Stack` need to know of the model."""
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
        """Return the inputs that a request brings, and the outputs."""
        per_request = [spec for spec in self.inputs if spec.batch_axis is not None]
        return ModelTensors(per_request, self.outputs, takes_one_array=self._signature.only_input is not None)

    def validate(self, request: Request) -> None:
        """Check a request's inputs against the model.

        Raises:
            InvalidInput: names the input, what was expected, and what came.
        """
        self._check.check(request)

    def example_inputs(self) -> ExampleInputs | None:
        """Return ``example``, else zeros; ``None`` if the model reads something else than arrays."""
        on_each = self._infer_on_each if self._recorder.snapshot().workers > 1 else None
        now = None if self.infer_now is None else self._infer_now_uncounted
        if self._example is not None:
            return ExampleInputs(self._example, self._infer_uncounted, infer_on_each=on_each, infer_now=now)
        guess = self._guess_inputs(1)
        if guess is None:
            return None
        axes = free_axes(self.inputs)
        return ExampleInputs(guess, self._infer_uncounted, False, axes, self._guess_inputs, on_each, infer_now=now)

    async def start(self) -> None:
        """Starts the worker threads, one if batches run on the event loop, and runs the warm-up on every session.

        Raises:
            BackendError: the model failed on a warm-up batch; nothing is left running.
        """
        await self._threads.start()

    def infer(self, batch: Batch) -> Coroutine[Any, Any, Sequence[Any]]:
        """One result per row; starts, without a warm-up, where :meth:`start` was not called.

        Raises:
            BackendError: the model failed on this batch.
            Closed: stopped.
        """
        return self._recorder.count(len(batch.rows), self._infer, batch, self._run)

    @property
    def begin_infer(self) -> Callable[[Batch, Done], Job] | None:
        """Begins a batch in a thread; ``None``: it runs on the event loop, or a subclass has replaced ``infer``."""
        return self._begin_infer if self._inline is None and type(self).infer is OnnxBackend.infer else None

    def _infer_now(self, batch: Batch) -> Sequence[Any]:
        """Answer a batch on the event loop."""
        return self._recorder.count_now(len(batch.rows), self._run_inline, batch, self._run)

    def _begin_infer(self, batch: Batch, done: Done) -> Job:
        return self._recorder.begin(len(batch.rows), done, self._begin, batch)

    async def stop(self, *, drain: bool = True) -> None:
        """Ends the worker threads and waits for them; :meth:`start` starts new ones on the same sessions.

        At the time limit of the stack that stops, else after 30 seconds, batches that still run end with
        :class:`~streaminfer.errors.Closed`, and their threads are abandoned.

        Args:
            drain: queued and running batches end first; else they end with
                :class:`~streaminfer.errors.Closed`.
        """
        await self._threads.stop(drain=drain)

    def statistics(self) -> BackendStatistics:
        """What was counted until now."""
        return self._recorder.snapshot()

    def _guess_inputs(self, free_size: int) -> Any:
        guess = guess_inputs(self.inputs, free_size)
        only = self._signature.only_input
        return guess if guess is None or only is None else guess[only]

    async def _infer_on_each(self, batch: Batch) -> None:
        await self._threads.run_for_each(ReloadableWorker.record, batch, self._new_options())

    async def _infer_uncounted(self, batch: Batch) -> Sequence[Any]:
        return await self._infer(batch, ReloadableWorker.record)

    def _infer_now_uncounted(self, batch: Batch) -> Sequence[Any]:
        return self._run_inline(batch, ReloadableWorker.record)

    def _run_inline(self, batch: Batch, run: Callable[..., Sequence[Any]]) -> Sequence[Any]:
        self._threads.check_open()
        return run(self._inline, batch, self._new_options())

    async def _answer_inline(self, batch: Batch, run: Callable[..., Sequence[Any]]) -> Sequence[Any]:
        return self._run_inline(batch, run)

    def _infer(self, batch: Batch, run: Callable[..., Sequence[Any]]) -> Coroutine[Any, Any, Sequence[Any]]:
        if self._inline is not None:
            return self._answer_inline(batch, run)
        options = self._new_options()
        end_early = functools.partial(_end_early, options, self._loader.priority)
        return self._threads.run(run, batch, options, interrupt=end_early)

    def _begin(self, batch: Batch, done: Done) -> Job:
        options = self._new_options()
        end_early = functools.partial(_end_early, options, self._loader.priority)
        return self._threads.begin(self._run, (batch, options), done, interrupt=end_early)

    def _run(self, worker: ReloadableWorker, batch: Batch, options: Any) -> Sequence[Any]:
        return self._recorder.busy(worker.infer, batch, options)

    def __repr__(self) -> str:
        inputs = ", ".join(map(str, self.inputs))
        outputs = ", ".join(map(str, self.outputs))
        return f"OnnxBackend({self._serving.model.name}: {inputs} → {outputs}; {self._manner()})"

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
        caption = f"OnnxBackend({self._serving.model.name}): {self._manner()}"
        return html_table(rows, head=("", "name", "type", "batch axis"), caption=caption)

    def _manner(self) -> str:
        sessions, model = self._loader.sessions, self._serving.model
        names = [name for name, _ in model.providers]
        fixed = self._signature.rows_a_run
        rows = "" if fixed is None else f", {'one row' if fixed == 1 else f'{fixed} rows'} a run"
        bound = "" if model.binding == "off" else f", {model.binding} memory bound"
        where = "" if self._inline is None else ", inline"
        return f"{sessions} session{'s' if sessions > 1 else ''} on {', '.join(names)}{rows}{bound}{where}"


def _by_name(argument: str, value: Any) -> dict[str, Any]:
    check_instance(argument, value, lambda one: one is None or isinstance(one, Mapping), "a mapping by name, or None")
    return dict(value or {})


def _run_options(runtime: ModuleType) -> Any:
    options = runtime.RunOptions()
    # only fatal errors: the others arrive as exceptions, a copy on stderr tells nothing more
    options.log_severity_level = 4
    return options


def _end_early(options: Any, priority: BatchPriority) -> None:
    """End a run between two of its operators, to which a thread at the lowest priority may not come for long."""
    options.terminate = True
    priority.raise_running()
