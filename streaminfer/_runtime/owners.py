"""Owners of started parts: a backend or service that several stacks share stops with the last of them.

The first owner of a part starts it, and the last one stops it. An owner does not count if its event loop was closed
without a stop. Thread-safe; owners may be on several event loops.
"""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any

from streaminfer._internal.forking import at_fork, new_reentrant_lock
from streaminfer.protocols import adapt

__all__ = ["last_owner", "own", "parts_of"]


class _Ownership:
    """Owners of one part, and the start or stop that is in progress."""

    def __init__(self, part: Any) -> None:
        self.part = part  # held, so that no other object gets its id
        self.owners: dict[int, asyncio.AbstractEventLoop] = {}
        self.busy: Future[None] | None = None
        self.busy_loop: asyncio.AbstractEventLoop | None = None

    def others(self, owner: object) -> bool:
        """Return whether another owner has the part, on a loop that is not closed."""
        for number, loop in tuple(self.owners.items()):
            if loop.is_closed():
                del self.owners[number]
        return any(number != id(owner) for number in self.owners)

    def is_over(self) -> bool:
        """Return whether no owner is left and nothing is in progress."""
        return self.wait() is None and not self.others(None)

    def wait(self) -> "Future[None] | None":
        """Return the future of the start or stop in progress, or ``None``."""
        return None if self.busy_loop is None or self.busy_loop.is_closed() else self.busy


_owned: dict[int, _Ownership] = {}
_lock = new_reentrant_lock()

at_fork(after_in_child=_owned.clear)


def parts_of(part: Any) -> list[Any]:
    """Return a part and the parts that it leaves to its owner, innermost first; they start and stop together."""
    inside = (each for child in adapt(part).left_to_owner for each in parts_of(child))
    return [*inside, part]


async def own(owner: object, part: Any) -> None:
    """Add ``owner`` to the owners of a part, and start the part if it has no other owner.

    Does not start the parts that it leaves to its owner.

    Raises:
        BaseException: the error of its ``start``; ``owner`` then does not own it.
        RuntimeError: the part is a stack that runs on another event loop; ``owner`` then does not own it.
    """
    node = adapt(part)
    if not node.starts and not node.stops:
        return
    loop = asyncio.get_running_loop()
    async with _turn(part) as ownership:
        shared = ownership.others(owner)
        if not shared:
            await node.start()
        elif node.stack_state and loop not in ownership.owners.values():
            raise RuntimeError(f"{part!r} runs on another event loop: a stack around it needs one of its own")
        ownership.owners[id(owner)] = loop


@asynccontextmanager
async def last_owner(owner: object, part: Any) -> AsyncIterator[bool]:
    """Remove ``owner``, and yield whether it was the last owner; if so, the block must stop the part."""
    async with _turn(part) as ownership:
        shared = ownership.others(owner)
        ownership.owners.pop(id(owner), None)
        yield not shared


@asynccontextmanager
async def _turn(part: Any) -> AsyncIterator[_Ownership]:
    """Wait until no other caller starts or stops a part, then yield its ownership."""
    done: Future[None] = Future()
    done.set_running_or_notify_cancel()  # so that no waiter can cancel it
    while True:
        with _lock:
            for number in [number for number, other in _owned.items() if other.is_over()]:
                del _owned[number]  # left behind by a closed loop
            ownership = _owned.setdefault(id(part), _Ownership(part))
            waits = ownership.wait()
            if waits is None:
                ownership.busy, ownership.busy_loop = done, asyncio.get_running_loop()
                break
        await asyncio.wrap_future(waits)
    try:
        yield ownership
    finally:
        with _lock:
            if ownership.busy is done:
                ownership.busy = ownership.busy_loop = None
            if _owned.get(id(part)) is ownership and ownership.is_over():
                del _owned[id(part)]
        done.set_result(None)
