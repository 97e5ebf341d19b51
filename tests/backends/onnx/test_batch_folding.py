"""`fold_batch`: a folded model computes the same for any convolution over one axis; unsuitable models are rejected."""

import math
import sys
import wave

import hypothesis.strategies as st
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from onnx import TensorProto, helper, numpy_helper

from streaminfer.backends import OnnxBackend, fold_batch
from streaminfer.backends.onnx import batch_folding, fold_layout
from streaminfer.errors import MissingExtra

VOICE = {
    "example": {"input": np.zeros(576, np.float32), "state": np.zeros((2, 128), np.float32)},
    "batch_axes": {"state": 1, "stateN": 1},
    "shared_inputs": {"sr": np.array(16_000)},
}


def build(nodes, weights, shape, *, outputs=("y",), opset=17, kind=TensorProto.FLOAT, inputs=()):
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info("x", kind, shape), *inputs],
        [helper.make_tensor_value_info(name, kind, ["batch", None, None]) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return made.SerializeToString()


def convolution(filters=3, channels=2, taps=3, *, shape=("batch", 2, "length"), **attributes):
    """Return a model of one convolution with the given attributes."""
    weights = np.random.default_rng(1).standard_normal((filters, channels, taps)).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="only", **attributes)
    return build([node], {"w": weights}, list(shape))


def run(model, **inputs):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, inputs)


def operators(path):
    return [node.op_type for node in onnx.load(path).graph.node]


