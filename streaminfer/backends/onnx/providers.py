"""Options of onnxruntime's GPU providers, for :class:`~streaminfer.backends.OnnxBackend` and for Triton.

A provider of onnxruntime takes dozens of options, as strings. These functions set the few that matter to a server with
batches of known sizes. The options are the same inside Triton, whose backend passes them on.

TensorRT compiles an *engine* for a range of shapes, the *optimization profile*: the shapes that the engine must accept,
and the shape for which it is tuned. Without a profile, onnxruntime makes one from the shapes that it has seen. It then
compiles again, for minutes and in the middle of traffic, whenever a shape lies outside. The profile is therefore set
here, from the smallest batch to the largest, and tuned for the largest, because that is when time is short.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Literal

from streaminfer._internal.validation import check_choice, check_count, check_instance, check_path, expected

__all__ = ["cuda_provider", "profile_shapes", "tensorrt_provider"]

Shape = Sequence[int]


def cuda_provider(
    *, device_id: int = 0, memory_limit_bytes: int | None = None, cuda_graph: bool = False
) -> tuple[str, dict[str, str]]:
    """Return the CUDA provider, for ``OnnxBackend(providers=[...])``.

    Args:
        device_id: number of the GPU.
        memory_limit_bytes: limit of the session's arena; ``None``: all memory of the GPU.
        cuda_graph: records the work of a batch, once for each size that ``warmup`` names or that a batcher measures
            when it starts, and replays it for later batches of that size. It needs bound memory, ``sessions=1``,
            outputs whose sizes the model declares, and a model that runs completely on the GPU. Also pass the sizes as
            the batcher's ``preferred_sizes``: batches of other sizes run without a graph.

    Raises:
        ValueError: an argument has a wrong value.
        TypeError: an argument is of a wrong type.
    """
    options = {
        "device_id": str(check_count("device_id", device_id, at_least=0)),
        # allocate the requested size instead of the next power of two, because sessions share one GPU
        "arena_extend_strategy": "kSameAsRequested",
        # the default, an exhaustive search, runs for seconds at every new shape
        "cudnn_conv_algo_search": "HEURISTIC",
    }
    if memory_limit_bytes is not None:
        options["gpu_mem_limit"] = str(check_count("memory_limit_bytes", memory_limit_bytes))
    check_instance("cuda_graph", cuda_graph, bool, "True or False")
    if cuda_graph:
        options["enable_cuda_graph"] = "1"
    return "CUDAExecutionProvider", options


def tensorrt_provider(
    cache: str | os.PathLike[str] | None,
    *,
    batch_sizes: Sequence[int] = (),
    rows: Mapping[str, Shape] | None = None,
    batch_axes: Mapping[str, int] | None = None,
    precision: Literal["fp32", "fp16"] = "fp32",
    device_id: int = 0,
) -> tuple[str, dict[str, str]]:
    """Return the TensorRT provider, for ``OnnxBackend(providers=[tensorrt_provider(...), cuda_provider()])``.

    Name the CUDA provider after it: it runs what TensorRT cannot.

    Args:
        cache: a folder for the compiled engines and timings of this model only; created if missing. ``None``: each
            start compiles again, for minutes. A process that can write there can run code here: never share the folder.
        batch_sizes: the sizes that batches have, as in ``buckets=``; the engine accepts from the smallest to the
            largest.
        rows: the shape of one request, by input; needed with ``batch_sizes``.
        batch_axes: as in ``OnnxBackend``; the default of an input is 0.
        precision: ``"fp32"`` or ``"fp16"``, which may use half precision where that is faster.
        device_id: number of the GPU.

    Raises:
        ValueError: an argument has a wrong value.
        TypeError: an argument is of a wrong type.
    """
    check_choice("precision", precision, ("fp32", "fp16"))
    options = {"device_id": str(check_count("device_id", device_id, at_least=0))}
    if precision == "fp16":
        options["trt_fp16_enable"] = "True"
    if cache is not None:
        options |= cache_options(str(check_path("cache", cache).absolute()))
    if batch_sizes:
        if not rows:
            raise ValueError(expected("rows", "the shape of one request, by input, beside batch_sizes", rows))
        options |= profile_shapes(rows, batch_sizes, batch_axes or {})
    return "TensorrtExecutionProvider", options


def cache_options(folder: str, *, true: str = "True") -> dict[str, str]:
    """Return options that store engines and timings in a folder; onnxruntime rejects "1" for true, Triton takes it."""
    return {
        "trt_engine_cache_enable": true,
        "trt_engine_cache_path": folder,
        "trt_timing_cache_enable": true,
        "trt_timing_cache_path": folder,
    }


def profile_shapes(rows: Mapping[str, Shape], batch_sizes: Sequence[int], axes: Mapping[str, int]) -> dict[str, str]:
    """Return the optimization profile, from the smallest batch to the largest.

    Args:
        rows: the shape of one request, by input.
        batch_sizes: at least one.
        axes: the batch axis by input; the default of an input is 0.

    Raises:
        ValueError: a size is below 1; an axis does not exist; a profile cannot contain a name.
        TypeError: a size is no whole number.
    """
    sizes = sorted(check_count("batch_sizes", size) for size in batch_sizes)
    profile = {}
    for kind, size in (("min", sizes[0]), ("opt", sizes[-1]), ("max", sizes[-1])):
        parts = []
        for name, row in rows.items():
            if not name or set(name) & set(",:"):
                raise ValueError(expected("rows", "input names without ',' and ':'", name))
            axis, shape = axes.get(name, 0), [check_count(f"rows[{name!r}]", one) for one in row]
            if not 0 <= axis <= len(shape):
                raise ValueError(expected(f"batch_axes[{name!r}]", f"an axis from 0 to {len(shape)}", axis))
            shape.insert(axis, size)
            parts.append(f"{name}:{'x'.join(map(str, shape))}")
        profile[f"trt_profile_{kind}_shapes"] = ",".join(parts)
    return profile
