"""Some of the benchmark's hostile requests: each gets an allowed status, and none allocates past the limits."""

import asyncio
import random
import tracemalloc
import types

import attrs
import grpc
import pytest
from _lib.hostile_bodies import ALLOWED_GRPC, ALLOWED_REST, grpc_message, rest_request
from tritonclient.grpc import service_pb2 as pb

import streaminfer as si
from streaminfer.serving import Limits

LIMITS = Limits(max_body_bytes=150_000, max_head_bytes=100_000, max_elements=1000, max_strings=100)


@pytest.mark.parametrize("seed", range(4))
def test_every_hostile_body_gets_an_allowed_status(scripted, ask_app, seed):
    rng = random.Random(seed)
    _, _, app = scripted(limits=LIMITS)

    async def scenario():
        async with app:
            statuses = {}
            for _ in range(200):
                method, path, headers, body = rest_request(rng)
                reply = await ask_app(app, method, path, body, headers)
                statuses.setdefault(reply.status, (method, path, headers, body))
            return statuses

    statuses = asyncio.run(asyncio.wait_for(scenario(), 60))

    assert statuses.keys() <= ALLOWED_REST, statuses
    assert len(statuses) >= 4


def test_no_hostile_body_allocates_past_the_limits(scripted, ask_app):
    rng = random.Random(5)
    _, _, app = scripted(limits=LIMITS)
    requests = [rest_request(rng) for _ in range(100)]

    async def scenario():
        async with app:
            for method, path, headers, body in requests:
                tracemalloc.reset_peak()
                before = tracemalloc.get_traced_memory()[0]
                await ask_app(app, method, path, body, headers)
                yield tracemalloc.get_traced_memory()[1] - before

    async def peaks():
        return [peak async for peak in scenario()]

    tracemalloc.start()
    try:
        highest = max(asyncio.run(peaks()))
    finally:
        tracemalloc.stop()
    # the body, and the objects that Python makes of its JSON
    assert highest < LIMITS.max_body_bytes + 25 * LIMITS.max_head_bytes


def test_every_hostile_message_gets_an_allowed_status(scripted, serve_grpc):
    rng = random.Random(6)
    _, stack, _ = scripted()

    async def status(infer, message):
        try:
            await infer(message, timeout=30)
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return "OK"

    async def scenario():
        async with (
            stack,
            serve_grpc(si.serving.grpc_servicer({"m": stack}, limits=LIMITS)) as url,
            grpc.aio.insecure_channel(url) as channel,
        ):
            infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            return {await status(infer, grpc_message(rng)) for _ in range(400)}

    statuses = asyncio.run(asyncio.wait_for(scenario(), 60))

    assert statuses <= ALLOWED_GRPC
    assert {"OK", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"} <= statuses


def large_messages(size):
    """Yield messages of about ``size`` bytes, each filled with one field."""
    one_input = pb.ModelInferRequest(inputs=[{}]).SerializeToString()
    one_output = pb.ModelInferRequest(outputs=[{}]).SerializeToString()
    many = {
        2: lambda call, count: call.MergeFromString(one_input * count),
        3: lambda call, count: call.MergeFromString(one_output * count),
        1: lambda call, count: call.inputs[0].shape.extend([1] * count),
        4: lambda call, count: call.inputs[0].contents.fp32_contents.extend([1.0] * count),
        2.1: lambda call, count: call.inputs[0].contents.bytes_contents.extend([b""] * count),
        14: lambda call, count: [call.parameters[f"{number}"] for number in range(count)],
        2.2: lambda call, count: call.raw_input_contents.extend([b""] * count),
        1.1: lambda call, count: call.raw_input_contents.append(bytes(count)),
    }
    for field_bytes, add in many.items():
        call = pb.ModelInferRequest(model_name="m")
        call.inputs.add(name="x", datatype="FP32", shape=[1, 4])
        add(call, int(size / field_bytes))
        yield call.SerializeToString()


class Aborted(Exception):
    """Raised when a call ends with a status."""


class Context:
    """Context of a call without a network, because the network's copies of the message would count."""

    def time_remaining(self):
        return None

    def invocation_metadata(self):
        return ()

    def set_trailing_metadata(self, metadata):
        pass

    async def abort(self, code, details, metadata):
        raise Aborted(code)


def test_no_hostile_message_allocates_past_the_limits(scripted):
    rng = random.Random(7)
    _, stack, _ = scripted()
    limits = attrs.evolve(LIMITS, max_body_bytes=5_000_000)
    service = si.serving.grpc_servicer({"m": stack}, limits=limits)
    details = types.SimpleNamespace(method="/inference.GRPCInferenceService/ModelInfer")
    messages = [*large_messages(95_000), *large_messages(4_000_000), *(grpc_message(rng) for _ in range(100))]
    statuses = set()

    async def peak_of(message):
        infer = service.service(details).unary_unary
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        try:
            await infer(message, Context())
        except Aborted as aborted:
            statuses.add(aborted.args[0].name)
        return tracemalloc.get_traced_memory()[1] - before

    async def scenario():
        async with stack:
            return [await peak_of(message) for message in messages]

    tracemalloc.start()
    try:
        peaks = asyncio.run(asyncio.wait_for(scenario(), 60))
    finally:
        tracemalloc.stop()

    assert {"INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"} <= statuses <= ALLOWED_GRPC
    # the objects that Python makes of the head
    assert max(peaks) < 25 * LIMITS.max_head_bytes
