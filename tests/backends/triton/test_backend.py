"""TritonBackend against a real Triton, over both protocols, with and without shared memory."""

import asyncio
import contextlib
import re
import time
import traceback
import urllib.request

import numpy as np
import pytest

from streaminfer import AdaptiveBatcher, Stack
from streaminfer.backends.triton import SequenceLost, Tls, TritonBackend
from streaminfer.backends.triton.errors import ServerError
from streaminfer.errors import BackendError, Closed, DeadlineExceeded, InvalidInput, Overloaded
from streaminfer.request import Batch, Request


@pytest.fixture(params=["grpc", "http"])
def protocol(request):
    return request.param


@pytest.fixture
def connect(triton, protocol):
    def make(model, **more):
        url = triton.grpc_url if protocol == "grpc" else triton.http_url
        return TritonBackend(url, model, **{"protocol": protocol, "statistics_every_s": None, **more})

    return make


@pytest.fixture
def proxied(triton, protocol):
    """Return a context of a proxy before the server and of a function like ``connect`` for it."""
    from servers.network import Proxy

    @contextlib.asynccontextmanager
    async def context():
        async with Proxy(triton.grpc_url if protocol == "grpc" else triton.http_url) as proxy:
            options = {"protocol": protocol, "statistics_every_s": None}
            yield proxy, lambda model, **more: TritonBackend(proxy.url, model, **{**options, **more})

    return context


@contextlib.asynccontextmanager
async def running(backend):
    await backend.start()
    try:
        yield backend
    finally:
        await backend.stop()


def batch(inputs, deadline_ns=None, **more):
    count = len(next(iter(inputs.values())) if isinstance(inputs, dict) else inputs)
    return Batch(inputs, [Request(None, **more) for _ in range(count)], deadline_ns)


def soon(seconds):
    return time.monotonic_ns() + int(seconds * 1e9)


def floats(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def test_start_reads_the_model_metadata(connect):
    async def scenario():
        async with running(connect("mlp")) as backend:
            assert [str(spec) for spec in (*backend.inputs, *backend.outputs)] == [
                "x float32[batch, 8]", "y float32[batch, 4]",
            ]  # fmt: skip
            assert (dict(backend.batch_axes), backend.max_batch_size) == ({"x": 0}, 64)
            assert backend.missing_extensions == ()
            assert backend.server.version == "2.51.0"
            assert backend.fingerprint.endswith(f"{backend.address} mlp 1")
            backend.validate(Request(floats(8)))
            for wrong in (floats(7), floats(1, 8), np.zeros(8), {"z": floats(8)}):
                with pytest.raises(InvalidInput, match=r"^input '"):
                    backend.validate(Request(wrong))
            assert "mlp" in repr(backend)
            assert "float32[8]" in backend._repr_html_()
        with pytest.raises(Closed):
            backend.validate(Request(floats(8)))

    asyncio.run(scenario())


@pytest.mark.parametrize(("model", "workers"), [("mlp", 1), ("accumulate", None)])
def test_queued_workers_need_one_request_per_batch(connect, model, workers):
    """The number of workers behind the server's queue is known only if a batch is sent as one request."""

    async def scenario():
        backend = connect(model)
        assert backend.queued_workers is None
        async with running(backend):
            assert backend.queued_workers == workers

    asyncio.run(scenario())


def test_pipelined_batches_keep_rows_apart(connect):
    """Full batches are pipelined, and each caller gets its own row."""

    async def scenario():
        backend = connect("affine")
        batcher = AdaptiveBatcher(max_batch_size=8, slo_s=30.0)
        async with Stack(batcher, backend) as service:
            for count in (1, 2, 4, 8) * 4:
                await asyncio.gather(*(service(floats(5)) for _ in range(count)))
            rows = floats(400, 5)
            answers = await asyncio.gather(*map(service, rows))
            assert np.array_equal(np.stack(answers), 2 * rows + 1)
            assert batcher.statistics().pipelined > 0
            assert backend.statistics().errors == 0

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": "nope"}, ValueError, "model: expected a model of the server, got 'nope'; it has .*'mlp' 1"),
        ({"model": "mlp", "version": "7"}, ValueError, "version: expected a version of model 'mlp'"),
        ({"model": "mlp", "version": "x"}, ValueError, "version: expected"),
    ],
)
def test_missing_model_is_an_error_at_start(connect, arguments, error, message):
    """A model or version that the server lacks is an error at each start."""
    backend = connect(**arguments)
    for _ in range(2):  # a failed start leaves nothing
        with pytest.raises(error, match=message):
            asyncio.run(backend.start())


