"""Loading of an ONNX model, and its inputs and outputs as onnxruntime describes them.

All functions run once per model, when a backend is made or reloaded. A wrong file, provider, batch axis or shared input
is therefore an error of the constructor, and not of the first batch.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import numpy as np

from streaminfer._internal.validation import check_count, check_instance, check_whole, expected
from streaminfer.backends.signature import TEXT, WHOLE, TensorSpec, describe_shape

__all__ = [
    "CPU",
    "DTYPES",
    "Provider",
    "check_loaded",
    "choose_providers",
    "find_source",
    "give_weights",
    "load",
    "make_options",
    "read_specs",
]

Provider = tuple[str, dict[str, Any]]
"""An execution provider of onnxruntime: its name and its options."""

CPU: list[Provider] = [("CPUExecutionProvider", {})]

_GPU = ": it comes with another package of onnxruntime: pip uninstall onnxruntime; pip install onnxruntime-gpu"
_INSTALL = {"CUDAExecutionProvider": _GPU, "TensorrtExecutionProvider": f"{_GPU}, and TensorRT itself"}

_BFLOAT16 = "tensor(bfloat16)"

DTYPES: dict[str, np.dtype[Any]] = {
    **{f"tensor({name})": np.dtype(name) for name in ("float16", *WHOLE)},
    "tensor(float)": np.dtype(np.float32),
    "tensor(double)": np.dtype(np.float64),
    "tensor(string)": TEXT,
    _BFLOAT16: np.dtype(np.float32),  # for callers
}


def make_options(runtime: ModuleType, threads: int | None, session_options: Any) -> Any:
    """Return the given session options, else new ones with ``threads`` threads, none of which spins."""
    if session_options is not None:
        kind = runtime.SessionOptions
        check_instance("session_options", session_options, kind, "an onnxruntime.SessionOptions")
        if threads is not None:
            raise ValueError(expected("threads", "None beside session_options, which say the threads", threads))
        return session_options
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1 if threads is None else check_count("threads", threads)
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options


def find_source(path_or_bytes: object) -> tuple[str, str | bytes]:
    """Return a name for messages, and the path or bytes that onnxruntime loads."""
    if isinstance(path_or_bytes, bytes):
        return f"{len(path_or_bytes)} bytes", path_or_bytes
    if not isinstance(path_or_bytes, (str, os.PathLike)):
        raise TypeError(expected("path_or_bytes", "a path or bytes", path_or_bytes))
    path = Path(path_or_bytes)
    if not path.exists():
        raise FileNotFoundError(expected("path_or_bytes", "the path of an ONNX model that exists", path_or_bytes))
    if not path.is_file():
        raise ValueError(expected("path_or_bytes", "the path of a file", path_or_bytes))
    return repr(path.name), str(path)


def choose_providers(
    runtime: ModuleType,
    providers: Sequence[str | tuple[str, Mapping[str, Any]]] | None,
    options: Any,
    *,
    are_user_options: bool,
) -> list[Provider]:
    """Return the requested providers, else those of the session options, else the CPU's.

    Args:
        runtime: the module ``onnxruntime``.
        providers: the requested providers; ``None``: none are requested.
        options: the session options. If they are not the user's, a provider from a plugin is added to them.
        are_user_options: whether the options are the user's.

    Returns:
        The ``providers`` of the session; empty if ``options`` have the providers.

    Raises:
        TypeError: not a sequence of names, or of names and options.
        ValueError: a provider is not available, or both arguments name providers.
    """
    in_options = are_user_options and getattr(options, "has_providers", bool)()
    if providers is None:
        return [] if in_options else CPU
    if in_options:
        raise ValueError(expected("providers", "None beside session_options that have providers", providers))
    available = runtime.get_available_providers()
    expectation = f"a sequence of some of {', '.join(available)}"
    check_instance("providers", providers, lambda it: _is_sequence(it) and len(it) > 0, expectation)
    chosen: list[Provider] = []
    plugin_devices: dict[str, list[Any]] = {}
    for provider in providers:
        check_instance("providers", provider, _is_provider, "a name, or a pair of a name and a mapping of options")
        name, settings = (provider, {}) if isinstance(provider, str) else provider
        if devices := _plugin_devices(runtime, name, available):
            plugin_devices[name] = devices
        chosen.append((name, dict(settings)))
    if not plugin_devices:
        return chosen
    if are_user_options:
        raise ValueError(
            expected("session_options", "None beside a provider of a plugin, or options that have it", options)
            + ": session_options.add_provider_for_devices adds it"
        )
    for name, settings in chosen:
        texts = {key: str(value) for key, value in settings.items()}
        if name in plugin_devices:
            options.add_provider_for_devices(plugin_devices[name], texts)
        else:
            options.add_provider(name, texts)
    return []


def _is_provider(value: Any) -> bool:
    if isinstance(value, (tuple, list)) and len(value) == 2:
        return isinstance(value[0], str) and isinstance(value[1], Mapping)
    return isinstance(value, str)


def _plugin_devices(runtime: ModuleType, name: str, available: Sequence[str]) -> list[Any]:
    """Return the devices of a provider that a plugin registered; empty for other providers.

    A plugin is registered with ``onnxruntime.register_execution_provider_library``. onnxruntime may list its provider
    as available, yet does not load it by its name.

    Raises:
        ValueError: the provider is not available.
    """
    devices: list[Any] = list(getattr(runtime, "get_ep_devices", list)())
    matches = [device for device in devices if device.ep_name == name]
    if name in available:
        return matches if any("library_path" in device.ep_metadata for device in matches) else []
    if not matches:
        present = ", ".join(sorted({device.ep_name for device in devices})) or "none"
        raise ValueError(
            expected("providers", f"some of {', '.join(available)}", name)
            + _INSTALL.get(name, f": no device for it here; the providers that have one: {present}")
        )
    return matches


def give_weights(options: Any, weights: Mapping[str, bytes]) -> None:
    """Make onnxruntime use these contents of external files instead of reading the files.

    Args:
        options: the session options.
        weights: contents of each file, by the model's name for the file. They must stay alive until the session is
            created, because onnxruntime copies them then.
    """
    # an old onnxruntime has none
    add_initializers = getattr(options, "add_external_initializers_from_files_in_memory", None)
    if weights and add_initializers is not None:
        add_initializers(list(weights), list(weights.values()), [len(contents) for contents in weights.values()])


def load(runtime: ModuleType, source: str | bytes, name: str, options: Any, providers: list[Provider]) -> Any:
    """Return a session of the model; ``providers`` is empty if the options have them.

    Raises:
        ValueError: onnxruntime cannot load it.
    """
    try:
        # with fallback, a provider that fails, here or in a run, is replaced by the CPU with a message on stdout
        session = runtime.InferenceSession(source, options, providers=providers or None, enable_fallback=0)
    except Exception as error:
        raise ValueError(
            f"path_or_bytes: expected an ONNX model that onnxruntime loads, got {name}: {error}"
        ) from error
    session.disable_fallback()  # for runs: onnxruntime before 1.23 ignores the argument
    return session


def check_loaded(session: Any, providers: Sequence[str | tuple[str, Mapping[str, Any]]]) -> None:
    """Check that a session runs on the requested providers.

    Raises:
        ValueError: the session runs on others.
    """
    loaded = session.get_providers()
    for provider in providers:
        name = provider if isinstance(provider, str) else provider[0]
        if name not in loaded:
            raise ValueError(f"providers: expected {name} to load, got a session on {', '.join(loaded)} only")


def read_specs(
    session: Any,
    axes: dict[str, int],
    shared: Mapping[str, object],
    shared_outputs: Sequence[str] = (),
    chosen: Sequence[str] | None = None,
) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Return the inputs, and the chosen outputs, of a model with their batch axes.

    Args:
        session: the ``onnxruntime.InferenceSession``.
        axes: batch axes of inputs and outputs, by name, where they differ from those that the model declares.
        shared: the inputs that the whole batch shares, by name.
        shared_outputs: names of outputs that belong to the whole batch.
        chosen: names of the outputs to compute; ``None``: all.

    Raises:
        TypeError: an argument is not a sequence of names, or an axis is not a whole number.
        ValueError: an argument does not fit the model, or the model does not declare the batch axis of an output.
    """
    input_nodes, output_nodes = session.get_inputs(), session.get_outputs()
    required = [node.name for node in input_nodes]
    defaults = session.get_overridable_initializers()
    names = [*required, *(node.name for node in defaults)]
    _check_known("shared_inputs", shared, "inputs of the model", names)
    node_names = [*names, *(node.name for node in output_nodes)]
    _check_known("batch_axes", axes, "inputs and outputs of the model", node_names)
    output_nodes = _choose_outputs(output_nodes, chosen)
    _check_names("shared_outputs", shared_outputs, [node.name for node in output_nodes])
    for argument, shared_names in (("shared_inputs", shared), ("shared_outputs", shared_outputs)):
        for name in shared_names:
            if name in axes:
                raise ValueError(expected("batch_axes", f"no axis for {name!r}, which {argument} names", axes[name]))
    if not set(required) - set(shared):
        raise ValueError(f"shared_inputs: expected at least one input left for requests, got all of {required}")
    inputs = [_input_spec(node, axes, shared) for node in input_nodes]
    symbols = {spec.shape[spec.batch_axis] for spec in inputs if spec.batch_axis is not None}
    inputs += [spec for node in defaults if (spec := _optional_spec(node, axes, shared, symbols)) is not None]
    _check_together(inputs, output_nodes, shared_outputs)
    sizes = [spec.shape[spec.batch_axis] for spec in inputs if spec.batch_axis is not None]
    return inputs, [
        _spec(node, None) if node.name in shared_outputs else _output_spec(node, axes, sizes) for node in output_nodes
    ]


