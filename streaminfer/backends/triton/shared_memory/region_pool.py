"""System shared memory between this process and a Triton server on the same machine.

Idea: a batch is copied once into memory that the server has mapped, instead of being serialized, sent through a
socket and parsed; the response comes back the same way. A *region* is one such piece of memory. It is registered with
the server once and used for many batches. The pool always takes the smallest idle region that is large enough. It soon
has as many regions as batches run at a time, each as large as the largest batch.

Invariants:

* **A region has a name in the file system only while it is being registered.** Triton maps the memory when it is
  registered and never opens it by name again, so the pool removes the name at once. The kernel frees memory without a
  name with the last process that maps it: nothing is left behind by an exception, a cancellation, the end of the
  interpreter, SIGTERM or SIGKILL. (``multiprocessing.shared_memory``, and ``tritonclient`` on top of it, keep the name.
  Their tracker process removes names that other processes still need, and leaves names behind if it dies too.)
* **A region whose request ended without a response is never used again** (``release(region, completed=False)``:
  cancelled, timed out, connection lost). The server may still read it and will still write to it. The region is
  *retired*: the pool does not read it again, and periodically tells the server to forget it. Triton since 2.50 rejects
  or postpones the call while a request still uses the region, so an early call is harmless. Older versions crash, so
  :data:`OLDEST_SERVER` is the oldest that may be used.
* **A restarted server knows no region**: the first request that it rejects for that reason retires all of them.
* **Results never change under the caller**: :meth:`Region.read` copies, with one ``memcpy`` per batch. Views would cost
  nothing, but one stored row would keep a whole region that the pool needs.
* Memory is allocated before it is used (``posix_fallocate``): the pool then notices a full ``/dev/shm``, instead of a
  SIGBUS in the middle of a copy, here or in the server. If it is full, or ``max_bytes`` are in use, there is no region,
  and the batch is sent as the payload of its request.

If a client is killed, the memory of its regions stays *in the server*; the next client frees it. Names identify the
process that created them, and each pool holds an abstract socket of that name, which the kernel frees with the process.
A name without a socket is removed. A pool looks only at names of its own network namespace, because it cannot see the
sockets of another.

One pool belongs to one event loop. ``write`` and ``read`` of one region may run in any thread.
"""

import asyncio
import contextlib
import itertools
import mmap
import os
import secrets
import socket
import sys
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

from streaminfer.backends.triton.shared_memory.region import Region
from streaminfer.errors import Closed

__all__ = ["OLDEST_SERVER", "RegionPool"]

OLDEST_SERVER = (2, 50)
"""The first Triton that does not crash when a region is unregistered while a request uses it."""

_FOLDER = Path("/dev/shm")  # noqa: S108 - the folder of POSIX shared memory on Linux; names are exclusive and random
_CLEANUP_PAUSE_S = 0.1  # between two rounds of calls that make the server forget regions
_RELEASE_LIMIT_S = 0.1  # time that `close` gives the server to free memory that requests still use

Register = Callable[[str, str, int], Awaitable[None]]
"""Registers a region with the server by its name, key and size in bytes; returns when the server has mapped it."""
Unregister = Callable[[str], Awaitable[None]]