def test_unreachable_server_is_an_error_at_start(protocol, triton):
    from servers.process import free_ports

    (port,) = free_ports(1)
    with pytest.raises(BackendError) as caught:
        asyncio.run(TritonBackend(f"127.0.0.1:{port}", "mlp", protocol=protocol).start())
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("shared_memory", [False, True])
def test_rows_are_answered_in_order(connect, shared_memory):
    async def scenario():
        async with running(connect("affine", shared_memory=shared_memory)) as backend:
            for rows in (1, 3, 64, 2):
                x = floats(rows, 5)
                answers = await backend.infer(batch(x))
                assert np.array_equal(np.stack(answers), 2 * x + 1)
            x = floats(6, 5)[::2]  # not contiguous
            assert np.array_equal(np.stack(await backend.infer(batch(x))), 2 * x + 1)
            padded = Batch(floats(4, 5), [Request(None)] * 3)
            padded = type("Padded", (Batch,), {"size": 4})(padded.inputs, padded.rows)
            assert len(await backend.infer(padded)) == 3
            counted = backend.statistics()
            assert (counted.batches, counted.rows, counted.errors) == (6, 76, 0)

    asyncio.run(scenario())


@pytest.mark.parametrize("shared_memory", [False, True])
def test_text_float16_int64_and_bool_round_trip(connect, shared_memory):
    async def scenario():
        sent = {
            "text": np.array([["é", ""], ["longer", "a"]]),
            "half": floats(2, 3).astype(np.float16),
            "number": np.array([[2**62], [-1]]),
            "flag": np.array([[True, False, True], [False, True, True]]),
        }
        async with running(connect("echo", shared_memory=shared_memory)) as backend:
            backend.validate(Request({name: value[0] for name, value in sent.items()}))
            answers = await backend.infer(batch(sent))
            for row, answer in enumerate(answers):
                assert answer["text_out"].tolist() == [one.encode() for one in sent["text"][row]]
                for name in ("half", "number", "flag"):
                    assert answer[f"{name}_out"].dtype == sent[name].dtype
                    assert np.array_equal(answer[f"{name}_out"], sent[name][row])
            with pytest.raises(BackendError, match="response has no output 'text_out', got 'flag_out'"):
                await backend.infer(batch({"flag": sent["flag"]}))

    asyncio.run(scenario())


def test_batch_larger_than_model_takes_is_not_sent(connect):
    """A batch larger than the model's maximum is not sent, and the error names the setting."""

    async def scenario():
        async with running(connect("affine")) as backend:
            with pytest.raises(BackendError, match="give the batcher max_batch_size=64"):
                await backend.infer(batch(floats(65, 1)))
            with pytest.raises(BackendError, match="stack=True"):
                await backend.infer(batch([floats(1)]))

    asyncio.run(scenario())


@pytest.mark.parametrize("shared_memory", [False, True])
def test_one_row_that_the_model_rejects_fails_alone(connect, shared_memory):
    async def scenario():
        async with running(connect("affine", shared_memory=shared_memory)) as backend:
            x = floats(9, 2)
            x[5] = np.nan
            answers = await backend.infer(batch(x))
            assert [isinstance(one, InvalidInput) for one in answers] == [row == 5 for row in range(9)]
            assert np.array_equal(np.delete(np.stack([one if row != 5 else x[5] for row, one in enumerate(answers)]), 5, 0),
                                  np.delete(2 * x + 1, 5, 0))  # fmt: skip
            assert backend.statistics().split_batches > 0
            with pytest.raises(InvalidInput, match="NaN") as caught:
                await backend.infer(batch(x[5:6]))
            assert caught.value.__cause__ is not None

    asyncio.run(scenario())


