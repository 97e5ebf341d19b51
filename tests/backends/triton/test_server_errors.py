"""TritonBackend with failures half way: abandoned streams, a replaced model, unsendable text, late mappings."""

import asyncio
import contextlib
import time
import traceback

import numpy as np
import pytest
from held_time import run_held, until

from streaminfer import AdaptiveBatcher, Stack, Telemetry
from streaminfer.backends.triton import TritonBackend
from streaminfer.backends.triton.endpoint import Tls, find_endpoint
from streaminfer.backends.triton.shared_memory.region_pool import RegionPool
from streaminfer.errors import BackendError, Closed, DeadlineExceeded, InvalidInput
from streaminfer.request import NEVER_NS, Batch, Request


@pytest.fixture(params=["grpc", "http"])
def protocol(request):
    return request.param


@pytest.fixture
def connect(triton):
    def make(model, protocol="grpc", **more):
        url = triton.grpc_url if protocol == "grpc" else triton.http_url
        return TritonBackend(url, model, **{"protocol": protocol, "statistics_every_s": None, **more})

    return make


@contextlib.asynccontextmanager
async def running(backend):
    await backend.start()
    try:
        yield backend
    finally:
        await backend.stop()


def batch(inputs, deadline_ns=None):
    count = len(next(iter(inputs.values())) if isinstance(inputs, dict) else inputs)
    return Batch(inputs, [Request(None) for _ in range(count)], deadline_ns)


def soon(seconds):
    return time.monotonic_ns() + int(seconds * 1e9)


