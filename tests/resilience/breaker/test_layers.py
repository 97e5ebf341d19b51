"""Breakers around backends that run a batch without a task."""

import asyncio

import pytest

import streaminfer as si
from streaminfer.protocols import Node

pytestmark = pytest.mark.uncompiled


class Begun(Node):
    """Backend that reports the end of a batch to a callback, with the inputs as results."""

    async def infer(self, batch):
        raise AssertionError("expected begin_infer")

    @property
    def begin_infer(self):
        return lambda batch, done: asyncio.get_running_loop().call_later(0.001, done, list(batch.inputs), None)


@pytest.mark.parametrize(
    ("failure", "reported"),
    [(ValueError(), []), (asyncio.CancelledError(), []), (GeneratorExit(), [GeneratorExit])],
    ids=["error", "cancelled", "interrupt"],
)
async def test_a_predicate_that_raises_ends_its_batch(loop, failure, reported):
    """A batch fails with the exception of its predicate, the loop gets an interrupt too, and later batches succeed."""
    told, failures = [], [failure]
    loop.set_exception_handler(lambda _, context: told.append(type(context["exception"])))

    def is_failure(result):
        if failures:
            raise failures.pop()
        return False

    breaker = si.CircuitBreaker(failure_result=is_failure)
    async with si.Stack(si.AdaptiveBatcher(max_batch_size=4), breaker, Begun(), clock=loop.clock) as stack:
        with pytest.raises(si.BackendError) as raised:
            await stack(1.0, timeout_s=1.0)
        assert raised.value.__cause__ is failure
        assert await stack(2.0, timeout_s=1.0) == 2.0

    assert told == reported
