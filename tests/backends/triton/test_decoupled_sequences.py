"""Models of a real Triton that keep state for each stream and have any number of responses to a step."""

import asyncio
import contextlib

import numpy as np
import pytest

from streaminfer.backends.triton import TritonBackend
from streaminfer.backends.triton.sequences import SequenceLost
from streaminfer.errors import BackendError, DeadlineExceeded, InvalidInput
from streaminfer.request import Batch, Request

CONFIG = """
backend: "python"
max_batch_size: 8
model_transaction_policy { decoupled: true }
sequence_batching {
  max_sequence_idle_microseconds: 60000000
  oldest { max_candidate_sequences: 1 }
  control_input [
    { name: "START" control [ { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } ] },
    { name: "CORRID" control [ { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 } ] }
  ]
}
input [ { name: "x" data_type: TYPE_INT64 dims: [ 1 ] } ]
output [ { name: "sum" data_type: TYPE_INT64 dims: [ 1 ] } ]
instance_group [ { kind: KIND_CPU count: 1 } ]
"""
CODE = '''
"""Adds up the steps of a sequence, and responds as often as it has taken one."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.sums = {}
        self.steps = {}

    def execute(self, requests):
        for request in requests:
            start, sequence, x = (
                int(pb_utils.get_input_tensor_by_name(request, name).as_numpy().ravel()[0])
                for name in ("START", "CORRID", "x")
            )
            if start:
                self.sums[sequence] = self.steps[sequence] = 0
            self.sums[sequence] += x
            self.steps[sequence] += 1
            sender = request.get_response_sender()
            for _ in range(self.steps[sequence]):
                output = pb_utils.Tensor("sum", np.array([[self.sums[sequence]]]))
                sender.send(pb_utils.InferenceResponse([output]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
'''


@pytest.fixture(scope="module")
def sums(_servers):
    """Run a separate Triton with such a model, which has a place for one sequence; each test leaves the place free.

    Triton 2.51 may never unload a decoupled model if one of its streams was left, so the model ends with its server.
    """
    from servers.triton_server import TritonServer

    with TritonServer([]) as server:
        folder = server.repository / "sums"
        (folder / "1").mkdir(parents=True)
        (folder / "config.pbtxt").write_text(CONFIG)
        (folder / "1" / "model.py").write_text(CODE)
        server.load("sums")
        yield server.grpc_url


@pytest.fixture
def running(sums):
    """Return a function that runs a scenario with a backend of the model."""

    def run(scenario):
        async def main():
            backend = TritonBackend(sums, "sums", timeout_s=20.0, statistics_every_s=None)
            await backend.start()
            try:
                await scenario(backend)
            finally:
                await backend.stop()

        asyncio.run(main())

    return run


def step(x, **more):
    return Request(np.array([x]), **{"stream_id": "mine", **more})


async def responses(backend, request):
    return [int(one[0]) async for one in backend.stream(request)]


def test_a_stream_of_responses_is_a_step_of_a_sequence(running):
    """Steps with streams of responses run one at a time and in order.

    A step that is too late to be sent does not change the state, and `end_stream` ends it.
    """

    async def scenario(backend):
        assert await responses(backend, step(1)) == [1]
        assert await asyncio.gather(*(responses(backend, step(1)) for _ in range(3))) == [[2] * 2, [3] * 3, [4] * 4]
        with pytest.raises(DeadlineExceeded, match="before the request was sent"):
            await responses(backend, step(1, deadline_ns=1))
        assert await responses(backend, step(5)) == [9] * 5
        with pytest.raises(InvalidInput, match="stream_id: expected one"):
            await responses(backend, step(1, stream_id=None))
        assert (await backend.end_stream("mine", np.array([1]))).tolist() == [10]
        assert await backend.end_stream("mine") is None
        assert await responses(backend, step(1, stream_id="other")) == [1]
        await backend.end_stream("other")

    running(scenario)


def test_a_batch_step_must_have_one_response(running):
    """A step of a batch that has more than one response is an error that loses the sequence.

    The second step of this model has two responses.
    """

    async def scenario(backend):
        async def infer():
            (result,) = await backend.infer(Batch(np.array([[7]]), [step(7)]))
            return result

        assert (await infer()).tolist() == [7]
        assert 0.0 < backend.statistics().round_trip_s < 20.0  # a call that completed
        second = await infer()
        assert isinstance(second, BackendError)
        assert "expected one response to a request, got more" in str(second)
        assert (await infer()).tolist() == [7]
        await backend.end_stream("mine")

    running(scenario)


def test_step_left_before_its_end_loses_sequence(running):
    """A step that its caller leaves before the last response loses the sequence.

    Steps queued behind it end with an error, and the server's only place is free for the next sequence at once.
    """

    async def scenario(backend):
        for _ in range(2):
            assert await responses(backend, step(1)) == [1]  # a sequence without a place gets no response
            async with contextlib.aclosing(backend.stream(step(1))) as left:
                assert (await anext(left)).tolist() == [2]
                behind = asyncio.create_task(responses(backend, step(1)))
                await asyncio.sleep(0)
            with pytest.raises(SequenceLost, match="a step before this one failed"):
                await behind
        await responses(backend, step(1))
        await backend.end_stream("mine")

    running(scenario)