def floats(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def repeat(**given):
    return {name: np.array([value], np.int32) for name, value in given.items()}


# -- streams without a reader -------------------------------------------------------------------------------------


def test_stop_ends_a_stream_without_reader(connect):
    """A stop ends a stream without a reader: at once, or with drain after `timeout_s`."""

    async def scenario(loop):
        for drain, after_s in ((False, 0.0), (True, 20.0)):
            backend = connect("repeat", timeout_s=20.0)
            await backend.start()
            answers = backend.stream(Request(repeat(n=1000, delay_ms=5)))
            await anext(answers)
            stopping = asyncio.create_task(backend.stop(drain=drain))
            await loop.pass_time(after_s)
            await stopping
            with pytest.raises(Closed):
                await anext(answers)
        await until(lambda: len(asyncio.all_tasks()) == 1)  # gRPC's task ends when its core reports it

    run_held(scenario)


def test_a_stream_with_an_infinite_deadline(connect):
    """If a stream's deadline is infinite, each response has `timeout_s`, as without a deadline."""

    async def scenario(loop):
        async with running(connect("repeat", timeout_s=20.0)) as backend:
            answers = backend.stream(Request(repeat(n=3, delay_ms=5), deadline_ns=NEVER_NS))
            assert len([one async for one in answers]) == 3
            late = asyncio.create_task(anext(backend.stream(Request(repeat(n=1, delay_ms=3000), deadline_ns=NEVER_NS))))
            await loop.pass_time(20.0)
            with pytest.raises(DeadlineExceeded, match=r"nothing came for 20\.0 s"):
                await late

    run_held(scenario)


def test_a_batch_with_an_infinite_deadline(connect, protocol):
    async def scenario():
        async with running(connect("affine", protocol)) as backend:
            assert len(await backend.infer(batch(floats(2, 4), deadline_ns=NEVER_NS))) == 2

    asyncio.run(scenario())


def test_drain_lets_a_stream_that_is_read_finish(connect):
    """A draining stop lets a stream that is still read come to its end."""

    async def scenario():
        backend = connect("repeat")
        await backend.start()
        got = []

        async def take():
            async for one in backend.stream(Request(repeat(n=10, delay_ms=5))):
                got.append(int(one[0]))
                await asyncio.sleep(0.01)  # no task awaits the stream meanwhile

        taking = asyncio.create_task(take())
        while not got:
            await asyncio.sleep(0.001)
        await backend.stop(drain=True)
        await taking
        assert got == list(range(10))

    asyncio.run(scenario())


@pytest.mark.parametrize("ending", ["left", "raised"])
def test_abandoned_stream_is_collected(connect, ending):
    """A stream that its caller leaves without closing it is garbage-collected and ended."""

    async def scenario():
        async with running(connect("repeat")) as backend:

            async def leave():
                async for _ in backend.stream(Request(repeat(n=1000, delay_ms=5))):
                    if ending == "left":
                        break
                    raise KeyError

            with contextlib.suppress(KeyError):
                await leave()
            async with asyncio.timeout(20):
                await backend._lifecycle.splitter.session.streams.wait_idle()

    asyncio.run(scenario())


def test_missing_deadline_defaults_to_backend_timeout(connect):
    """Without a deadline, each response has the timeout of the backend; a whole stream may take longer."""

    async def scenario(loop):
        async with running(connect("repeat", timeout_s=20.0, clock=loop.clock)) as backend:
            transport, timeouts_s = backend._lifecycle.splitter.session.transport, []
            stream = transport.stream

            def noted(call, timeout_s):
                timeouts_s.append(timeout_s)
                return stream(call, timeout_s)

            transport.stream = noted
            quick = {name: array[np.newaxis] for name, array in repeat(n=1).items()}
            assert [int(row[0]) for row in await backend.infer(batch(quick))] == [0]
            assert timeouts_s == [20.0]
            reading = asyncio.create_task(anext(backend.stream(Request(repeat(n=1, delay_ms=3000)))))
            await loop.pass_time(20.0)
            with pytest.raises(DeadlineExceeded, match=r"nothing came for 20\.0 s"):
                await reading
            got = 0
            async for _ in backend.stream(Request(repeat(n=8, delay_ms=5))):
                got += 1
                await loop.pass_time(15.0)
            assert got == 8

    run_held(scenario)


# -- blame --------------------------------------------------------------------------------------------------------


def test_replaced_model_is_not_blamed_on_callers(connect, triton, protocol):
    """A replaced model is a `BackendError`, not the fault of a caller, and is described again."""
    config = triton.repository / "affine" / "config.pbtxt"
    before = config.read_text()

    async def scenario():
        async with running(connect("affine", protocol)) as backend:
            await backend.infer(batch(floats(4, 3)))
            config.write_text(before.replace("TYPE_FP32", "TYPE_INT32", 1))
            await asyncio.to_thread(triton.load, "affine")
            with pytest.raises(BackendError, match="the model was replaced") as caught:
                await backend.infer(batch(floats(4, 3)))
            assert caught.value.retryable is False
            assert caught.value.__cause__ is not None
            assert backend.statistics().split_batches == 0  # none of the rows is to blame
            # the backend has read the new description, and does not send another type as bytes of the new type
            assert str(backend.inputs[0]) == "x int32[batch, ?]"
            with pytest.raises(InvalidInput, match="input 'x': expected type int32, got float32"):
                await backend.infer(batch(floats(1, 3)))
            answers = await backend.infer(batch(np.arange(3, dtype=np.int32).reshape(1, 3)))
            assert answers[0].tolist() == [1, 3, 5]
        await asyncio.get_running_loop().shutdown_default_executor()

    try:
        asyncio.run(scenario())
    finally:
        config.write_text(before)
        triton.load("affine")


def test_text_that_cannot_be_sent_fails_alone(connect, protocol):
    async def scenario():
        async with running(connect("echo", protocol)) as backend:
            for bad in ("\ud800", None):
                text = np.array([["a"], [bad], ["b"], ["c"]], object)
                others = {"half": np.ones((4, 1), np.float16), "number": np.ones((4, 1), np.int64)}
                flag = np.ones((4, 1), np.bool_)
                answers = await backend.infer(batch({"text": text, "flag": flag, **others}))
                assert isinstance(answers[1], InvalidInput)
                assert [answers[row]["text_out"].tolist() for row in (0, 2, 3)] == [[b"a"], [b"b"], [b"c"]]

    asyncio.run(scenario())


def test_empty_arrays_go_beside_large_ones(connect, protocol):
    async def scenario():
        async with running(connect("echo", protocol)) as backend:
            sent = {
                "text": np.zeros((2, 0), np.str_),
                "half": np.zeros((2, 0), np.float16),
                "number": np.ones((2, 10_000), np.int64),
                "flag": np.zeros((2, 0), np.bool_),
            }
            answers = await backend.infer(batch(sent))
            assert [answers[1][f"{name}_out"].shape for name in sent] == [(0,), (0,), (10_000,), (0,)]

    asyncio.run(scenario())


@pytest.mark.parametrize("shared_memory", [False, True])
def test_messages_may_be_as_large_as_a_batch(connect, protocol, shared_memory):
    async def scenario():
        async with running(connect("affine", protocol, shared_memory=shared_memory)) as backend:
            x = floats(3, 500_000)  # 6 MB: over gRPC's own limit
            assert np.array_equal(np.stack(await backend.infer(batch(x))), 2 * x + 1)

    asyncio.run(scenario())


# -- shared memory ------------------------------------------------------------------------------------------------


def test_shared_memory_renewal_counts_in_request_time(connect, triton, protocol):
    """The time for registering shared memory again counts towards the deadline of the request."""
    from servers.network import Proxy

    async def scenario(loop):
        async with Proxy(triton.grpc_url if protocol == "grpc" else triton.http_url) as proxy:
            options = {"protocol": protocol, "shared_memory": True, "statistics_every_s": None, "timeout_s": 60.0}
            backend = TritonBackend(proxy.url, "affine", clock=loop.clock, **options)
            await backend.start()
            await backend.infer(batch(floats(2, 3)))
            transport = backend._lifecycle.splitter.session.transport
            for name in await transport.registered(20.0):
                await transport.unregister(name, 20.0)
            asked, stalled = transport.unregister, asyncio.Event()

            async def stall(name, timeout_s):
                proxy.stall()
                stalled.set()
                await asked(name, timeout_s)

            transport.unregister = stall
            late = asyncio.create_task(backend.infer(batch(floats(2, 3), loop.clock() + 20 * 10**9)))
            await stalled.wait()
            await loop.pass_time(20.0)  # the request's time, and not the 60 s of a call without a request
            with pytest.raises(DeadlineExceeded, match="did not map shared memory in time"):
                await late
            transport.unregister = asked
            proxy.flow()
            assert len(await backend.infer(batch(floats(2, 3), loop.clock() + 20 * 10**9))) == 2
            await loop.in_real_time(backend.stop())

    run_held(scenario)


def test_server_that_cannot_map_memory_fails_at_start(connect, protocol, monkeypatch):
    """A server that cannot map the client's shared memory fails the start."""
    from pathlib import Path

    from streaminfer.backends.triton.shared_memory import region_pool as module

    async def scenario(tmp_path):
        monkeypatch.setattr(module, "_FOLDER", Path(tmp_path))
        with pytest.raises(BackendError, match="registering shared memory failed"):
            await connect("affine", protocol, shared_memory=True).start()

    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(scenario(folder))


def test_a_start_that_fails_leaves_nothing(connect, monkeypatch):
    held = []

    async def fail(pool):
        held.append(pool)
        raise BackendError("scripted")

    async def scenario():
        monkeypatch.setattr(RegionPool, "start", fail)
        backend = connect("affine", shared_memory=True)
        with pytest.raises(BackendError, match="scripted"):
            await backend.start()
        (pool,) = held
        assert not pool._release_owner.alive  # its socket would show others that it lives
        monkeypatch.undo()
        async with running(backend):
            assert len(await backend.infer(batch(floats(2, 3)))) == 2
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(scenario())


# -- encryption and secrets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"ca": b"no PEM, hunter2"}, "tls.ca"),
        ({"ca": b"\x30\x82\xff"}, "tls.ca"),
        ({"ca": b""}, "tls.ca"),  # a file that is not written yet must not select the system's authorities
        ({"ca": b"\xff"}, "tls.ca"),
        ({"certificate": b"hunter2", "key": b"hunter2"}, "tls.certificate, tls.key"),
    ],
)
def test_files_that_are_no_pem_are_named_and_not_shown(connect, protocol, files, named):
    backend = TritonBackend("localhost:9", "m", protocol=protocol, tls=Tls(**files))
    with pytest.raises(ValueError, match=f"^{named}: expected") as caught:
        asyncio.run(backend.start())
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_encrypted_key_is_rejected_without_prompt(authority, tmp_path):
    """An encrypted private key is rejected, without asking for a password."""
    from cryptography.hazmat.primitives import serialization

    issued = authority.issue("locked")
    key = serialization.load_pem_private_key(issued.key.read_bytes(), None)
    locked = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"hunter2"),
    )
    with pytest.raises(ValueError, match="unencrypted"):
        Tls(certificate=issued.certificate, key=locked).context()


