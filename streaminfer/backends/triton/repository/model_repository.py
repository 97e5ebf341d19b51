"""Writes a model repository for Triton, for a client that already sends batches.

The settings, and their reasons:

* **No ``dynamic_batching`` block**: a request runs as one batch. The client forms the batches, because it knows
  deadlines and its queue. A second batcher would wait again, and merge batches into sizes whose service time is not
  known. (``preserve_ordering`` belongs to that block. It would delay finished responses behind slower ones.)
  ``priority_levels`` needs the block: the block then has a delay of zero, so that only requests that are queued merge.
* **Inputs and outputs are written out.** Otherwise Triton completes the configuration and adds ``dynamic_batching`` to
  an ONNX model. For a plan it always adds it, unless ``max_batch_size`` is 0 or the server runs with
  ``--disable-auto-complete-config``.
* **``max_batch_size``**: above 0, the batch axis is the first of every input and output and is left out of ``dims``.
  At 0 Triton knows no batch axis and the dims are the model's own: for models with another batch axis, or with an
  input that the whole batch shares.
* **``instance_group``**: how many batches run at the same time on each GPU; use the same number for the batcher's
  ``max_in_flight``.
* **``response_cache`` off**: it stores error responses, and replays them as empty successes.
* **``model_warmup``**: Triton reports a model as ready after these batches. TensorRT compiles during them.

A server that polls the repository never sees half a model: all files are written beside the repository and moved into
it by one rename.
"""

import math
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import attrs
import numpy as np

from streaminfer._internal.loading.extras import require
from streaminfer._internal.validation import check_choice, check_count, check_instance, expected
from streaminfer.backends.onnx.model import CPU, find_source, load, make_options, read_specs
from streaminfer.backends.onnx.providers import cache_options, profile_shapes
from streaminfer.backends.signature import TEXT, Signature, TensorSpec, free_axes
from streaminfer.backends.triton.dtypes import DATATYPES

__all__ = ["write_model_repository"]

Platform = Literal["onnxruntime", "onnxruntime-tensorrt", "tensorrt-plan"]
Source = str | os.PathLike[str] | bytes
_Rows = Mapping[str, tuple[int, ...]]


