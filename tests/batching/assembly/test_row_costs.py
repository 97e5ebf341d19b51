"""Batches whose total cost is limited; a function of the user returns the cost of each row."""

import asyncio
import math

import numpy as np
import pytest

import streaminfer as si
from streaminfer.batching import Buckets
from streaminfer.testing import ScriptedBackend, run

pytestmark = pytest.mark.uncompiled


def served(loop, rows, *, backend=None, **settings):
    """Return a coroutine that serves rows, whose values are their costs, and returns the rows of each batch."""
    settings = {"row_cost": float, "max_batch_cost": 10, "max_batch_size": 8, **settings}
    backend = backend or ScriptedBackend(duration_s=0.01)
    service = si.AdaptiveBatcher(**settings, clock=loop.clock).wrap(backend)

    async def answer():
        responses = await asyncio.gather(*(service.call(si.Request(row)) for row in rows))
        assert [response.outputs for response in responses] == rows
        return [list(batch.inputs) for batch in backend.batches]

    return answer()


@pytest.mark.parametrize("policy", ["lookahead", "greedy"])
@pytest.mark.parametrize("stack", [True, False], ids=["arrays", "lists"])
def test_rows_of_a_batch_cost_no_more_than_the_limit(policy, stack):
    """A row that does not fit waits for a later batch, and cheaper rows behind it are sent before it."""

    async def main(loop):
        batches = await served(loop, [4.0, 4.0, 4.0, 2.0, 10.0, 0.0], policy=policy, stack=stack)
        assert batches == [[4.0, 4.0, 2.0, 0.0], [4.0], [10.0]]

    run(main)


def test_copies_that_fill_up_a_batch_cost_too():
    async def main(loop):
        assert await served(loop, [3.0, 3.0, 3.0], preferred_sizes=[1, 2, 4]) == [[3.0, 3.0], [3.0]]

    run(main)


def test_cost_limit_holds_beside_buckets_and_bytes():
    """The limits of bytes and of cost hold together, and `row_cost` gets the inputs of a request without padding."""
    seen = []

    def length(inputs):
        seen.append(inputs.shape)
        return len(inputs)

    async def main(loop):
        backend = ScriptedBackend(duration_s=0.01, then=lambda batch: batch.inputs.sum(axis=1))
        batcher = si.AdaptiveBatcher(
            max_batch_size=8,
            buckets=Buckets((4,)),
            max_batch_bytes=3 * 32,
            row_cost=length,
            max_batch_cost=5,
            clock=loop.clock,
        )
        service = batcher.wrap(backend)
        await asyncio.gather(*(service.call(si.Request(np.ones(size))) for size in (3, 2, 1, 1, 1, 1)))
        assert backend.batch_sizes == [2, 3, 1]
        assert seen == [(3,), (2,), (1,), (1,), (1,), (1,)]

    run(main)


def test_a_backend_is_measured_within_the_limit():
    async def main(loop):
        backend = ScriptedBackend(duration_s=0.01, example=3.0)
        batcher = si.AdaptiveBatcher(max_batch_size=8, row_cost=float, max_batch_cost=10)
        async with si.Stack(batcher, backend, clock=loop.clock):
            assert max(backend.calibration_sizes) == 3

    run(main)


def boom(_):
    raise KeyError("tokens")


class Unreadable(Exception):
    """An error whose message cannot be read."""

    def __str__(self):
        raise RuntimeError


def boom_without_a_word(_):
    raise Unreadable


@pytest.mark.parametrize(
    ("row_cost", "says"),
    [
        (lambda _: 10.5, r"cost of at most 10 in the smallest batch \(max_batch_cost\), got 10.5"),
        (lambda _: -1, "row_cost: expected a finite number ≥ 0, got -1"),
        (lambda _: math.nan, "row_cost: expected a finite number ≥ 0, got nan"),
        (lambda _: "1", "row_cost: expected a finite number ≥ 0, got '1'"),
        (boom, r"what row_cost can count, but it raised KeyError: 'tokens'"),
        (boom_without_a_word, "but it raised Unreadable: its message cannot be shown"),
    ],
    ids=["dear", "negative", "nan", "text", "fails", "fails without a message"],
)
def test_a_request_without_a_valid_cost_fails_alone(row_cost, says):
    async def main(loop):
        def cost(row):
            return row_cost(row) if row == 1.0 else 1

        backend = ScriptedBackend()
        batcher = si.AdaptiveBatcher(max_batch_size=4, row_cost=cost, max_batch_cost=10)
        async with si.Stack(batcher, backend, clock=loop.clock) as stack:
            bad, good = await asyncio.gather(stack(1.0), stack(2.0), return_exceptions=True)
        assert good == 2.0
        with pytest.raises(si.InvalidInput, match=says):
            raise bad
        assert (batcher.statistics().failed, batcher.statistics().succeeded) == (1, 1)

    run(main)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"row_cost": len}, ValueError, "max_batch_cost: expected a number beside row_cost, got None"),
        ({"max_batch_cost": 5}, TypeError, "row_cost: expected a function of what a request brings"),
        ({"row_cost": 5, "max_batch_cost": 5}, TypeError, "row_cost: expected a function"),
        ({"row_cost": len, "max_batch_cost": 0}, ValueError, "max_batch_cost: expected a finite number above 0"),
        ({"row_cost": len, "max_batch_cost": math.inf}, ValueError, "max_batch_cost: expected a finite number"),
    ],
)
def test_invalid_cost_arguments_are_rejected(arguments, error, says):
    with pytest.raises(error, match=says):
        si.AdaptiveBatcher(max_batch_size=4, **arguments)


def test_cancelled_error_in_row_cost_counts_as_failed():
    """A request whose `row_cost` function raises `CancelledError` counts as failed.

    Each submitted request is counted once, whatever the function raises.
    """

    def cancelled(inputs):
        raise asyncio.CancelledError

    async def main(loop):
        batcher = si.AdaptiveBatcher(max_batch_size=8, row_cost=cancelled, max_batch_cost=10, clock=loop.clock)
        with pytest.raises(asyncio.CancelledError):
            await batcher.wrap(ScriptedBackend()).call(si.Request(1.0))
        statistics = batcher.statistics()
        assert (statistics.submitted, statistics.failed) == (1, 1)

    run(main)


def test_rows_left_out_by_cost_are_not_mixed_shapes():
    """If the cost limit leaves rows out of a batch, the policy does not assume that their shapes differ."""

    async def main(loop):
        backend = ScriptedBackend(duration_s=0.01)
        batcher = si.AdaptiveBatcher(max_batch_size=8, row_cost=float, max_batch_cost=10, clock=loop.clock)
        service = batcher.wrap(backend)
        await asyncio.gather(*(service.call(si.Request(6.0)) for _ in range(3)))
        assert backend.batch_sizes == [1, 1, 1]
        assert not service._dispatcher.policy._mixed_for

    run(main)
