"""Answers that end at the deadline of their request."""

import asyncio
import json

import pytest

import streaminfer as si
from streaminfer.testing import run as run_virtually

pytestmark = pytest.mark.uncompiled


def test_a_client_that_does_not_read_holds_the_answers_until_the_deadline(counting):
    service, sent = counting(), []
    body = {"type": "http.request", "body": json.dumps({"x": [3]}).encode(), "more_body": False}
    headers = [(b"x-streaminfer-timeout-s", b"0.5")]
    scope = {"type": "http", "method": "POST", "path": "/v2/models/m/generate_stream", "headers": headers}

    async def main(loop):
        reads, messages = asyncio.Event(), [body]

        async def receive():
            return messages.pop() if messages else await asyncio.Future()

        async def send(message):
            sent.append(message)
            if message.get("body"):
                await reads.wait()

        async with si.serving.asgi_app({"m": si.Stack(service, clock=loop.clock)}) as app:
            asking = asyncio.create_task(app(scope, receive, send))
            await asyncio.sleep(0.4)
            closed = [service.closed]
            await asyncio.sleep(0.2)
            closed.append(service.closed)
            reads.set()
            await asking
        return closed

    assert run_virtually(main) == [0, 1]
    assert [b"the deadline passed" in message.get("body", b"") for message in sent] == [False, False, True, False]