@st.composite
def convolutions(draw):
    """Draw a chain of up to three convolutions: the model, the shape of a row, and the number of convolutions.

    Strides, dilations, padding and groups vary.
    """
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    length = begun = draw(st.integers(1, 12))
    channels = first = draw(st.integers(1, 4))
    nodes, weights, value = [], {}, "x"
    for number in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]))
        taps, stride = draw(st.integers(1, 4)), draw(st.integers(1, 5))
        dilation = 1 if kind.startswith("SAME") else draw(st.integers(1, 2))  # onnxruntime supports no other with SAME
        span = (taps - 1) * dilation + 1
        if kind.startswith("SAME"):
            stride = min(stride, span + 2)  # larger strides have a test of their own below
        attributes = {"strides": [stride], "dilations": [dilation], "auto_pad": kind}
        if kind == "NOTSET":
            before, behind = draw(st.integers(0, 3)), draw(st.integers(0, 3))
            attributes["pads"] = [before, behind]
            windows = (length + before + behind - span) // stride + 1
        else:
            windows = -(-length // stride) if kind.startswith("SAME") else (length - span) // stride + 1
        if windows < 1:
            break
        group = draw(st.sampled_from([1, channels]))
        filters = group * draw(st.integers(1, 3))
        weights[f"w{number}"] = rng.standard_normal((filters, channels // group, taps)).astype(np.float32)
        reads = [value, f"w{number}"]
        if draw(st.booleans()):
            weights[f"b{number}"] = rng.standard_normal(filters).astype(np.float32)
            reads.append(f"b{number}")
        value, channels, length = f"y{number}", filters, windows
        nodes.append(helper.make_node("Conv", reads, [value], group=group, **attributes))
    nodes.append(helper.make_node("Relu", [value], ["y"]))
    opset = draw(st.sampled_from([11, 13, 17, 20]))
    return build(nodes, weights, ["batch", first, "length"], opset=opset), (first, begun), len(nodes) - 1


@settings(deadline=None, max_examples=80)
@given(given=convolutions(), rows=st.integers(1, 7))
def test_folded_model_computes_the_same(given, rows, tmp_path_factory):
    """Folding convolutions changes no output beyond rounding."""
    model, shape, count = given
    path = tmp_path_factory.mktemp("folded") / "folded.onnx"
    if not count:
        with pytest.raises(ValueError, match="none of 0"):
            fold_batch(model, path, example=np.zeros(shape, np.float32))
        return

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fold_layout, "COPYING", -math.inf)  # also folds where folding does not pay
        folded = fold_batch(model, path, example=np.zeros(shape, np.float32))

    assert (len(folded.folded), folded.unchanged, folded.path) == (count, 0, path)
    x = np.random.default_rng(rows).standard_normal((rows, *shape)).astype(np.float32)
    (before,), (after,) = run(model, x=x), run(str(path), x=x)
    assert after.shape == before.shape
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4)


def test_folded_voice_detector_computes_the_same(assets, tmp_path):
    """All convolutions of the voice detector fold, and its probabilities over a whole recording stay the same.

    The state is carried from chunk to chunk.
    """
    model = assets / "silero_vad_16k_op15.onnx"

    folded = fold_batch(model, tmp_path / "folded.onnx", **VOICE)

    assert len(folded.folded) == 6
    assert "/model/stft/Conv" in folded.folded
    assert folded.unchanged == 0
    assert 0 < folded.largest_difference < 1e-3
    assert operators(folded.path).count("Conv") == 6
    with wave.open(str(assets / "librivox_0870.wav")) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
    heard = []
    for path in (str(model), str(folded.path)):
        session = ort.InferenceSession(path)
        state, probabilities = np.zeros((2, 3, 128), np.float32), []
        for begin in range(0, samples.size - 576, 512):
            rows = np.stack([samples[begin : begin + 576], samples[::-1][begin : begin + 576], 0 * samples[:576]])
            found, state = session.run(None, {"input": rows, "state": state, "sr": np.array(16_000)})
            probabilities.append(found[:, 0])
        heard.append(np.stack(probabilities))
    assert heard[0].max() > 0.9
    np.testing.assert_allclose(heard[1], heard[0], atol=1e-4)


def test_folded_asset_is_up_to_date(assets, tmp_path):
    """`examples/assets/silero_vad_16k_folded.onnx` is up to date."""
    path = fold_batch(assets / "silero_vad_16k_op15.onnx", tmp_path / "folded.onnx", **VOICE).path

    made, kept = (onnx.load(one).graph for one in (path, assets / "silero_vad_16k_folded.onnx"))

    assert list(made.node) == list(kept.node)
    assert list(made.initializer) == list(kept.initializer)
    assert list(made.input) == list(kept.input)


def test_backend_loads_a_folded_model(tmp_path):
    fold_batch(convolution(pads=[1, 1]), tmp_path / "folded.onnx", example=np.zeros((2, 4), np.float32))

    backend = OnnxBackend(tmp_path / "folded.onnx")

    assert str(backend.inputs[0]) == "x float32[batch, 2, 4]"
    assert backend.max_batch_size is None


def test_other_lengths_are_rejected(tmp_path):
    """A folded model rejects rows of another length, because it would read one row of twice the length as two rows."""
    path = fold_batch(convolution(pads=[1, 1]), tmp_path / "folded.onnx", example=np.zeros((2, 4), np.float32)).path

    with pytest.raises(ort.capi.onnxruntime_pybind11_state.InvalidArgument, match="index: 2 Got: 8 Expected: 4"):
        run(str(path), x=np.zeros((3, 2, 8), np.float32))


def test_depthwise_convolutions_fold_at_longer_lengths(tmp_path):
    """Depthwise convolutions fold at a length at which folding does not pay for others.

    Without folding, each group of each row is a product of its own, whose call takes longer than its computation.
    """
    shape = ("batch", 64, "length")
    model = convolution(filters=64, channels=1, group=64, pads=[1, 1], shape=shape)

    folded = fold_batch(model, tmp_path / "folded.onnx", example=np.zeros((64, 24), np.float32))

    assert folded.folded == ("only",)
    with pytest.raises(ValueError, match="pays for none of 1"):
        fold_batch(
            convolution(filters=64, channels=64, pads=[1, 1], shape=shape),
            tmp_path / "f.onnx",
            example=np.zeros((64, 24), np.float32),
        )


def test_one_window_a_row_needs_no_padding(tmp_path):
    """If a row has one window, the taps that read only padding are cut off, and rows lie side by side."""
    model = convolution(pads=[1, 1], shape=("batch", 2, 1))

    path = fold_batch(model, tmp_path / "folded.onnx", example=np.zeros((2, 1), np.float32)).path

    assert operators(path) == ["Transpose", "Reshape", "Reshape", "Conv", "Reshape", "Transpose"]
    (weights,) = (one for one in onnx.load(path).graph.initializer if one.name.endswith("weights"))
    assert list(weights.dims) == [3, 2, 1]
    assert not any(one.name == "w" for one in onnx.load(path).graph.initializer)


def test_shared_weights_stay_unchanged(tmp_path):
    """If convolutions share weights, each is cut to its own taps, and one that needs all taps reads the original."""
    weights = np.random.default_rng(1).standard_normal((2, 2, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["middle"], pads=[1, 1]),
        helper.make_node("Conv", ["middle", "w"], ["last"], pads=[2, 0]),
        helper.make_node("Conv", ["last", "w"], ["y"], pads=[2, 2]),
    ]
    model = build(nodes, {"w": weights}, ["batch", 2, 1])

    path = fold_batch(model, tmp_path / "folded.onnx", example=np.zeros((2, 1), np.float32)).path

    kept = {one.name: numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}
    convolutions = [node for node in onnx.load(path).graph.node if node.op_type == "Conv"]
    for node, taps in zip(convolutions, ([1], [2], [0, 1, 2]), strict=True):
        np.testing.assert_array_equal(kept[node.input[1]], weights[:, :, taps])
    x = np.random.default_rng(2).standard_normal((4, 2, 1)).astype(np.float32)
    np.testing.assert_allclose(run(str(path), x=x)[0], run(model, x=x)[0], rtol=1e-5, atol=1e-6)


def test_weights_that_a_branch_reads_stay(tmp_path):
    """Weights that a branch reads keep all taps, although the convolution before the branch is cut to fewer."""
    weights = np.random.default_rng(1).standard_normal((2, 2, 3)).astype(np.float32)
    branches = {
        name: helper.make_graph(nodes, name, [], [helper.make_empty_tensor_value_info(name)])
        for name, nodes in {
            "again": [helper.make_node("Conv", ["first", "w"], ["again"], pads=[1, 1])],
            "once": [helper.make_node("Identity", ["first"], ["once"])],
        }.items()
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["first"], pads=[1, 1]),
        helper.make_node("If", ["more"], ["y"], then_branch=branches["again"], else_branch=branches["once"]),
    ]
    more = helper.make_tensor_value_info("more", TensorProto.BOOL, [])
    model = build(nodes, {"w": weights}, ["batch", 2, 1], inputs=[more])

    path = fold_batch(
        model,
        tmp_path / "folded.onnx",
        example={"x": np.zeros((2, 1), np.float32)},
        shared_inputs={"more": np.array(False)},
    ).path

    given = {"x": np.ones((4, 2, 1), np.float32), "more": np.array(True)}
    np.testing.assert_allclose(run(str(path), **given)[0], run(model, **given)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["shared", "optional"])
