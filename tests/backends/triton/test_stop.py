"""A stack whose Triton hangs: its stop ends at its limit, and leaves no task."""

import asyncio
import gc

import numpy as np
import pytest
from held_time import run_held, until

from streaminfer import AdaptiveBatcher, Stack
from streaminfer.backends.triton import TritonBackend
from streaminfer.errors import BackendError, Closed
from streaminfer.request import Batch, Request


@pytest.mark.parametrize("drain", [True, False])
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_stop_with_hung_server_ends_at_its_limit(triton, protocol, drain, caplog):
    """A stop ends at its time limit even if the server hangs, and leaves no task.

    The backend's own stop ends within the limit, even with a call that bypassed the batcher, so the stack does not
    cancel it.
    """
    from servers.network import Proxy

    async def scenario(loop):
        before = asyncio.all_tasks()
        async with Proxy(triton.grpc_url if protocol == "grpc" else triton.http_url) as proxy:
            backend = TritonBackend(proxy.url, "affine", protocol=protocol, statistics_every_s=0.01, timeout_s=60)
            stack = Stack(AdaptiveBatcher(max_batch_size=2), backend)
            await stack.start()
            assert (await stack(np.ones(1, np.float32))).tolist() == [3]
            proxy.stall()
            waiting = [asyncio.create_task(stack(np.ones(1, np.float32))) for _ in range(8)]
            rows = np.ones((1, 1), np.float32)
            waiting.append(asyncio.create_task(backend.infer(Batch(rows, [Request(rows[0])]))))
            await loop.pass_time(0.01)  # the statistics are being read
            stopping = asyncio.create_task(stack.stop(drain=drain, timeout_s=0.3))
            await loop.pass_time(0.3)
            await stopping
            ended = await asyncio.gather(*waiting, return_exceptions=True)
            assert {type(one) for one in ended} <= {Closed, BackendError}
            del ended, waiting  # an error's traceback holds its call, and a call its connection
            gc.collect()
            proxy.flow(drop=True)  # an old Triton can crash if a call is cancelled as it completes
            await until(lambda: not proxy.connections)
        await until(lambda: asyncio.all_tasks() == before)  # gRPC's task ends when its core reports it

    run_held(scenario)
    assert "did not stop within its time limit" not in caplog.text


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_stop_calls_silent_server_once_for_all_regions(triton, protocol):
    """A stop with shared memory waits for one response of a silent server, not for one per region.

    In the time that a server gets to free memory which requests still use, it sends one more request.
    """
    from servers.network import Proxy

    unregistered = []

    async def scenario():
        async with Proxy(triton.grpc_url if protocol == "grpc" else triton.http_url) as proxy:
            backend = TritonBackend(proxy.url, "affine", protocol=protocol, shared_memory=True)
            await backend.start()
            rows = np.ones((1, 1), np.float32)
            batches = [Batch(rows, [Request(rows[0])]) for _ in range(6)]
            assert [rows.tolist() for (rows,) in await asyncio.gather(*map(backend.infer, batches))] == [[3]] * 6
            transport = backend._lifecycle.splitter.session.transport
            unregister = transport.unregister

            async def counted(name, timeout_s):
                unregistered.append(name)
                await unregister(name, 0.2)  # no response comes, so a test need not wait longer

            transport.unregister = counted
            proxy.stall()
            await backend.stop()
            proxy.flow(drop=True)

    asyncio.run(scenario())
    assert 1 <= len(unregistered) <= 2


def test_draining_stop_ends_stream_that_is_still_read(triton):
    """A draining stop ends an endless stream of responses after `timeout_s`, even if its caller still reads it."""

    async def scenario(loop):
        backend = TritonBackend(triton.grpc_url, "repeat", timeout_s=20.0, statistics_every_s=None)
        await backend.start()
        inputs = {"n": np.array([100_000], np.int32), "delay_ms": np.array([5], np.int32)}
        began = asyncio.Event()

        async def read():
            async for _ in backend.stream(Request(inputs)):
                began.set()

        reading = asyncio.create_task(read())
        await began.wait()
        stopping = asyncio.create_task(backend.stop())
        await loop.pass_time(19.0)
        began.clear()
        await began.wait()
        assert not stopping.done()
        await loop.pass_time(2.0)
        await stopping
        assert isinstance(reading.exception(), Closed)

    run_held(scenario)
