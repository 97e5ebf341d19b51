"""One piece of memory that a Triton on the same machine has mapped too, and where tensors lie in it."""

import math
import mmap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Region", "required_bytes"]

_ALIGNMENT = 64  # of every tensor: a cache line, and what vector instructions want

Place = tuple[int, int]
"""Offset and size of a tensor in a region, in bytes."""


def required_bytes(sizes: Iterable[int]) -> int:
    """How large a region must be for tensors of these sizes, in bytes, alignment included."""
    return sum(map(_aligned, sizes))


class Region:
    """Memory that the server has mapped too; one batch uses it at a time.

    Attributes:
        name: under which the server knows it.
        byte_size: how large it is.
        is_stale: the server was restarted, and does not know the region until it is registered again.
    """

    def __init__(self, name: str, memory: mmap.mmap) -> None:
        self.name = name
        self.byte_size = len(memory)
        self.is_stale = False
        self._bytes: npt.NDArray[np.uint8] = np.frombuffer(memory, np.uint8)
        self._end = 0

    def write(self, arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, Place]:
        """Copies arrays to the region's start, in C order, whatever their strides.

        Args:
            arrays: by name; of numbers or booleans.

        Returns:
            Offset and size in bytes, by name.

        Raises:
            ValueError: they do not fit, or one holds Python objects; nothing is written.
        """
        for name, array in arrays.items():
            if array.dtype.hasobject:
                raise ValueError(f"arrays[{name!r}]: expected numbers or booleans, got {array.dtype}")
        places = self._place({name: array.nbytes for name, array in arrays.items()}, 0)
        for name, array in arrays.items():
            np.copyto(self._view(places[name][0], array.dtype, array.shape), array)
        return places

    def reserve(self, sizes: Mapping[str, int]) -> dict[str, Place]:
        """Room for what the server writes, behind what :meth:`write` wrote.

        Args:
            sizes: in bytes, by name.

        Returns:
            Offset and size in bytes, by name.

        Raises:
            ValueError: they do not fit.
        """
        return self._place(sizes, self._end)

    def read(self, offset: int, dtype: npt.DTypeLike, shape: Sequence[int]) -> npt.NDArray[Any]:
        """A copy of an array in the region; it stays as it is whatever becomes of the region.

        Raises:
            ValueError: it would reach past the region's end.
        """
        kind = np.dtype(dtype)
        end = offset + math.prod(shape) * kind.itemsize
        if offset < 0 or end > self.byte_size:
            raise ValueError(f"{self.name}: expected an array within {self.byte_size} bytes, got {offset} to {end}")
        return self._view(offset, kind, tuple(shape)).copy()

    def move_to(self, memory: mmap.mmap) -> None:
        """Continue in other memory of the same size, with the same contents."""
        new = np.frombuffer(memory, np.uint8)
        new[:] = self._bytes
        self._bytes = new

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

    def __repr__(self) -> str:
        return f"Region({self.name}, {self.byte_size} bytes)"


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
