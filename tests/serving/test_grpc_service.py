import asyncio
import collections
import contextlib

import grpc
import numpy as np
import pytest
import tritonclient.grpc.aio as grpc_client
from served_models import running_total
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException
from waiting import until

import streaminfer as si
from streaminfer.serving import Limits, grpc_service
from streaminfer.testing import HANG

X = np.arange(8, dtype=np.float32).reshape(2, 4)
INFER = "/inference.GRPCInferenceService/ModelInfer"


def call_of(array=X, name="x", **more):
    call = pb.ModelInferRequest(model_name="m", raw_input_contents=[array.tobytes()], **more)
    call.inputs.add(name=name, datatype="FP32", shape=array.shape)
    return call


def ask(scripted_model, serve_grpc, scenario, **options):
    """Run a scenario with a channel to a server of the model's stack."""
    _, stack, _ = scripted_model

    async def main():
        async with (
            stack,
            serve_grpc(si.serving.grpc_servicer({"m": stack}, **options)) as url,
            grpc.aio.insecure_channel(url) as channel,
        ):
            return await asyncio.wait_for(scenario(channel), 30)

    return asyncio.run(main())


async def raw_infer(channel, message, **options):
    """Call with any bytes; return the error, or None."""
    try:
        await channel.unary_unary(INFER)(message, **options)
    except grpc.aio.AioRpcError as error:
        return error
    return None


def test_raw_tensors_pass_both_ways(scripted, serve_grpc):
    async def scenario(channel):
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        return await stub.ModelInfer(call_of(id="7"))

    response = ask(scripted(), serve_grpc, scenario)

    assert (response.id, response.model_name, response.model_version) == ("7", "m", "1")
    assert response.raw_output_contents[0] == X.tobytes()
    assert (response.outputs[0].datatype, list(response.outputs[0].shape)) == ("FP32", [2, 4])


@pytest.mark.parametrize(
    ("datatype", "field", "elements"),
    [
        ("BOOL", "bool_contents", [True, False]),
        ("INT8", "int_contents", [-1, 2]),
        ("UINT64", "uint64_contents", [1, 2**63]),
        ("FP64", "fp64_contents", [0.5, -2.0]),
        ("BYTES", "bytes_contents", [b"\xc3\xa9", b""]),
    ],
)
def test_typed_contents_are_read(scripted, serve_grpc, datatype, field, elements):
    async def scenario(channel):
        call = pb.ModelInferRequest(model_name="m")
        tensor = call.inputs.add(name="x", datatype=datatype, shape=[1, 2])
        getattr(tensor.contents, field).extend(elements)
        await service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(call)

    model = scripted()
    ask(model, serve_grpc, scenario)

    assert model[0].batches[0].inputs[0].tolist() == [
        one.decode() if isinstance(one, bytes) else one for one in elements
    ]


def changed(**changes):
    call = call_of()
    for name, value in changes.items():
        setattr(call.inputs[0], name, value)
    return call.SerializeToString()


@pytest.mark.parametrize(
    ("message", "status"),
    [
        (b"\xff", "INVALID_ARGUMENT"),
        (b"\x0a\x7f", "INVALID_ARGUMENT"),
        (b"\x0a\x01\xff", "INVALID_ARGUMENT"),
        (b"\x3a\x00" * 3000, "INVALID_ARGUMENT"),
        (b"", "NOT_FOUND"),
        (pb.ModelInferRequest(model_name="m").SerializeToString(), "INVALID_ARGUMENT"),
        (changed(datatype="OBJECT"), "INVALID_ARGUMENT"),
        (changed(datatype="FP64"), "INVALID_ARGUMENT"),
        (changed(name=""), "INVALID_ARGUMENT"),
        (call_of(np.zeros((9, 1), np.float32)).SerializeToString(), "RESOURCE_EXHAUSTED"),
        (call_of(np.zeros((1, 3000), np.float32)).SerializeToString(), "RESOURCE_EXHAUSTED"),
        (call_of(id="x" * 2000).SerializeToString(), "RESOURCE_EXHAUSTED"),
        (call_of(parameters={"timeout": pb.InferParameter(int64_param=-1)}).SerializeToString(), "INVALID_ARGUMENT"),
        (call_of(parameters={"timeout": pb.InferParameter(int64_param=1)}).SerializeToString(), "DEADLINE_EXCEEDED"),
    ],
)
def test_every_mistake_has_its_status(scripted, serve_grpc, message, status):
    model = scripted()
    limits = Limits(max_rows=8, max_head_bytes=1000, max_body_bytes=10_000)

    error = ask(model, serve_grpc, lambda channel: raw_infer(channel, message), limits=limits)

    assert error.code().name == status
    assert model[0].batches == []


