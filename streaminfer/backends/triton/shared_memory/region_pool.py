"""System shared memory between this process and a Triton on the same machine.

Idea: a batch is copied once into memory that the server has mapped, instead of being serialized, sent through a
socket and parsed; the response comes back the same way. A *region* is one such piece of memory. It is registered with
the server once and used for many batches: the pool hands out the smallest idle region that is large enough, so that
it soon holds as many regions as batches run at a time, each as large as the largest batch.

Invariants:

* **A region has a name in the file system only while it is being registered.** Triton maps the memory when it is
  registered and never opens it by name again, so the name is removed at once. Memory without a name goes with the last
  process that maps it: nothing is left behind by an exception, a cancellation, the end of the interpreter, SIGTERM or
  SIGKILL. (``multiprocessing.shared_memory``, and ``tritonclient`` on top of it, keep the name, hand it to a tracker
  process that removes names which other processes still need, and leave it behind where the tracker dies too.)
* **A region whose request ended without a response is never used again** (``release(region, completed=False)``:
  cancelled, timed out, connection lost). The server may still read it and will still write to it. It is *retired*:
  it is not read again, and the server is told periodically to forget it. Triton from 2.50 on refuses, or
  puts off, to forget a region that a request still uses, so asking too early is harmless; older ones crash, which is
  why :data:`OLDEST_SERVER` is the oldest that may be used.
* **Results never change under the caller**: :meth:`Region.read` copies. The copy is one ``memcpy`` a batch. Views
  would be free, but one kept row would hold on to a whole region that the pool needs.
* The memory is there before it is used (``posix_fallocate``): a full ``/dev/shm`` is noticed here, and not as SIGBUS
  in the middle of a copy, here or in the server. Then, or when ``max_bytes`` are in use, there is no region, and the
  batch goes in the payload of its request.

What a killed client leaves *in the server*, the memory of its regions, is given back by the next client: names say
which process made them, and each pool holds an abstract socket of that name, which the kernel takes away with the
process. A name whose socket is gone is removed. Only names of the same network namespace are looked at, since sockets
of another cannot be seen.

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

_FOLDER = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lives on Linux; names are exclusive and unguessable
_REST_S = 0.1  # between two rounds of calls that make the server forget regions
_LET_GO_S = 0.1  # time at the end for a server to let go of memory that requests use

Register = Callable[[str, str, int], Awaitable[None]]
"""Makes a region known to the server by its name, its key and its bytes; returns once the server has mapped it."""
Unregister = Callable[[str], Awaitable[None]]


class RegionPool:
    """Regions for the batches of one backend; see the module's text for what it guarantees.

    Args:
        register: makes a region known to the server: ``await register(name, key, byte_size)``.
        unregister: makes the server forget one: ``await unregister(name)``; a name that it does not know is no error.
        registered: the names that the server knows, among them those that a killed client left there.
        prefix: of the names, letters, digits and ``_``: what a killed client left is found by it.
        max_idle: how many unused regions are kept.
        max_bytes: of all regions together, those included that the server has not yet forgotten.

    Raises:
        OSError: there is no POSIX shared memory here: not Linux.
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
        self._family = f"{prefix}-{_network_namespace()}-"
        self._owner = f"{self._family}{os.getpid()}.{secrets.token_hex(8)}"
        self._give_up = weakref.finalize(self, os.close, _hold(self._owner))
        self._numbers = itertools.count(1)
        self._idle: list[Region] = []  # the last one was used last
        self._held: set[Region] = set()
        self._retired: deque[tuple[str, int]] = deque()
        self._sweep: asyncio.Task[None] | None = None
        self._next_sweep_s = 0.0
        self._started = False
        self._closed = False
        self._bytes = 0

    @property
    def byte_size(self) -> int:
        """Bytes of all regions, those included that the server has not yet forgotten."""
        return self._bytes

    async def start(self) -> None:
        """Removes what killed clients left, here and in the server; else the first :meth:`acquire` does.

        Raises:
            BaseException: what ``registered`` raised.
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
            The region; ``None`` where memory is short: send this batch as payload.

        Raises:
            Closed: closed.
            BaseException: what ``register`` raised.
        """
        if self._closed:
            raise Closed("RegionPool is closed")
        await self.start()
        self._sweep_soon()
        fitting = [region for region in self._idle if region.byte_size >= byte_size]
        if not fitting:
            return await self._make(byte_size)
        region = min(reversed(fitting), key=lambda one: one.byte_size)
        self._idle.remove(region)
        self._held.add(region)
        if region.is_stale:
            await self.reregister(region)
        return region

    def release(self, region: Region, *, completed: bool) -> None:
        """Gives a region back.

        Args:
            region: from :meth:`acquire`.
            completed: the server's response to the request that named it has come (or no request ever named it). Say
                false for a request that was cancelled or ran out of time, and for an error that the connection may
                have made: the server may still use the region.
        """
        if region not in self._held:
            return  # retired by a renewal that failed, or closed meanwhile
        self._held.remove(region)
        if not completed:
            self._retire(region)
            return
        self._idle.append(region)
        if len(self._idle) > self._max_idle:
            smallest = min(self._idle, key=lambda one: one.byte_size)
            self._idle.remove(smallest)
            self._retire(smallest)

    async def reregister(self, region: Region) -> None:
        """Register a region again, with its contents, because the server was restarted and does not know it.

        The other regions are registered again when they are next acquired.

        Raises:
            BaseException: what ``register`` or ``unregister`` raised; the region is retired.
        """
        for other in (*self._idle, *self._held):
            other.is_stale = True
        try:
            # a server that was not restarted forgets the old memory first
            await self._unregister(region.name)
            memory = await self._map(region.name, region.byte_size)
            await self._check_open(region.name)
        except BaseException:
            self._held.discard(region)
            self._retire(region)
            raise
        region.move_to(memory)
        region.is_stale = False

    async def close(self) -> None:
        """Makes the server forget every region. May be repeated.

        The memory of a region that a request still uses a moment later stays with the server until a next client
        starts, as does that of a server which does not respond.
        """
        self._closed = True
        try:
            if self._sweep is not None:
                self._sweep.cancel()
                await asyncio.wait([self._sweep])
            for region in (*self._idle, *self._held):
                self._retire(region)
            self._idle.clear()
            self._held.clear()
            await self._sweep_once()
            # a server responds a moment before it lets go of the memory, and works on requests that were cancelled; a
            # silent one must not be waited for again
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LET_GO_S):
                    while self._retired:
                        await asyncio.sleep(0.01)
                        await self._sweep_once()
        finally:
            self._give_up()

    async def _make(self, byte_size: int) -> Region | None:
        size = _size_class(byte_size)
        while self._idle and self._bytes + size > self._max_bytes:  # they are all too small
            self._retire(self._idle.pop(0))
        if self._bytes + size > self._max_bytes:
            return None
        name = f"{self._owner}-{next(self._numbers)}"
        self._bytes += size
        try:
            memory = await self._map(name, size)
        except MemoryError:
            self._bytes -= size
            return None
        except BaseException:
            self._retired.append((name, size))  # the server may know it all the same
            raise
        await self._check_open(name)
        region = Region(name, memory)
        self._held.add(region)
        return region

    async def _map(self, name: str, size: int) -> mmap.mmap:
        """New memory that the server knows under ``name``.

        Raises:
            MemoryError: there is none left.
            BaseException: what ``register`` raised.
        """
        # never a key twice: Triton takes the memory it has for a key that it knows
        key = f"{self._owner}-{next(self._numbers)}"
        path = _FOLDER / key
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            try:
                os.posix_fallocate(descriptor, 0, size)
                memory = mmap.mmap(descriptor, size)
            except OSError as error:
                raise MemoryError(f"{size} bytes of shared memory: {error}") from error
            finally:
                os.close(descriptor)
            await self._register(name, key, size)
        finally:
            path.unlink(missing_ok=True)
        return memory

    async def _check_open(self, name: str) -> None:
        """Undo a registration that a close has outrun.

        Raises:
            Closed: closed.
        """
        if self._closed:
            await self._forget(name)
            raise Closed("RegionPool is closed")

    def _retire(self, region: Region) -> None:
        self._retired.append((region.name, region.byte_size))

    def _sweep_soon(self) -> None:
        if not self._retired or self._sweep is not None:
            return
        loop = asyncio.get_running_loop()
        if loop.time() < self._next_sweep_s:
            return
        self._sweep = loop.create_task(self._sweep_once())
        self._sweep.add_done_callback(self._swept)

    def _swept(self, task: asyncio.Task[None]) -> None:
        self._sweep = None
        self._next_sweep_s = task.get_loop().time() + _REST_S

    async def _sweep_once(self) -> None:
        """Asks the server once to forget each region that is retired by now, until it does not respond."""
        for _ in range(len(self._retired)):
            name, size = self._retired[0]
            forgotten = await self._forget(name)
            if forgotten:
                self._retired.popleft()
                self._bytes -= size
            else:
                self._retired.rotate(-1)
            if forgotten is None:
                return

    async def _forget(self, name: str) -> bool | None:
        """Return whether the server has forgotten a region; ``None``: it does not respond."""
        try:
            await self._unregister(name)
        except TimeoutError:
            return None
        except Exception:  # noqa: BLE001 - a request still uses it, or the server does not respond: it is asked again, or has gone
            return False
        return True

    def _remove_orphans(self) -> None:
        for path in _FOLDER.glob(f"{self._family}*"):
            if self._is_orphan(path.name):
                # another client removes it too, or it is another user's
                with contextlib.suppress(FileNotFoundError, PermissionError):
                    path.unlink()

    def _is_orphan(self, name: str) -> bool:
        """Whether a pool made this name and its process is gone."""
        owner, _, number = name.rpartition("-")
        if not owner.startswith(self._family) or not number.isdigit():
            return False
        try:
            os.close(_hold(owner))
        except OSError:
            return False
        return True

    def __repr__(self) -> str:
        return (
            f"RegionPool({self._owner}: {len(self._held)} in use, {len(self._idle)} idle, "
            f"{len(self._retired)} retired, {self._bytes} bytes)"
        )


def _size_class(size: int) -> int:
    """The next of 4 sizes an octave, whole pages: at most a quarter is wasted, and few sizes are in use."""
    step = max(mmap.PAGESIZE, 1 << max(0, (size - 1).bit_length() - 3))
    return -(-size // step) * step


def _network_namespace() -> int:
    return Path("/proc/self/ns/net").stat().st_ino


def _hold(owner: str) -> int:
    """Binds the abstract socket of a name and gives its descriptor; the kernel frees it with the process.

    Raises:
        OSError: it is held: its process lives.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as held:
        held.bind(f"\0{owner}")
        return held.detach()