class RegionPool:
    """Regions for the batches of one backend; the module's text lists the invariants.

    Args:
        register: registers a region with the server: ``await register(name, key, byte_size)``.
        unregister: makes the server forget a region: ``await unregister(name)``; an unknown name is not an error.
        registered: returns the names that the server knows, also those of killed clients.
        prefix: prefix of the names: letters, digits and ``_``; the pool finds the regions of killed clients by it.
        max_idle: the most idle regions to keep.
        max_bytes: the most bytes of all regions, including those that the server has not forgotten yet.

    Attributes:
        byte_size: bytes of all regions, including those that the server has not forgotten yet.

    Raises:
        OSError: this is not Linux, so there is no POSIX shared memory.
    """

    def __init__(
        self,
        register: Register,
        unregister: Unregister,
        registered: Callable[[], Awaitable[Iterable[str]]],
        *,
        prefix: str = "streaminfer",
        max_idle: int = 8,
        max_bytes: int = 1 << 30,
    ) -> None:
        if sys.platform != "linux":
            raise OSError(f"shared memory with Triton needs Linux, this is {sys.platform}")
        self._register = register
        self._unregister = unregister
        self._registered = registered
        self._max_idle = max_idle
        self._max_bytes = max_bytes
        network_namespace = Path("/proc/self/ns/net").stat().st_ino
        self._family = f"{prefix}-{network_namespace}-"
        self._owner = f"{self._family}{os.getpid()}.{secrets.token_hex(8)}"
        self._release_owner = weakref.finalize(self, os.close, _bind_owner_socket(self._owner))
        self._numbers = itertools.count(1)
        self._idle: list[Region] = []  # the most recently used region is last
        self._in_use: set[Region] = set()
        self._retired: deque[tuple[str, int]] = deque()
        self._cleanup: asyncio.Task[None] | None = None
        self._next_cleanup_s = 0.0
        self._started = False
        self._closed = False
        self.byte_size = 0

    async def start(self) -> None:
        """Remove what killed clients left, here and in the server; the first :meth:`acquire` also calls this.

        Raises:
            BaseException: the exception of ``registered``.
        """
        if self._started:
            return
        self._started = True
        self._remove_orphans()
        for name in await self._registered():
            if self._is_orphan(name):
                await self._forget(name)

    async def acquire(self, byte_size: int) -> Region | None:
        """Return a free region of at least ``byte_size`` bytes; it is the caller's until :meth:`release`.

        Returns:
            The region; ``None`` if memory is short: send this batch as payload.

        Raises:
            Closed: the pool is closed.
            BaseException: the exception of ``register``.
        """
        if self._closed:
            raise Closed("RegionPool is closed")
        await self.start()
        self._clean_up_soon()
        fitting = [region for region in self._idle if region.byte_size >= byte_size]
        if not fitting:
            return await self._make(byte_size)
        region = min(reversed(fitting), key=lambda one: one.byte_size)
        self._idle.remove(region)
        self._in_use.add(region)
        return region

    def release(self, region: Region, *, completed: bool) -> None:
        """Return a region to the pool.

        Args:
            region: from :meth:`acquire`.
            completed: whether the server has responded to the request with this region (or no request used it). Pass
                false for a request that was cancelled or ran out of time, and for an error that may come from the
                connection: the server may still use the region.
        """
        if region not in self._in_use:
            return  # retired meanwhile, with all others
        self._in_use.remove(region)
        if not completed:
            self._retire(region)
            return
        self._idle.append(region)
        if len(self._idle) > self._max_idle:
            smallest = min(self._idle, key=lambda one: one.byte_size)
            self._idle.remove(smallest)
            self._retire(smallest)

    def retire_all(self) -> None:
        """Use no region again, because the server was restarted and knows none; running requests keep theirs."""
        for region in (*self._idle, *self._in_use):
            self._retire(region)
        self._idle.clear()
        self._in_use.clear()

    async def close(self) -> None:
        """Make the server forget every region. May be repeated.

        If a request still uses a region shortly after, or the server does not respond, the memory stays with the server
        until the next client starts.
        """
        self._closed = True
        try:
            if self._cleanup is not None:
                self._cleanup.cancel()
                await asyncio.wait([self._cleanup])
            self.retire_all()
            await self._clean_up_once()
            # a server responds shortly before it frees the memory, and continues requests that were cancelled; a
            # server that does not respond must not delay the close again
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_RELEASE_LIMIT_S):
                    while self._retired:
                        await asyncio.sleep(0.01)
                        await self._clean_up_once()
        finally:
            self._release_owner()

    async def _make(self, byte_size: int) -> Region | None:
        size = _size_class(byte_size)
        while self._idle and self.byte_size + size > self._max_bytes:  # all idle regions are too small
            self._retire(self._idle.pop(0))
        if self.byte_size + size > self._max_bytes:
            return None
        name = f"{self._owner}-{next(self._numbers)}"
        path = _FOLDER / name
        try:
            memory = _new_memory(path, size)
            if memory is None:
                return None
            self.byte_size += size
            try:
                await self._register(name, name, size)
            except BaseException:
                self._retired.append((name, size))  # the server may have registered it all the same
                raise
        finally:
            path.unlink(missing_ok=True)
        if self._closed:
            await self._forget(name)
            raise Closed("RegionPool is closed")
        region = Region(name, memory)
        self._in_use.add(region)
        return region

    def _retire(self, region: Region) -> None:
        self._retired.append((region.name, region.byte_size))

    def _clean_up_soon(self) -> None:
        if not self._retired or self._cleanup is not None:
            return
        loop = asyncio.get_running_loop()
        if loop.time() < self._next_cleanup_s:
            return
        self._cleanup = loop.create_task(self._clean_up_once())
        self._cleanup.add_done_callback(self._cleaned_up)

    def _cleaned_up(self, task: asyncio.Task[None]) -> None:
        self._cleanup = None
        self._next_cleanup_s = task.get_loop().time() + _CLEANUP_PAUSE_S

    async def _clean_up_once(self) -> None:
        """Ask the server once to forget each retired region; stop when it does not respond."""
        for _ in range(len(self._retired)):
            name, size = self._retired[0]
            forgotten = await self._forget(name)
            if forgotten:
                self._retired.popleft()
                self.byte_size -= size
            else:
                self._retired.rotate(-1)
            if forgotten is None:
                return

    async def _forget(self, name: str) -> bool | None:
        """Return whether the server has forgotten a region; ``None`` if it does not respond."""
        try:
            await self._unregister(name)
        except TimeoutError:
            return None
        except Exception:  # noqa: BLE001 - a request uses the region, or the server failed: the next round tries again
            return False
        return True

    def _remove_orphans(self) -> None:
        for path in _FOLDER.glob(f"{self._family}*"):
            if self._is_orphan(path.name):
                # another client may remove it too, or another user owns it
                with contextlib.suppress(FileNotFoundError, PermissionError):
                    path.unlink()

    def _is_orphan(self, name: str) -> bool:
        """Return whether a pool made this name and its process has ended."""
        owner, _, number = name.rpartition("-")
        if not owner.startswith(self._family) or not number.isdigit():
            return False
        try:
            os.close(_bind_owner_socket(owner))
        except OSError:
            return False
        return True


def _size_class(size: int) -> int:
    """Round a size up, in whole pages: 4 sizes per octave, so that at most a quarter is wasted and sizes repeat."""
    step = max(mmap.PAGESIZE, 1 << max(0, (size - 1).bit_length() - 3))
    return -(-size // step) * step


def _new_memory(path: Path, size: int) -> mmap.mmap | None:
    """Return new memory of a name in the file system; ``None`` if memory is short."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size)
        return mmap.mmap(descriptor, size)
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _bind_owner_socket(owner: str) -> int:
    """Bind the abstract socket of a name and return its descriptor; the kernel frees it with the process.

    Raises:
        OSError: another process holds the socket, so it is alive.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as owner_socket:
        owner_socket.bind(f"\0{owner}")
        return owner_socket.detach()
