"""A request that does not fit the example of a `CpuBackend` is rejected before the queue; no breaker counts it."""

import asyncio

import numpy as np
import pytest

import streaminfer as si

F32 = np.float32


@pytest.mark.parametrize(
    ("example", "good", "wrong", "words"),
    [
        (np.zeros(3, F32), np.ones(3, F32), np.zeros(5, F32), r"expected float32\[3\], got float32\[5\]"),
        (np.zeros(3, F32), np.ones(3, F32), np.zeros(3), "float64"),
        (np.zeros(3, F32), np.ones(3, F32), np.zeros((1, 3), F32), "a request carries no batch axis"),
        (np.zeros(3), [1.0, 2.0, 3.0], [1.0, 2.0], r"got float64\[2\]"),
        (np.zeros(3), [1.0, 2.0, 3.0], [[1.0], [2.0, 3.0]], "got list"),
        ({"a": np.zeros(2)}, {"a": np.ones(2)}, {"b": np.ones(2)}, "no such input"),
        ({"a": np.zeros(2)}, {"a": np.ones(2)}, {}, "it is missing"),
    ],
)
@pytest.mark.parametrize("outer", [True, False])
def test_a_wrong_shape_is_invalid_input(example, good, wrong, words, outer):
    """A request that does not match the example is `InvalidInput`, reaches no queue or model, and opens no circuit."""
    seen = []

    def function(inputs):
        array = inputs["a"] if isinstance(inputs, dict) else inputs
        seen.append(array.shape)
        return array.sum(axis=1)

    async def main():
        breaker = si.CircuitBreaker(minimum_calls=2)
        batcher = si.AdaptiveBatcher(max_batch_size=4)
        backend = si.CpuBackend(function, executor="inline", example=example)
        layers = (breaker, batcher) if outer else (batcher, breaker)
        async with si.Stack(*layers, backend) as stack:
            batches = len(seen)
            for _ in range(5):
                with pytest.raises(si.InvalidInput, match=words):
                    await stack(wrong)
            assert len(seen) == batches
            assert batcher.statistics().submitted == breaker.statistics().failed == 0
            assert await stack(good) in (3.0, 2.0, 6.0)

    asyncio.run(main())


def test_free_axes():
    """Axes in `free_axes` may have any size; names and axes that do not exist are rejected."""
    backend = si.CpuBackend(len, example=np.zeros((4, 2)), free_axes=[0])
    backend.validate(si.Request(np.zeros((9, 2))))
    with pytest.raises(si.InvalidInput):
        backend.validate(si.Request(np.zeros((9, 3))))
    named = si.CpuBackend(len, example={"a": np.zeros(4), "b": np.zeros(4)}, free_axes={"a": (0,)})
    named.validate(si.Request({"a": np.zeros(9), "b": np.zeros(4)}))
    with pytest.raises(si.InvalidInput):
        named.validate(si.Request({"a": np.zeros(9), "b": np.zeros(9)}))
    for wrong in ([1], {"c": [0]}):
        with pytest.raises(ValueError, match="free_axes"):
            si.CpuBackend(len, example={"a": np.zeros(4)}, free_axes=wrong)
    for wrong in (0, [0.5], np.arange(2)):
        with pytest.raises(TypeError, match="free_axes: expected"):
            si.CpuBackend(len, example=np.zeros(4), free_axes=wrong)
    with pytest.raises(ValueError, match="free_axes: expected none without an example"):
        si.CpuBackend(len, free_axes=[0])


def test_an_invalid_clock_is_rejected():
    with pytest.raises(TypeError, match="clock: expected a callable or None, got 5"):
        si.CpuBackend(len, clock=5)


@pytest.mark.parametrize("example", [None, np.array([{}], dtype=object), {"a": 1.0}], ids=repr)
def test_examples_without_arrays_check_nothing(example):
    """A backend does not check requests if it has no example, or one of objects or of numbers in a mapping.

    Objects do not say what every request contains, and numbers in a mapping only say the names.
    """
    assert si.CpuBackend(len, example=example).validate is None


