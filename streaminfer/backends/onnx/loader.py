"""Creates the sessions of an ONNX model, with the settings of its backend."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs

from streaminfer._internal.text import is_all_unicode
from streaminfer.backends.fingerprint import ModelFiles, fingerprint_of_model
from streaminfer.backends.onnx.binding import (
    Binding,
    BoundRuns,
    check_cuda_graphs,
    choose_binding,
    load_cuda_runtime,
    records_graphs,
)
from streaminfer.backends.onnx.model import (
    Provider,
    check_loaded,
    choose_providers,
    find_source,
    give_weights,
    load,
    make_options,
    read_specs,
)
from streaminfer.backends.onnx.serving import LoadedModel
from streaminfer.backends.onnx.session import SessionWorker, stack_example
from streaminfer.backends.priority import BatchPriority
from streaminfer.backends.signature import NonFinite, Signature, check_value

__all__ = ["ModelLoader"]


@attrs.frozen(kw_only=True)
class ModelLoader:
    """Loads the first model of a backend and those of its reloads, with the same settings.

    Settings that are not described here are arguments of :class:`~streaminfer.backends.OnnxBackend`.

    Thread-safety: :meth:`load` can run in any thread.

    Attributes:
        runtime: the module ``onnxruntime``.
        new_options: creates the ``onnxruntime.RunOptions`` of a run.
        warmup_sizes: the backend's ``warmup``.
        batch_axes: batch axes by name; empty: as the model declares them.
        shared_inputs: shared inputs by name; each model gets a copy of them.
        priority: priority of the batches of all models.
    """

    runtime: ModuleType
    new_options: Callable[[], Any]
    providers: Sequence[str | tuple[str, Mapping[str, Any]]] | None
    threads: int | None
    sessions: int
    warmup_sizes: Sequence[int]
    batch_axes: dict[str, int]
    shared_inputs: Mapping[str, Any]
    shared_outputs: Sequence[str]
    outputs: Sequence[str] | None
    session_options: Any
    example: Any
    binding: Binding | None
    non_finite: NonFinite
    priority: BatchPriority = attrs.field(factory=BatchPriority)

    def load(self, path_or_bytes: object, check: Callable[[], None] = lambda: None) -> LoadedModel:
        """Return a model with its sessions, not warmed yet.

        Args:
            path_or_bytes: the model's file, or its bytes.
            check: raises if the load was cancelled; called before each session is created, which can take long.

        Raises:
            FileNotFoundError, TypeError, ValueError: like the constructor of the backend.
        """
        runtime = self.runtime
        options = make_options(runtime, self.threads, self.session_options)
        name, source = find_source(path_or_bytes)
        has_user_options = self.session_options is not None
        chosen = choose_providers(runtime, self.providers, options, are_user_options=has_user_options)
        sharing = {name for name, _ in chosen} == {"CPUExecutionProvider"}
        if sharing and not has_user_options:  # one pool of threads for all running batches
            options.intra_op_num_threads = self.sessions * (options.intra_op_num_threads - 1) + 1
        files = ModelFiles.of_bytes(source) if isinstance(source, bytes) else ModelFiles.read(Path(source))
        if not has_user_options:  # the user may reuse options for other sessions, so they get no weights
            give_weights(options, files.weights)
        loaded = []
        for _ in range(1 if sharing else self.sessions):
            check()
            loaded.append(load(runtime, source, name, options, chosen))
        files.check_unchanged()
        check_loaded(loaded[0], self.providers or ())
        providers: list[Provider] = chosen or [(one, {}) for one in loaded[0].get_providers()]
        inputs, outputs = read_specs(loaded[0], self.batch_axes, self.shared_inputs, self.shared_outputs, self.outputs)
        signature = Signature(inputs, outputs, non_finite=self.non_finite, text_fits=is_all_unicode)
        binding, device = choose_binding(self.binding, providers, signature)
        check_cuda_graphs(loaded[0], binding, signature, self.sessions)
        cuda = load_cuda_runtime() if binding == "pinned" else None
        sizes = self.warmup_sizes
        if signature.rows_per_run is not None:
            sizes = [signature.rows_per_run] if sizes else []
        shared_inputs = self.shared_inputs
        values = {
            spec.name: check_value(spec, shared_inputs[spec.name]) for spec in inputs if spec.name in shared_inputs
        }
        signature.example_by_name(self.example)  # raises if the example does not fit, even without a warm-up
        batches = [stack_example(signature, self.example, size) for size in sizes]
        workers = [
            SessionWorker(
                session=session,
                name=name,
                signature=signature,
                shared=values,
                warmup=batches,
                new_options=self.new_options,
                bound=None if binding == "off" else BoundRuns(runtime, session, signature, device, cuda),
                priority=self.priority,
            )
            for session in (loaded * self.sessions if sharing else loaded)
        ]
        axes = [(spec.name, spec.batch_axis) for spec in (*signature.inputs, *signature.outputs)]
        return LoadedModel(
            name=name,
            signature=signature,
            shared=values,
            providers=providers,
            binding=binding,
            has_graphs=records_graphs(loaded[0]),
            file_bytes=files.size,
            workers=workers,
            fingerprint=None
            if files.digest is None
            else fingerprint_of_model(files.digest, axes=axes, shared=values, providers=providers),
            background_obstacle=_background_obstacle(runtime, loaded[0], signature, binding),
        )


def _background_obstacle(runtime: ModuleType, session: Any, signature: Signature, binding: Binding) -> str:
    """Return why batches are not computed by the worker thread alone, without copies; empty if they are."""
    options = session.get_session_options()
    if session.get_providers() != ["CPUExecutionProvider"]:
        return "it does not run on onnxruntime's CPU provider alone"
    if options.intra_op_num_threads != 1 or options.execution_mode != runtime.ExecutionMode.ORT_SEQUENTIAL:
        return "onnxruntime computes its batches with threads of its own: make the OnnxBackend with threads=1"
    if binding != "off":
        return f"its runs have bound memory: make the OnnxBackend without binding={binding!r}"
    if signature.has_bfloat16:
        return "it reads or returns bfloat16"
    return ""