@pytest.mark.parametrize("shared_memory", [False, True])
def test_deadline_and_cancellation_end_a_batch(proxied, shared_memory):
    """The deadline ends a batch with `DeadlineExceeded`, and a cancelled batch ends at once."""

    async def scenario():
        async with proxied() as (proxy, connect), running(connect("slow_echo", shared_memory=shared_memory)) as backend:
            slow = {"x": floats(1, 1), "sleep_ms": np.full((1, 1), 400, np.int32)}
            with pytest.raises(DeadlineExceeded):
                await backend.infer(batch(slow, soon(0.05)))
            with pytest.raises(DeadlineExceeded, match="before the request was sent"):
                await backend.infer(batch(slow, soon(-1)))
            quick = {"x": floats(1, 1), "sleep_ms": np.zeros((1, 1), np.int32)}
            proxy.stall(requests=False)
            task = asyncio.create_task(backend.infer(batch(quick)))
            await asyncio.sleep(0.02)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            proxy.flow()
            assert (await backend.infer(batch(quick, soon(20))))[0] == 0.0
            counted = backend.statistics()
            assert (counted.batches, counted.errors, counted.cancelled) == (1, 2, 1)

    asyncio.run(scenario())


def test_a_full_queue_is_overload(connect):
    async def scenario():
        async with running(connect("slow_echo")) as backend:
            slow = {"x": floats(8, 1), "sleep_ms": np.full((8, 1), 100, np.int32)}
            ends = await asyncio.gather(*(backend.infer(batch(slow)) for _ in range(12)), return_exceptions=True)
            kinds = {type(one) for one in ends}
            assert kinds == {list, Overloaded}

    asyncio.run(scenario())


def test_stop_drains_or_ends_calls_and_can_restart(proxied):
    """A stop drains running calls or ends them with `Closed`, and the backend can start again."""

    async def scenario():
        async with proxied() as (proxy, connect):
            backend = connect("slow_echo")
            slow = {"x": floats(1, 1), "sleep_ms": np.full((1, 1), 150, np.int32)}
            for drain in (True, False):
                await backend.start()
                await backend.start()
                if not drain:
                    proxy.stall(requests=False)
                task = asyncio.create_task(backend.infer(batch(slow)))
                await asyncio.sleep(0.03)
                await backend.stop(drain=drain)
                proxy.flow()
                assert task.done()
                if drain:
                    assert len(task.result()) == 1
                else:
                    assert isinstance(task.exception(), Closed)
                await backend.stop()
                with pytest.raises(Closed):
                    await backend.infer(batch(slow))
                # the call for which the draining stop waited stays counted
                assert backend.statistics().round_trip_s >= 0.15
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(scenario())


def test_use_from_another_event_loop_is_rejected(connect):
    backend = connect("affine")

    async def elsewhere():
        for use in (backend.infer(batch(floats(1, 1))), backend.start(), backend.stop()):
            with pytest.raises(RuntimeError, match="event loop"):
                await use

    async def scenario():
        async with running(backend):
            await asyncio.to_thread(asyncio.run, elsewhere())
        # the thread of to_thread must not outlive the test
        await asyncio.get_running_loop().shutdown_default_executor()

    asyncio.run(scenario())