@pytest.mark.parametrize("wrong", ["authority", "name", "expired", "client"])
def test_unverified_peer_fails_the_start(triton, authority, protocol, tmp_path, wrong):
    """A server or client whose certificate cannot be verified fails the start, and no error shows a token."""
    from servers import certificates
    from servers.network import Proxy

    other = certificates.Authority(tmp_path, "other")
    issuer = other if wrong == "authority" else authority
    me = (other if wrong == "client" else authority).issue("me")
    with pytest.MonkeyPatch.context() as patch:
        if wrong == "expired":
            patch.setattr(certificates, "LIFETIME", -certificates.LIFETIME)
            context = _expired(issuer, patch)
        else:
            context = issuer.server_context(*(["elsewhere.example"] if wrong == "name" else []), clients=authority)
    tls = Tls(ca=authority.certificate, certificate=me.certificate, key=me.key)

    async def scenario():
        async with Proxy(triton.grpc_url if protocol == "grpc" else triton.http_url, tls=context) as proxy:
            backend = TritonBackend(
                proxy.url, "affine", protocol=protocol, tls=tls, headers={"authorization": "Bearer hunter2"}
            )
            with pytest.raises(BackendError, match="UNAVAILABLE") as caught:
                await backend.start()
            assert "hunter2" not in "".join(traceback.format_exception(caught.value))

    asyncio.run(scenario())


