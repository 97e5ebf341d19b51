"""One call of ``ModelStreamInfer`` without gRPC."""

import asyncio

import pytest

from streaminfer.serving.grpc_stream import stream_responses


async def several(message):
    for number in range(2):
        yield message + bytes([number])


async def collect(answer, messages):
    return [response async for response in stream_responses(answer, messages)]


async def numbered(count, error=None):
    for number in range(count):
        yield bytes([number])
    if error is not None:
        raise error


def run(scenario):
    return asyncio.run(asyncio.wait_for(scenario, 30))


def test_many_requests_with_many_answers_all_end():
    """A request with many responses frees its place, so that a call can have any number of such requests."""

    found = run(collect(several, numbered(200)))

    assert sorted(found) == [bytes([number, part]) for number in range(200) for part in range(2)]


def test_request_without_responses_delays_no_others():
    """A request that ends without responses does not delay the other responses or change their order."""
    late = asyncio.Event()

    async def answer(message):
        if message == b"\0":
            await late.wait()
        if message == b"\1":
            late.set()
        else:
            yield message

    found = run(collect(answer, numbered(4)))

    assert found == [b"\0", b"\2", b"\3"]


async def settle():
    for _ in range(1000):
        await asyncio.sleep(0)


def test_fast_client_is_throttled():
    """If a client sends faster than the service responds, the call stops reading at its limit."""
    read = []

    async def messages():
        for number in range(200):
            read.append(number)
            yield bytes([number])

    async def scenario():
        gate = asyncio.Event()

        async def answer(message):
            await gate.wait()
            yield message

        collecting = asyncio.ensure_future(collect(answer, messages()))
        await settle()
        held = len(read)
        gate.set()
        return held, len(await collecting)

    assert run(scenario()) == (65, 200)  # the 65th request waits for a place


def test_slow_client_holds_up_answers():
    """If a client reads more slowly than the service responds, the service waits for the client."""
    made = []

    async def answer(message):
        for number in range(200):
            made.append(number)
            yield message

    async def scenario():
        responses = stream_responses(answer, numbered(1))
        await anext(responses)
        await settle()
        held = len(made)
        return held, 1 + len([response async for response in responses])

    assert run(scenario()) == (65, 200)


def test_an_error_of_the_client_ends_the_call():
    async def answer(message):
        yield message

    with pytest.raises(ExceptionGroup) as caught:
        run(collect(answer, numbered(3, ValueError("reset"))))

    assert caught.group_contains(ValueError, match="reset")
