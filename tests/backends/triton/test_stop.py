"""A stack whose Triton hangs: its stop ends within its limit, and leaves no task."""

import asyncio
import gc
import time

import numpy as np
import pytest

from streaminfer import AdaptiveBatcher, Stack
from streaminfer.backends.triton import TritonBackend
from streaminfer.backends.triton.session import Session
from streaminfer.errors import BackendError, Closed
from streaminfer.request import Batch, Request


@pytest.mark.parametrize("drain", [True, False])
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_stop_with_hung_server_ends_at_its_limit(triton, protocol, drain, took_s, caplog):
    """A stop ends at its time limit even if the server hangs, and leaves no task.

    The backend's own stop ends within the limit, even with a call that bypassed the batcher, so the stack does not
    cancel it.
    """
    from servers.network import Proxy

    limit_s = 0.3

    async def scenario():
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
            await asyncio.sleep(0)
            async with asyncio.timeout(20):  # the requests alone would wait for 60 s
                seconds = await took_s(stack.stop(drain=drain, timeout_s=limit_s))
                ended = await asyncio.gather(*waiting, return_exceptions=True)
            assert seconds < limit_s + 0.5
            assert {type(one) for one in ended} <= {Closed, BackendError}
            del ended, waiting  # an error's traceback holds its call, and a call its connection
            gc.collect()
            proxy.flow(drop=True)  # an old Triton can crash if a call is cancelled as it completes
            async with asyncio.timeout(20):
                while proxy.connections:
                    await asyncio.sleep(0.001)
        async with asyncio.timeout(20):
            while asyncio.all_tasks() != before:  # gRPC's task ends when its core reports it
                await asyncio.sleep(0.001)

    asyncio.run(scenario())
    assert "did not stop within its time limit" not in caplog.text


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_stop_calls_silent_server_once_for_all_regions(triton, protocol, monkeypatch):
    """A stop with shared memory waits for one response of a silent server, not for one per region.

    In the time that a server gets to free memory which requests still use, it sends one more request.
    """
    from servers.network import Proxy

    unregister, unregistered = Session._unregister, []

    async def counted(session, name):
        unregistered.append(name)
        await unregister(session, name)

    monkeypatch.setattr(Session, "_unregister", counted)

    async def scenario():
        async with Proxy(triton.grpc_url if protocol == "grpc" else triton.http_url) as proxy:
            backend = TritonBackend(proxy.url, "affine", protocol=protocol, shared_memory=True, timeout_s=1.0)
            await backend.start()
            rows = np.ones((1, 1), np.float32)
            batches = [Batch(rows, [Request(rows[0])]) for _ in range(6)]
            assert [rows.tolist() for (rows,) in await asyncio.gather(*map(backend.infer, batches))] == [[3]] * 6
            unregistered.clear()  # what killed clients left
            proxy.stall()
            await backend.stop()
            proxy.flow(drop=True)

    asyncio.run(scenario())
    assert 1 <= len(unregistered) <= 2


def test_draining_stop_ends_stream_that_is_still_read(triton):
    """A draining stop ends an endless stream of responses after `timeout_s`, even if its caller still reads it."""

    async def scenario():
        backend = TritonBackend(triton.grpc_url, "repeat", timeout_s=0.3)
        await backend.start()
        inputs = {"n": np.array([100_000], np.int32), "delay_ms": np.array([5], np.int32)}
        began = asyncio.Event()

        async def read():
            async for _ in backend.stream(Request(inputs)):
                began.set()

        started_s = time.monotonic()
        reading = asyncio.create_task(read())
        async with asyncio.timeout(20):
            await began.wait()
            await backend.stop()
        assert time.monotonic() - started_s >= 0.3
        assert isinstance(reading.exception(), Closed)

    asyncio.run(scenario())
