"""OnnxBackend with text, bfloat16, optional inputs and a fixed batch size: each caller gets its own result."""

import asyncio

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto as Tensor
from onnx import helper

import streaminfer as si
from streaminfer.backends import OnnxBackend, write_model_repository
from streaminfer.backends.onnx.bfloat16 import from_bfloat16, to_bfloat16

F32 = np.float32


def served(backend, inputs, max_batch_size=4, **arguments):
    """Return the result or error of each caller, in batches of at most `max_batch_size` rows."""

    async def main():
        batcher = si.AdaptiveBatcher(max_batch_size=max_batch_size, policy="greedy", **arguments)
        async with si.Stack(batcher, backend) as stack:
            return await asyncio.gather(*map(stack, inputs), return_exceptions=True)

    return asyncio.run(main())


def answers(backend, batch):
    """Return the results of one batch, without a batcher."""

    async def main():
        try:
            return await backend.infer(batch)
        finally:
            await backend.stop()

    return asyncio.run(main())


# ---------------------------------------------------------------------------------------------- text


@pytest.fixture(scope="module")
def upper(build_model):
    """Return a factory of models that return their text in capitals, for a given shape."""

    def make(shape):
        return build_model(
            [
                helper.make_node(
                    "StringNormalizer", ["x"], ["y"], case_change_action="UPPER", locale="C", is_case_sensitive=1
                )
            ],
            [("x", Tensor.STRING, shape)],
            [("y", Tensor.STRING, shape)],
        )

    return make


@pytest.fixture(scope="module")
def echo(identity):
    """Return a factory of models that return their text unchanged, for a given shape."""
    return lambda shape: identity(Tensor.STRING, shape)


def test_text_reaches_its_caller(upper):
    """A model of strings gets each string unchanged, empty or long, and each caller gets its own result."""
    texts = ["a", "", "x" * 10_000, *(f"number {index}" for index in range(20))]
    backend = OnnxBackend(upper(["batch"]))
    assert str(backend.inputs[0]) == "x str[batch]"
    assert served(backend, texts) == [text.upper() for text in texts]


def test_text_arrays_of_any_type_share_a_batch(echo):
    """Arrays of NumPy's text types and of Python strings can share a batch, whatever their widths."""
    rows = [np.array(["a", "bb"]), np.array(["long\0" * 9, "c"], object), np.array(["ünï", "d" * 99])]
    for row, answer in zip(rows, served(OnnxBackend(echo(["batch", 2])), rows), strict=True):
        assert answer.dtype == object
        assert answer.tolist() == row.tolist()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (b"a", "got bytes b'a': bytes are no text: decode them"),
        (np.array(b"a"), "decode them"),
        (np.array(3, object), "an element is no str"),
        (1.0, "got float 1.0"),
        (np.ma.array("a"), "its mask would be lost"),
        (np.array(["a"]), "a request carries no batch axis"),
        ("\ud83d", "half a surrogate pair"),
        (np.array("\ud83d"), "half a surrogate pair"),
        (np.array("\ud83d", object), "half a surrogate pair"),
    ],
    ids=ascii,
)
def test_non_text_inputs_are_rejected(echo, wrong, words):
    """Inputs that are not text are rejected: onnxruntime would convert bytes and numbers to text such as ``b'a'``.

    Half a surrogate pair, which JSON can contain, is not text either.
    """
    right, refused = served(OnnxBackend(echo(["batch"])), ["right", wrong])
    assert right == "right"
    assert isinstance(refused, si.InvalidInput)
    assert words in str(refused)
    assert "input 'x': expected str[]" in str(refused)


def test_text_in_a_warm_up(echo, batch):
    """Empty strings, or the example, warm up a model of strings."""
    for settings in ({}, {"example": "text"}):
        backend = OnnxBackend(echo(["batch"]), warmup=[2], **settings)

        async def main(backend=backend):
            await backend.start()
            return await backend.infer(batch(np.array(["a", "b"], object)))

        assert asyncio.run(_stopped(main, backend)) == ["a", "b"]


async def _stopped(main, backend):
    try:
        return await main()
    finally:
        await backend.stop()


