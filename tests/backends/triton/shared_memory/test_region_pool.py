"""Shared memory with Triton: reuse, retirement, restarts, and clean-up on every way out.

Most tests use a scripted server, which maps registered regions and responds as Triton 2.51 does. The last tests check
a real server against the same expectations.
"""

import asyncio
import contextlib
import gc
import mmap
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from streaminfer import errors, testing
from streaminfer.backends.triton.shared_memory import region_pool as module
from streaminfer.backends.triton.shared_memory.region import required_bytes
from streaminfer.backends.triton.shared_memory.region_pool import RegionPool

if sys.platform != "linux":
    pytest.skip("POSIX shared memory of Linux", allow_module_level=True)

PREFIX = f"si_test_{os.getpid()}"
SHM = module._FOLDER
F32 = np.float32
PATIENCE_S = 30


class Server:
    """Scripted server that handles system shared memory as Triton does."""

    def __init__(self):
        self.known = {}
        self.used = set()
        self.calls = []
        self.registering = None  # called while a region is being registered
        self.gone = False

    async def register(self, name, key, byte_size):
        self.calls.append(("register", name))
        assert name not in self.known, "ALREADY_EXISTS"
        descriptor = os.open(SHM / key, os.O_RDWR)
        try:
            self.known[name] = mmap.mmap(descriptor, byte_size)
        finally:
            os.close(descriptor)
        if self.registering is not None:
            await self.registering()

    async def unregister(self, name):
        self.calls.append(("unregister", name))
        await asyncio.sleep(0)
        if self.gone or name in self.used:
            raise RuntimeError("in use, or gone")
        self.known.pop(name, None)

    async def registered(self):
        return list(self.known)

    def double(self, name, source, target):
        """Run the model, which doubles its float32 input."""
        memory = np.frombuffer(self.known[name], np.uint8)
        (start, size), (end, _) = source, target
        memory[end : end + size].view(F32)[:] = memory[start : start + size].view(F32) * 2

    def restart(self):
        self.known.clear()
        self.used.clear()


@pytest.fixture
def server():
    return Server()


@pytest.fixture(autouse=True)
def _nothing_in_dev_shm():
    yield
    assert left() == []


def left():
    return sorted(path.name for path in SHM.glob(f"{PREFIX}*"))


def make(server, **options):
    return RegionPool(server.register, server.unregister, server.registered, prefix=PREFIX, **options)


def run(main):
    return asyncio.run(asyncio.wait_for(main, PATIENCE_S))


async def settle(pool):
    while pool._cleanup is not None:
        await asyncio.sleep(0)


# ---------------------------------------------------------------------------------------------- the pool


def test_results_survive_reuse_of_their_region(server):
    """Results do not change when their region is used again."""

    async def main():
        pool = make(server)
        results = []
        for factor in (1, 10):
            x = np.arange(8, dtype=F32).reshape(2, 4) * factor
            region = await pool.acquire(required_bytes([x.nbytes, x.nbytes]))
            (source,) = region.write({"x": x}).values()
            (target,) = region.reserve({"y": x.nbytes}).values()
            server.double(region.name, source, target)
            results.append(region.read(target[0], F32, x.shape))
            pool.release(region, completed=True)
        assert np.array_equal(results[1], results[0] * 10)
        assert results[0][1].tolist() == [8, 10, 12, 14]
        assert len(server.known) == 1
        await pool.close()
        assert server.known == {}

    run(main())


def test_smallest_region_that_fits_is_reused(server):
    async def main():
        pool = make(server)
        small, large = [await pool.acquire(size) for size in (5_000, 100_000)]
        assert (small.byte_size, large.byte_size) == (8192, 114688)
        pool.release(small, completed=True)
        pool.release(large, completed=True)
        assert await pool.acquire(8192) is small
        assert await pool.acquire(10) is large
        third = await pool.acquire(10)
        assert third.byte_size == mmap.PAGESIZE
        assert pool.byte_size == 8192 + 114688 + 4096
        assert left() == []
        for region in (small, large, third):
            pool.release(region, completed=True)
            pool.release(region, completed=True)  # a second time does nothing
        assert len({id(await pool.acquire(1)) for _ in range(3)}) == 3
        await pool.close()

    run(main())