def write_model_repository(
    folder: str | os.PathLike[str],
    name: str,
    source: Source,
    *,
    max_batch_size: int,
    platform: Platform = "onnxruntime",
    onnx: Source | None = None,
    instances: int = 1,
    device: Literal["gpu", "cpu"] = "gpu",
    gpus: Sequence[int] = (),
    precision: Literal["fp32", "fp16"] = "fp32",
    engine_cache: str | os.PathLike[str] | None = None,
    warmup: Sequence[int] = (),
    example: Any = None,
    batch_axes: Mapping[str, int] | None = None,
    shared_inputs: Mapping[str, Any] | None = None,
    priority_levels: int = 0,
    version: int = 1,
) -> Path:
    """Write ``folder/name/config.pbtxt`` and ``folder/name/version/model.*``; needs the extra ``onnx``.

    Args:
        folder: the repository; created if missing.
        name: the model's name: letters, digits, ``_``, ``-`` and ``.``.
        source: the ONNX model, as a path or bytes; if its weights lie in other files, a folder with ``model.onnx``. For
            ``"tensorrt-plan"``, the plan.
        max_batch_size: the most rows of a request; 0: requests have no batch axis, see the module's text.
        platform: ``"onnxruntime"``; the same with its TensorRT provider, which compiles in the server; or a plan that
            was compiled before, with TensorRT's own tools, for exactly this GPU.
        onnx: the model that a plan was compiled from, for its inputs and outputs. ``None``: Triton reads them from the
            plan.
        instances: number of batches that run at the same time, on each GPU.
        device: the device of the model; TensorRT needs a GPU.
        gpus: numbers of the GPUs; empty: all GPUs of the server.
        precision: ``"fp16"`` lets TensorRT use half precision where that is faster.
        engine_cache: a folder *of the server's machine*, outside the repository and for this model only, where the
            TensorRT provider stores its compiled engines; the parent folder must exist. ``None``: it compiles at every
            start, for minutes.
        warmup: batch sizes that Triton runs before the model is ready.
        example: one request's inputs, for the sizes that the model leaves free; ``None``: these sizes are 1.
        batch_axes: as in :class:`~streaminfer.backends.OnnxBackend`; any but 0 needs ``max_batch_size=0``.
        shared_inputs: as in :class:`~streaminfer.backends.OnnxBackend`. They need ``max_batch_size=0``; their values
            are not stored, because each request contains them.
        priority_levels: above 0, the server's queue has so many levels; a request without a priority gets the middle
            one.
        version: the model's version. If the model already exists with the same configuration, this version is added.

    Returns:
        The model's folder.

    Raises:
        MissingExtra: onnxruntime is not installed.
        FileExistsError: this version exists, or the model with another configuration; nothing is changed.
        FileNotFoundError: there is no such file.
        ValueError: an argument has a wrong value, or does not fit the model; nothing is changed.
        TypeError: an argument is of a wrong type.
    """
    check_choice("platform", platform, ("onnxruntime", "onnxruntime-tensorrt", "tensorrt-plan"))
    check_instance("name", name, str, "a string")
    if not re.fullmatch(r"[\w-][\w.-]*", name, re.ASCII):
        raise ValueError(expected("name", "letters, digits, '_', '-' and '.', not starting with '.'", name))
    plan = platform == "tensorrt-plan"
    model = _Model(
        name=name,
        platform=platform,
        max_batch_size=check_count("max_batch_size", max_batch_size, at_least=0),
        instances=check_count("instances", instances),
        kind=check_choice("device", device, ("gpu", "cpu")),
        gpus=tuple(check_count("gpus", gpu, at_least=0) for gpu in gpus),
        fp16=check_choice("precision", precision, ("fp32", "fp16")) == "fp16",
        engine_cache=None if engine_cache is None else os.fspath(engine_cache),
        warmup=tuple(check_count("warmup", size) for size in warmup),
        priority_levels=check_count("priority_levels", priority_levels, at_least=0),
    )
    _check_together(model, onnx)
    check_count("version", version)
    target = Path(folder) / name
    with _staging(Path(folder)) as staging:
        stored = _store(source, staging / str(version), "model.plan" if plan else "model.onnx")
        described, signature = onnx if plan else stored, None
        if described is not None:
            signature = _read(described, dict(batch_axes or {}), dict(shared_inputs or {}))
        lines = _config(model, signature, example)
        (staging / "config.pbtxt").write_bytes("".join(f"{line}\n" for line in lines).encode())
        _sync(staging)
        _move(staging, target, str(version))
    return target


@attrs.frozen
class _Model:
    """Contents of a configuration."""

    name: str
    platform: str
    max_batch_size: int
    instances: int
    kind: str
    gpus: tuple[int, ...]
    fp16: bool
    engine_cache: str | None
    warmup: tuple[int, ...]
    priority_levels: int


def _check_together(model: _Model, onnx: Source | None) -> None:
    plan, tensorrt = model.platform == "tensorrt-plan", model.platform == "onnxruntime-tensorrt"
    on_cpu, for_platform = model.kind == "cpu", f"for platform {model.platform!r}"
    limit = model.max_batch_size or math.inf
    mistakes: list[tuple[str, object, str, object]] = [
        ("device", on_cpu and (plan or tensorrt), f"'gpu' {for_platform}", model.kind),
        ("gpus", on_cpu and model.gpus, "none for device 'cpu'", model.gpus),
        ("precision", model.fp16 and not tensorrt, f"'fp32' {for_platform}", "fp16"),
        ("engine_cache", model.engine_cache is not None and not tensorrt, f"None {for_platform}", model.engine_cache),
        ("onnx", onnx is not None and not plan, f"None {for_platform}: source says it", onnx),
        ("warmup", max(model.warmup, default=0) > limit, f"sizes up to max_batch_size, {limit}", model.warmup),
    ]
    for argument, is_wrong, expectation, value in mistakes:
        if is_wrong:
            raise ValueError(expected(argument, expectation, value))
    if plan and onnx is None and model.warmup:
        raise ValueError("onnx: expected the model that the plan was compiled from, got None: warmup needs its inputs")