def test_stream_steps_are_a_sequence_of_the_server(connect):
    """The steps of each stream form one sequence of the server, which ends with `end_stream`."""

    async def scenario():
        async with running(connect("accumulate")) as backend:
            with pytest.raises(InvalidInput, match="stream_id"):
                backend.validate(Request(np.array([1])))
            rows = [Request(None, stream_id="ab"[number % 2]) for number in range(6)]
            values = np.arange(6).reshape(6, 1)
            sums = [int(one[0]) for one in await backend.infer(Batch(values, rows))]
            assert sums == [0, 1, 2, 4, 6, 9]
            assert int((await backend.end_stream("a", np.array([100])))[0]) == 106
            assert int((await backend.end_stream("b", timeout_s=1e300))[0]) == 9
            assert await backend.end_stream("b") is None
            again = await backend.infer(Batch(values[5:], [Request(None, stream_id="a")]))
            assert int(again[0][0]) == 5

    asyncio.run(scenario())


def test_a_lost_sequence_is_ended_at_the_server(connect):
    """The backend ends a lost sequence, which would otherwise keep its place for five seconds after its last step."""

    async def scenario():
        async with running(connect("accumulate")) as backend:
            await backend.infer(Batch(np.array([[1]]), [Request(None, stream_id="s")]))
            session = backend._lifecycle.splitter.session
            lost = session.sequences._streams["s"].correlation
            assert session.sequences.lose("s", lost)
            parameters = {"sequence_id": lost, "sequence_start": False, "sequence_end": False}
            with pytest.raises(ServerError, match="must specify the START flag"):
                async with asyncio.timeout(20):
                    while True:  # each step prolongs the life of the sequence
                        await session.infer({"x": np.array([[1]])}, 1, parameters, 5.0)

    asyncio.run(scenario())