def test_a_size_class_wastes_a_quarter_at_most():
    for size in (1, 4096, 4097, 65_537, 600_000, 19_200_000, 2**30 + 1):
        chosen = module._size_class(size)
        assert size <= chosen <= max(mmap.PAGESIZE, size * 1.25 + mmap.PAGESIZE)
        assert chosen % mmap.PAGESIZE == 0
    assert len({module._size_class(size) for size in range(2**20, 2**21, 1000)}) <= 6


def test_few_idle_regions_are_kept_the_largest(server):
    async def main():
        pool = make(server, max_idle=2)
        regions = [await pool.acquire(4096 * size) for size in (2, 1, 4)]
        for region in regions:
            pool.release(region, completed=True)
        again = await pool.acquire(1)  # unregisters the region in excess
        assert again is regions[0]
        await settle(pool)
        assert set(server.known) == {regions[0].name, regions[2].name}
        assert pool.byte_size == 4096 * 6
        await pool.close()

    run(main())


def test_no_region_is_given_beyond_the_memory_limit(server, monkeypatch):
    async def main():
        pool = make(server, max_bytes=4096 * 4)
        first = await pool.acquire(4096 * 3)
        assert await pool.acquire(4096 * 2) is None
        pool.release(first, completed=True)
        assert await pool.acquire(4096 * 4) is None  # the idle region is too small, and is retired
        await asyncio.sleep(0)
        pool._next_cleanup_s = 0.0
        assert await pool.acquire(4096 * 4) is None
        await settle(pool)
        assert (await pool.acquire(4096 * 4)).byte_size == 4096 * 4
        await pool.close()

        def full(descriptor, offset, size):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "posix_fallocate", full)
        pool = make(server)
        assert await pool.acquire(1) is None
        assert pool.byte_size == 0
        await pool.close()
        assert server.known == {}

    run(main())


def test_region_memory_is_allocated_up_front(server):
    """The memory of a region is allocated up front, because a sparse file could raise SIGBUS during a copy."""
    blocks = []

    async def main():
        pool = make(server)

        async def look():
            blocks.extend((SHM / name).stat().st_blocks * 512 for name in left())

        server.registering = look
        await pool.acquire(600_000)
        await pool.close()

    run(main())
    assert blocks[0] >= 600_000


# ---------------------------------------------------------------------------------------------- retirement


def test_region_without_response_is_never_reused(server):
    """A region whose request got no response is never used again."""

    async def main():
        pool = make(server)
        region = await pool.acquire(4096)
        source = region.write({"x": np.ones(8, F32)})["x"]
        server.used.add(region.name)
        pool.release(region, completed=False)
        other = await pool.acquire(4096)
        assert other is not region
        await settle(pool)
        assert set(server.known) == {region.name, other.name}  # a request uses the region, so it stays
        assert pool.byte_size == 8192
        server.double(region.name, source, (64, 32))  # the late response reaches no caller
        assert not other.read(64, F32, [8]).any()
        server.used.clear()
        asked = len(server.calls)
        pool.release(other, completed=True)
        pool._next_cleanup_s = asyncio.get_running_loop().time() + 1000
        assert await pool.acquire(4096) is other
        await settle(pool)
        assert len(server.calls) == asked  # clean-ups do not run at every batch
        pool.release(other, completed=True)
        pool._next_cleanup_s = 0.0
        assert await pool.acquire(4096) is other
        await settle(pool)
        assert set(server.known) == {other.name}
        assert pool.byte_size == 4096
        await pool.close()

    run(main())


def test_region_in_use_does_not_block_unregistering(server):
    """A region that is in use does not keep another from being unregistered."""

    async def main():
        pool = make(server)
        used, unused = [await pool.acquire(4096) for _ in range(2)]
        server.used.add(used.name)
        pool.release(used, completed=False)
        pool.release(unused, completed=False)
        other = await pool.acquire(4096)
        await settle(pool)
        assert set(server.known) == {used.name, other.name}
        assert pool._next_cleanup_s > asyncio.get_running_loop().time()
        server.used.clear()
        await pool.close()

    run(main())


def test_retired_region_counts_until_unregistered(server):
    """A retired region counts towards `max_bytes` until the server has unregistered it."""

    async def main():
        pool = make(server, max_bytes=8192)
        server.gone = True
        for _ in range(2):
            pool.release(await pool.acquire(4096), completed=False)
        assert await pool.acquire(4096) is None
        server.gone = False
        pool._next_cleanup_s = 0.0
        assert await pool.acquire(4096) is None
        await settle(pool)
        assert await pool.acquire(4096) is not None
        await pool.close()
        assert server.known == {}

    run(main())


