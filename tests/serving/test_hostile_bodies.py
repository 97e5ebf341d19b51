"""A part of the benchmark's hostile requests: each gets an allowed status, and none reaches past the limits."""

import asyncio
import random
import tracemalloc

import grpc
import pytest
from _lib.hostile_bodies import ALLOWED_GRPC, ALLOWED_REST, grpc_message, rest_request

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
