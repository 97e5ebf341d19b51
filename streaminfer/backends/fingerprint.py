"""Identity of a backend as a short text: two backends that can return different results never share a fingerprint.

The fingerprint becomes part of every key of a cache around the backend. It must be the same in another process, on
another machine and after a restart; otherwise responses stored on disk or in Redis are never found again.

**An ONNX model** is identified by its bytes, and by those of the files of weights that it names (external data);
their path does not count. Its settings count too: the batch axes, the values of shared inputs, and the execution
providers, in order, with their options, because TensorFloat-32 or half precision give other numbers. Not included are
options that only say where the model runs and with how much memory, the version of onnxruntime, and the user's
``session_options``. If a change of these matters, change the ``version`` of the cache. The digest is BLAKE2b, 128 bits:
it is in the standard library, cannot be forged, and takes about a second per gigabyte at each load.

The digest is made of the bytes that are loaded. The files of weights are read once, and onnxruntime gets these bytes.
Otherwise onnxruntime would map the files into memory; overwriting a file in place would then change the weights of the
running model, or end the process if the file became shorter. onnxruntime reads the model's own file again, because
providers look for their files beside it; a file that changes between the two readings is an error.

To find the external files, the model is parsed as protocol buffers: only tags and lengths are read, and weights are
skipped (https://protobuf.dev/programming-guides/encoding; ``onnx.proto`` for the field numbers).

**A function** is identified by its module and qualified name, if these are unambiguous (``_internal.qualified_name``).
The behavior of a function can change under the same name; ``version`` then distinguishes old from new.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from streaminfer._internal._protobuf_cy import split_fields
from streaminfer._internal.qualified_name import name_of_function
from streaminfer._internal.validation import expected

__all__ = ["ModelFiles", "external_files", "fingerprint_of_function", "fingerprint_of_model"]

_DIGEST_BYTES = 16
_ORT_FORMAT = b"ORTM"  # bytes 4 to 8 of onnxruntime's own format, which has no external files
_EXECUTION_OPTIONS = frozenset(
    {
        "arena_extend_strategy",
        "device_id",
        "gpu_mem_limit",
        "trt_engine_cache_enable",
        "trt_engine_cache_path",
        "trt_max_workspace_size",
        "trt_timing_cache_enable",
        "trt_timing_cache_path",
        "user_compute_stream",
    }
)
"""Options of providers that change no result."""

_Mark = tuple[int, int, int, int, int]
"""Device, inode, size, and times of the last change of contents and of the inode; the last time cannot be set back."""

_LENGTH_DELIMITED = 2
_EXTERNAL_DATA = 13  # a field of a tensor
_BELOW: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {_EXTERNAL_DATA: "entry"},
}
"""Fields that can lead to external data: by kind of message, the field number and the kind of the inner message."""


@attrs.frozen
class ModelFiles:
    """Contents of a model's file and of its external files.

    Attributes:
        digest: digest of all contents, hexadecimal; ``None``: not known.
        weights: the contents of each external file, by the name that the model uses for it.
        size: bytes of all files.
    """

    digest: str | None
    weights: Mapping[str, bytes]
    size: int
    _marks: Mapping[Path, "_Mark"]

    @classmethod
    def read(cls, path: Path) -> "ModelFiles":
        """Read the files of a model, which is then loaded from the returned contents.

        Raises:
            ValueError: the file is not a model, a file cannot be read, or a file changed meanwhile.
        """
        weights: dict[str, bytes] = {}
        marks = {path: _mark(path)}
        try:
            contents = path.read_bytes()
            digest = _digest(contents)
            for name in external_files(contents, repr(path.name)):
                external_path = _external_path(path, name)
                marks[external_path] = _mark(external_path)
                weights[name] = external_path.read_bytes()
                digest.update(_digest(weights[name]).digest())
        except OSError as error:
            raise ValueError(f"path_or_bytes: expected to read {str(path)!r} and its weights: {error}") from error
        files = cls(digest.hexdigest(), weights, len(contents) + sum(map(len, weights.values())), marks)
        files.check_unchanged()
        return files

    @classmethod
    def of_bytes(cls, model: bytes) -> "ModelFiles":
        """Return the contents of a model that was given as bytes; if it has external files, their folder is not known.

        Raises:
            ValueError: the bytes are not a model.
        """
        has_files = external_files(model, f"{len(model)} bytes")
        return cls(None if has_files else _digest(model).hexdigest(), {}, len(model), {})

    def check_unchanged(self) -> None:
        """Check that the files are still those that were read.

        Raises:
            ValueError: a file was changed, replaced or deleted.
        """
        for path, mark in self._marks.items():
            try:
                changed = _mark(path) != mark
            except OSError:
                changed = True
            if changed:
                raise ValueError(
                    f"path_or_bytes: expected files that stay as they are while they are loaded, got {str(path)!r}, "
                    "which changed: put all files of a version in place before loading it"
                )


def fingerprint_of_model(
    digest: str,
    *,
    axes: Sequence[tuple[str, int | None]],
    shared: Mapping[str, npt.NDArray[Any]],
    providers: Sequence[tuple[str, Mapping[str, Any]]],
) -> str:
    """Return the digest of a model and its settings, as 32 hexadecimal digits.

    Args:
        digest: digest of the model's contents.
        axes: inputs and outputs in the model's order, each with its batch axis.
        shared: the values of shared inputs.
        providers: execution providers, best first.
    """
    chosen = [
        (name, sorted((key, str(value)) for key, value in options.items() if key not in _EXECUTION_OPTIONS))
        for name, options in providers
    ]
    settings = _digest(repr((digest, tuple(axes), chosen)).encode())
    for name in sorted(shared):
        value = np.ascontiguousarray(shared[name])
        settings.update(repr((name, value.dtype.str, shared[name].shape, value.nbytes)).encode())
        settings.update(value.tobytes())
    return settings.hexdigest()


def fingerprint_of_function(function: Callable[..., Any], version: str | None) -> str | None:
    """Return module, name and version; ``None`` if the name does not identify the function."""
    name = name_of_function(function)
    return name if name is None or version is None else f"{name} {version}"


def external_files(model: bytes, name: str) -> list[str]:
    """Return the names of the files with a model's weights, sorted; they are relative to the model's folder.

    Args:
        model: the model's bytes.
        name: what the model is, for the error.

    Raises:
        ValueError: the bytes are not a model.
    """
    if model[4:8] == _ORT_FORMAT:
        return []
    try:
        return sorted(set(_locations(memoryview(model), "model")))
    except ValueError as error:
        raise ValueError(
            f"path_or_bytes: expected an ONNX model that onnxruntime loads, got {name}: {error}"
        ) from error


def _locations(message: memoryview, kind: str) -> Iterator[str]:
    for number, below in _BELOW[kind].items():
        for inner in _fields(message, number):
            if below != "entry":
                yield from _locations(inner, below)
            elif _fields(inner, 1)[-1:] == [b"location"]:  # of several keys, the last one counts
                yield from (str(name, "utf-8") for name in _fields(inner, 2)[-1:])


def _fields(message: memoryview, number: int) -> list[memoryview]:
    """Return the contents of all fields with a number, which are text, bytes or messages."""
    places = split_fields(message, number << 3 | _LENGTH_DELIMITED, -1)[1]
    return [message[begin:end] for begin, end in places]


def _digest(contents: bytes) -> "hashlib.blake2b":
    return hashlib.blake2b(contents, digest_size=_DIGEST_BYTES)


def _external_path(model: Path, name: str) -> Path:
    """Return the path of an external file; it must lie in the model's folder, or any file could be read."""
    folder = os.path.normpath(model.parent)
    path = Path(os.path.normpath(model.parent / name))
    if PurePath(name).is_absolute() or not path.is_relative_to(folder):
        raise ValueError(expected("path_or_bytes", "a model whose external files are in its folder, or below", name))
    return path


def _mark(path: Path) -> _Mark:
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
