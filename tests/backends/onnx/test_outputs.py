"""The batch axis of an output comes from the declared shape or from the user, never from what a run returns."""

import asyncio

import numpy as np
import pytest
from onnx import TensorProto as Tensor
from onnx import helper

import streaminfer as si
from streaminfer import errors
from streaminfer.backends import OnnxBackend

F32 = np.float32


def answers(backend, batch):
    """Return the rows of one batch."""

    async def main():
        try:
            return await backend.infer(batch)
        finally:
            await backend.stop()

    return asyncio.run(main())


@pytest.fixture(scope="session")
def detector(build_model):
    """Return a model of ``x[batch, 3]`` with the outputs of a detector.

    doubled: ``[batch, 3]``; columns: ``[3, batch]``; found: the indices of all positive values in the batch,
    ``[K, 2]``; anchors: a constant ``[5, 2]``; total: a scalar.
    """
    nodes = [
        helper.make_node("Add", ["x", "x"], ["doubled"]),
        helper.make_node("Transpose", ["x"], ["columns"], perm=[1, 0]),
        helper.make_node("Relu", ["x"], ["positive"]),
        helper.make_node("NonZero", ["positive"], ["places"]),
        helper.make_node("Transpose", ["places"], ["found"], perm=[1, 0]),
        helper.make_node("Identity", ["table"], ["anchors"]),
        helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
    ]
    table = np.arange(10, dtype=F32)
    return build_model(
        nodes,
        [("x", Tensor.FLOAT, ["batch", 3])],
        [
            ("doubled", Tensor.FLOAT, ["batch", 3]),
            ("columns", Tensor.FLOAT, [3, "batch"]),
            ("found", Tensor.INT64, ["K", 2]),
            ("anchors", Tensor.FLOAT, [5, 2]),
            ("total", Tensor.FLOAT, []),
        ],
        initializers=[helper.make_tensor("table", Tensor.FLOAT, [5, 2], table)],
    )


@pytest.mark.parametrize("name", ["found", "anchors", "total"])
def test_an_output_without_the_batch_symbol(detector, name):
    """The constructor rejects an output without a declared batch axis, and names all three remedies."""
    with pytest.raises(ValueError, match=f"batch axis of output '{name}'") as caught:
        OnnxBackend(detector, outputs=["doubled", name])
    for words in ("no axis has the batch size batch of the inputs", "batch_axes={", "shared_outputs=(", "outputs="):
        assert words in str(caught.value)


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_outputs_reach_their_rows(detector, batch, ramp, rows):
    """Each caller gets its row on an output's declared axis, and the whole of a shared output, at any batch size."""
    backend = OnnxBackend(detector, shared_outputs=("found", "anchors", "total"))
    assert [spec.batch_axis for spec in backend.outputs] == [0, 1, None, None, None]
    x = ramp(rows, 3) - 1

    for row, result in zip(x, answers(backend, batch(x)), strict=True):
        assert np.array_equal(result["doubled"], row * 2)
        assert np.array_equal(result["columns"], row)
        assert np.array_equal(result["found"], np.argwhere(x > 0))
        assert np.array_equal(result["anchors"], np.arange(10).reshape(5, 2))
        assert result["total"] == x.sum()


def test_a_shared_output_is_read_only(detector, batch, ramp):
    """A shared output is read-only, so that no caller can change the output of the others."""
    first, second = answers(OnnxBackend(detector, outputs=["anchors"], shared_outputs=["anchors"]), batch(ramp(2, 3)))
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 7
    assert second[0].tolist() == [0, 1]


def test_each_caller_gets_a_copy_of_a_shared_sequence(build_model, batch, ramp):
    """Each caller gets its own copy of a shared list, whose arrays are read-only."""
    rows = helper.make_tensor_sequence_value_info("rows", Tensor.FLOAT, None)
    split = helper.make_node("SplitToSequence", ["x"], ["rows"], axis=0, keepdims=0)
    model = build_model([split], [("x", Tensor.FLOAT, ["batch", 3])], [rows])
    first, second = answers(OnnxBackend(model, shared_outputs=["rows"]), batch(ramp(2, 3)))
    with pytest.raises(ValueError, match="read-only"):
        first[0][:] = 9.0
    first.clear()
    np.testing.assert_array_equal(second, ramp(2, 3))


