"""Each caller's result equals that of a single run: outputs × batch sizes × models that reuse memory × layouts.

The default run draws few cases; the environment variable `STREAMINFER_CASES` sets another number.
"""

import asyncio
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto as Tensor
from onnx import helper

import streaminfer as si
from streaminfer._runtime import serving_process
from streaminfer.backends import CpuBackend, OnnxBackend

CASES = int(os.environ.get("STREAMINFER_CASES", "40"))
"""Drawn cases of each test; with 10000 the run takes minutes."""

WIDTH = 3


@pytest.fixture(scope="module", autouse=True)
def _settings_for_all_cases():
    """Hold the settings of a serving process during all cases.

    Otherwise each stack collects garbage at its start, which takes longer than its case.
    """
    loop = asyncio.new_event_loop()
    hold = serving_process.enter(loop)
    yield
    serving_process.leave(hold)
    loop.close()


def values(rows, start):
    """Return float32 rows that differ from each other."""
    return (np.arange(rows * WIDTH, dtype=np.float32) + start).reshape(rows, WIDTH)


def laid_out(row, layout):
    """Return a row of equal values in memory of the given layout."""
    if layout == "strided":
        wide = np.zeros(2 * WIDTH, np.float32)
        wide[::2] = row
        return wide[::2]
    if layout == "read-only":
        frozen = row.copy()
        frozen.flags.writeable = False
        return frozen
    if layout == "reversed":
        return np.ascontiguousarray(row[::-1])[::-1]
    return row.copy()


class Model:
    """Batch function with a choice of output forms, which may reuse its memory, write to its inputs, or fail."""

    def __init__(self, form, *, reuses, mutates, fails):
        self.form = form
        self.reuses = reuses
        self.mutates = mutates
        self.fails = fails
        self.memory = np.zeros((9, WIDTH), np.float32)

    def __call__(self, x):
        out = self.memory[: len(x)] if self.reuses else np.empty_like(x)
        np.multiply(x, 2, out=out)
        failing = bool(self.fails and (x[:, 0] % 4 == 0).any())
        if self.mutates:
            x[...] = -7
        if failing:
            raise ValueError("a row that this model does not take")
        return FORMS[self.form](out, x)


FORMS = {
    "array": lambda out, _x: out,
    "aliased": lambda _out, x: x,
    "columns": lambda out, _x: out.T.T[:, ::-1],
    "tuple": lambda out, _x: (out, out[:, 0]),
    "mapping": lambda out, _x: {"all": out, "first": (out[:, 0], out[:, 1:])},
    "list": lambda out, _x: list(out),
    "list of tuples": lambda out, _x: [(row, row[:1]) for row in out],
}


def plain(result):
    """Return a result as nested lists, for comparisons."""
    if isinstance(result, Exception):
        return repr(result.__cause__)
    if isinstance(result, dict):
        return {name: plain(value) for name, value in result.items()}
    if isinstance(result, tuple):
        return tuple(map(plain, result))
    return np.asarray(result).tolist()


def served(backend, rows, *, max_batch_size):
    """Return the callers' results, read after the last response, in batches of at most `max_batch_size` rows."""

    async def main():
        batcher = si.AdaptiveBatcher(max_batch_size=max_batch_size, policy="greedy")
        async with si.Stack(batcher, backend) as stack:
            return await asyncio.gather(*map(stack, rows), return_exceptions=True)

    return [plain(result) for result in asyncio.run(main())]


@settings(max_examples=CASES, deadline=None)
@given(
    form=st.sampled_from(list(FORMS)),
    rows=st.integers(1, 9),
    max_batch_size=st.integers(1, 9),
    layout=st.sampled_from(["plain", "strided", "read-only", "reversed"]),
    executor=st.sampled_from(["thread", "inline"]),
    reuses=st.booleans(),
    mutates=st.booleans(),
    fails=st.booleans(),
    start=st.integers(-5, 5),
)
def test_batched_functions_match_single_calls(
    form, rows, max_batch_size, layout, executor, reuses, mutates, fails, start
):
    """Each caller of a batched function gets the result of a single call, on threads and on the event loop.

    This holds for every form of output, and for functions that reuse memory, overwrite their inputs or fail.
    """
    # good rows may fail together with several bad ones, so a batch has at most one bad row
    fails = fails and max_batch_size <= 4
    inputs = values(rows, start)
    behavior = {"reuses": reuses, "mutates": mutates, "fails": fails}
    alone = [
        served(CpuBackend(Model(form, **behavior), executor="inline"), [row], max_batch_size=1)[0]
        for row in inputs.copy()
    ]

    backend = CpuBackend(Model(form, **behavior), executor=executor)
    together = served(backend, [laid_out(row, layout) for row in inputs], max_batch_size=max_batch_size)

    assert together == alone


OUTPUTS = {
    "rows": (["batch", WIDTH], [helper.make_node("Add", ["x", "x"], ["rows"])]),
    "same": (["batch", WIDTH], [helper.make_node("Identity", ["x"], ["same"])]),
    "columns": ([WIDTH, "batch"], [helper.make_node("Transpose", ["x"], ["columns"], perm=[1, 0])]),
    "single": (["batch"], [helper.make_node("ReduceSum", ["x", "last"], ["single"], keepdims=0)]),
    "anchors": ([5, 2], [helper.make_node("Identity", ["table"], ["anchors"])]),
    "fixed": ([2, WIDTH], [helper.make_node("Identity", ["pair"], ["fixed"])]),
}
SHARED = {"anchors", "fixed"}


