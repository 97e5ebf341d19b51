"""Identity of a backend as a short text: two that can return different results never have the same one.

It becomes part of every key of a cache in front (``fingerprint``, found inward), so it has to be the same in another
process, on another machine and after a restart, or stored responses on disk or in Redis are never found again.

**An ONNX model** is its bytes and those of the files of weights beside it, which it names (external data); where they
lie does not count. Also its settings: the batch axes, the values of shared inputs, and the execution providers, in
order, with their options, since TensorFloat-32 or half precision give other numbers. Options that only say where and
with how much memory it runs are left out. So are the version of onnxruntime and what ``session_options`` of one's own
say: a change of these that matters needs another ``version`` of the cache. The digest is BLAKE2b, 128 bits:
in the standard library, not to be forged, and about a second per gigabyte, once a load.

It is made of the bytes that are loaded. The files of weights are read once, and onnxruntime gets what was read: left to
itself it maps them into memory, so that a file that is overwritten in place changes the weights of a model that
serves (or ends the process, if it becomes shorter). The model's own file onnxruntime reads itself, because providers
look for their files beside it; one that changes between the two readings is an error.

To find the external files the model is walked as what it is on the wire, protocol buffers: tags and lengths alone, so
that weights are skipped and not read (https://protobuf.dev/programming-guides/encoding; ``onnx.proto`` for the
numbers).

**A function** is its module and qualified name, if these say all (``_internal.qualified_name``). What it does may
change under the same name; ``version`` says so.
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

__all__ = ["ModelFiles", "digest_of_bytes", "external_files", "fingerprint_of_function", "fingerprint_of_model"]

_DIGEST_BYTES = 16
_ORT_FORMAT = b"ORTM"  # onnxruntime's own, at bytes 4 to 8: all in one file
_ELSEWHERE = frozenset(
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
"""Device, inode, size, and times of change of contents and of inode: the last one cannot be set back."""

_LENGTH_DELIMITED = 2
_EXTERNAL_DATA = 13  # of a tensor
_BELOW: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {_EXTERNAL_DATA: "entry"},
}
"""Which fields of a message can lead to external data, by number, and to what kind of message."""


@attrs.frozen
class ModelFiles:
    """A model's file and its external files as they were read.

    Attributes:
        digest: of what they hold, hexadecimal.
        weights: what each external file holds, by the name that the model has for it.
        size: bytes of all.
    """

    digest: str
    weights: Mapping[str, bytes]
    size: int
    _marks: Mapping[Path, "_Mark"]

    @classmethod
    def read(cls, path: Path) -> "ModelFiles":
        """Read them, to load the model from what is returned.

        Raises:
            ValueError: that is no model, a file cannot be read, or one changed meanwhile.
        """
        digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
        weights: dict[str, bytes] = {}
        marks = {path: _mark(path)}
        try:
            contents = path.read_bytes()
            digest.update(contents)
            for name in _names(path, contents):
                place = _place(path, name)
                marks[place] = _mark(place)
                weights[name] = place.read_bytes()
                digest.update(hashlib.blake2b(weights[name], digest_size=_DIGEST_BYTES).digest())
        except OSError as error:
            raise ValueError(f"path_or_bytes: expected to read {str(path)!r} and its weights: {error}") from error
        files = cls(digest.hexdigest(), weights, len(contents) + sum(map(len, weights.values())), marks)
        files.check_unchanged()
        return files

    def check_unchanged(self) -> None:
        """Check that the files are still those that were read.

        Raises:
            ValueError: one of them is another, or is gone.
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


def digest_of_bytes(model: bytes) -> str | None:
    """Return the digest of a model given as bytes; ``None`` if some of it is in files, whose place is not known."""
    if external_files(model):
        return None
    return hashlib.blake2b(model, digest_size=_DIGEST_BYTES).hexdigest()


def fingerprint_of_model(
    digest: str,
    *,
    axes: Sequence[tuple[str, int | None]],
    shared: Mapping[str, npt.NDArray[Any]],
    providers: Sequence[tuple[str, Mapping[str, Any]]],
) -> str:
    """Return the digest of a model and its settings, as 32 hexadecimal digits.

    Args:
        digest: of its contents.
        axes: inputs and outputs in the model's order, each with its batch axis.
        shared: the values of shared inputs.
        providers: best first.
    """
    settings = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    chosen = [
        (name, sorted((key, str(value)) for key, value in options.items() if key not in _ELSEWHERE))
        for name, options in providers
    ]
    settings.update(repr((digest, tuple(axes), chosen)).encode())
    for name in sorted(shared):
        value = np.ascontiguousarray(shared[name])
        settings.update(repr((name, value.dtype.str, shared[name].shape, value.nbytes)).encode())
        settings.update(value.tobytes())
    return settings.hexdigest()


def fingerprint_of_function(function: Callable[..., Any], version: str | None) -> str | None:
    """Module, name and version; ``None`` where the name does not say which function it is."""
    name = name_of_function(function)
    return name if name is None or version is None else f"{name} {version}"


def external_files(model: bytes) -> list[str]:
    """The names of the files that a model's weights lie in, sorted, as the model gives them: relative to it.

    Raises:
        ValueError: that is no model.
    """
    if model[4:8] == _ORT_FORMAT:
        return []
    try:
        return sorted(set(_locations(memoryview(model), "model")))
    except ValueError as error:
        raise ValueError(f"model: expected an ONNX model, got something else: {error}") from error


def _locations(message: memoryview, kind: str) -> Iterator[str]:
    for number, below in _BELOW[kind].items():
        for inner in _fields(message, number):
            if below != "entry":
                yield from _locations(inner, below)
            elif _fields(inner, 1)[-1:] == [b"location"]:  # the last counts where there are several
                yield from (str(name, "utf-8") for name in _fields(inner, 2)[-1:])


def _fields(message: memoryview, number: int) -> list[memoryview]:
    """The contents of the fields of a number that are text, bytes or messages."""
    places = split_fields(message, number << 3 | _LENGTH_DELIMITED, -1)[1]
    return [message[begin:end] for begin, end in places]


def _names(path: Path, contents: bytes) -> list[str]:
    try:
        return external_files(contents)
    except ValueError as error:
        raise ValueError(
            f"path_or_bytes: expected an ONNX model that onnxruntime loads, got {path.name!r}: {error}"
        ) from error


def _place(model: Path, name: str) -> Path:
    """Where an external file is: in the model's folder or below, as onnxruntime demands, or any file could be read."""
    folder = os.path.normpath(model.parent)
    place = Path(os.path.normpath(model.parent / name))
    if PurePath(name).is_absolute() or not place.is_relative_to(folder):
        raise ValueError(expected("path_or_bytes", "a model whose external files are in its folder, or below", name))
    return place


def _mark(path: Path) -> _Mark:
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
