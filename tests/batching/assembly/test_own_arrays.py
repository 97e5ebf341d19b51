"""Outputs belong to their callers: a model that reuses its output memory changes none of them."""

import asyncio
from typing import NamedTuple

import numpy as np
import pytest

import streaminfer as si
from streaminfer._internal.own_arrays import own_arrays
from streaminfer.batching.assembly.unbatch import split_rows
from streaminfer.protocols import Node


class Pair(NamedTuple):
    first: object
    second: object


class Tensor:
    """Array of another library, which is copied with `clone`."""

    shape = (1,)

    def __init__(self, value):
        self.value = value

    def __getitem__(self, index):
        return self.value

    def clone(self):
        return Tensor(self.value)


class Reusing:
    """Model that writes the outputs of every batch into the same memory."""

    def __init__(self, form):
        self.memory = np.zeros((16, 4))
        self.form = form

    def __call__(self, x):
        out = self.memory[: len(x)]
        np.multiply(x[:, None], [1.0, 2.0, 3.0, 4.0], out=out)
        return self.form(out)


FORMS = {
    "array": lambda out: out,
    "view": lambda out: out[:, ::2],
    "list": list,
    "tuple": lambda out: (out, out[:, 0]),
    "mapping": lambda out: {"all": out, "some": (out[:, 1:],)},
    "list-of-mappings": lambda out: [{"row": row} for row in out],
    "objects": lambda out: np.fromiter(iter(out), dtype=object),
}


def leaves(value):
    """Return the arrays in a result, as lists."""
    if isinstance(value, dict):
        return [leaf for one in value.values() for leaf in leaves(one)]
    if isinstance(value, tuple):
        return [leaf for one in value for leaf in leaves(one)]
    return [np.asarray(value).tolist()]


def test_own_arrays_copies_every_array():
    """`own_arrays` keeps the structure and the objects of plain values, and copies every array."""
    array, text, error, tensor = np.arange(3.0), "text", ValueError(), Tensor(1)
    given = [array, (array, {"x": array[1:]}), Pair(array, text), error, 1.5, np.float64(2.0), None, tensor]

    copied = own_arrays(given)

    array[:] = 9.0
    assert copied[0].tolist() == [0.0, 1.0, 2.0]
    assert copied[1][0].tolist() == [0.0, 1.0, 2.0]
    assert copied[1][1]["x"].tolist() == [1.0, 2.0]
    assert type(copied[2]) is Pair
    assert copied[2].first.tolist() == [0.0, 1.0, 2.0]
    assert copied[2].second is text
    assert copied[3] is error
    assert copied[4:7] == [1.5, 2.0, None]
    assert copied[7] is not tensor
    assert copied[7].value == 1


def test_own_arrays_of_subclasses():
    """The copy of a masked array keeps the mask."""
    masked = np.ma.masked_array([1.0, 2.0], mask=[True, False])
    copied = own_arrays(masked)
    masked.data[:] = 7.0
    assert copied.mask.tolist() == [True, False]
    assert copied.data.tolist() == [1.0, 2.0]


async def waves(serve):
    """Return the outputs of 40 requests, at least ten batches, after all of them have completed."""
    tasks = [asyncio.ensure_future(serve(float(value))) for value in range(40)]
    return await asyncio.gather(*tasks)


def check(form, answers):
    for value, answer in enumerate(answers):
        alone = split_rows(Reusing(form)(np.array([float(value)])), 1, "alone")
        assert leaves(answer) == leaves(alone[0])


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
async def test_outputs_of_a_memory_reusing_function(loop, form):
    """A function on the event loop, sync or async, can reuse its output memory without changing earlier outputs."""
    model = Reusing(form)

    async def asynchronous(x):
        await asyncio.sleep(0)
        return model(x)

    for function in (model, asynchronous):
        check(form, await waves(si.AdaptiveBatcher(max_batch_size=4, max_queue_size=64).wrap(function)))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("executor", ["thread", "inline"])
def test_outputs_of_a_memory_reusing_backend(form, executor):
    """A backend whose function reuses its output memory, in a thread or inline, overwrites no caller's outputs."""

    async def main():
        backend = si.CpuBackend(Reusing(form), executor=executor)
        async with si.Stack(si.AdaptiveBatcher(max_batch_size=4), backend) as stack:
            return await waves(stack)

    check(form, asyncio.run(main()))


async def test_outputs_of_a_memory_reusing_async_backend(loop):
    """A backend without `returns_new_arrays` has its outputs copied, and gets no batch early."""

    class Backend(Reusing):
        queued_workers = 1

        async def infer(self, batch):
            await asyncio.sleep(0.001)
            return self(batch.inputs)

    batcher = si.AdaptiveBatcher(max_batch_size=4, clock=loop.clock)
    async with si.Stack(batcher, Backend(FORMS["array"]), clock=loop.clock) as stack:
        check(FORMS["array"], await waves(stack))
    assert batcher.statistics().pipelined == 0


async def test_begin_infer_backend_that_reuses_its_memory(loop):
    """The outputs that a backend passes to `done` are copied before the next batch begins."""

    class Backend(Node):
        model = Reusing(FORMS["array"])

        async def infer(self, batch):
            raise AssertionError("expected begin_infer")

        @property
        def begin_infer(self):
            return self.begin

        def begin(self, batch, done):
            return loop.call_later(0.001, lambda: done(self.model(batch.inputs), None))

    async with si.Stack(si.AdaptiveBatcher(max_batch_size=4), Backend(), clock=loop.clock) as stack:
        check(FORMS["array"], await waves(stack))


async def test_outputs_declared_new_are_not_copied(loop):
    """The outputs of a backend with `returns_new_arrays` are not copied."""
    kept = []

    class Backend:
        returns_new_arrays = True

        async def infer(self, batch):
            kept.append(batch.inputs * 2)
            return kept[-1]

    async with si.Stack(si.AdaptiveBatcher(max_batch_size=4), Backend(), clock=loop.clock) as stack:
        answer = await stack(np.ones(3))
    assert np.shares_memory(answer, kept[0])


@pytest.mark.parametrize("executor", ["thread", "inline"])
def test_copy_outputs_false_disables_copying(executor):
    """`copy_outputs=False` declares that a function returns new arrays, so its outputs are not copied."""
    kept = []

    def double(x):
        kept.append(x * 2)
        return kept[-1]

    async def main():
        backend = si.CpuBackend(double, executor=executor, copy_outputs=False)
        async with si.Stack(si.AdaptiveBatcher(max_batch_size=4), backend) as stack:
            return await stack(np.ones(3))

    assert np.shares_memory(asyncio.run(main()), kept[-1])
    with pytest.raises(TypeError, match="copy_outputs"):
        si.CpuBackend(double, copy_outputs=1)
