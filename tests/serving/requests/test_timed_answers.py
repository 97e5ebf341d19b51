"""Responses that end at the deadline of their request."""

import asyncio
import contextlib
import json

import numpy as np
import pytest

import streaminfer as si
from streaminfer.serving.requests.timed_answers import TimedAnswers
from streaminfer.testing import run as run_virtually

pytestmark = pytest.mark.uncompiled


def test_unread_answers_stay_open_until_deadline(counting):
    """A client that does not read holds the responses open until the deadline, and no longer."""
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


@pytest.mark.parametrize("kind", ["never awaits", "ends when it is cancelled"])
def test_service_ends_at_deadline_and_counts_as_failed(counting, ask_app, kind):
    """A service ends at the deadline and counts as failed, even if it never awaits or returns when it is cancelled.

    No timer can fire while a service computes between its responses. A service that returns when it is cancelled has
    not sent all of them.
    """

    class Stubborn(counting):
        now_ns = 0

        async def numbers(self, below):
            with contextlib.suppress(asyncio.CancelledError):
                for number in range(below):
                    yield {"n": np.array([number])}
                    self.now_ns += 150_000_000
                    if kind != "never awaits":
                        await asyncio.Event().wait()

    async def main(loop):
        service = Stubborn()
        app = si.serving.asgi_app({"m": si.Stack(service, clock=lambda: loop.clock() + service.now_ns)})
        async with app:
            body, headers = json.dumps({"x": [100]}).encode(), {"x-streaminfer-timeout-s": "0.4"}
            reply = await ask_app(app, "POST", "/v2/models/m/generate_stream", body, headers)
            return reply, (await ask_app(app, "GET", "/v2/models/m/stats")).json["model_stats"][0]["inference_stats"]

    reply, counts = run_virtually(main)
    *answers, last = [json.loads(event[6:]) for event in reply.body.split(b"\n\n")[:-1]]
    assert [answer["n"] for answer in answers] == ([0, 1, 2] if kind == "never awaits" else [0])
    assert "the deadline passed" in last["error"]
    assert (counts["success"]["count"], counts["fail"]["count"]) == (0, 1)


def test_cancellation_at_the_deadline_stays_one(counting):
    """A caller that is cancelled in the loop turn in which the deadline passes gets the cancellation."""

    async def main(loop):
        answers = TimedAnswers(await counting(hangs_at=0).call(si.Request([1])), loop.clock() + 10**9, loop.clock)
        asking = asyncio.create_task(anext(answers))
        loop.call_later(1.0, asking.cancel)
        with pytest.raises(asyncio.CancelledError):
            await asking
        with pytest.raises(si.DeadlineExceeded):
            await anext(answers)
        await answers.aclose()

    run_virtually(main)
