"""Writes that are queued for their tier."""

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

from streaminfer.caching.tiers.protocol import Entry

__all__ = ["PendingWrite", "WriteQueue"]

MAX_QUEUED_WRITES = 256
MAX_QUEUED_BYTES = 64 * 2**20


class PendingWrite(NamedTuple):
    """Queued put; without an entry, the removal of an older value, or the deletion of the key."""

    key: str | bytes
    entry: Entry | None
    size: int
    done: asyncio.Future[bool]
    deletes: bool = False


class WriteQueue:
    """Writes of one tier in order: the latest of each key and, while there is room, values below their minimum age.

    Args:
        preserves: whether the tier preserves an entry below its minimum age when a newer value of its key comes; only
            then a newer value leaves such a one in the queue.
    """

    def __init__(self, *, preserves: bool) -> None:
        self._writes: dict[object, PendingWrite] = {}  # the latest by its key, each earlier one by an object
        self._earlier: dict[object, None] = {}  # these objects, oldest first
        self._puts = self._bytes = 0
        self._preserves = preserves

    def __len__(self) -> int:
        return len(self._writes)

    def __contains__(self, key: object) -> bool:
        return key in self._writes

    def add(self, write: PendingWrite, now_ns: int, *, accepts: bool) -> list[PendingWrite]:
        """Queue a write, and return those that the tier will not make, as these were replaced or there is no room.

        Args:
            write: a put, a removal, or a deletion, for which there is always room.
            now_ns: the current instant of the tier's wall clock.
            accepts: false if there is no room for any.
        """
        if not accepts:
            return [*self.drop(lambda it: it.key == write.key), write]
        rejected = []
        if write.key in self._writes:
            earlier = self._take(write.key)
            if self._preserves and not write.deletes and earlier.entry and earlier.entry.aged_ns > now_ns:
                name = object()
                self._earlier[name] = None
                self._append(name, earlier)
            else:
                rejected.append(earlier)
        while write.entry and self._earlier and self._is_full_for(write):
            rejected.append(self._take(next(iter(self._earlier))))
        if self._is_full_for(write):
            rejected.append(write)
        else:
            self._append(write.key, write)
        return rejected

    def _is_full_for(self, write: PendingWrite) -> bool:
        if write.entry is None:
            return not write.deletes and len(self) - self._puts >= MAX_QUEUED_WRITES
        return self._puts >= MAX_QUEUED_WRITES or (self._puts > 0 and self._bytes + write.size > MAX_QUEUED_BYTES)

    def pop(self) -> PendingWrite:
        """Remove and return the first write."""
        return self._take(next(iter(self._writes)))

    def drop(self, which: Callable[[PendingWrite], Any]) -> list[PendingWrite]:
        """Remove and return the writes for which a function is true."""
        return [self._take(name) for name, write in list(self._writes.items()) if which(write)]

    def _append(self, name: object, write: PendingWrite) -> None:
        self._writes[name] = write
        self._puts += write.entry is not None
        self._bytes += write.size

    def _take(self, name: object) -> PendingWrite:
        write = self._writes.pop(name)
        self._earlier.pop(name, None)
        self._puts -= write.entry is not None
        self._bytes -= write.size
        return write