def _read(source: Source, axes: dict[str, int], shared: dict[str, Any]) -> Signature:
    runtime = require("onnxruntime", extra="onnx", purpose="write_model_repository")
    if isinstance(source, Path) and source.is_dir():
        source /= "model.onnx"
    name, loadable = find_source(source)
    options = make_options(runtime, None, None)
    # the model is only read, so optimization would waste time
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    inputs, outputs = read_specs(load(runtime, loadable, name, options, CPU), axes, shared)
    return Signature([spec for spec in inputs if not spec.is_optional], outputs)


def _config(model: _Model, signature: Signature | None, example: Any) -> Iterator[str]:
    backend = "tensorrt" if model.platform == "tensorrt-plan" else "onnxruntime"
    yield f"name: {_quote(model.name)}"
    yield f"backend: {_quote(backend)}"
    yield f"max_batch_size: {model.max_batch_size}"
    if signature is not None:
        for kind, specs in (("input", signature.inputs), ("output", signature.outputs)):
            for spec in specs:
                yield f"{kind} {{ {_tensor(spec, kind, batching=model.max_batch_size > 0)} }}"
    gpus = f" gpus: [ {', '.join(map(str, model.gpus))} ]" if model.gpus else ""
    yield f"instance_group {{ kind: KIND_{model.kind.upper()} count: {model.instances}{gpus} }}"
    if model.priority_levels:
        middle = (model.priority_levels + 1) // 2
        yield (
            f"dynamic_batching {{ max_queue_delay_microseconds: 0 preserve_ordering: false "
            f"priority_levels: {model.priority_levels} default_priority_level: {middle} }}"
        )
    if signature is not None:
        # the shape of one request, by input; free sizes as in the example, else 1
        rows = {name: np.shape(value) for name, value in signature.example_by_name(example).items()}
        if model.platform == "onnxruntime-tensorrt":
            # a profile must name every free size, and a guessed profile is worse than none
            has_sizes = example is not None or not free_axes(signature.inputs)
            parameters = " ".join(
                f"parameters {{ key: {_quote(key)} value: {_quote(value)} }}"
                for key, value in _tensorrt(model, rows if has_sizes else None, signature.batch_axes).items()
            )
            yield (
                f'optimization {{ execution_accelerators {{ gpu_execution_accelerator {{ name: "tensorrt" {parameters} '
                f"}} }} }}"
            )
        for size in model.warmup:
            yield _warmup(model, signature.inputs, rows, size)
    yield "response_cache { enable: false }"


def _type(spec: TensorSpec) -> str | None:
    if spec.is_bfloat16:
        return "BF16"
    return None if spec.dtype is None or spec.dtype == TEXT else DATATYPES.get(spec.dtype)


def _tensor(spec: TensorSpec, kind: str, *, batching: bool) -> str:
    dtype = _type(spec)
    if dtype is None:
        raise ValueError(f"source: expected tensors of numbers or booleans, got {kind} {spec}")
    if batching and spec.batch_axis != 0:
        layout = "shared by the whole batch" if spec.batch_axis is None else f"stacked on axis {spec.batch_axis}"
        raise ValueError(
            f"max_batch_size: expected 0, since {kind} {spec.name!r} is {layout}: Triton stacks on the first axis only"
        )
    if batching and spec.shape and isinstance(spec.shape[0], int):
        raise ValueError(
            f"max_batch_size: expected 0, since {kind} {spec.name!r} has a batch axis fixed at {spec.shape[0]}: "
            "as many rows a request, or export the model with a free batch axis"
        )
    if not spec.shape and kind == "output":
        raise ValueError(f"source: expected outputs of a stated shape, got {kind} {spec}")
    sizes = [size if isinstance(size, int) else -1 for size in (spec.row_shape if batching else spec.shape)]
    if 0 in sizes:
        raise ValueError(f"source: expected sizes ≥ 1, as Triton has no empty tensors, got {kind} {spec}")
    # Triton has no tensors without dimensions: they get one of size 1, which is removed before the model sees it. With
    # max_batch_size 0 it rejects such a reshape, and its ONNX Runtime backend (since 23.10) removes the dimension.
    reshape = " reshape { shape: [ ] }" if batching and not sizes else ""
    return f"name: {_quote(spec.name)} data_type: TYPE_{dtype} dims: [ {', '.join(map(str, sizes or [1]))} ]{reshape}"


