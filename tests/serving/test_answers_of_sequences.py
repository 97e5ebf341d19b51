"""Many responses to each request of a sequence."""

import asyncio
import json

import numpy as np
import pytest

import streaminfer as si
from streaminfer.backends.signature import TensorSpec

pytestmark = pytest.mark.uncompiled

TENSORS = si.protocols.ModelTensors([TensorSpec("x", np.dtype(np.float32), (None, "n"))])


class Sum:
    returns_new_arrays = True

    async def infer(self, batch):
        total = batch.inputs["state"] + batch.inputs["x"]
        return {"y": total, "state_out": total}


class Steps(si.protocols.Wrapper):
    """Service whose requests bring any number of steps and get a response for each."""

    fails_with = None

    def capabilities(self):
        return super().capabilities()._replace(many_answers=True, model_tensors=lambda: TENSORS, validate=None)

    async def call(self, request):
        return si.Response(self.steps(request))

    async def steps(self, request):
        for number, x in enumerate(request.inputs):
            if self.fails_with is not None and number == self.fails_with[0]:
                raise self.fails_with[1]
            yield (await self.inner.call(request.replace(inputs={"x": np.array([x])}))).outputs


@pytest.fixture
def totals(ask_app):
    """Return a function that sends requests and returns, for each, its totals and the number of sequences left."""
    model = si.streams.StatefulBackend(Sum(), state={"state": "state_out"}, initial={"state": np.zeros(1, np.float32)})
    steps = Steps(si.Stack(si.AdaptiveBatcher(max_batch_size=4), model))

    def run(*requests):
        app = si.serving.asgi_app({"m": si.Stack(steps)})

        async def scenario():
            found = []
            async with app:
                for inputs, parameters, steps.fails_with in requests:
                    body = json.dumps({"x": inputs, "parameters": {"sequence_id": 7, **parameters}}).encode()
                    reply = await ask_app(app, "POST", "/v2/models/m/generate_stream", body)
                    events = [json.loads(event[6:]) for event in reply.body.split(b"\n\n") if event[:6] == b"data: "]
                    found.append(
                        ([event["output"] for event in events if "output" in event], model.statistics().streams)
                    )
            return found

        return asyncio.run(scenario())

    return run


def test_sequence_ends_after_the_last_response(totals):
    """A sequence ends after the last response to its last request, which continues the state and leaves none behind."""
    found = totals(([1.0, 2.0], {"sequence_start": True}, None), ([3.0, 4.0], {"sequence_end": True}, None))

    assert found == [([1.0, 3.0], 1), ([6.0, 10.0], 0)]


@pytest.mark.parametrize(
    ("fails_with", "left"),
    [
        ((0, si.Overloaded("full")), ([], 1)),  # the client sends it again
        ((1, si.Overloaded("full")), ([3.0], 0)),
        ((0, ValueError("secret")), ([], 0)),
        ((1, ValueError("secret")), ([3.0], 0)),
    ],
)
def test_failed_last_request_ends_its_sequence(totals, fails_with, left):
    """A last request that fails ends its sequence, unless it is rejected before its first response."""
    found = totals(([1.0], {"sequence_start": True}, None), ([2.0, 3.0], {"sequence_end": True}, fails_with))

    assert found == [([1.0], 1), left]
