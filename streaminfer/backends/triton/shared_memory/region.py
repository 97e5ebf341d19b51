"""One region of memory that a Triton server on the same machine has also mapped, and the places of tensors in it."""

import math
import mmap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Region", "required_bytes"]

_ALIGNMENT = 64  # bytes, for every tensor: a cache line, and enough for vector instructions

Place = tuple[int, int]
"""Offset and size of a tensor in a region, in bytes."""


def required_bytes(sizes: Iterable[int]) -> int:
    """Return the bytes that a region needs for tensors of these sizes, alignment included."""
    return sum(map(_aligned, sizes))


class Region:
    """Memory that the server has also mapped; one batch uses it at a time.

    Attributes:
        name: the name under which the server knows the region.
        byte_size: its size.
    """

    def __init__(self, name: str, memory: mmap.mmap) -> None:
        self.name = name
        self.byte_size = len(memory)
        self._bytes: npt.NDArray[np.uint8] = np.frombuffer(memory, np.uint8)
        self._end = 0

    def write(self, arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, Place]:
        """Copy arrays to the start of the region, in C order, whatever their strides.

        Args:
            arrays: arrays of numbers or booleans, by name.

        Returns:
            Offset and size in bytes, by name.

        Raises:
            ValueError: the arrays do not fit, or one holds Python objects; nothing is written.
        """
        for name, array in arrays.items():
            if array.dtype.hasobject:
                raise ValueError(f"arrays[{name!r}]: expected numbers or booleans, got {array.dtype}")
        places = self._place({name: array.nbytes for name, array in arrays.items()}, 0)
        for name, array in arrays.items():
            np.copyto(self._view(places[name][0], array.dtype, array.shape), array)
        return places

    def reserve(self, sizes: Mapping[str, int]) -> dict[str, Place]:
        """Return places for the outputs that the server writes, after the arrays of :meth:`write`.

        Args:
            sizes: sizes in bytes, by name.

        Returns:
            Offset and size in bytes, by name.

        Raises:
            ValueError: the outputs do not fit.
        """
        return self._place(sizes, self._end)

    def read(self, offset: int, dtype: npt.DTypeLike, shape: Sequence[int]) -> npt.NDArray[Any]:
        """Return a copy of an array in the region; later changes to the region do not affect it.

        Raises:
            ValueError: the array would reach past the region's end.
        """
        kind = np.dtype(dtype)
        end = offset + math.prod(shape) * kind.itemsize
        if offset < 0 or end > self.byte_size:
            raise ValueError(f"{self.name}: expected an array within {self.byte_size} bytes, got {offset} to {end}")
        return self._view(offset, kind, tuple(shape)).copy()

    def _place(self, sizes: Mapping[str, int], start: int) -> dict[str, Place]:
        places: dict[str, Place] = {}
        for name, size in sizes.items():
            places[name] = (start, size)
            start += _aligned(size)
        if start > self.byte_size:
            raise ValueError(f"{self.name}: expected at most {self.byte_size} bytes, got {start}")
        self._end = start
        return places

    def _view(self, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
        return np.ndarray(shape, dtype, buffer=self._bytes, offset=offset)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