def _check_known(argument: str, given: Iterable[str], what: str, known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise ValueError(expected(argument, f"{what} ({', '.join(map(repr, known))})", name))


def _check_names(argument: str, value: Any, output_names: Sequence[str]) -> None:
    kind = "a sequence of names of outputs"
    check_instance(argument, value, _is_sequence, f"{kind} ({', '.join(map(repr, output_names))})")
    _check_known(argument, value, kind, output_names)


def _is_sequence(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _choose_outputs(available: Sequence[Any], chosen: Sequence[str] | None) -> Sequence[Any]:
    if chosen is None:
        return available
    nodes = {node.name: node for node in available}
    _check_names("outputs", chosen, list(nodes))
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(expected("outputs", "at least one name, each once", chosen))
    return [nodes[name] for name in chosen]


def _check_together(inputs: Sequence[TensorSpec], output_nodes: Sequence[Any], shared_outputs: Sequence[str]) -> None:
    """Check the types of the outputs, and that the inputs and outputs of a model can be combined.

    Raises:
        ValueError: an output has no type of Python, or they cannot be combined.
    """
    bfloat16 = [spec.name for spec in inputs if spec.is_bfloat16]
    bfloat16 += [node.name for node in output_nodes if node.type == _BFLOAT16]
    for node in output_nodes:
        if node.type.startswith("tensor(") and node.type not in DTYPES:
            raise ValueError(_unreadable(node, "numbers, booleans or strings"))
        if bfloat16 and ("seq(" in node.type or "map(" in node.type):
            raise ValueError(_unreadable(node, f"tensors beside {bfloat16[0]!r}, which is bfloat16"))
    fixed = _check_batch_axes(inputs)
    if fixed > 1 and shared_outputs:
        expectation = f"none with a batch axis fixed at {fixed}, since copies of a row fill up a batch"
        raise ValueError(expected("shared_outputs", expectation, shared_outputs))
    texts = [spec.name for spec in inputs if spec.dtype == TEXT]
    if texts and any(spec.is_bfloat16 for spec in inputs):
        raise ValueError(
            f"path_or_bytes: expected strings or bfloat16 in the inputs, got both: onnxruntime takes {texts[0]!r} from "
            "NumPy only, and bfloat16 not from there"
        )


def _unreadable(node: Any, expectation: str) -> str:
    return (
        f"path_or_bytes: expected outputs that are {expectation}, got {node.type} for output {node.name!r}; "
        "outputs= can leave it out"
    )


def _check_batch_axes(inputs: Sequence[TensorSpec]) -> int:
    """Check that all inputs have the same number of rows: one size, or a free one.

    An input of one row beside inputs of many rows is rejected, because it would turn batching off.

    Returns:
        The batch size if the model fixes it, else 0.

    Raises:
        ValueError: an input has another number of rows.
    """
    per_request = [(spec, spec.shape[spec.batch_axis]) for spec in inputs if spec.batch_axis is not None]
    single = [spec for spec, size in per_request if size == 1]
    if single and len(single) < len(per_request):
        free = next(spec for spec, size in per_request if size != 1)
        raise ValueError(
            f"shared_inputs: expected a value for input {single[0].name!r}, got none: "
            f"{describe_shape(single[0].dtype, single[0].shape)} has one row, while {free.name!r} has as many as there "
            "are requests: name it here if the batch shares it, or another axis with batch_axes"
        )
    fixed = [(spec, size) for spec, size in per_request if isinstance(size, int)]
    for spec, size in fixed:
        if any(other != size for _, other in per_request):
            raise ValueError(
                f"batch_axes[{spec.name!r}]: expected an axis whose size is free, got axis {spec.batch_axis} of "
                f"{describe_shape(spec.dtype, spec.shape)}: name another one, or export the model with a free batch "
                "axis, or with one size for all inputs"
            )
    return fixed[0][1] if fixed else 0


def _spec(node: Any, axis: int | None, *, is_optional: bool = False) -> TensorSpec:
    return TensorSpec(node.name, DTYPES.get(node.type), tuple(node.shape), axis, is_optional, node.type == _BFLOAT16)


def _optional_spec(
    node: Any, axes: Mapping[str, int], shared: Mapping[str, object], symbols: set[int | str | None]
) -> TensorSpec | None:
    """Return an input for which the model has a default; ``None`` if requests cannot have it.

    Many exported models declare all their weights like this. An input belongs to requests only if one of its sizes is
    the batch size of the other inputs, or if the user names it.
    """
    if node.name in shared or node.name in axes:
        spec = _input_spec(node, axes, shared)
        return attrs.evolve(spec, is_optional=spec.batch_axis is not None)
    batch_axes = [axis for axis, size in enumerate(node.shape) if isinstance(size, str) and size in symbols]
    return _spec(node, batch_axes[0], is_optional=True) if len(batch_axes) == 1 and node.type in DTYPES else None


def _input_spec(node: Any, axes: Mapping[str, int], shared: Mapping[str, object]) -> TensorSpec:
    if node.type not in DTYPES:
        raise ValueError(
            f"path_or_bytes: expected inputs of numbers, booleans or strings, got {node.type} for input {node.name!r}"
        )
    if node.name in shared:
        return _spec(node, None)
    if not node.shape:
        raise ValueError(
            f"shared_inputs: expected a value for input {node.name!r}, got none: "
            "it is a scalar, or of no stated shape, and so has no batch axis"
        )
    return _spec(node, _axis(node.name, axes.get(node.name, 0), len(node.shape)))


def _output_spec(node: Any, axes: Mapping[str, int], batch_sizes: Sequence[int | str | None]) -> TensorSpec:
    """Find the batch axis of an output in its declaration; the shape of a run's output could match by coincidence.

    Args:
        node: the output, as onnxruntime declares it.
        axes: the batch axes that the user names.
        batch_sizes: the sizes that the inputs declare for their batch axes.
    """
    dtype, shape = DTYPES.get(node.type), tuple(node.shape)
    named = axes.get(node.name)
    if named is not None:
        argument = f"batch_axes[{node.name!r}]"
        # an output without a declared shape can have any rank: each run checks the axis
        axis = _axis(node.name, named, len(shape)) if shape else check_whole(argument, named, "a whole number")
        size = shape[axis] if shape else None
        if isinstance(size, int) and size not in batch_sizes:
            raise ValueError(
                f"{argument}: expected an axis whose size is free, got axis {axis} of {describe_shape(dtype, shape)}"
            )
        return _spec(node, axis)
    if node.type.startswith("seq(map("):
        return _spec(node, 0)  # only ZipMap makes these: one map per row
    symbols = {size for size in batch_sizes if size is not None}
    candidates = [axis for axis, size in enumerate(shape) if size in symbols]
    if 1 in symbols:
        candidates = [0] if shape and shape[0] == 1 else []  # each run has one row
    if len(candidates) == 1:
        return _spec(node, candidates[0])
    sizes = ", ".join("?" if size is None else str(size) for size in dict.fromkeys(batch_sizes))
    mismatch = "several axes have" if candidates else "no axis has"
    raise ValueError(
        f"batch_axes: expected the batch axis of output {node.name!r}, got none: of {describe_shape(dtype, shape)} "
        f"{mismatch} the batch size {sizes} of the inputs. Name it in batch_axes={{{node.name!r}: axis}}; in "
        f"shared_outputs=({node.name!r},) if the output belongs to the whole batch, and each caller gets it whole; or "
        "leave it out of outputs="
    )


def _axis(name: str, axis: object, rank: int) -> int:
    argument = f"batch_axes[{name!r}]"
    expectation = f"an axis of {rank} dimensions, {-rank} to {rank - 1}"
    number = check_whole(argument, axis, expectation)
    if not -rank <= number < rank:
        raise ValueError(expected(argument, expectation, axis))
    return number % rank