@pytest.mark.parametrize("name", ["x" * 30_000, "\U0001f600" * 30_000], ids=["ascii", "smileys"])
def test_a_long_name_does_not_hide_the_status(scripted, serve_grpc, name):
    """A long name is shortened, because gRPC replaces a status whose text exceeds its headers by RESOURCE_EXHAUSTED."""
    call = pb.ModelInferRequest(model_name=name)

    error = ask(scripted(), serve_grpc, lambda channel: raw_infer(channel, call.SerializeToString()))

    assert error.code() == grpc.StatusCode.NOT_FOUND
    assert error.details().startswith(f"model '{name[0]}")
    assert error.details().endswith("' is not found")


def test_unencodable_error_text_still_ends_call(scripted, serve_grpc):
    """A call ends with its status even if no message can hold the text of the error."""
    model = scripted(then=lambda batch: [si.InvalidInput("no file \udcff") for _ in batch.rows])

    error = ask(model, serve_grpc, lambda channel: raw_infer(channel, call_of().SerializeToString(), timeout=20.0))

    assert (error.code(), error.details()) == (grpc.StatusCode.INVALID_ARGUMENT, "no file ?")


def test_shared_memory_is_not_offered(scripted, serve_grpc):
    call = call_of()
    call.inputs[0].parameters["shared_memory_region"].string_param = "region"

    error = ask(scripted(), serve_grpc, lambda channel: raw_infer(channel, call.SerializeToString()))

    assert error.code() == grpc.StatusCode.UNIMPLEMENTED


def test_the_failure_of_a_model_is_internal(scripted, serve_grpc, caplog):
    model = scripted(then=lambda batch: [ValueError("secret") for _ in batch.rows])

    error = ask(model, serve_grpc, lambda channel: raw_infer(channel, call_of().SerializeToString()))

    assert error.code() == grpc.StatusCode.INTERNAL
    assert "secret" not in error.details()
    assert "secret" in caplog.text
    caplog.clear()  # the traceback refers to the server


def test_overload_says_when_to_come_again(scripted, serve_grpc):
    async def scenario(channel):
        calls = [asyncio.ensure_future(raw_infer(channel, call_of(X[:1]).SerializeToString())) for _ in range(4)]
        refused = await next(asyncio.as_completed(calls))
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        return refused

    error = ask(scripted(HANG, batcher=si.AdaptiveBatcher(max_batch_size=1, max_queue_size=1)), serve_grpc, scenario)

    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert int(dict(error.trailing_metadata())["retry-after"]) >= 1


def test_the_deadline_of_grpc_reaches_the_request(scripted, serve_grpc):
    async def scenario(channel):
        call = channel.unary_unary(INFER)(call_of().SerializeToString(), timeout=20.0)
        await call
        return float(dict(await call.trailing_metadata())["x-streaminfer-time-left-s"])

    model = scripted()
    left_s = ask(model, serve_grpc, scenario)

    assert 0 < left_s < 21  # gRPC rounds timeouts up
    assert model[0].batches[0].rows[0].deadline_ns is not None


def test_a_call_that_is_cancelled_cancels_the_request(scripted, serve_grpc):
    model = scripted(HANG)

    async def scenario(channel):
        call = channel.unary_unary(INFER)(call_of(X[:1]).SerializeToString())
        await until(lambda: model[0].running)
        call.cancel()
        await until(lambda: not model[0].running)

    ask(model, serve_grpc, scenario)