def test_text_has_no_kept_memory(echo):
    """`binding` is rejected for strings, which cannot be bound, and the error names the valid choice."""
    with pytest.raises(ValueError, match="binding: expected 'off', since 'x' is no tensor of NumPy's numbers"):
        OnnxBackend(echo(["batch"]), binding="pageable")


def test_functions_get_arrays_of_strings():
    """A function gets text as an array of Python strings, which may be longer than the text of the example."""
    backend = si.CpuBackend(lambda x: [(x.dtype == object, *row[::-1]) for row in x], example=np.array(["a", "b"]))
    rows = [np.array(["long", ""]), np.array(["c", "longer"], object), np.array([1, 2])]
    first, second, refused = served(backend, rows)
    assert (first, second) == ((True, "", "long"), (True, "longer", "c"))
    assert isinstance(refused, si.InvalidInput)


# ---------------------------------------------------------------------------------------------- bfloat16


def test_bfloat16_is_rounded_to_nearest_even():
    """Every bfloat16 survives a round trip, and any float32 is rounded to the nearest, ties to even."""
    bits = np.arange(2**16, dtype=np.uint16)
    same = to_bfloat16(from_bfloat16(bits))
    numbers = ~np.isnan(from_bfloat16(bits))
    assert np.array_equal(same[numbers], bits[numbers])
    assert np.isnan(from_bfloat16(same[~numbers])).all()
    values = np.random.default_rng(0).integers(0, 2**32, 100_000, np.uint32).view(F32)
    with np.errstate(all="ignore"):
        reference = values.astype(ml_dtypes.bfloat16).astype(F32)
    assert np.array_equal(from_bfloat16(to_bfloat16(values)), reference, equal_nan=True)


def test_bfloat16_reaches_its_caller(build_model):
    """A bfloat16 input takes float32, which is rounded, and a bfloat16 output is float32, also beside other types."""
    model = build_model(
        [
            helper.make_node("Cast", ["x"], ["wide"], to=Tensor.FLOAT),
            helper.make_node("Add", ["wide", "z"], ["sum"]),
            helper.make_node("Cast", ["sum"], ["y"], to=Tensor.BFLOAT16),
            helper.make_node("Identity", ["x"], ["same"]),
            helper.make_node("Identity", ["sum"], ["exact"]),
        ],
        [("x", Tensor.BFLOAT16, ["batch", 3]), ("z", Tensor.FLOAT, ["batch", 3])],
        [
            ("y", Tensor.BFLOAT16, ["batch", 3]),
            ("same", Tensor.BFLOAT16, ["batch", 3]),
            ("exact", Tensor.FLOAT, ["batch", 3]),
        ],
    )
    backend = OnnxBackend(model, warmup=[2])
    assert [str(spec) for spec in backend.inputs] == ["x bfloat16[batch, 3]", "z float32[batch, 3]"]
    generator = np.random.default_rng(1)
    rows = [{name: generator.normal(size=3).astype(F32) for name in "xz"} for _ in range(20)]
    for row, answer in zip(rows, served(backend, rows), strict=True):
        rounded = row["x"].astype(ml_dtypes.bfloat16).astype(F32)
        assert np.array_equal(answer["same"], rounded)
        assert np.array_equal(answer["exact"], rounded + row["z"])
        assert np.array_equal(answer["y"], answer["exact"].astype(ml_dtypes.bfloat16).astype(F32))
        assert answer["y"].dtype == F32


def test_bfloat16_of_the_whole_batch(build_model):
    """Shared bfloat16 inputs and outputs are float32 for the caller too, also if they are scalars."""
    model = build_model(
        [
            helper.make_node("Cast", ["x"], ["wide"], to=Tensor.FLOAT),
            helper.make_node("Cast", ["factor"], ["by"], to=Tensor.FLOAT),
            helper.make_node("Mul", ["wide", "by"], ["product"]),
            helper.make_node("Cast", ["product"], ["y"], to=Tensor.BFLOAT16),
            helper.make_node("Identity", ["factor"], ["given"]),
        ],
        [("x", Tensor.BFLOAT16, ["batch"]), ("factor", Tensor.BFLOAT16, [])],
        [("y", Tensor.BFLOAT16, ["batch"]), ("given", Tensor.BFLOAT16, [])],
    )
    backend = OnnxBackend(model, shared_inputs={"factor": np.array(3, F32)}, shared_outputs=["given"])
    rows = [F32(value) for value in range(9)]
    assert [(answer["y"], answer["given"]) for answer in served(backend, rows)] == [(3 * row, 3) for row in rows]