def test_convolution_of_shared_or_optional_input_stays(kind, tmp_path):
    """A convolution is not folded if it reads an input that the batch shares or that requests may omit."""
    weights = {"w": np.ones((2, 2, 3), np.float32)}
    nodes = [
        helper.make_node("Conv", ["s", "w"], ["other"], pads=[1, 1]),
        helper.make_node("Conv", ["x", "w"], ["own"], name="rows", pads=[1, 1]),
        helper.make_node("Add", ["own", "other"], ["y"]),
    ]
    brought, value = helper.make_tensor_value_info("s", TensorProto.FLOAT, [1, 2, 4]), np.ones((1, 2, 4), np.float32)
    if kind == "optional":
        weights["s"] = value
    model = build(nodes, weights, ["batch", 2, 4], inputs=[brought])

    folded = fold_batch(
        model,
        tmp_path / "folded.onnx",
        example={"x": np.zeros((2, 4), np.float32)},
        shared_inputs={"s": value} if kind == "shared" else None,
    )

    assert (folded.folded, folded.unchanged) == (("rows",), 1)


def test_other_lengths_inside_the_model_are_rejected(tmp_path):
    """A folded model rejects another length inside the model, because it would read a double length as two rows.

    Here a shared input sets how much of a row is read.
    """
    weights = {"w": np.ones((2, 2, 1), np.float32), "zero": np.array([0]), "axis": np.array([2])}
    nodes = [
        helper.make_node("Slice", ["x", "zero", "until", "axis"], ["read"]),
        helper.make_node("Conv", ["read", "w"], ["found"]),
        helper.make_node("ReduceMean", ["found"], ["mean"], axes=[0, 1, 2]),
        helper.make_node("Add", ["x", "mean"], ["y"]),
    ]
    until = helper.make_tensor_value_info("until", TensorProto.INT64, [1])
    path = fold_batch(
        build(nodes, weights, ["batch", 2, 8], inputs=[until]),
        tmp_path / "folded.onnx",
        example={"x": np.zeros((2, 8), np.float32)},
        shared_inputs={"until": np.array([4])},
    ).path

    with pytest.raises(ort.capi.onnxruntime_pybind11_state.Fail, match="cannot be reshaped"):
        run(str(path), x=np.ones((3, 2, 8), np.float32), until=np.array([8]))