def test_shared_mappings_are_copied_per_caller(build_model, batch, ramp):
    """Each caller gets its own copies of the mappings in a shared sequence, such as a classifier's probabilities."""
    probabilities = helper.make_map_type_proto(Tensor.INT64, helper.make_tensor_type_proto(Tensor.FLOAT, []))
    output = helper.make_value_info("z", helper.make_sequence_type_proto(probabilities))
    zip_map = helper.make_node("ZipMap", ["x"], ["z"], domain="ai.onnx.ml", classlabels_int64s=[7, 8, 9])
    model = build_model([zip_map], [("x", Tensor.FLOAT, ["batch", 3])], [output], domains=[("ai.onnx.ml", 3)])
    first, second = answers(OnnxBackend(model, shared_outputs=["z"]), batch(ramp(2, 3)))
    first[0].clear()
    assert [list(row) for row in second] == [[7, 8, 9], [7, 8, 9]]


def test_outputs_are_chosen_in_order(detector, batch, ramp):
    """`outputs` chooses the outputs and their order; a single output is an array, not a mapping."""
    backend = OnnxBackend(detector, outputs=("columns", "doubled"))
    assert [spec.name for spec in backend.outputs] == ["columns", "doubled"]
    assert [list(row) for row in answers(backend, batch(ramp(2, 3)))] == [["columns", "doubled"]] * 2
    (row,) = answers(OnnxBackend(detector, outputs=("doubled",)), batch(ramp(1, 3)))
    assert row.tolist() == [0, 2, 4]


def test_chosen_outputs_with_kept_memory(detector, batch, ramp):
    """Runs with bound memory return only the chosen outputs, and shared outputs whole."""
    backend = OnnxBackend(detector, outputs=("doubled", "anchors"), shared_outputs=("anchors",), binding="pageable")
    for row, result in zip(ramp(2, 3), answers(backend, batch(ramp(2, 3))), strict=True):
        assert np.array_equal(result["doubled"], row * 2)
        assert result["anchors"].shape == (5, 2)


def test_fingerprint_tells_outputs_apart(detector):
    """Backends that return or share different outputs have different fingerprints.

    Naming the declared batch axis does not change the fingerprint.
    """
    shared = ("found", "anchors", "total")
    settings = [
        {"shared_outputs": shared},
        {"outputs": ["doubled"]},
        {"outputs": ["columns"]},
        {"outputs": ["columns"], "batch_axes": {"columns": 1}},
        {"outputs": ["columns"], "shared_outputs": ["columns"]},
    ]
    prints = [OnnxBackend(detector, **one).fingerprint for one in settings]
    assert prints[2] == prints[3]
    assert len(set(prints)) == 4


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"shared_outputs": "found"}, TypeError, "shared_outputs: expected a sequence of names"),
        ({"shared_outputs": ["x"]}, ValueError, "shared_outputs: expected a sequence of names of outputs"),
        ({"outputs": "found"}, TypeError, "outputs: expected a sequence of names"),
        ({"outputs": ["nothing"]}, ValueError, "outputs: expected a sequence of names of outputs"),
        ({"outputs": []}, ValueError, "outputs: expected at least one name"),
        ({"outputs": ["total", "total"]}, ValueError, "each once"),
        ({"outputs": ["doubled"], "shared_outputs": ["found"]}, ValueError, "shared_outputs"),
        ({"shared_outputs": ["found"], "batch_axes": {"found": 0}}, ValueError, "which shared_outputs names"),
        ({"outputs": ["anchors"], "batch_axes": {"anchors": 0}}, ValueError, "an axis whose size is free"),
        ({"outputs": ["doubled"], "batch_axes": {"doubled": 2}}, ValueError, "an axis of 2 dimensions"),
    ],
)
def test_invalid_output_arguments_are_rejected(detector, settings, error, words):
    """The constructor checks the arguments about outputs."""
    with pytest.raises(error, match=words):
        OnnxBackend(detector, **settings)


