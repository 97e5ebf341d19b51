"""`StatefulBackend` compared with a dict of states, under random batches that overlap, fail and are cancelled."""

import asyncio

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recurrent import EXAMPLE, Reference, step

import streaminfer as si
from streaminfer.protocols import ExampleInputs
from streaminfer.streams import StatefulBackend
from streaminfer.testing import run

pytestmark = pytest.mark.uncompiled

STREAMS = st.integers(0, 5)
ACTIONS = st.one_of(
    st.tuples(
        st.just("batch"),
        st.lists(STREAMS, min_size=1, max_size=4, unique=True),
        st.sampled_from(["okay", "fail"]),
        st.integers(1, 5),
    ),
    st.tuples(st.just("wait"), st.integers(1, 4)),
    st.tuples(st.just("cancel"), st.integers(0, 9)),
    st.tuples(st.just("move"), STREAMS, STREAMS),
    st.tuples(st.just("end"), STREAMS),
    st.tuples(st.just("reset"), STREAMS),
)


class Failed(Exception):
    pass


class Slow:
    """Model that takes as long, and succeeds or fails, as planned for each batch by its number."""

    queued_workers = 2
    returns_new_arrays = True

    def __init__(self, plans):
        self.batch_axes = {"h": 1}
        self.plans = plans

    def example_inputs(self):
        return ExampleInputs(EXAMPLE, self.infer)

    async def infer(self, batch):
        number = int(batch.inputs["x"][0])
        end, duration_s = self.plans[number]
        await asyncio.sleep(duration_s)
        if end == "fail":
            raise Failed
        return step(batch)


@settings(max_examples=150)
@given(actions=st.lists(ACTIONS, max_size=25), max_streams=st.integers(6, 8))
def test_each_step_follows_last_successful_one(actions, max_streams):
    """Each result follows from the successful steps of its stream alone, in their order, since the stream started."""

    async def main(loop):
        made = 0
        plans = {}

        backend = StatefulBackend(Slow(plans), state={"h": "h2"}, max_streams=max_streams)
        history = {}  # the expected states: a reference per stream
        running = []

        async def drive(streams, x):
            rows = [si.Request({"x": np.int64(x)}, stream_id=k) for k in streams]
            return await backend.infer(si.Batch({"x": np.full(len(streams), x)}, rows))

        def settle():
            for entry in list(running):
                task, streams, x = entry
                if not task.done():
                    continue
                running.remove(entry)
                if task.cancelled():
                    continue
                if task.exception() is not None:
                    assert isinstance(task.exception(), Failed)
                    continue
                for k, y in zip(streams, task.result(), strict=True):
                    assert int(y) == history.setdefault(k, Reference())(x), (k, x)

        async def quiet():
            """Wait until all batches have ended, so that each later step is predictable."""
            while running:
                await asyncio.sleep(1)
                settle()

        for action in actions:
            match action:
                case ("batch", streams, plan, duration):
                    made += 1
                    plans[made] = plan, duration
                    running.append((asyncio.ensure_future(drive(streams, made)), streams, made))
                case ("wait", seconds):
                    for _ in range(seconds * 2):
                        await asyncio.sleep(0.5)
                        settle()
                case ("cancel", number):
                    if number < len(running):
                        running[number][0].cancel()
                        await asyncio.sleep(0)
                        settle()
                case ("move", source, target):
                    await quiet()
                    if source in history:
                        backend.import_state(target, backend.export_state(source))
                        history[target] = Reference()
                        history[target].state = history[source].state.copy()
                case ("end", k):
                    await quiet()
                    backend.end_stream(k)
                    history.pop(k, None)
                case ("reset", k):
                    await quiet()
                    backend.reset_stream(k)
                    history.pop(k, None)
        await quiet()
        for k in range(6):
            backend.end_stream(k)
        statistics = backend.statistics()
        assert (statistics.streams, statistics.rows, statistics.bytes) == (0, 0, 0)

    run(main)
