"""ONNX models through onnxruntime.

Idea: one batch is one hop to a worker thread that owns a session, one ``run`` there, and one view a row back.
Sessions do not share threads: ``sessions`` batches can run at the same time, each on ``threads`` cores; one thread a
session gives the most predictable tail where the cores are shared with an event loop. Idle onnxruntime threads spin
by default, on cores that the event loop needs; here they do not.

A batch that nobody waits for any more is told to end (``RunOptions.terminate``): onnxruntime looks at that between
two nodes of the graph.
"""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from html import escape
from types import ModuleType
from typing import Any

import numpy.typing as npt

from streaminfer._extras import require
from streaminfer._validation import check_choice, check_count, check_duration, check_instance
from streaminfer.backends._fingerprint import ModelFile, digest_of_bytes, fingerprint_of_model
from streaminfer.backends._onnx_binding import Binding, BoundRuns, check_cuda_graphs, choose_binding, load_cuda_runtime
from streaminfer.backends._onnx_model import (
    Provider,
    check_loaded,
    choose_providers,
    find_source,
    load,
    make_options,
    read_specs,
)
from streaminfer.backends._onnx_session import SessionWorker, stack_example
from streaminfer.backends._signature import (
    NonFinite,
    Signature,
    check_value,
    describe_shape,
    free_axes,
    guess_inputs,
)
from streaminfer.backends._statistics import BackendRecorder, BackendStatistics
from streaminfer.backends._workers import HANG_GRACE_S, WorkerThreads
from streaminfer.protocols import Clock, ExampleInputs
from streaminfer.request import Batch, Request

__all__ = ["OnnxBackend"]