def test_health_follows_the_stack(scripted, serve_grpc):
    _, stack, _ = scripted()

    async def scenario():
        async with (
            serve_grpc(si.serving.grpc_servicer({"m": stack})) as url,
            grpc.aio.insecure_channel(url) as channel,
        ):
            check = channel.unary_unary("/grpc.health.v1.Health/Check")
            before = await check(b"")
            async with stack:
                during = await check(b"\x0a\x01m")
            errors = []
            for message in (b"\x0a\x01x", b"\x0a\x01\xff", b"\x0a"):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await check(message)
                errors.append(caught.value.code().name)
            return before, during, errors

    found = asyncio.run(scenario())

    assert found == (b"\x08\x02", b"\x08\x01", ["NOT_FOUND", "INVALID_ARGUMENT", "INVALID_ARGUMENT"])


def test_watched_health_follows_the_stack(scripted, serve_grpc, monkeypatch):
    """A watch begins with the health and then sends each change, until the client leaves or the server stops."""
    monkeypatch.setattr(grpc_service, "_WATCH_INTERVAL_S", 0.001)
    _, stack, _ = scripted()
    service = si.serving.grpc_servicer({"m": stack})
    looks = collections.deque(maxlen=20)
    health = service._health
    monkeypatch.setattr(service, "_health", lambda message: looks.append(message) or health(message))

    async def scenario():
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((service,))
        url = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        async with grpc.aio.insecure_channel(url) as channel:
            watch = channel.unary_stream("/grpc.health.v1.Health/Watch")
            leaving, staying, unknown = watch(b"\x0a\x01m"), watch(b""), watch(b"\x0a\x01x")
            found = [await leaving.read(), await staying.read(), await unknown.read()]
            async with stack:
                found += [await leaving.read(), await staying.read()]
                leaving.cancel()
                await until(lambda: len(looks) == 20 and b"\x0a\x01m" not in looks)
            found.append(await staying.read())
            with pytest.raises(grpc.aio.AioRpcError) as unreadable:
                await watch(b"\x0a").read()
            await server.stop(0.0)
            with pytest.raises(grpc.aio.AioRpcError) as stopped:
                await staying.read()
        return found, [caught.value.code().name for caught in (unreadable, stopped)]

    found, errors = asyncio.run(scenario())

    assert found == [b"\x08\x02", b"\x08\x02", b"\x08\x03", b"\x08\x01", b"\x08\x01", b"\x08\x02"]
    assert errors == ["INVALID_ARGUMENT", "UNAVAILABLE"]


def test_unsupported_methods_are_unimplemented(scripted, serve_grpc):
    async def scenario(channel):
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="m"))
        return caught.value.code()

    assert ask(scripted(), serve_grpc, scenario) == grpc.StatusCode.UNIMPLEMENTED


def stream_calls(*arrays):
    async def calls():
        for number, array in enumerate(arrays):
            tensor = grpc_client.InferInput("x", list(array.shape), "FP32")
            tensor.set_data_from_numpy(array)
            yield {"model_name": "m", "inputs": [tensor], "request_id": str(number)}

    return calls()


def test_stream_responds_in_order_despite_errors(scripted, serve_grpc):
    """A stream sends its responses in order and continues after errors."""
    _, stack, _ = scripted()
    arrays = [X[:1], np.zeros((0, 4), np.float32), X[1:], *[X] * 100]

    async def scenario():
        async with (
            stack,
            serve_grpc(si.serving.grpc_servicer({"m": stack})) as url,
            grpc_client.InferenceServerClient(url) as client,
        ):
            answers = client.stream_infer(stream_calls(*arrays))
            return [(result and result.get_response(), error) async for result, error in answers]

    answers = asyncio.run(asyncio.wait_for(scenario(), 30))

    assert len(answers) == len(arrays)
    assert isinstance(answers[1][1], InferenceServerException)
    assert [response.id for response, error in answers if not error] == [str(n) for n in range(len(arrays)) if n != 1]
    assert answers[2][0].raw_output_contents[0] == X[1:].tobytes()