def test_convolution_with_constant_node_weights_folds(tmp_path):
    """A convolution folds if its weights are a `Constant` node, as some exporters write them."""
    weights = numpy_helper.from_array(np.ones((3, 2, 3), np.float32))
    nodes = [
        helper.make_node("Constant", [], ["w"], value=weights),
        helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1]),
    ]

    folded = fold_batch(
        build(nodes, {}, ["batch", 2, 4]), tmp_path / "folded.onnx", example=np.zeros((2, 4), np.float32)
    )

    assert len(folded.folded) == 1


def test_convolution_not_over_rows_stays(tmp_path):
    """A convolution that does not run over rows is not folded: here one of all rows together and one of a constant."""
    weights = {
        "w": np.ones((1, 1, 3), np.float32),
        "flat": np.array([1, 1, -1]),
        "fixed": np.ones((2, 1, 4), np.float32),
        "back": np.array([-1, 1, 4]),
    }
    nodes = [
        helper.make_node("Reshape", ["x", "flat"], ["line"]),
        helper.make_node("Conv", ["line", "w"], ["smooth"], pads=[1, 1]),
        helper.make_node("Reshape", ["smooth", "back"], ["apart"]),
        helper.make_node("Conv", ["fixed", "w"], ["constant"], pads=[1, 1]),
        helper.make_node("ReduceSum", ["constant"], ["sum"], keepdims=0),
        helper.make_node("Add", ["apart", "sum"], ["moved"]),
        helper.make_node("Conv", ["moved", "w"], ["y"], name="rows", pads=[1, 1]),
    ]

    folded = fold_batch(
        build(nodes, weights, ["batch", 1, 4]), tmp_path / "folded.onnx", example=np.zeros((1, 4), np.float32)
    )

    assert (folded.folded, folded.unchanged) == (("rows",), 2)


def test_a_convolution_whose_input_is_an_output(tmp_path):
    """A convolution folds if its input is also an output of the model."""
    weights = {"w": np.ones((2, 2, 3), np.float32)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["z"], pads=[1, 1]),
        helper.make_node("Conv", ["z", "w"], ["y"], pads=[1, 1]),
    ]
    model = build(nodes, weights, ["batch", 2, 4], outputs=("y", "z"))

    folded = fold_batch(model, tmp_path / "folded.onnx", example=np.zeros((2, 4), np.float32))

    assert len(folded.folded) == 2


@pytest.mark.parametrize(
    ("model", "length"),
    [
        (convolution(pads=[3, 0], strides=[4]), 2),  # its one window reads nothing but padding
        (convolution(pads=[2, 0], strides=[4], taps=2), 1),
        (convolution(pads=[4, 0], strides=[9], taps=2, dilations=[3]), 2),
    ],
)
def test_windows_that_read_only_padding(model, length, tmp_path):
    path = fold_batch(model, tmp_path / "folded.onnx", example=np.zeros((2, length), np.float32)).path

    x = np.ones((3, 2, length), np.float32)
    np.testing.assert_array_equal(run(str(path), x=x)[0], run(model, x=x)[0])