def _expired(authority, patch):
    """Return a server context whose certificate expired a day ago."""
    import datetime as dt

    from servers import certificates

    builder = certificates._builder

    def past(*names):
        now = dt.datetime.now(dt.UTC)
        made = builder(*names)
        made._not_valid_before, made._not_valid_after = (
            (now - dt.timedelta(days=days)).replace(tzinfo=None) for days in (2, 1)
        )
        return made

    patch.undo()
    patch.setattr(certificates, "_builder", past)
    return authority.server_context()


def test_http_unix_socket_is_not_called_encrypted():
    """HTTP through a Unix socket cannot have TLS, so it is not reported as encrypted."""
    with pytest.raises(ValueError, match="tls: expected None"):
        find_endpoint("unix:/tmp/x.sock", "http", True, False)
    assert find_endpoint("unix:/tmp/x.sock", "grpc", True, False).tls == Tls()


def test_a_query_in_the_url_is_rejected_and_not_shown():
    for url in ("https://triton/?token=hunter2", "https://triton/#hunter2"):
        with pytest.raises(ValueError, match="url: expected") as caught:
            find_endpoint(url, "http", None, False)
        assert "hunter2" not in str(caught.value)


# -- threads and loops --------------------------------------------------------------------------------------------


def test_blocking_stack_serves_threads_and_restarts(connect):
    """Threads can call a Triton backend through a blocking stack, which can start again."""
    stack = Stack(AdaptiveBatcher(max_batch_size=8), connect("affine", shared_memory=True))
    for _ in range(2):
        with stack.blocking() as ask:
            assert [float(ask(np.full(3, value, np.float32), timeout_s=20)[0]) for value in range(5)] == [1, 3, 5, 7, 9]


def test_cancellations_and_deadlines_never_mix_up_rows(connect, protocol):
    async def scenario(shared_memory):
        async with running(connect("affine", protocol, shared_memory=shared_memory)) as backend:
            random = np.random.default_rng(1)

            async def one(number):
                x = np.full((int(random.integers(1, 9)), 50), number, np.float32)
                asking = asyncio.create_task(backend.infer(batch(x, soon(0.02) if number % 3 == 0 else None)))
                if number % 2:
                    await asyncio.sleep(float(random.uniform(0, 0.01)))
                    asking.cancel()
                with contextlib.suppress(asyncio.CancelledError, DeadlineExceeded):
                    assert np.array_equal(np.stack(await asking), 2 * x + 1)

            await asyncio.gather(*map(one, range(100)))
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(scenario(False))
    asyncio.run(scenario(True))


# -- in a stack ---------------------------------------------------------------------------------------------------


def test_batcher_larger_than_model_limit_fails_start(connect, protocol):
    """A batcher whose `max_batch_size` exceeds the model's maximum fails the start."""

    async def scenario():
        stack = Stack(AdaptiveBatcher(max_batch_size=65), connect("affine", protocol))
        with pytest.raises(ValueError, match="max_batch_size: expected at most 64"):
            await stack.start()
        assert len(asyncio.all_tasks()) == 1
        # rows that are sent one by one have no such limit
        async with Stack(AdaptiveBatcher(max_batch_size=65), connect("accumulate", protocol)) as service:
            assert int((await service(np.array([1]), stream_id="s", timeout_s=20))[0]) == 1

    asyncio.run(scenario())


def test_telemetry_shows_the_servers_own_times(connect, protocol):
    async def scenario():
        backend, telemetry = connect("affine", protocol), Telemetry("t")
        async with Stack(telemetry, AdaptiveBatcher(max_batch_size=8), backend) as service:
            await backend.read_statistics()
            await service(np.ones(3, np.float32), timeout_s=20)
            async with asyncio.timeout(20):
                while not (await backend.read_statistics()).requests:
                    await asyncio.sleep(0.01)  # the server counts a request after its response
            parts = telemetry.statistics().server_parts
            where = f"affine on {backend.address}"
            assert list(parts) == [f"server queue, {where}", f"server compute, {where}", f"transport, {where}"]
            assert list(parts.values()) == list(backend.statistics().parts().values())
            assert parts[f"server compute, {where}"] > 0

    asyncio.run(scenario())