def test_an_error_in_a_stream_names_its_request(scripted, serve_grpc):
    """An error in a stream has the id of its request, because responses to other requests come before and after it.

    The error for a request that is cut off has no id.
    """
    messages = {
        "cut": call_of(id="cut").SerializeToString()[:-1],
        "missing": call_of(id="missing").SerializeToString().replace(b"m", b"n", 1),
        "short": pb.ModelInferRequest(model_name="m", id="short", raw_input_contents=[b"1"]).SerializeToString(),
        "whole": call_of(id="whole").SerializeToString(),
    }

    async def scenario(channel):
        async def calls():
            for message in messages.values():
                yield message

        streaming = channel.stream_stream(f"{INFER.removesuffix('ModelInfer')}ModelStreamInfer")
        return [pb.ModelStreamInferResponse.FromString(answer) async for answer in streaming(calls())]

    answers = ask(scripted(), serve_grpc, scenario)

    assert [bool(answer.error_message) for answer in answers] == [True, True, True, False]
    assert [answer.infer_response.id for answer in answers] == ["", "missing", "short", "whole"]


def test_grpc_stream_is_one_stream_of_the_model(serve_grpc):
    stack = running_total()
    one = np.ones((1, 1), np.float32)

    async def scenario():
        async with (
            stack,
            serve_grpc(si.serving.grpc_servicer({"m": stack})) as url,
            grpc_client.InferenceServerClient(url) as client,
        ):
            totals = []
            for _ in range(2):
                answers = client.stream_infer(stream_calls(one, one, one))
                totals.append([result.as_numpy("output").item() async for result, _ in answers])
            return totals, stack.layers[-1].statistics().streams

    assert asyncio.run(asyncio.wait_for(scenario(), 30)) == ([[1.0, 2.0, 3.0]] * 2, 0)


def test_streams_of_two_servers_share_no_state(serve_grpc):
    """Two servers of one stack that each have an open stream keep the states of these streams apart."""
    stack = running_total()
    message = call_of(np.ones((1, 1), np.float32)).SerializeToString()

    async def scenario():
        async with contextlib.AsyncExitStack() as running:
            await running.enter_async_context(stack)
            streams = []
            for _ in range(2):
                url = await running.enter_async_context(serve_grpc(si.serving.grpc_servicer({"m": stack})))
                channel = await running.enter_async_context(grpc.aio.insecure_channel(url))
                streams.append(channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")())
            totals = []
            for stream in streams * 2:
                await stream.write(message)
                response = pb.ModelStreamInferResponse.FromString(await stream.read()).infer_response
                totals.append(np.frombuffer(response.raw_output_contents[0], np.float32).item())
            for stream in streams:
                await stream.done_writing()
                assert await stream.read() is grpc.aio.EOF
            return totals

    assert asyncio.run(asyncio.wait_for(scenario(), 30)) == [1.0, 1.0, 2.0, 2.0]


def test_cancelled_stream_cancels_its_requests(scripted, serve_grpc):
    """The cancellation of a stream cancels its requests."""
    model = scripted(HANG)

    async def scenario(channel):
        call = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")()
        await call.write(call_of(X[:1]).SerializeToString())
        await until(lambda: model[0].running)
        call.cancel()
        await until(lambda: not model[0].running)

    ask(model, serve_grpc, scenario)


def test_requests_with_one_head_have_own_contents(scripted, serve_grpc):
    """The servicer reads a head once for all requests that share it, but contents and deadlines are their own."""

    async def scenario(channel):
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        responses = [await stub.ModelInfer(call_of(X + number)) for number in range(3)]
        without = call_of()
        del without.raw_input_contents[:]
        more = call_of()
        more.raw_input_contents.append(b"")
        errors = [await raw_infer(channel, call.SerializeToString()) for call in (without, more)]
        late = await raw_infer(channel, call_of().SerializeToString(), metadata=(("x-streaminfer-timeout-s", "0"),))
        return responses, [error.code().name for error in (*errors, late)]

    responses, errors = ask(scripted(), serve_grpc, scenario)

    for number, response in enumerate(responses):
        assert response.raw_output_contents[0] == (X + number).tobytes()
    assert errors == ["INVALID_ARGUMENT", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED"]


def test_a_model_that_is_named_twice_is_rejected(scripted, serve_grpc):
    """A request with two different model names is rejected: protobuf takes the last name, but the first one counts."""
    _, one, _ = scripted()
    _, other, _ = scripted()
    message = call_of().SerializeToString()

    async def scenario():
        async with (
            one, other,
            serve_grpc(si.serving.grpc_servicer({"m": one, "n": other})) as url,
            grpc.aio.insecure_channel(url) as channel,
        ):  # fmt: skip
            return [
                await raw_infer(channel, text) for text in (message, message + b"\x0a\x01n", message + b"\x0a\x01m")
            ]

    first, renamed, same = asyncio.run(scenario())

    assert first is same is None
    assert renamed.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        ({}, [0, 1, 2, "final"]),
        ({"fails_at": 1}, [0, "error", "final"]),
        ({"cancelled_at": 1}, [0, "error", "final"]),
        ({"cancelled_at": 0}, ["error", "final"]),
    ],
    ids=["all", "failure", "cancelled by the service", "cancelled before the first"],
)
def test_answers_of_a_stream_are_sent_as_they_come(counting, serve_grpc, options, numbers):
    service = counting(**options)
    stack = si.Stack(service)

    async def calls():
        for below in (3, 3):
            call = pb.ModelInferRequest(model_name="m", id="7")
            call.inputs.add(name="x", datatype="INT64", shape=[1, 1]).contents.int64_contents.append(below)
            call.parameters["triton_enable_empty_final_response"].bool_param = True
            yield call

    async def scenario():
        async with (
            stack,
            serve_grpc(si.serving.grpc_servicer({"m": stack})) as url,
            grpc.aio.insecure_channel(url) as channel,
        ):
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            found = []
            async for response in stub.ModelStreamInfer(calls()):
                answer = response.infer_response
                assert answer.id == "7"
                if response.error_message:
                    found.append("error")
                elif answer.parameters["triton_final_response"].bool_param:
                    found.append("final")
                else:
                    found.append(int.from_bytes(answer.raw_output_contents[0], "little"))
            return found

    found = asyncio.run(asyncio.wait_for(scenario(), 30))

    assert sorted(map(str, found)) == sorted(map(str, numbers * 2))
    assert service.closed == 2


