import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

import streaminfer as si
from streaminfer.serving import gathering
from streaminfer.serving.gathering import HOLD_TURNS, MAX_GAP_NS, MAX_HOLD_S, Gatherer
from streaminfer.testing import FakeClock, run

INFER = "/inference.GRPCInferenceService/ModelInfer"
OFTEN_NS = MAX_GAP_NS // 4


def busy(clock):
    """Return a gatherer whose requests come often."""
    gatherer = Gatherer(clock)
    while gatherer.arrive() is None:
        clock.now_ns += OFTEN_NS
    gatherer._release()
    return gatherer


async def turns(count):
    for _ in range(count):
        await asyncio.sleep(0)


def in_loop(scenario):
    """Run a scenario with a busy gatherer in virtual time."""

    async def main(loop):
        clock = FakeClock()
        return await scenario(busy(clock), clock, loop)

    return run(main)


def test_rare_requests_are_not_held():
    """A request is not held if requests come rarely."""
    clock = FakeClock()
    gatherer = Gatherer(clock)

    held = []
    for _ in range(100):
        held.append(gatherer.arrive())
        clock.now_ns += MAX_GAP_NS + MAX_GAP_NS // 8

    assert held == [None] * 100


def test_held_request_is_released_after_its_turns():
    """A request that no other follows is held for `HOLD_TURNS` turns of the loop, and for no timer."""

    async def scenario(gatherer, clock, loop):
        held = gatherer.arrive()
        await turns(HOLD_TURNS - 1)
        before = held.done()
        await turns(1)
        return before, held.done(), loop.time()

    assert in_loop(scenario) == (False, True, 0.0)


def test_later_request_begins_the_count_again():
    """A request that comes within a hold starts the count of turns again for all held requests."""

    async def scenario(gatherer, clock, loop):
        first = gatherer.arrive()
        await turns(HOLD_TURNS - 2)
        second = gatherer.arrive()
        await turns(HOLD_TURNS - 2)
        before = first.done(), second.done()
        await turns(3)
        return before, (first.done(), second.done())

    assert in_loop(scenario) == ((False, False), (True, True))


def test_hold_waits_for_accepted_calls():
    """A hold does not end before the messages of all accepted calls have come."""

    async def scenario(gatherer, clock, loop):
        gatherer.accept()
        first = gatherer.arrive()
        gatherer.accept()
        await turns(3 * HOLD_TURNS)
        before = first.done()
        second = gatherer.arrive()
        await turns(HOLD_TURNS + 1)
        return before, first.done(), second.done(), loop.time()

    assert in_loop(scenario) == (False, True, True, 0.0)


def test_message_that_never_comes_is_forgotten():
    """The timer ends a hold for a call that was cancelled before its message came; later holds do not wait for it."""

    async def scenario(gatherer, clock, loop):
        for _ in range(3):
            gatherer.accept()
        await gatherer.arrive()
        first_s = loop.time()
        await gatherer.arrive()
        return first_s, loop.time()

    assert in_loop(scenario) == (pytest.approx(MAX_HOLD_S), pytest.approx(MAX_HOLD_S))


def test_cancelled_request_holds_back_no_others():
    """A held request that is cancelled does not hold back the others."""

    async def scenario(gatherer, clock, loop):
        first, second = gatherer.arrive(), gatherer.arrive()
        first.cancel()
        await second
        return second.done()

    assert in_loop(scenario)


def test_next_loop_is_not_held_up():
    """Requests that a closed loop left behind do not hold up requests of the next loop."""

    async def leave():
        gatherer = busy(FakeClock())
        gatherer.accept()
        assert gatherer.arrive() is not None
        return gatherer

    async def go_on():
        held = gatherer.arrive()
        await turns(HOLD_TURNS + 1)
        return held.done()

    gatherer = asyncio.run(leave())

    assert asyncio.run(go_on())


class Context:
    """Context of a call, as the handler sees it."""

    def invocation_metadata(self):
        return ()

    def time_remaining(self):
        return None


def test_calls_accepted_one_by_one_share_a_batch(monkeypatch):
    """If calls come often, calls that are accepted a few turns apart share a batch."""
    call = pb.ModelInferRequest(model_name="m", raw_input_contents=[np.zeros(4, np.float32).tobytes()])
    call.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    message = call.SerializeToString()
    clock = FakeClock()
    monkeypatch.setattr("streaminfer.serving.grpc_service.Gatherer", lambda: busy(clock))
    stack = si.Stack(
        si.AdaptiveBatcher(max_batch_size=8, policy="greedy"), si.CpuBackend(lambda rows: rows, executor="inline")
    )

    async def main():
        servicer = si.serving.grpc_servicer({"m": stack})
        calls = []
        async with stack:
            for _ in range(4):
                handler = servicer.service(SimpleNamespace(method=INFER))
                await turns(2)
                calls.append(asyncio.ensure_future(handler.unary_unary(message, Context())))
                await turns(7)  # until grpc.aio looks up the next call's handler
            await asyncio.gather(*calls)
            return stack.statistics().layers["AdaptiveBatcher"].batch_sizes

    assert run(lambda _loop: main()) == {4: 1}  # in virtual time, a busy machine cannot end the hold
    assert gathering.HOLD_TURNS > 7