@pytest.mark.parametrize("error", [asyncio.CancelledError, RuntimeError, KeyboardInterrupt])
def test_failed_registration_is_undone(server, error):
    """A registration that fails leaves no name in the file system, and is undone at the server."""

    async def main():
        pool = make(server)

        async def fail():
            assert len(left()) == 1
            raise error

        server.registering = fail
        with pytest.raises(error):
            await pool.acquire(4096)
        assert left() == []
        assert len(server.known) == 1
        server.registering = None
        await pool.acquire(4096)
        await settle(pool)
        assert len(server.known) == 1
        await pool.close()
        assert server.known == {}

    if error is KeyboardInterrupt:  # asyncio.run would turn it into its own cancellation
        coroutine = main()
        with contextlib.closing(asyncio.new_event_loop()) as loop:
            loop.run_until_complete(coroutine)
    else:
        run(main())


# ---------------------------------------------------------------------------------------------- restart and end


def test_after_a_restart_no_region_is_used_again(server):
    """After a restart of the server all regions are retired; a batch that still runs reads its results."""

    async def main():
        pool = make(server)
        held, idle = [await pool.acquire(4096) for _ in range(2)]
        pool.release(idle, completed=True)
        server.double(held.name, held.write({"x": np.arange(8, dtype=F32)})["x"], (64, 32))
        server.restart()
        pool.retire_all()
        assert held.read(64, F32, [8]).tolist() == [0, 2, 4, 6, 8, 10, 12, 14]
        pool.release(held, completed=True)
        region = await pool.acquire(4096)
        assert region not in {held, idle}
        server.double(region.name, region.write({"x": np.ones(8, F32)})["x"], (64, 32))
        assert region.read(64, F32, [8]).tolist() == [2] * 8
        await settle(pool)
        assert set(server.known) == {region.name}
        assert pool.byte_size == 4096
        await pool.close()
        assert server.known == {}
        assert pool.byte_size == 0

    run(main())


def test_close_ends_all_regions_and_a_late_acquire(server):
    async def main():
        pool = make(server)
        held = await pool.acquire(4096)
        pool.release(await pool.acquire(4096), completed=False)
        reached, go_on = asyncio.Event(), asyncio.Event()

        async def wait():
            reached.set()
            await go_on.wait()

        server.registering = wait
        late = asyncio.create_task(pool.acquire(4096 * 9))
        await reached.wait()
        await pool.close()
        await pool.close()
        go_on.set()
        with pytest.raises(errors.Closed):
            await late
        assert server.known == {}
        os.close(module._bind_owner_socket(pool._owner))  # its socket is free
        with pytest.raises(errors.Closed):
            await pool.acquire(1)
        pool.release(held, completed=True)
        assert held.read(0, F32, [4]).tolist() == [0] * 4  # still this process's own memory

    run(main())


def test_close_of_a_server_that_is_gone_ends(server):
    async def main():
        pool = make(server)
        await pool.acquire(4096)
        server.gone = True
        await pool.close()

    run(main())


def test_close_retries_region_released_late(server):
    """Closing retries to unregister a region while the server still uses it.

    A server responds a moment before it releases the memory of the request.
    """

    async def main():
        pool = make(server)
        region = await pool.acquire(4096)
        server.used.add(region.name)
        pool.release(region, completed=True)
        asyncio.get_running_loop().call_later(0.02, server.used.clear)
        await pool.close()
        assert server.known == {}

    run(main())


def test_close_waits_for_regions_of_cancelled_requests(server):
    """Closing waits a moment for the regions of cancelled requests.

    The next client removes the regions that requests use for longer.
    """

    async def main():
        pool = make(server)
        held, retired = await pool.acquire(4096), await pool.acquire(4096)
        server.used |= {held.name, retired.name}
        pool.release(retired, completed=False)
        asyncio.get_running_loop().call_later(0.02, server.used.discard, held.name)
        await pool.close()
        assert set(server.known) == {retired.name}
        server.used.clear()
        following = make(server)
        await following.start()
        assert server.known == {}
        await following.close()

    run(main())