def test_a_model_with_many_answers_needs_a_stream(counting, serve_grpc):
    stack = si.Stack(counting())
    call = pb.ModelInferRequest(model_name="m")
    call.inputs.add(name="x", datatype="INT64", shape=[1, 1]).contents.int64_contents.append(3)

    error = ask((None, stack, None), serve_grpc, lambda channel: raw_infer(channel, call.SerializeToString()))

    assert error.code() == grpc.StatusCode.UNIMPLEMENTED
    assert "ModelStreamInfer" in error.details()


def test_a_cancelled_stream_ends_the_answers(counting, serve_grpc):
    service = counting(hangs_at=1)

    async def scenario(channel):
        message = pb.ModelInferRequest(model_name="m")
        message.inputs.add(name="x", datatype="INT64", shape=[1, 1]).contents.int64_contents.append(3)
        call = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")()
        await call.write(message.SerializeToString())
        await call.read()
        call.cancel()
        await until(lambda: service.closed)

    ask((None, si.Stack(service), None), serve_grpc, scenario)


class CallContext:
    """Context of a call without a server: no deadline, no metadata."""

    def time_remaining(self):
        return None

    def invocation_metadata(self):
        return ()


def test_answers_behind_hanging_one_end_with_call(counting):
    """Responses that wait behind a hanging one count as failed when the client cancels, although none was sent."""

    class HangsAtZero(counting):
        async def call(self, request):
            if not request.inputs[0]:
                await asyncio.Event().wait()
            return await super().call(request)

    service = HangsAtZero()
    stack = si.Stack(service)
    servicer = si.serving.grpc_servicer({"m": stack})

    async def messages():
        for below in (0, 3, 3):
            call = pb.ModelInferRequest(model_name="m")
            call.inputs.add(name="x", datatype="INT64", shape=[1, 1]).contents.int64_contents.append(below)
            yield call.SerializeToString()
        await asyncio.Event().wait()

    async def scenario():
        async with stack:
            reading = asyncio.ensure_future(anext(servicer._stream(messages(), CallContext())))
            await until(lambda: len(service.made) == 2)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        return servicer._models["m"].counters.statistics()["inference_stats"]["fail"]["count"]

    failed = asyncio.run(asyncio.wait_for(scenario(), 30))

    assert failed == 3