class OnnxBackend:
    """Answers batches with an ONNX model; needs the extra ``onnx``.

    A request brings one array where the model reads one input, or a mapping of input name to array, never with a
    batch axis. It is answered with one array where the model has one output, or with a ``dict`` of output name to
    array. These arrays are views of the batch's outputs: copy one that is kept long after the others are gone.
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
        threads: threads that one session computes with, its worker thread included; ``None`` means 1.
        sessions: sessions, each with a worker thread: how many batches can run at the same time. Every session holds
            a copy of the weights.
        warmup: batch sizes that :meth:`start` runs on every session. Not needed behind a batcher, which runs all sizes
            that it may send.
        batch_axes: the batch axis of inputs and outputs, by name. Of those it does not name, inputs have axis 0, and
            outputs the axis for which the model declares the same symbol as for the inputs' batch axis.
        shared_inputs: inputs that the whole batch shares (a sample rate), by name: arrays of the model's dtype and
            shape. Requests do not bring them.
        shared_outputs: names of outputs that belong to the whole batch: each caller gets such an output whole,
            read-only.
        outputs: names of the outputs to compute and return, in this order; ``None``: all, in the model's order.
        session_options: an ``onnxruntime.SessionOptions``, used as it is instead of ours; then it says the threads, and
            the providers if it has any.
        example: what a request brings, for the warm-up and for what a batcher measures before it accepts requests.
            ``None``: zeros; where the model leaves sizes open, ``warmup`` sets these to 1, and a batcher measures
            nothing unless its length buckets name them.
        binding: ``"pinned"``, what ``None`` means on a GPU: inputs and outputs lie in memory that is kept for each
            shape of a batch, and go to the GPU from page-locked memory; ``"pageable"``: the same without page-locked
            memory; ``"off"``, what ``None`` means elsewhere: onnxruntime makes the memory of each batch. Kept memory
            trusts the shapes that the model states for its outputs.
        non_finite: ``"reject"`` refuses requests with a float that is NaN or infinite, ``"allow"`` does not look.
        hang_grace_s: seconds that a batch may run on after it was told to end; then it hangs, another thread takes its
            place on the same session, and a warning says so.
        clock: monotonic nanoseconds, for ``busy_s``; ``None``: the system's.

    Attributes:
        inputs: what the model reads, in its order.
        outputs: the outputs that callers get; ``batch_axis`` is ``None`` for shared ones.
        batch_axes: the axis on which a batcher stacks each input that a request brings, by name.
        max_batch_size: the batch size at which the model is fixed, above 1; ``None``: any.
        fingerprint: of the model and how it is asked.
        queued_workers: ``sessions``, which take batches from one queue.

    Raises:
        MissingExtra: onnxruntime is not installed.
        FileNotFoundError: there is no such file.
        ValueError: an argument does not fit the model, or the model cannot be loaded.
        TypeError: an argument is of the wrong type.
    """

    returns_new_arrays = True

    def __init__(
        self,
        path_or_bytes: str | os.PathLike[str] | bytes,
        *,
        providers: Sequence[str | tuple[str, Mapping[str, Any]]] | None = None,
        threads: int | None = None,
        sessions: int = 1,
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
        clock: Clock | None = None,
    ) -> None:
        runtime = require("onnxruntime", extra="onnx", purpose="OnnxBackend")
        check_count("sessions", sessions)
        check_duration("hang_grace_s", hang_grace_s)
        check_choice("non_finite", non_finite, ("allow", "reject"))
        check_instance("warmup", warmup, lambda one: isinstance(one, Sequence), "a sequence of batch sizes")
        sizes = [check_count("warmup", size) for size in warmup]
        axes = _by_name("batch_axes", batch_axes)
        shared = _by_name("shared_inputs", shared_inputs)
        options = make_options(runtime, threads, session_options)
        self._name, source = find_source(path_or_bytes)
        contents = source if isinstance(source, bytes) else ModelFile.at(source)
        chosen = choose_providers(runtime, providers, options, given=session_options is not None)
        loaded = [load(runtime, source, self._name, options, chosen) for _ in range(sessions)]
        check_loaded(loaded[0], providers or ())
        self._providers: list[Provider] = chosen or list(loaded[0].get_providers())
        self._contents = digest_of_bytes(contents) if isinstance(contents, bytes) else contents
        inputs, given = read_specs(loaded[0], axes, shared, shared_outputs, outputs)
        self._signature = Signature(inputs, given, non_finite=non_finite)
        self.inputs = self._signature.inputs
        self.outputs = self._signature.outputs
        self.batch_axes = self._signature.batch_axes
        fixed = self._signature.rows_a_run
        self.max_batch_size = None if fixed == 1 else fixed
        self._binding, device = choose_binding(binding, self._providers, self._signature)
        check_cuda_graphs(loaded[0], self._binding, self._signature, sessions)
        cuda = load_cuda_runtime() if self._binding == "pinned" else None
        if fixed is not None:
            sizes = [fixed] if sizes else []
        values = {spec.name: check_value(spec, shared[spec.name]) for spec in inputs if spec.name in shared}
        self._shared = values
        batches = [stack_example(self._signature, example, size) for size in sizes]
        self._example = example
        self._new_options = functools.partial(_run_options, runtime)
        workers = [
            SessionWorker(
                session,
                name=self._name,
                signature=self._signature,
                shared=values,
                warmup=batches,
                new_options=self._new_options,
                bound=None if self._binding == "off" else BoundRuns(runtime, session, self._signature, device, cuda),
            )
            for session in loaded
        ]
        self.queued_workers = sessions
        self._recorder = BackendRecorder(sessions, clock)
        self._threads = WorkerThreads(workers, f"OnnxBackend({self._name})", hang_grace_s=hang_grace_s)

    @functools.cached_property
    def fingerprint(self) -> str | None:
        """The same for backends that answer alike, in any process and on any machine: part of a cache's keys.

        It is made of the model's bytes and its external files of weights, wherever they lie, the batch axes, the shared
        inputs and the providers with those of their options that change answers; not of ``session_options``, nor of
        onnxruntime's version. The file is read at the first look, about a second per gigabyte. ``None`` for a model
        that was given as bytes and has external files.

        Raises:
            ValueError: the file is another one than when it was loaded, or cannot be read.
        """
        digest = self._contents.digest() if isinstance(self._contents, ModelFile) else self._contents
        if digest is None:
            return None
        axes = [(spec.name, spec.batch_axis) for spec in (*self.inputs, *self.outputs)]
        return fingerprint_of_model(digest, axes=axes, shared=self._shared, providers=self._providers)

    def validate(self, request: Request) -> None:
        """Checks what a request brings against the model.

        Raises:
            InvalidInput: names the input, what was expected, and what came.
        """
        self._signature.check(request.inputs)

    def example_inputs(self) -> ExampleInputs | None:
        """What one request brings: ``example``, else zeros; ``None`` where the model reads something else."""
        on_each = self._infer_on_each if self._recorder.snapshot().workers > 1 else None
        if self._example is not None:
            return ExampleInputs(self._example, self._infer_uncounted, infer_on_each=on_each)
        guess = self._guess_inputs(1)
        if guess is None:
            return None
        axes = free_axes(self.inputs)
        return ExampleInputs(guess, self._infer_uncounted, False, axes, self._guess_inputs, on_each)

    async def start(self) -> None:
        """Starts the worker threads and runs the warm-up batches on every session.

        Raises:
            BackendError: the model failed on a warm-up batch; nothing is left running.
        """
        await self._threads.start()

    async def infer(self, batch: Batch) -> Sequence[Any]:
        """One result per row; starts, without a warm-up, where :meth:`start` was not called.

        Raises:
            BackendError: the model failed on this batch.
            Closed: stopped.
        """
        return await self._recorder.count(len(batch.rows), self._infer(batch, self._answer))

    async def stop(self, *, drain: bool = True) -> None:
        """Ends the worker threads and waits for them; :meth:`start` starts new ones on the same sessions.

        At the time limit of the stack that stops, else after 30 seconds, batches that still run end with
        :class:`~streaminfer.errors.Closed`, and their threads are left behind.

        Args:
            drain: batches that wait or run are answered first; else they end with
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
        await self._threads.run_for_each(SessionWorker.record, batch, self._new_options())

    async def _infer_uncounted(self, batch: Batch) -> Sequence[Any]:
        return await self._infer(batch, SessionWorker.record)

    async def _infer(self, batch: Batch, answer: Callable[..., Sequence[Any]]) -> Sequence[Any]:
        options = self._new_options()

        def end_early() -> None:
            options.terminate = True

        return await self._threads.run(answer, batch, options, interrupt=end_early)

    def _answer(self, worker: SessionWorker, batch: Batch, options: Any) -> Sequence[Any]:
        return self._recorder.busy(worker.answer, batch, options)

    def __repr__(self) -> str:
        inputs = ", ".join(map(str, self.inputs))
        outputs = ", ".join(map(str, self.outputs))
        return f"OnnxBackend({self._name}: {inputs} → {outputs}; {self._manner()})"

    def _repr_html_(self) -> str:
        rows = [
            f"<tr><td>{kind}</td><td>{escape(spec.name)}</td><td>{escape(describe_shape(spec.dtype, spec.shape))}</td>"
            f"<td>{'shared' if spec.batch_axis is None else spec.batch_axis}</td></tr>"
            for kind, specs in (("input", self.inputs), ("output", self.outputs))
            for spec in specs
        ]
        return (
            f"<table><caption>OnnxBackend({escape(self._name)}): {escape(self._manner())}</caption>"
            "<thead><tr><th></th><th>name</th><th>type</th><th>batch axis</th></tr></thead>"
            f"<tbody>{''.join(rows)}</tbody></table>"
        )

    def _manner(self) -> str:
        sessions = self._recorder.snapshot().workers
        names = [one if isinstance(one, str) else one[0] for one in self._providers]
        fixed = self._signature.rows_a_run
        rows = "" if fixed is None else f", {'one row' if fixed == 1 else f'{fixed} rows'} a run"
        bound = "" if self._binding == "off" else f", {self._binding} memory bound"
        return f"{sessions} session{'s' if sessions > 1 else ''} on {', '.join(names)}{rows}{bound}"


def _by_name(argument: str, value: Any) -> dict[str, Any]:
    check_instance(argument, value, lambda one: one is None or isinstance(one, Mapping), "a mapping by name, or None")
    return dict(value or {})


def _run_options(runtime: ModuleType) -> Any:
    options = runtime.RunOptions()
    # only fatal errors: the others arrive as exceptions, a copy on stderr tells nothing more
    options.log_severity_level = 4
    return options