@pytest.mark.parametrize("kind", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("stride", [2, 3, 4, 5])
@pytest.mark.parametrize("length", range(1, 9))
def test_strides_that_leap_over_positions(kind, stride, length, tmp_path):
    """A folded model computes the same if a stride skips positions.

    With automatic padding, onnxruntime may then begin after the first position; such convolutions are not folded.
    """
    weights = {"w": np.ones((2, 2, 1), np.float32), "v": np.ones((2, 2, 1), np.float32)}
    nodes = [
        helper.make_node("Conv", ["x", "v"], ["z"], name="plain"),
        helper.make_node("Conv", ["z", "w"], ["y"], auto_pad=kind, strides=[stride]),
    ]
    model = build(nodes, weights, ["batch", 2, length])

    folded = fold_batch(model, tmp_path / "folded.onnx", example=np.zeros((2, length), np.float32))

    assert "plain" in folded.folded
    x = np.random.default_rng(2).standard_normal((3, 2, length)).astype(np.float32)
    np.testing.assert_allclose(run(str(folded.path), x=x)[0], run(model, x=x)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("model", "length", "found"),
    [
        (convolution(pads=[1, 1]), 16, "none of 1"),  # fills the columns without folding
        (convolution(taps=1, pads=[0, 0]), 15, "none of 1"),
        (convolution(filters=128, pads=[1, 1]), 6, "none of 1"),  # much to copy, little to compute
        (build([helper.make_node("Relu", ["x"], ["y"])], {}, ["batch", 2, 4]), 4, "none of 0"),
    ],
)
def test_model_with_nothing_to_fold_is_rejected(model, length, found, tmp_path):
    with pytest.raises(
        ValueError, match=f"few positions, for which folding pays, got .*bytes, where it pays for {found}"
    ):
        fold_batch(model, tmp_path / "folded.onnx", example=np.zeros((2, length), np.float32))

    assert not list(tmp_path.iterdir())


def test_convolutions_over_pictures_stay(assets, tmp_path):
    with pytest.raises(ValueError, match=r"'blaze_front.onnx', where it pays for none of \d\d"):
        fold_batch(assets / "blaze_front.onnx", tmp_path / "f.onnx", example=np.zeros((128, 128, 3), np.float32))


def test_a_fold_that_changes_outputs_is_rejected(tmp_path, monkeypatch):
    """`fold_batch` compares the outputs before it writes the file; here the layout is wrong on purpose."""
    lay_out = batch_folding.lay_out

    def wrong(one, length):
        return batch_folding.attrs.evolve(lay_out(one, length), before=0)

    monkeypatch.setattr(batch_folding, "lay_out", wrong)

    with pytest.raises(ValueError, match=r"folding changes its output 'y' by .* of the largest value \(1 rows\)"):
        fold_batch(convolution(pads=[1, 1]), tmp_path / "folded.onnx", example=np.ones((2, 4), np.float32))

    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"example": np.zeros((3, 4), np.float32)}, ValueError, "example: input 'x'"),
        ({"example": None}, TypeError, "example: expected one request's inputs, got None"),
        ({"target": 3}, TypeError, "target: expected a path, got 3"),
        ({"path_or_bytes": b"no model"}, ValueError, "path_or_bytes: expected an ONNX model"),
        ({"path_or_bytes": "absent.onnx"}, FileNotFoundError, "path_or_bytes"),
        ({"batch_axes": {"z": 0}}, ValueError, "batch_axes"),
        ({"shared_inputs": {"z": np.zeros(3)}}, ValueError, "shared_inputs"),
        ({"path_or_bytes": convolution(shape=(4, 2, 4))}, ValueError, "a free batch axis, got .* bytes, fixed at 4"),
        (
            {"path_or_bytes": build([helper.make_node("Relu", ["x"], ["y"])], {}, ["batch", 2, 4], opset=10)},
            ValueError,
            "a model of opset 11 or later, got .* bytes of opset 10",
        ),
    ],
)
def test_invalid_arguments_are_rejected(arguments, error, message, tmp_path):
    usual = {
        "path_or_bytes": convolution(pads=[1, 1]),
        "target": tmp_path / "f.onnx",
        "example": np.ones((2, 4), np.float32),
    }
    given = {**usual, **arguments}

    with pytest.raises(error, match=message):
        fold_batch(given.pop("path_or_bytes"), given.pop("target"), **given)

    assert not list(tmp_path.iterdir())


def test_missing_onnx_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnx", None)

    with pytest.raises(MissingExtra, match=r"fold_batch needs onnx.*streaminfer\[fold\]"):
        fold_batch(b"", tmp_path / "f.onnx", example=np.zeros(1, np.float32))


def test_layouts_between_convolutions_cancel(tmp_path):
    """onnxruntime removes the two transpositions between folded convolutions, because they cancel.

    The first convolution transposes its result back to rows, and the second would lay the rows end to end again.
    """
    weights = np.random.default_rng(1).standard_normal((64, 64, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["first"], pads=[1, 1]),
        helper.make_node("Relu", ["first"], ["between"]),
        helper.make_node("Conv", ["between", "w"], ["y"], pads=[1, 1]),
    ]
    example = np.zeros((64, 4), np.float32)
    folded = fold_batch(build(nodes, {"w": weights}, ["batch", 64, 4]), tmp_path / "folded.onnx", example=example)
    assert len(folded.folded) == 2
    assert operators(folded.path).count("Transpose") == 4
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")

    ort.InferenceSession(folded.path, options, providers=["CPUExecutionProvider"])

    assert operators(tmp_path / "optimized.onnx").count("Transpose") == 2