def _tensorrt(model: _Model, rows: _Rows | None, batch_axes: Mapping[str, int]) -> dict[str, str]:
    parameters = {"precision_mode": "FP16" if model.fp16 else "FP32"}
    if model.engine_cache is not None:
        parameters |= cache_options(model.engine_cache, true="1")
    largest = model.max_batch_size or max(model.warmup, default=0)
    if largest and rows is not None:
        parameters |= profile_shapes(rows, [1, largest], batch_axes)
    return parameters


def _warmup(model: _Model, inputs: Sequence[TensorSpec], rows: _Rows, size: int) -> str:
    tensors = []
    for spec in inputs:
        if spec.batch_axis is None:
            shape = [one if isinstance(one, int) else 1 for one in spec.shape]
        else:
            shape = list(rows[spec.name])
            if not model.max_batch_size:
                shape.insert(spec.batch_axis, size)
        dims = ", ".join(map(str, shape or [1]))
        tensor = f"data_type: TYPE_{_type(spec)} dims: [ {dims} ] zero_data: true"
        tensors.append(f"inputs {{ key: {_quote(spec.name)} value {{ {tensor} }} }}")
    batch_size = size if model.max_batch_size else 0
    return f'model_warmup {{ name: "{size} rows" batch_size: {batch_size} {" ".join(tensors)} }}'


def _quote(text: str) -> str:
    """Return a string in protobuf's text format: UTF-8 bytes, with non-ASCII bytes in octal."""
    characters = (
        chr(byte) if 32 <= byte < 127 and chr(byte) not in '"\\' else f"\\{byte:03o}" for byte in text.encode()
    )
    return f'"{"".join(characters)}"'


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """Yield an empty folder on the repository's file system that no server loads as a model; remove it at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    parent = folder.resolve().parent
    if parent.stat().st_dev != folder.stat().st_dev or not os.access(parent, os.W_OK):
        # the repository is a separate volume: a server that polls it loads any folder that contains a number, hidden or
        # not. In this folder, one level deeper, it finds none, and says so in its log
        parent = folder
    outer = parent / f".{secrets.token_hex(8)}"
    staging = outer / "model"
    staging.mkdir(parents=True)
    try:
        yield staging
    finally:
        shutil.rmtree(outer)


def _store(source: Source, folder: Path, name: str) -> Path:
    """Copy the model to ``folder/name``."""
    folder.mkdir()
    stored = folder / name
    path_or_bytes: Any = source
    if isinstance(source, bytes):
        stored.write_bytes(source)
    elif name == "model.onnx" and isinstance(path_or_bytes, (str, os.PathLike)) and Path(path_or_bytes).is_dir():
        if not (Path(source) / name).is_file():
            raise FileNotFoundError(expected("source", f"a folder with {name} in it", source))
        shutil.copytree(source, stored)
    else:
        _, path = find_source(source)
        shutil.copyfile(path, stored)
    return stored


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _move(staging: Path, target: Path, version: str) -> None:
    if not target.exists():
        staging.rename(target)
        return
    config = target / "config.pbtxt"
    if not config.is_file() or config.read_bytes() != (staging / "config.pbtxt").read_bytes():
        raise FileExistsError(f"{target}: it is there, with another config: remove it, or choose another name")
    if (target / version).exists():
        raise FileExistsError(f"{target / version}: it is there: choose another version")
    (staging / version).rename(target / version)
