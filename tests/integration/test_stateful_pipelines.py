"""A user's pipeline with recurrent models in its stages: streams begin, end and move at every stage."""

import numpy as np
import pytest

import streaminfer as si
from streaminfer.protocols import ExampleInputs, adapt
from streaminfer.streams import Frame, StatefulBackend, StreamSession
from streaminfer.testing import run


class Sum:
    """Recurrent model that adds its input to its state."""

    returns_new_arrays = True

    def example_inputs(self):
        return ExampleInputs({"x": np.zeros(1), "sum": np.zeros(1)}, self.infer)

    async def infer(self, batch):
        total = batch.inputs["sum"] + batch.inputs["x"]
        return {"y": total.copy(), "next": total}


class Twice:
    """Pipeline that sends the sum of a stream to another model that sums."""

    def __init__(self):
        self.models = [StatefulBackend(Sum(), state={"sum": "next"}) for _ in range(2)]
        self.children = {
            name: si.Stack(si.AdaptiveBatcher(max_batch_size=4), model)
            for name, model in zip(("first", "second"), self.models, strict=True)
        }

    async def call(self, request):
        outputs = request.inputs
        for stage in self.children.values():
            outputs = (await stage.call(si.Request(outputs, stream_id=request.stream_id))).outputs
        return si.Response(outputs)

    async def start(self):
        for stage in self.children.values():
            await stage.start()

    async def stop(self, *, drain=True):
        for stage in self.children.values():
            await stage.stop(drain=drain)


def states_of(pipeline):
    return adapt(si.Stack(pipeline)).capabilities().stream_states


@pytest.mark.parametrize("max_in_flight", [1, 3])
def test_session_resets_and_ends_stream_at_every_stage(max_in_flight):
    """A session resets and ends its stream at every stage of the pipeline."""

    async def main(loop):
        pipeline = Twice()
        async with si.Stack(si.Telemetry("sums"), pipeline, clock=loop.clock) as service:
            session = StreamSession(service, max_in_flight=max_in_flight)
            frames = [Frame(np.ones(1), loop.clock(), discontinuity=number == 3) for number in range(6)]
            sums = [result.outputs.item() async for result in session(frames)]
            return sums, [model.statistics().streams for model in pipeline.models]

    assert run(main) == ([1.0, 3.0, 6.0, 1.0, 3.0, 6.0], [0, 0])


def test_a_stream_moves_with_its_state_at_every_stage():
    async def main(loop):
        here, there = Twice(), Twice()
        async with si.Stack(here, clock=loop.clock) as one, si.Stack(there, clock=loop.clock) as other:
            for _ in range(2):
                await one(np.ones(1), stream_id="s")
            states_of(there).import_state("s", states_of(here).export_state("s"))
            return (await other(np.ones(1), stream_id="s")).item()

    assert run(main) == 6.0


def test_state_rejected_by_stage_leaves_none_elsewhere():
    """A state that one stage rejects leaves no state at the other stages."""

    async def main(loop):
        here, there = Twice(), Twice()
        async with si.Stack(here, clock=loop.clock) as one, si.Stack(there, clock=loop.clock) as other:
            await one(np.ones(1), stream_id="s")
            await other(np.ones(1), stream_id="s")
            with pytest.raises(si.InvalidInput):
                states_of(there).import_state("s", {**states_of(here).export_state("s"), "second": b"no state"})
            with pytest.raises(si.InvalidInput, match=r"mapping with some of .*first.*, got bytes"):
                states_of(there).import_state("s", b"a state of one model")
            with pytest.raises(si.InvalidInput, match="stream_id: expected a stream that has state, got 's'"):
                states_of(there).export_state("s")
            states_of(there).import_state("s", {"first": here.models[0].export_state("s")})
            return (await other(np.ones(1), stream_id="s")).item()

    assert run(main) == 2.0  # the first stage continues from one, the second begins again


def test_pipeline_of_stateless_stages_has_no_state():
    class Pipeline(Twice):
        def __init__(self):
            self.children = {"double": si.Stack(si.CpuBackend(lambda x: x * 2, executor="inline"))}

    assert states_of(Pipeline()) is None