def test_user_names_the_axis_if_two_have_the_symbol(build_model, batch, ramp):
    """If two axes of an output have the batch size, its rows are on the axis that the user names."""
    model = build_model(
        [helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0]), helper.make_node("MatMul", ["x", "t"], ["y"])],
        [("x", Tensor.FLOAT, ["batch", 3])],
        [("y", Tensor.FLOAT, ["batch", "batch"])],
    )
    with pytest.raises(ValueError, match="several axes have the batch size"):
        OnnxBackend(model)
    rows = answers(OnnxBackend(model, batch_axes={"y": 1}), batch(ramp(2, 3)))
    assert [row.tolist() for row in rows] == (ramp(2, 3) @ ramp(2, 3).T).T.tolist()


def test_free_sizes_without_names_need_a_batch_axis(identity, batch, ramp):
    """A size without a name equals no other size, so the user must name the batch axis of an output."""
    model = identity(Tensor.FLOAT, [None, 3])
    with pytest.raises(ValueError, match=r"no axis has the batch size \? of the inputs"):
        OnnxBackend(model)
    assert np.array_equal(answers(OnnxBackend(model, batch_axes={"y": 0}), batch(ramp(2, 3))), ramp(2, 3))


def test_batch_axis_fixed_at_one(build_model, batch, ramp):
    """If the inputs' batch axis is fixed at 1, an output's must be 1 too; another size is rejected."""
    outputs = [("y", Tensor.FLOAT, [1, 3]), ("found", Tensor.INT64, [2, "K"])]
    nodes = [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("NonZero", ["x"], ["found"])]
    model = build_model(nodes, [("x", Tensor.FLOAT, [1, 3])], outputs)
    with pytest.raises(ValueError, match="batch axis of output 'found'"):
        OnnxBackend(model)
    backend = OnnxBackend(model, shared_outputs=["found"])
    for row, result in zip(ramp(3, 3), answers(backend, batch(ramp(3, 3))), strict=True):
        assert np.array_equal(result["y"], row)
        assert np.array_equal(result["found"][1], np.flatnonzero(row))


def test_a_result_of_undeclared_shape_fails_the_batch(build_model, batch, ramp):
    """A model that returns another number of rows than it declares fails the batch."""
    model = build_model(
        [helper.make_node("Compress", ["x", "which"], ["y"], axis=0)],
        [("x", Tensor.FLOAT, ["batch", 3])],
        [("y", Tensor.FLOAT, ["kept", 3])],
        initializers=[helper.make_tensor("which", Tensor.BOOL, [2], [True, False])],
    )
    backend = OnnxBackend(model, batch_axes={"y": 0})
    with pytest.raises(errors.BackendError, match=r"output 'y': expected 2 rows on axis 0, got float32\[1, 3\]"):
        answers(backend, batch(ramp(2, 3)))


def test_a_stack_gives_each_caller_its_rows(detector, ramp):
    """Behind a batcher each caller gets its own row of every output, and the shared ones whole."""

    async def main():
        backend = OnnxBackend(detector, shared_outputs=("anchors",), outputs=("columns", "anchors"))
        stack = si.Stack(si.AdaptiveBatcher(max_batch_size=8), backend)
        async with stack:
            return await asyncio.gather(*(stack(row) for row in ramp(5, 3)))

    for row, result in zip(ramp(5, 3), asyncio.run(main()), strict=True):
        assert np.array_equal(result["columns"], row)
        assert result["anchors"].shape == (5, 2)


@pytest.mark.parametrize("around", [lambda backend: backend, si.CircuitBreaker().wrap], ids=["alone", "in a breaker"])
def test_outputs_of_the_whole_batch_exclude_filling_up(detector, around):
    """A model with outputs of the whole batch cannot be batched with `preferred_sizes`.

    Its outputs would contain the copies that fill a batch up to a preferred size.
    """
    batcher = si.AdaptiveBatcher(max_batch_size=4, preferred_sizes=[4])
    backend = OnnxBackend(detector, outputs=("doubled", "total"), shared_outputs=("total",))
    with pytest.raises(ValueError, match="preferred_sizes: expected None for a model with outputs of the whole batch"):
        batcher.wrap(around(backend))
    batcher.wrap(around(OnnxBackend(detector, outputs=("doubled",))))  # without `total`