def test_steps_through_a_stack_keep_their_order(connect):
    async def scenario():
        backend = connect("accumulate")
        async with Stack(AdaptiveBatcher(max_batch_size=8), backend) as service:
            sums = await asyncio.gather(
                *(service(np.array([1]), stream_id=number % 5, timeout_s=20) for number in range(50))
            )
        assert [int(one[0]) for one in sums] == [number // 5 + 1 for number in range(50)]

    asyncio.run(scenario())


def test_forgotten_sequence_is_lost_and_starts_again(connect, triton):
    """A sequence that the server has forgotten raises `SequenceLost`, and the next step starts a new one."""

    async def scenario():
        async with running(connect("accumulate")) as backend:

            def one(value):
                return Batch(np.array([[value]]), [Request(None, stream_id="s")])

            assert int((await backend.infer(one(3)))[0][0]) == 3
            await asyncio.to_thread(triton.repair, "accumulate")
            (lost,) = await backend.infer(one(4))
            assert isinstance(lost, SequenceLost)
            assert lost.retryable is False
            assert int((await backend.infer(one(5)))[0][0]) == 5
        await asyncio.get_running_loop().shutdown_default_executor()

    asyncio.run(scenario())


def waiting_requests(triton, model):
    """Return the number of requests in a model's queue in the server."""
    with urllib.request.urlopen(triton.metrics_url) as answer:  # noqa: S310 - loopback
        text = answer.read().decode()
    series = rf'^nv_inference_pending_request_count{{model="{model}".*}} (\S+)$'
    return sum(map(float, re.findall(series, text, re.MULTILINE)))


def test_priority_is_passed_on(connect, triton):
    folder = triton.repository / "priority"
    held, begun = folder / "held", folder / "begun"

    async def scenario():
        async with running(connect("priority")) as backend:

            def ask(priority):
                return backend.infer(batch(np.ones((1, 1), np.int32), priority=priority))

            first = asyncio.create_task(ask(0))
            while not begun.exists():
                assert not first.done()
                await asyncio.sleep(0.001)
            waiting = [asyncio.create_task(ask(priority)) for priority in (3, 0, -9)]
            while await asyncio.to_thread(waiting_requests, triton, "priority") < len(waiting):
                assert not any(one.done() for one in waiting)
                await asyncio.sleep(0.001)
            held.unlink()
            places = [int(one[0][0]) for one in await asyncio.gather(first, *waiting)]
            assert sorted(places) == [places[0], places[3], places[2], places[1]]
        await asyncio.get_running_loop().shutdown_default_executor()

    held.touch()
    begun.unlink(missing_ok=True)
    try:
        asyncio.run(scenario())
    finally:
        held.unlink(missing_ok=True)


def test_server_statistics_are_read(connect):
    async def scenario():
        async with running(connect("slow_echo")) as backend:
            assert backend.statistics().parts() == {}
            assert (await backend.read_statistics()).requests == 0
            for _ in range(3):
                await backend.infer(batch({"x": floats(2, 1), "sleep_ms": np.full((2, 1), 30, np.int32)}))
            async with asyncio.timeout(20):
                while (times := await backend.read_statistics()).requests < 3:
                    await asyncio.sleep(0.01)  # the server counts a request after its response
            assert (times.requests, times.rows) == (3, 6)
            assert 0.025 < times.compute_s < 5
            said = backend.statistics()
            assert said.server == times
            assert said.recent is not None
            assert said.server_error == ""
            parts = said.parts()
            assert set(parts) == {"server queue", "server compute", "transport"}
            # the server's own times may exceed the round trip
            assert sum(parts.values()) == pytest.approx(max(said.round_trip_s, times.queue_s + times.compute_s))

    asyncio.run(scenario())


def test_server_statistics_are_polled_while_running(connect):
    async def scenario():
        async with asyncio.timeout(20), running(connect("affine", statistics_every_s=0.01)) as backend:
            while backend.statistics().recent is None:
                await asyncio.sleep(0.01)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(scenario())


# -- decoupled models: gRPC only --------------------------------------------------------------------------------


def repeat(n, *, deadline_ns=None, **more):
    given = {"n": n, **more}
    return Request({name: np.array([value], np.int32) for name, value in given.items()}, deadline_ns=deadline_ns)


@pytest.fixture
def repeating(triton):
    return TritonBackend(triton.grpc_url, "repeat", statistics_every_s=None)


def test_decoupled_responses_arrive_singly_and_end(repeating):
    """The responses of a decoupled model arrive one by one, and the stream ends after the last one."""

    async def scenario():
        async with running(repeating) as backend:
            for count in (0, 1, 5):
                assert [int(one[0]) async for one in backend.stream(repeat(count))] == list(range(count))
            both = await asyncio.gather(*(_collect(backend.stream(repeat(3, delay_ms=5))) for _ in range(4)))
            assert both == [[0, 1, 2]] * 4

    asyncio.run(scenario())


async def _collect(answers):
    return [int(one[0]) async for one in answers]


def test_a_failed_late_or_abandoned_stream_ends(repeating):
    async def scenario():
        async with running(repeating) as backend:
            got = []
            with pytest.raises((BackendError, InvalidInput)):
                async for one in backend.stream(repeat(5, fail_at=2)):
                    got += [int(one[0])]
            assert got == [0, 1]
            with pytest.raises(DeadlineExceeded):
                await _collect(backend.stream(repeat(100, delay_ms=20, deadline_ns=soon(0.1))))
            async with contextlib.aclosing(backend.stream(repeat(1000, delay_ms=5))) as answers:
                async for _ in answers:
                    break
            task = asyncio.create_task(_collect(backend.stream(repeat(1000, delay_ms=5))))
            await asyncio.sleep(0.03)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(InvalidInput, match="input 'n'"):
                await _collect(backend.stream(Request({"delay_ms": np.array([1], np.int32)})))
            left = asyncio.create_task(_collect(backend.stream(repeat(1000, delay_ms=5))))
            await asyncio.sleep(0.03)
            await backend.stop(drain=False)
            assert isinstance(left.exception(), Closed)

    asyncio.run(scenario())


def test_decoupled_model_with_one_response_is_batched(repeating):
    """In a batch, a decoupled model with exactly one response per request works; other rows get an error."""

    async def scenario():
        async with running(repeating) as backend:
            answers = await backend.infer(batch({"n": np.array([[1], [0], [2]], np.int32)}))
            assert answers[0] == 0
            assert [str(one).rpartition("got ")[2].split(":")[0] for one in answers[1:]] == ["none", "more"]

    asyncio.run(scenario())


def test_http_has_no_streams(triton):
    async def scenario():
        async with running(TritonBackend(triton.http_url, "repeat", protocol="http")) as backend:
            with pytest.raises(BackendError, match="protocol='grpc'"):
                await _collect(backend.stream(repeat(1)))

    asyncio.run(scenario())


# -- encryption, headers, reconnecting --------------------------------------------------------------------------


def test_tls_and_mutual_tls(triton, authority, protocol):
    from servers.network import Proxy

    target = triton.grpc_url if protocol == "grpc" else triton.http_url
    client = authority.issue("client")

    async def ask(proxy, tls, timeout_s=30.0):
        options = {"protocol": protocol, "tls": tls, "timeout_s": timeout_s, "statistics_every_s": None}
        backend = TritonBackend(proxy.url, "affine", **options)
        assert backend.encrypted
        async with running(backend):
            return float((await backend.infer(batch(np.ones((1, 1), np.float32))))[0][0])

    async def scenario():
        async with Proxy(target, tls=authority.server_context()) as proxy:
            assert await ask(proxy, Tls(ca=authority.certificate)) == 3.0
            bundle = "# Főtanúsítvány\n".encode() + authority.certificate.read_bytes()
            assert await ask(proxy, Tls(ca=bundle, server_name="localhost")) == 3.0
            with pytest.raises((BackendError, DeadlineExceeded)):
                await ask(proxy, True, 1.0)  # the system does not know this authority
            with pytest.raises((BackendError, DeadlineExceeded)):
                await ask(proxy, Tls(ca=authority.certificate, server_name="another"), 1.0)
        async with Proxy(target, tls=authority.server_context(clients=authority)) as proxy:
            own = Tls(ca=authority.certificate, certificate=client.certificate, key=client.key.read_bytes())
            assert await ask(proxy, own) == 3.0
            with pytest.raises((BackendError, DeadlineExceeded)):
                await ask(proxy, Tls(ca=authority.certificate), 1.0)

    asyncio.run(scenario())


def test_headers_function_is_called_for_every_call(connect):
    """Headers are sent with every call, their function is called each time, and no error shows their values."""
    calls = []

    def headers():
        calls.append(1)
        if len(calls) > 20:
            raise KeyError("hunter2")
        return {"authorization": f"Bearer hunter2-{len(calls)}"}

    async def scenario():
        async with running(connect("affine", headers=headers)) as backend:
            before = len(calls)
            for _ in range(3):
                await backend.infer(batch(floats(1, 1)))
            assert len(calls) == before + 3
            with pytest.raises(InvalidInput) as caught:
                await backend.infer(batch(np.full((1, 1), np.nan, np.float32)))
            assert "hunter2" not in "".join(traceback.format_exception(caught.value)) + repr(backend)
            calls.extend([1] * 20)
            with pytest.raises(BackendError, match="headers: the function failed with KeyError"):
                await backend.infer(batch(floats(1, 1)))

    asyncio.run(scenario())


@pytest.mark.parametrize(("headers", "asked"), [(None, ["identity"]), ({"accept-encoding": "gzip"}, ["gzip"])])
def test_responses_are_uncompressed_by_default(headers, asked):
    """Responses are requested uncompressed, unless the headers say otherwise."""
    from aiohttp import web
    from servers.process import free_ports

    seen = []

    async def refuse(request):
        seen.append(request.headers.getall("Accept-Encoding"))
        return web.json_response({"error": "not today"}, status=503)

    async def scenario():
        (port,) = free_ports(1)
        runner = web.ServerRunner(web.Server(refuse))
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", port).start()
            with pytest.raises(BackendError, match="not today"):
                await TritonBackend(f"127.0.0.1:{port}", "m", protocol="http", headers=headers).start()
        finally:
            await runner.cleanup()

    asyncio.run(scenario())
    assert seen
    assert all(sent == asked for sent in seen)


def test_a_connection_that_fell_silent_is_replaced(triton, protocol):
    from servers.network import Proxy

    async def scenario():
        target = triton.grpc_url if protocol == "grpc" else triton.http_url
        async with Proxy(target) as proxy:
            backend = TritonBackend(proxy.url, "affine", protocol=protocol, statistics_every_s=None)
            async with running(backend):
                await backend.infer(batch(floats(1, 1)))
                proxy.forget()  # existing connections stay silent; new connections are served
                silent_s = 2.5  # by then, calls that timed out have made gRPC open a new connection
                end_s = asyncio.get_running_loop().time() + silent_s
                with pytest.raises(DeadlineExceeded):
                    await backend.infer(batch(floats(1, 1), soon(0.3)))
                while asyncio.get_running_loop().time() < end_s:
                    with contextlib.suppress(DeadlineExceeded):
                        await backend.infer(batch(floats(1, 1), soon(0.3)))
                await backend.infer(batch(floats(1, 1), soon(25)))  # a busy machine may take longer to connect
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(scenario())


def test_a_broken_connection_is_reopened(triton, protocol):
    from servers.network import Proxy

    async def scenario():
        target = triton.grpc_url if protocol == "grpc" else triton.http_url
        async with Proxy(target) as proxy:
            backend = TritonBackend(proxy.url, "affine", protocol=protocol, statistics_every_s=None, keepalive_s=400)
            async with running(backend):
                await backend.infer(batch(floats(1, 1)))
                await proxy.refuse()
                with pytest.raises(BackendError) as caught:
                    await backend.infer(batch(floats(1, 1), soon(5)))
                assert caught.value.__cause__ is not None
                await proxy.accept()
                await asyncio.sleep(0.6)  # the longest wait between two attempts, and the attempt
                await backend.infer(batch(floats(1, 1), soon(5)))

    asyncio.run(scenario())


def test_reconnects_are_quick_and_pings_are_optional():
    """Reconnect attempts are at most 250 ms apart, and keepalive pings are sent only if configured."""
    from streaminfer.backends.triton.endpoint import find_endpoint
    from streaminfer.backends.triton.transport.grpc_transport import _options

    plain = dict(_options(find_endpoint("localhost", "grpc", None, False), None))
    assert plain["grpc.max_reconnect_backoff_ms"] * 1.2 <= 250  # gRPC makes a wait up to a fifth longer
    assert "grpc.keepalive_time_ms" not in plain
    assert dict(_options(find_endpoint("localhost", "grpc", None, False), 400.0))["grpc.keepalive_time_ms"] == 400_000


def test_unknown_shared_memory_is_registered_again(connect):
    """Shared memory that the server has forgotten is registered again, and the batch succeeds."""

    async def scenario():
        async with running(connect("affine", shared_memory=True)) as backend:
            session = backend._lifecycle.splitter.session
            for _ in range(2):
                assert np.array_equal(np.stack(await backend.infer(batch(floats(2, 3)))), 2 * floats(2, 3) + 1)
                for name in await session.transport.registered(5.0):
                    await session.transport.unregister(name, 5.0)

    asyncio.run(scenario())


def test_batcher_measures_before_it_accepts_requests(connect):
    """A batcher measures zeros of the shape in the model's metadata, and its measurements do not count as batches."""

    async def scenario():
        backend = connect("mlp")
        assert backend.example_inputs() is None
        batcher = AdaptiveBatcher(max_batch_size=8, slo_s=5.0)
        async with Stack(batcher, backend) as stack:
            assert list(batcher.statistics().calibration.durations_s[0]) == [1, 2, 4, 8]
            assert backend.statistics().batches == 0
            await stack(floats(8))
            assert backend.statistics().batches == 1
        assert "exploration" not in batcher.statistics().released
        assert backend.example_inputs() is None

    asyncio.run(scenario())


def test_models_with_a_state_are_not_measured(connect):
    """A model with state is not measured: a batch of zeros would be a step of a caller's sequence."""

    async def scenario():
        async with running(connect("accumulate", example=floats(1))) as backend:
            assert backend.example_inputs() is None

    asyncio.run(scenario())