def test_bfloat16_with_binding_or_strings_is_rejected(build_model, identity, tmp_path):
    """A bfloat16 model takes no ``binding`` and no strings; its repository for Triton has the type BF16."""
    model = identity(Tensor.BFLOAT16, ["batch", 2])
    with pytest.raises(ValueError, match="binding: expected 'off', since 'x'"):
        OnnxBackend(model, binding="pageable")
    both = build_model(
        [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Identity", ["text"], ["same"])],
        [("x", Tensor.BFLOAT16, ["batch"]), ("text", Tensor.STRING, ["batch"])],
        [("y", Tensor.BFLOAT16, ["batch"]), ("same", Tensor.STRING, ["batch"])],
    )
    with pytest.raises(ValueError, match="expected strings or bfloat16 in the inputs, got both"):
        OnnxBackend(both)
    (tmp_path / "model.onnx").write_bytes(model)
    folder = write_model_repository(
        tmp_path / "models", "m", tmp_path / "model.onnx", platform="onnxruntime", max_batch_size=8
    )
    assert (folder / "config.pbtxt").read_text().count("TYPE_BF16") == 2


def test_outputs_without_a_type_are_rejected(build_model):
    """Outputs that Python cannot read fail when the backend is made: half bytes, and sequences beside bfloat16."""
    halves = helper.make_model(
        helper.make_graph(
            [helper.make_node("Cast", ["x"], ["y"], to=Tensor.INT4)],
            "half bytes",
            [helper.make_tensor_value_info("x", Tensor.FLOAT, ["batch", 2])],
            [helper.make_tensor_value_info("y", Tensor.INT4, ["batch", 2])],
        ),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    with pytest.raises(ValueError, match=r"numbers, booleans or strings, got tensor\(int4\) for output 'y'"):
        OnnxBackend(halves.SerializeToString())
    probabilities = helper.make_map_type_proto(Tensor.INT64, helper.make_tensor_type_proto(Tensor.FLOAT, []))
    classifier = build_model(
        [
            helper.make_node("Cast", ["x"], ["y"], to=Tensor.FLOAT),
            helper.make_node("ZipMap", ["y"], ["z"], domain="ai.onnx.ml", classlabels_int64s=[7, 8]),
        ],
        [("x", Tensor.BFLOAT16, ["batch", 2])],
        [
            ("y", Tensor.FLOAT, ["batch", 2]),
            helper.make_value_info("z", helper.make_sequence_type_proto(probabilities)),
        ],
        domains=[("ai.onnx.ml", 3)],
    )
    with pytest.raises(ValueError, match=r"tensors beside 'x', which is bfloat16, got seq\(map.* for output 'z'"):
        OnnxBackend(classifier)
    (row,) = served(OnnxBackend(classifier, outputs=["y"]), [np.ones(2, F32)])
    assert np.array_equal(row, [1, 1])


# ---------------------------------------------------------------------------------------------- optional inputs


@pytest.fixture(scope="module")
def biased(build_model):
    """Return a model of y = (x + bias · scale) · weight, in which all but x have defaults.

    The weight is declared as an input, as old exporters do.
    """
    return build_model(
        [
            helper.make_node("Mul", ["bias", "scale"], ["product"]),
            helper.make_node("Add", ["x", "product"], ["moved"]),
            helper.make_node("Mul", ["moved", "weight"], ["y"]),
        ],
        [
            ("x", Tensor.FLOAT, ["batch", 2]),
            ("bias", Tensor.FLOAT, ["batch", 2]),
            ("scale", Tensor.FLOAT, []),
            ("weight", Tensor.FLOAT, [2]),
        ],
        [("y", Tensor.FLOAT, ["batch", 2])],
        initializers=[
            helper.make_tensor("bias", Tensor.FLOAT, [1, 2], [10.0, 20.0]),
            helper.make_tensor("scale", Tensor.FLOAT, [], [1.0]),
            helper.make_tensor("weight", Tensor.FLOAT, [2], [1.0, 1.0]),
        ],
    )


@pytest.mark.parametrize("binding", ["off", "pageable"])
def test_an_optional_input_may_be_left_out(biased, binding):
    """Each caller's result uses its own value of an optional input, or the default if the request omits the input.

    Arrays, mappings without the optional input, and mappings with it are a batch each.
    """
    backend = OnnxBackend(biased, binding=binding)
    assert [str(spec) for spec in backend.inputs] == ["x float32[batch, 2]", "bias float32[batch, 2] (optional)"]
    bias = np.array([10, 20], F32)
    rows = [np.array([index, -index], F32) for index in range(15)]
    inputs = [(row, {"x": row}, {"x": row, "bias": row * 7})[index % 3] for index, row in enumerate(rows)]

    results = served(backend, inputs, 16)

    for index, (row, answer) in enumerate(zip(rows, results, strict=True)):
        assert answer.tolist() == (row + (row * 7 if index % 3 == 2 else bias)).tolist()
    assert (backend.statistics().batches, backend.statistics().errors) == (3, 0)


def test_an_optional_input_is_checked(biased):
    """A request's optional input must match the model, and an input without a batch axis cannot be in a request."""
    x = np.zeros(2, F32)
    wrong = [{"x": x, "bias": np.zeros(3, F32)}, {"bias": x}, {"x": x, "weight": x}]
    for error, words in zip(
        served(OnnxBackend(biased), wrong), ["'bias': expected float32[2]", "'x'", "'weight'"], strict=True
    ):
        assert isinstance(error, si.InvalidInput)
        assert words in str(error)


def test_an_optional_input_that_the_batch_shares(biased):
    """`shared_inputs` replaces a default for all requests."""
    backend = OnnxBackend(biased, shared_inputs={"scale": np.array(2, F32), "bias": np.ones((1, 2), F32)})
    assert [answer.tolist() for answer in served(backend, [np.zeros(2, F32)] * 3)] == [[2, 2]] * 3
    plain = OnnxBackend(biased, shared_inputs={"scale": np.array(1, F32)})
    assert plain.fingerprint != OnnxBackend(biased, shared_inputs={"scale": np.array(2, F32)}).fingerprint
    with pytest.raises(ValueError, match="at least one input left for requests"):
        OnnxBackend(biased, shared_inputs={"x": np.zeros((1, 2), F32)})


def test_an_optional_input_beside_another_batch_axis(build_model):
    """If an optional input has another batch axis than the required one, requests must name their inputs.

    An array without a name would be stacked on the first axis.
    """
    model = build_model(
        [helper.make_node("Add", ["x", "bias"], ["y"])],
        [("x", Tensor.FLOAT, [2, "batch"]), ("bias", Tensor.FLOAT, ["batch"])],
        [("y", Tensor.FLOAT, [2, "batch"])],
        initializers=[helper.make_tensor("bias", Tensor.FLOAT, [1], [1.0])],
    )
    backend = OnnxBackend(model, batch_axes={"x": 1})
    rows = [np.array([index, -index], F32) for index in range(6)]
    named = [{"x": row} if index % 2 else {"x": row, "bias": F32(5)} for index, row in enumerate(rows)]
    for index, (row, answer) in enumerate(zip(rows, served(backend, named), strict=True)):
        assert answer.tolist() == (row + (1 if index % 2 else 5)).tolist()
    with pytest.raises(si.InvalidInput, match="expected a mapping with 'x'"):
        backend.validate(si.Request(rows[0]))


# ---------------------------------------------------------------------------------------------- a fixed batch size


@pytest.fixture(scope="module")
def four(build_model):
    """Return a model for exactly four rows x, with the outputs y = 2 x, the columns of x, and the sum of x."""
    return build_model(
        [
            helper.make_node("Add", ["x", "x"], ["y"]),
            helper.make_node("Transpose", ["x"], ["columns"], perm=[1, 0]),
            helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
        ],
        [("x", Tensor.FLOAT, [4, 3])],
        [("y", Tensor.FLOAT, [4, 3]), ("columns", Tensor.FLOAT, [3, 4]), ("total", Tensor.FLOAT, [])],
    )


@pytest.mark.parametrize("binding", ["off", "pageable"])
@pytest.mark.parametrize("rows", [1, 3, 4, 6])
def test_a_fixed_batch_size_is_filled_with_copies(four, ramp, rows, binding):
    """Copies of rows fill up each batch of a fixed size, and no caller gets the results of the copies."""
    backend = OnnxBackend(four, outputs=["y", "columns"], binding=binding, warmup=[1])
    assert backend.max_batch_size == 4
    assert "4 rows a run" in repr(backend)
    results = served(backend, list(ramp(rows, 3)))
    assert len(results) == rows
    for row, answer in zip(ramp(rows, 3), results, strict=True):
        assert answer["y"].tolist() == (2 * row).tolist()
        assert answer["columns"].tolist() == row.tolist()


@pytest.mark.parametrize("rows", [2, 4, 5, 9])
def test_a_fixed_batch_size_without_a_batcher(four, batch, ramp, rows):
    """A model with a fixed batch size runs a batch of any size in as many runs as it needs."""
    results = answers(OnnxBackend(four, outputs=["y"]), batch(ramp(rows, 3)))
    assert np.array_equal(np.stack(results), ramp(rows, 3) * 2)


def test_a_fixed_batch_size_bounds_the_batcher(four):
    """A batcher with a larger ``max_batch_size`` is rejected when it starts."""
    with pytest.raises(ValueError, match="max_batch_size: expected at most 4, the most rows that the model takes"):
        served(OnnxBackend(four, outputs=["y"]), [np.zeros(3, F32)], max_batch_size=8)


def test_outputs_of_a_whole_fixed_batch_are_rejected(four):
    """A model with a fixed batch size cannot have outputs of the whole batch, which would include copies of rows."""
    with pytest.raises(ValueError, match="shared_outputs: expected none with a batch axis fixed at 4"):
        OnnxBackend(four, outputs=["y", "total"], shared_outputs=["total"])
    with pytest.raises(ValueError, match="batch axis of output 'total'"):
        OnnxBackend(four)


def test_inputs_of_several_fixed_sizes_are_rejected(build_model):
    """A fixed size is the batch size only if all inputs have it."""
    for other in ([2, 3], ["batch", 3]):
        model = build_model(
            [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Identity", ["z"], ["w"])],
            [("x", Tensor.FLOAT, [4, 3]), ("z", Tensor.FLOAT, other)],
            [("y", Tensor.FLOAT, [4, 3]), ("w", Tensor.FLOAT, other)],
        )
        with pytest.raises(ValueError, match=r"batch_axes\['x'\]: expected an axis whose size is free"):
            OnnxBackend(model)


def test_square_output_of_fixed_batch_needs_batch_axis(identity):
    """If two axes of an output have the fixed batch size, the user must name the axis of the rows."""
    model = identity(Tensor.FLOAT, [4, 4])
    with pytest.raises(ValueError, match="several axes have the batch size 4"):
        OnnxBackend(model)
    backend = OnnxBackend(model, batch_axes={"y": 0})
    rows = [np.arange(4, dtype=F32) + index for index in range(6)]
    assert [answer.tolist() for answer in served(backend, rows)] == [row.tolist() for row in rows]


def test_a_bad_row_of_a_fixed_batch_fails_alone(build_model):
    """The batcher sends a failed batch again in parts, so that a bad row fails alone."""
    model = build_model(
        [helper.make_node("Gather", ["table", "i"], ["y"])],
        [("i", Tensor.INT64, [4])],
        [("y", Tensor.FLOAT, [4])],
        initializers=[helper.make_tensor("table", Tensor.FLOAT, [3], [10.0, 20.0, 30.0])],
    )
    results = served(OnnxBackend(model), [np.array(index) for index in (0, 7, 2, 1)])
    assert isinstance(results[1], si.BackendError)
    assert [results[place] for place in (0, 2, 3)] == [10, 30, 20]


def test_a_repository_with_a_fixed_batch_is_rejected(identity, tmp_path):
    """A model with a fixed batch size cannot be batched by Triton, whose batch dimension must be free."""
    (tmp_path / "model.onnx").write_bytes(identity(Tensor.FLOAT, [4, 3]))
    with pytest.raises(ValueError, match=r"max_batch_size: expected 0, since .* has a batch axis fixed at 4"):
        write_model_repository(
            tmp_path / "models", "m", tmp_path / "model.onnx", platform="onnxruntime", max_batch_size=4
        )