@pytest.mark.parametrize(
    ("example", "dtype", "sizes"),
    [(1.0, "f8", ()), (7, "i8", ()), ("text", object, ()), ([1.0, 2.0], "f8", (None,)),
     (np.array(["a", "bc"], object), object, (None,)), ([["a"], ["b"]], object, (None, None)),
     (np.array([b"a", b"bc"]), object, (None,))],
    ids=str,
)  # fmt: skip
def test_numbers_and_text_are_announced_not_checked(example, dtype, sizes):
    """Inputs that are numbers or text are announced to servers, but not checked.

    A server learns the type of the input, with every size open; only a mapping is rejected. Bytes are announced as
    objects, because their dtype has the width of the example.
    """
    backend = si.CpuBackend(len, example=example)

    (spec,) = backend.model_tensors().inputs

    assert (spec.name, spec.dtype, spec.row_shape) == ("inputs", dtype, sizes)
    for inputs in (1, "other text", [1.0, 2.0, 3.0], np.zeros((2, 2)), np.array([b"longer"])):
        backend.validate(si.Request(inputs))
    with pytest.raises(si.InvalidInput, match="inputs: expected one input, without a name"):
        backend.validate(si.Request({"x": 1.0}))


def test_inputs_of_a_mapping_are_announced_by_name():
    """A number beside an array in the example is announced as an input too.

    If one input is not a tensor, none is announced, because a request needs all inputs.
    """
    mixed = si.CpuBackend(len, example={"image": np.zeros((2, 3), np.float32), "threshold": 0.5})
    named = [(spec.name, spec.dtype, spec.row_shape) for spec in mixed.model_tensors().inputs]
    assert named == [("image", np.float32, (None, None)), ("threshold", np.float64, ())]
    assert si.CpuBackend(len, example={"image": np.zeros(3), "settings": object()}).model_tensors() is None


def test_invalid_input_does_not_count_in_the_breaker():
    """A breaker does not count `InvalidInput`, which a model raises for a mistake of the caller."""

    def refuse(_inputs):
        raise si.InvalidInput("negative")

    async def main():
        breaker = si.CircuitBreaker(minimum_calls=2)
        backend = si.CpuBackend(refuse, executor="inline")
        async with si.Stack(si.AdaptiveBatcher(max_batch_size=4), breaker, backend) as stack:
            answers = await asyncio.gather(*(stack(1.0) for _ in range(8)), return_exceptions=True)
        assert {type(answer) for answer in answers} == {si.InvalidInput}
        assert breaker.statistics().failed == 0

    asyncio.run(main())


@pytest.mark.parametrize("executor", ["inline", "thread"])
@pytest.mark.parametrize(
    ("function", "free", "found"),
    [
        (lambda rows: rows.astype(int), (), [("output", int, (4,))]),
        (lambda rows: (rows, rows[:, 0]), (), [("output_0", "f8", (4,)), ("output_1", "f8", ())]),
        (lambda rows: {"text": np.array(["a"] * len(rows))}, (), [("text", object, ())]),
        (lambda rows: rows, (0,), [("output", "f8", (None,))]),
        (lambda rows: [row[:2] for row in rows], (), [("output", "f8", (None,))]),
        (lambda rows: [{"boxes": [[1, 2], [3]]} for _ in rows], (), []),
        (lambda rows: [object() for _ in rows], (), []),
        (lambda rows: [{"label": "a", "more": object()} for _ in rows], (), [("label", object, ())]),
        (lambda rows: {"label": np.array(["a"] * len(rows), object)}, (), [("label", object, ())]),
    ],
    ids=["array", "tuple", "mapping", "free", "list", "ragged", "objects", "objects beside text", "text as objects"],
)
def test_outputs_are_learned_from_the_example(executor, function, free, found):
    """The backend learns the names, types and sizes of its outputs from the first batch of a start."""
    backend = si.CpuBackend(function, example=np.zeros(4), free_axes=free, executor=executor)

    async def scenario():
        assert backend.model_tensors().outputs == ()
        async with si.Stack(backend):
            return backend.model_tensors().outputs

    outputs = asyncio.run(scenario())

    assert [(spec.name, spec.dtype, spec.row_shape) for spec in outputs] == found