@pytest.fixture(scope="module")
def models(build_model):
    """Return a factory of models with the named outputs of `OUTPUTS`."""
    made = {}

    def make(names):
        if names not in made:
            made[names] = build_model(
                [node for name in names for node in OUTPUTS[name][1]],
                [("x", Tensor.FLOAT, ["batch", WIDTH])],
                [(name, Tensor.FLOAT, OUTPUTS[name][0]) for name in names],
                initializers=[
                    helper.make_tensor("table", Tensor.FLOAT, [5, 2], np.arange(10, dtype=np.float32)),
                    helper.make_tensor("pair", Tensor.FLOAT, [2, WIDTH], np.arange(6, dtype=np.float32)),
                    helper.make_tensor("last", Tensor.INT64, [1], [1]),
                ],
            )
        return made[names]

    return make


@settings(max_examples=CASES, deadline=None)
@given(
    names=st.lists(st.sampled_from(list(OUTPUTS)), min_size=1, unique=True).map(tuple),
    rows=st.integers(1, 9),
    max_batch_size=st.integers(1, 9),
    layout=st.sampled_from(["plain", "strided", "read-only", "reversed"]),
    binding=st.sampled_from(["off", "pageable"]),
)
def test_batched_onnx_models_match_single_calls(models, names, rows, max_batch_size, layout, binding):
    """Each caller of a batched ONNX model gets the result of a single call, with and without bound memory.

    The batch axis of an output is the first, the second or none.
    """
    inputs = values(rows, 0)
    shared = [name for name in names if name in SHARED]

    def backend():
        return OnnxBackend(models(names), shared_outputs=shared, binding=binding)

    alone = [served(backend(), [row], max_batch_size=1)[0] for row in inputs[:: max(rows - 1, 1)]]

    together = served(backend(), [laid_out(row, layout) for row in inputs], max_batch_size=max_batch_size)

    assert together[:: max(rows - 1, 1)] == alone
    for row, result in zip(inputs, together, strict=True):
        outputs = {names[0]: result} if len(names) == 1 else result
        for name, value in outputs.items():
            expected = {"rows": row * 2, "same": row, "columns": row, "single": row.sum()}.get(name)
            assert expected is None or value == np.asarray(expected).tolist()


KINDS = {
    "fixed": ([4, WIDTH], Tensor.FLOAT, "Identity"),
    "text": (["batch"], Tensor.STRING, "Identity"),
    "texts": (["batch", WIDTH], Tensor.STRING, "Identity"),
    "bfloat16": (["batch", WIDTH], Tensor.BFLOAT16, "Identity"),
    "optional": (["batch", WIDTH], Tensor.FLOAT, "Add"),
}


@pytest.fixture(scope="module")
def kinds(build_model):
    """Return, by kind, a model and the names of its outputs for the whole batch.

    A model returns its input, or adds an optional input to it. All but ``fixed`` also return a table for the batch.
    """
    made = {}
    for kind, (shape, element, operator) in KINDS.items():
        whole = [] if kind == "fixed" else ["table"]
        default = helper.make_tensor("other", Tensor.FLOAT, [1, WIDTH], np.full(WIDTH, 0.5, np.float32))
        table = helper.make_tensor("numbers", Tensor.FLOAT, [4, WIDTH], np.arange(4 * WIDTH, dtype=np.float32))
        names = ["x", "other"] if kind == "optional" else ["x"]
        model = build_model(
            [
                helper.make_node(operator, names, ["y"]),
                *(helper.make_node("Identity", ["numbers"], [name]) for name in whole),
            ],
            [(name, element, shape) for name in names],
            [("y", element, shape), *((name, Tensor.FLOAT, [4, WIDTH]) for name in whole)],
            initializers=[table, *([default] if kind == "optional" else [])],
        )
        made[kind] = model, whole
    return made


def text_as(text, form):
    """Return a text as another type."""
    return {"str": str, "numpy": np.str_, "array": np.array, "objects": lambda one: np.array(one, object)}[form](text)


@settings(max_examples=CASES, deadline=None)
@given(
    kind=st.sampled_from(list(KINDS)),
    texts=st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=9), min_size=1, max_size=9),
    max_batch_size=st.integers(1, 9),
    forms=st.lists(st.sampled_from(["str", "numpy", "array", "objects"]), min_size=9, max_size=9),
    data=st.data(),
)
def test_batched_onnx_kinds_match_single_calls(kinds, kind, texts, max_batch_size, forms, data):
    """Each caller of a batched ONNX model gets the output for its own inputs, for each kind of model.

    The kinds are a fixed batch size, strings of any length and type, bfloat16, and an input that some requests omit.
    """
    model, whole = kinds[kind]
    rows = len(texts)
    numbers = values(rows, 0)
    inputs, expected = list(numbers), numbers.tolist()
    if kind == "text":
        inputs, expected = list(map(text_as, texts, forms)), texts
    elif kind == "texts":
        parts = [[text, text[::-1], ""] for text in texts]
        inputs = [np.array(part, object if form == "str" else None) for part, form in zip(parts, forms, strict=False)]
        expected = parts
    elif kind == "optional":
        brought = data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows))
        inputs = [{"x": row, "other": row * 3} if it else row for row, it in zip(numbers, brought, strict=True)]
        expected = [(row * 4 if it else row + 0.5).tolist() for row, it in zip(numbers, brought, strict=True)]
    max_batch_size = min(max_batch_size, 4) if kind == "fixed" else max_batch_size

    results = served(OnnxBackend(model, shared_outputs=whole), inputs, max_batch_size=max_batch_size)

    answers = [result["y"] if whole else result for result in results]
    assert answers == expected
    if whole:
        assert all(result["table"] == np.arange(12).reshape(4, WIDTH).tolist() for result in results)