def test_close_waits_for_a_silent_server_once(server):
    """A clean-up ends at the first call that times out, so a close waits for one time limit, not one per region."""

    async def main(loop):
        pool = make(server)
        for region in [await pool.acquire(4096) for _ in range(20)]:
            pool.release(region, completed=False)
        asked = []

        async def silent(name):
            asked.append(name)
            await asyncio.sleep(5.0)
            raise errors.DeadlineExceeded("nothing came")

        pool._unregister = silent
        pool._clean_up_soon()
        await asyncio.sleep(10.0)
        assert len(asked) == 1

        closing_s = loop.time()
        await pool.close()

        assert loop.time() - closing_s == pytest.approx(5.0 + module._RELEASE_LIMIT_S)
        assert len(set(asked)) == len(asked) == 3  # the last call is made in the time for freeing memory, which ends it

    testing.run(main)


def test_next_client_removes_regions_of_killed_one(server, tmp_path):
    """The next client removes what a killed client left, and nothing that belongs to others."""
    program = f"""
import asyncio, os, signal, sys
from streaminfer.backends.triton.shared_memory.region_pool import RegionPool

async def register(name, key, byte_size):
    print(name, key, flush=True)
    if not name.endswith("-1"):
        os.kill(os.getpid(), int(sys.argv[1]))  # in the middle of a registration: the one moment with a name

async def unregister(name):
    pass

async def registered():
    return ()

async def main():
    pool = RegionPool(register, unregister, registered, prefix={PREFIX!r})
    await pool.acquire(4096)
    assert not [name for name in os.listdir("/dev/shm") if name.startswith({PREFIX!r} + "-")]
    await pool.acquire(4096)

asyncio.run(main())
"""
    for number in (signal.SIGKILL, signal.SIGTERM):
        command = [sys.executable, "-c", program, str(int(number))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        assert done.returncode == -number, done.stderr
        names = [line.split()[0] for line in done.stdout.splitlines()]
        assert len(left()) == 1
        server.known = dict.fromkeys([*names, "somebody-elses", f"{PREFIX}-1-2", f"{PREFIX}-0-{os.getpid()}.ab-1"])

        async def main():
            living = make(server)
            region = await living.acquire(4096)  # removes what the dead client left
            assert left() == []
            kept = {"somebody-elses", f"{PREFIX}-1-2", f"{PREFIX}-0-{os.getpid()}.ab-1", region.name}
            assert set(server.known) == kept
            other = make(server)
            await other.start()  # does not remove what a living client has
            assert set(server.known) == kept
            await other.close()
            await living.close()

        run(main())


@pytest.mark.parametrize("way", ["return", "raise", "exit", "forget"])
def test_exit_without_close_leaves_no_shared_memory(way):
    """A process that ends without closing its pool leaves no shared memory."""
    program = f"""
import asyncio, os, sys
from streaminfer.backends.triton.shared_memory.region_pool import RegionPool

async def nothing(*arguments):
    return ()

async def main():
    pool = RegionPool(nothing, nothing, nothing, prefix={PREFIX!r})
    region = await pool.acquire(4096)
    if {way!r} == "raise":
        raise SystemExit(3)
    if {way!r} == "exit":
        os._exit(3)
    return (pool, region) if {way!r} == "return" else None

kept = asyncio.run(main())
sys.exit(3)
"""
    command = [sys.executable, "-W", "error", "-X", "dev", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert (done.returncode, done.stderr) == (3, "")


def test_forgotten_pool_frees_memory_and_socket(server):
    """A pool that is garbage-collected frees its memory and its socket."""

    async def main():
        pool = make(server)
        return pool._owner, await pool.acquire(4096)

    owner, region = run(main())
    gc.collect()
    os.close(module._bind_owner_socket(owner))
    assert region.read(0, F32, [1]) == 0


def test_unsupported_system_is_an_error(server, monkeypatch):
    monkeypatch.setattr(module.sys, "platform", "darwin")
    with pytest.raises(OSError, match="needs Linux, this is darwin"):
        make(server)


# ---------------------------------------------------------------------------------------------- a real Triton


@pytest.fixture(scope="module")
def grpc(triton):
    """Keep a client open, because grpc's event loops share one thread that lives only while there is a client."""
    import tritonclient.grpc.aio

    with contextlib.closing(asyncio.new_event_loop()) as loop:

        async def start():
            client = tritonclient.grpc.aio.InferenceServerClient(triton.grpc_url)
            assert await client.is_server_live()
            return client

        client = loop.run_until_complete(start())
        yield
        loop.run_until_complete(client.close())


class Client:
    """Client of a real Triton, with a pool of regions."""

    def __init__(self, server):
        import tritonclient.grpc.aio as triton

        self.triton = triton
        self.client = triton.InferenceServerClient(server.grpc_url)
        self.pool = make(self)
        self.unregister = self.client.unregister_system_shared_memory

    async def register(self, name, key, byte_size):
        await self.client.register_system_shared_memory(name, key, byte_size)

    async def unregister(self, name):
        await self.client.unregister_system_shared_memory(name)

    async def registered(self):
        status = await self.client.get_system_shared_memory_status()
        return [name for name in status.regions if name.startswith(PREFIX)]

    async def infer(self, region, model, answer, **arrays):
        """Return one output of a model, which has the shape of the input ``x``."""
        x = arrays["x"]
        places, out = region.write(arrays), region.reserve({answer: x.nbytes})[answer]
        asked = []
        for name, array in arrays.items():
            asked.append(self.triton.InferInput(name, array.shape, {F32: "FP32", np.int32: "INT32"}[array.dtype.type]))
            asked[-1].set_shared_memory(region.name, places[name][1], places[name][0])
        wanted = self.triton.InferRequestedOutput(answer)
        wanted.set_shared_memory(region.name, out[1], out[0])
        await self.client.infer(model, asked, outputs=[wanted])
        return region.read(out[0], x.dtype, x.shape)

    async def echo(self, region, value, sleep_ms):
        x, sleep = np.array([[value]], F32), np.array([[sleep_ms]], np.int32)
        return (await self.infer(region, "slow_echo", "y", x=x, sleep_ms=sleep)).item()

    async def __aenter__(self):
        return self

    async def __aexit__(self, *exc_info):
        try:
            await self.pool.close()
            assert await self.registered() == []
        finally:
            await self.client.close()


def test_real_triton_uses_a_region_without_a_name(triton, grpc):
    """A real Triton reads and writes a region whose name in the file system was removed."""

    async def main():
        async with Client(triton) as client:
            for factor in (1, 2):
                x = np.full((4, 3, 224, 224), factor, F32)
                region = await client.pool.acquire(required_bytes([x.nbytes, x.nbytes]))
                assert left() == []
                assert np.array_equal(await client.infer(region, "image_identity", "y", x=x), x)
                client.pool.release(region, completed=True)
            assert len(await client.registered()) == 1

    run(main())


def test_real_triton_holds_region_until_request_ends(triton, grpc):
    """A real Triton keeps a region until the request that uses it ends.

    The retirement of regions relies on this: a cancelled request still writes, and the server waits for its end.
    """

    async def main():
        async with Client(triton) as client:
            region = await client.pool.acquire(4096)
            while not await in_use(client, region, task := asyncio.create_task(client.echo(region, 7, 500))):
                with pytest.raises(InferenceServerException, match="NOT_FOUND"):
                    await task
                client.pool.release(region, completed=False)
                region = await client.pool.acquire(4096)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            client.pool.release(region, completed=False)
            other = await client.pool.acquire(4096)
            await settle(client.pool)
            assert region.name in await client.registered()  # the server rejected its removal
            while region.name in await client.registered():
                client.pool._next_cleanup_s = 0.0
                client.pool.release(other, completed=True)
                other = await client.pool.acquire(4096)
            assert region.read(128, F32, [1]) == 7  # written after the caller was cancelled

    run(main())


async def in_use(client, region, task):
    """Return whether the request has reached the server; if not, the region is unregistered."""
    await asyncio.wait([task], timeout=0.1)
    try:
        await client.client.unregister_system_shared_memory(region.name)
    except InferenceServerException as error:
        assert "in use" in str(error)
        return True
    return False


def test_real_triton_does_not_find_an_unknown_region(triton, grpc):
    """A real Triton rejects a request with a region that it has unregistered, and takes a new one."""

    async def main():
        async with Client(triton) as client:
            region = await client.pool.acquire(4096)
            await client.client.unregister_system_shared_memory(region.name)
            with pytest.raises(InferenceServerException, match="NOT_FOUND"):
                await client.echo(region, 3, 0)
            client.pool.retire_all()
            region = await client.pool.acquire(4096)
            assert await client.echo(region, 3, 0) == 3
            client.pool.release(region, completed=True)

    run(main())
