"""`Assembler`: only rows of one kind are stacked, and inputs that cannot be stacked fail for their caller alone."""

import copy
import importlib
import random
import threading
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from streaminfer.batching.assembly._compatibility_cy import RaggedCompatibility, kind_of, take_stackable
from streaminfer.batching.assembly._prepare_cy import prepare
from streaminfer.batching.assembly.assembler import AssembledBatch, Assembler
from streaminfer.batching.assembly.buckets import Buckets
from streaminfer.batching.assembly.unbatch import split_rows
from streaminfer.errors import BackendError, InvalidInput


def stack_rows(rows, batch_axes):
    """Return the rows stacked into one batch, without limits, padding or fixed sizes."""
    return Assembler(stack=True, batch_axes=batch_axes, max_batch_size=64).assemble(rows)


pytestmark = pytest.mark.uncompiled

A = np.arange(6, dtype=np.float32)
KINDS = [
    1, 1.0, True, "a", b"a", 1j, A, A.astype(np.float64), A.reshape(2, 3), A.astype(">f4"),
    {"x": A}, {"y": A}, {"x": A, "y": A}, {"x": A[:3]}, {"x": 1.0},
]  # fmt: skip


@pytest.mark.parametrize("first", range(len(KINDS)))
@pytest.mark.parametrize("second", range(len(KINDS)))
def test_rows_of_different_kinds_are_not_stacked(first, second, plain):
    twin = plain("batching.assembly._compatibility_cy")
    for kind in (kind_of, twin.kind_of):
        assert (kind(KINDS[first]) == kind(KINDS[second])) == (first == second)
    tickets = tickets_of([KINDS[first], KINDS[first], KINDS[second]])
    for function in (take_stackable, twin.take_stackable):
        assert len(function(tickets, 9)) == (3 if first == second else 2)


def test_the_compiled_module_is_the_one_in_use():
    module = importlib.import_module("streaminfer.batching.assembly._compatibility_cy")
    import os

    assert module.__file__.endswith(".py") == (os.environ.get("STREAMINFER_DISABLE_COMPILED") == "1")


shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)


@given(st.data(), hnp.scalar_dtypes(), shapes, st.integers(1, 5))
def test_stacking_matches_numpy(data, dtype, shape, count):
    rows = [data.draw(hnp.arrays(dtype, shape)) for _ in range(count)]
    for axis in range(len(shape) + 1):
        stacked = stack_rows([{"x": row} for row in rows], {"x": axis})["x"]
        np.testing.assert_array_equal(stacked, np.stack(rows, axis=axis))
        assert stacked.flags.c_contiguous
        assert stacked.dtype.newbyteorder("=") == dtype.newbyteorder("=")
        assert not any(np.shares_memory(stacked, row) for row in rows)


def test_single_array_uses_the_axis_of_the_only_input():
    """A single array is stacked on the batch axis of the only input."""
    assert stack_rows([np.zeros((2, 3))] * 4, {"state": 1}).shape == (2, 4, 3)
    assert stack_rows([np.zeros((2, 3))] * 4, {}).shape == (4, 2, 3)


def test_numbers_and_strings_become_arrays():
    assert stack_rows([1, 2], {}).dtype == np.int64
    assert stack_rows([1.0, 2.5], {}).tolist() == [1.0, 2.5]


@pytest.mark.parametrize(
    "inputs", [np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.arange(12.0)[::2], np.broadcast_to(1.0, (3,))]
)
def test_read_only_and_non_contiguous_rows_are_copied(inputs):
    inputs.flags.writeable = False
    np.testing.assert_array_equal(stack_rows([prepare(inputs)] * 2, {}), np.stack([inputs] * 2))


@pytest.mark.parametrize("axis", [0, 1, 2], ids=str)
@pytest.mark.parametrize("dtype", ["f4", "f2", "i8", "?", "c8", "u1", ">f4", "M8[s]", "S3"], ids=str)
@pytest.mark.parametrize("shape", [(2, 3), (9, 2), (1, 1), (3, 0)], ids=str)
def test_joined_rows_match_numpy(shape, dtype, axis):
    """However rows are joined, the batch equals `np.stack`, and is writable and C-contiguous."""
    values = np.arange(4 * shape[0] * shape[1]).reshape(4, *shape)
    rows = list(values.astype("i8").astype(dtype))

    stacked = stack_rows(rows, {"x": axis})

    np.testing.assert_array_equal(stacked, np.stack(rows, axis))
    assert stacked.dtype == rows[0].dtype.newbyteorder("=")
    assert stacked.flags.writeable
    assert stacked.flags.c_contiguous


def test_prepare_keeps_scalars_and_converts_lists():
    for inputs in (1, 2.5, "a", A):
        assert prepare(inputs) is inputs
    assert prepare([1, 2]).dtype == np.int64
    assert prepare(np.float32(3)).shape == ()
    assert prepare({"x": [1.0]})["x"].shape == (1,)


@pytest.mark.parametrize("row", [A.astype(">f4"), np.zeros(2, [("a", ">i4")])])
def test_stacked_rows_have_native_byte_order(row):
    for count in (1, 2):
        for stacked in (stack_rows([row] * count, {}), stack_rows([{"x": row}] * count, {"x": 1})["x"]):
            assert stacked.dtype.isnative
            assert stacked.dtype == row.dtype.newbyteorder("=")


@pytest.mark.parametrize("inputs", [object(), [[1], [1, 2]], np.array([None]), {"x": object()}, None])
def test_prepare_rejects_inputs_that_cannot_be_stacked(inputs):
    with pytest.raises(InvalidInput, match=r"inputs(\['x'\])?: expected a number, an array.*stack=False"):
        prepare(inputs)


def test_batch_is_assembled_once_on_first_access():
    """A batch is assembled once, when its inputs are first read."""
    made = []
    batch = AssembledBatch(lambda: made.append(1) or "stacked", [1, 2], None, lambda: 77, 4)
    assert (made, batch.assembled_ns, len(batch), batch.size) == ([], 0, 2, 4)
    assert batch.inputs == batch.inputs == "stacked"
    assert (made, batch.assembled_ns) == ([1], 77)


def tickets_of(rows):
    return [SimpleNamespace(inputs=row) for row in rows]


def rows_of(tickets):
    return [ticket.inputs for ticket in tickets]


def same_objects(first, second):
    return [id(each) for each in first] == [id(each) for each in second]


def assembler(**arguments):
    return Assembler(**({"stack": True, "batch_axes": {}, "max_batch_size": 8} | arguments))


def padded_by_hand(rows, axis, length, pad, batch_axis):
    """Return the padded batch, written element by element."""
    shape = list(rows[0].shape)
    shape[axis] = length
    whole = np.full((len(rows), *shape), pad, rows[0].dtype.newbyteorder("="))
    for number, row in enumerate(rows):
        for index in np.ndindex(*row.shape):
            whole[(number, *index)] = row[index]
    return np.moveaxis(whole, 0, batch_axis)


numbers = hnp.boolean_dtypes() | hnp.integer_dtypes() | hnp.floating_dtypes() | hnp.complex_number_dtypes()


@given(st.data())
def test_ragged_rows_are_selected_padded_and_masked(data):
    """Ragged rows are selected, padded and masked exactly as a hand-written reference does it."""
    dtype = data.draw(numbers)
    shape = list(data.draw(hnp.array_shapes(min_dims=1, max_dims=3, max_side=3)))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    lengths = sorted(data.draw(st.sets(st.integers(1, 9), min_size=1, max_size=4)))
    pad = data.draw(st.sampled_from([0, 1]))
    batch_axis = data.draw(st.integers(0, len(shape)))
    mask_axis = data.draw(st.integers(0, 1))
    made = assembler(
        batch_axes={"x": batch_axis, "m": mask_axis},
        buckets=Buckets(lengths, axis=axis, pad_value={"x": pad}, mask="m", inputs=("x", "y")),
    )
    rows = []
    for _ in range(data.draw(st.integers(1, 6))):
        shape[axis] = data.draw(st.integers(0, lengths[-1]))
        x = data.draw(hnp.arrays(dtype, tuple(shape)))
        y = np.ones(shape, np.float32)
        rows.append(
            made.prepare(
                {"x": x, "y": y, "z": np.zeros(2)} if data.draw(st.booleans()) else {"y": y, "x": x, "z": np.zeros(2)}
            )
        )
    buckets = [next(k for k, length in enumerate(lengths) if row["y"].shape[axis] <= length) for row in rows]
    assert [made.bucket_of(row) for row in rows] == buckets
    chosen = rows_of(made.select(tickets_of(rows)))
    assert same_objects(chosen, [row for row, bucket in zip(rows, buckets, strict=True) if bucket == buckets[0]])
    with mock.patch("streaminfer.batching.assembly.assembler.POOLED_FROM", data.draw(st.sampled_from([1, 1 << 23]))):
        inputs = made.assemble(chosen)
    length = lengths[buckets[0]]
    columns = {name: [row[name] for row in chosen] for name in "xyz"}
    np.testing.assert_array_equal(inputs["x"], padded_by_hand(columns["x"], axis, length, pad, batch_axis))
    np.testing.assert_array_equal(inputs["y"], padded_by_hand(columns["y"], axis, length, 0, 0))
    np.testing.assert_array_equal(inputs["z"], np.stack(columns["z"]))
    mask = [[int(k < row.shape[axis]) for k in range(length)] for row in columns["y"]]
    np.testing.assert_array_equal(np.moveaxis(inputs["m"], mask_axis, 0), mask)
    for number, row in enumerate(chosen):
        shown = made.as_padded(row)
        assert shown.keys() == inputs.keys()
        for name, axis in (("x", batch_axis), ("y", 0), ("z", 0), ("m", mask_axis)):
            np.testing.assert_array_equal(shown[name], np.moveaxis(inputs[name], axis, 0)[number])
    assert inputs["m"].dtype == np.int64
    assert inputs["x"].dtype == dtype.newbyteorder("=")
    assert all(value.flags.c_contiguous for value in inputs.values())


@given(st.data(), hnp.scalar_dtypes() | st.just(np.dtype([("a", ">i4"), ("b", "f8")])), st.booleans())
def test_equal_rows_stack_alike_with_or_without_pool(data, dtype, named):
    """Rows of one shape are stacked the same with and without pooled buffers."""
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    axis = data.draw(st.integers(-len(shape) - 1, len(shape)))
    count = data.draw(st.integers(1, 5))
    if dtype.names:
        rows = [np.zeros(shape, dtype) for _ in range(count)]
        rows[0]["a"] = 7
    else:
        rows = [data.draw(hnp.arrays(dtype, shape)) for _ in range(count)]
    made = assembler(batch_axes={"x": axis})
    rows = [made.prepare(row) for row in rows]
    for pooled_from in (1, 1 << 23):
        with mock.patch("streaminfer.batching.assembly.assembler.POOLED_FROM", pooled_from):
            stacked = made.assemble([{"x": row} for row in rows])["x"] if named else made.assemble(rows)
        np.testing.assert_array_equal(stacked, np.stack(rows, axis=axis))
        assert stacked.flags.c_contiguous
        assert stacked.dtype == dtype.newbyteorder("=")
        assert not any(np.shares_memory(stacked, row) for row in rows)


def test_only_large_batches_use_pooled_memory():
    """Large batches are written into reused memory, small ones are not."""
    made = assembler()
    large, small = np.zeros(1 << 20), np.zeros(64)
    first = made.assemble([large] * 2)
    where = first.__array_interface__["data"][0]
    assert not first.flags.owndata
    del first
    assert made.assemble([large] * 2).__array_interface__["data"][0] == where
    assert made.assemble([small] * 2).__array_interface__["data"][0] != where
    assert not made.assemble([{"x": large}] * 2)["x"].flags.owndata
    ragged = assembler(buckets=Buckets((1 << 21,)))
    assert not ragged.assemble([large] * 2).flags.owndata


def test_results_that_view_the_input_stay_unchanged():
    """Results that are views of the batch input keep their values while later batches are assembled."""
    made = assembler(max_batch_size=4)
    kept = []
    rng = random.Random(1)
    with mock.patch("streaminfer.batching.assembly.assembler.POOLED_FROM", 1):
        for number in range(60):
            rows = [np.full(rng.choice([40, 400]), number * 10 + k) for k in range(rng.randint(1, 4))]
            rows = rows_of(made.select(tickets_of(rows)))
            identity = made.assemble(rows)
            results = split_rows(identity, len(rows), "f")
            kept += [(row, result) for row, result in zip(rows, results, strict=True) if rng.random() < 0.5]
            del identity, results, rows
            while len(kept) > rng.randint(6, 20):
                kept.pop(rng.randrange(len(kept)))
            for row, result in kept:
                np.testing.assert_array_equal(result, row)
    assert len(kept) > 5


def test_threads_assemble_at_the_same_time():
    made = assembler(buckets=Buckets((64, 128), mask="m"))
    wrong = []

    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(150):
            rows = [{"x": np.full(rng.integers(65, 129), rng.integers(1, 1000))} for _ in range(rng.integers(1, 9))]
            inputs = made.assemble(rows)
            for row, whole, mask in zip(rows, inputs["x"], inputs["m"], strict=True):
                if not np.array_equal(whole[mask == 1], row["x"]) or whole[mask == 0].any():
                    wrong.append(row)

    with mock.patch("streaminfer.batching.assembly.assembler.POOLED_FROM", 1):
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_rows_of_cancelled_callers_are_left_out():
    made = assembler(buckets=Buckets((4, 8)), preferred_sizes=(4, 8))
    chosen = made.select(tickets_of([np.full(n, n) for n in (1, 2, 6, 3, 4)]))
    assert [ticket.inputs.size for ticket in chosen] == [1, 2, 3, 4]
    left = rows_of([ticket for ticket in chosen if ticket.inputs.size != 2])
    assert made.assemble(left).tolist() == [[1, 0, 0, 0], [3, 3, 3, 0], [4, 4, 4, 4], [4, 4, 4, 4]]


def test_as_padded_shows_what_the_model_will_see():
    """`as_padded` returns the inputs of a request as the model gets them."""
    made = assembler(buckets=Buckets((2, 4), pad_value=9), preferred_sizes=(8,))
    assert made.as_padded(np.arange(3)).tolist() == [0, 1, 2, 9]
    whole = np.arange(4)
    assert made.as_padded(whole) is whole
    assert assembler(max_batch_bytes=100).as_padded(A) is A


def test_assembler_without_limits_is_plain():
    made = assembler()
    assert made.plain
    assert (made.bucket_of(A), made.caps[0], made.padded_size(5)) == (0, 8, 5)
    tickets = tickets_of([A, A[:3], A + 1, 2.0, A + 2])
    assert same_objects(made.select(tickets), [tickets[0], tickets[2], tickets[4]])
    for setting in ({"buckets": Buckets((8,))}, {"max_batch_bytes": 100}, {"preferred_sizes": (8,)}):
        assert not assembler(**setting).plain


def test_rows_are_passed_as_a_list_without_stacking():
    made = assembler(stack=False)
    thing = object()
    assert made.prepare(thing) is thing
    rows = [thing, 1]
    assert made.assemble(rows) == rows
    assert made.assemble(rows) is not rows


@pytest.mark.parametrize(
    ("setting", "error", "message"),
    [
        ({"stack": False, "buckets": Buckets((8,))}, ValueError, "buckets: expected None with stack=False"),
        ({"stack": False, "max_batch_bytes": 8}, ValueError, "max_batch_bytes: expected None with stack=False"),
        ({"stack": False, "preferred_sizes": (8,)}, ValueError, "preferred_sizes: expected None with stack=False"),
        ({"max_batch_bytes": 0}, ValueError, "max_batch_bytes: expected a whole number ≥ 1"),
        ({"max_batch_bytes": 1e9}, TypeError, "max_batch_bytes: expected a whole number"),
        ({"preferred_sizes": ()}, ValueError, "preferred_sizes: expected ascending"),
        ({"preferred_sizes": (4, 4)}, ValueError, "preferred_sizes: expected ascending"),
        ({"preferred_sizes": (4, 9)}, ValueError, "preferred_sizes: expected a whole number ≥ 1 and ≤ 8, got 9"),
        ({"preferred_sizes": (0, 4)}, ValueError, "preferred_sizes: expected a whole number"),
        ({"preferred_sizes": 4}, TypeError, "preferred_sizes: expected ascending"),
        ({"preferred_sizes": "48"}, TypeError, "preferred_sizes: expected ascending"),
        (
            {"preferred_sizes": (4,), "buckets": Buckets((8, 16), max_elements=63)},
            ValueError,
            "max_elements: expected room for the smallest of preferred_sizes",
        ),
    ],
)
def test_wrong_settings_are_named(setting, error, message):
    with pytest.raises(error, match=message):
        assembler(**setting)


def test_elements_bound_a_batch_by_its_bucket():
    made = assembler(buckets=Buckets((4, 8, 16), max_elements=20))
    assert made.caps == [5, 2, 1]
    tickets = tickets_of([np.zeros(n) for n in (5, 3, 8, 6)])
    assert same_objects(made.select(tickets), [tickets[0], tickets[2]])
    assert assembler(buckets=Buckets((4,))).caps == [8]


def test_preferred_sizes_fill_up_and_cap():
    made = assembler(preferred_sizes=(2, 4))
    assert made.caps[0] == 4
    assert [made.padded_size(n) for n in (1, 2, 3, 4)] == [2, 2, 4, 4]
    assert len(made.select(tickets_of([1.0] * 8))) == 4
    assert made.assemble([1.0, 2.0, 3.0]).tolist() == [1.0, 2.0, 3.0, 3.0]
    assert made.assemble([{"x": A}])["x"].tolist() == [A.tolist()] * 2
    rows = [A]
    made.assemble(rows)
    assert len(rows) == 1
    small = assembler(preferred_sizes=(2, 8), buckets=Buckets((4, 8), max_elements=40))
    assert small.caps == [8, 2]


def test_bytes_bound_a_batch():
    made = assembler(max_batch_bytes=100)
    tickets = tickets_of([A] * 8)  # 24 bytes each
    assert len(made.select(tickets)) == 4
    assert len(made.select(tickets_of([{"x": A, "n": 1}] * 8))) == 3  # 32
    assert len(made.select(tickets_of([np.zeros(0)] * 9))) == 8
    made.prepare(np.zeros(100, np.uint8))
    with pytest.raises(InvalidInput, match=r"at most 100 bytes in the smallest batch \(max_batch_bytes\), got 101"):
        made.prepare(np.zeros(101, np.uint8))
    filled = assembler(max_batch_bytes=100, preferred_sizes=(2, 8))
    assert len(filled.select(tickets)) == 2
    with pytest.raises(InvalidInput, match="got 104"):
        filled.prepare(np.zeros(52, np.uint8))


def test_bytes_count_padding_and_mask():
    made = assembler(max_batch_bytes=1000, buckets=Buckets((8, 16), mask="m"))
    rows = [{"x": np.zeros(n)} for n in (3, 8, 5, 1, 2, 4, 6, 7)]
    assert len(made.select(tickets_of(rows))) == 7  # 128 each
    assert made.assemble(rows[:7])["x"].nbytes * 2 == 896
    with pytest.raises(InvalidInput, match="got 256"):
        assembler(max_batch_bytes=255, buckets=Buckets((16,), mask="m")).prepare(rows[0])


def test_bucket_errors_reach_the_caller():
    made = assembler(buckets=Buckets((4,)))
    with pytest.raises(InvalidInput, match="at most 4"):
        made.prepare([1, 2, 3, 4, 5])
    with pytest.raises(InvalidInput, match="numpy cannot stack"):
        made.prepare(object())
    assert made.prepare([1, 2]).tolist() == [1, 2]


RAGGED_KINDS = [
    np.zeros(3), np.zeros(5), np.zeros(3, np.float32), np.zeros((3, 2)), np.zeros((5, 2)), np.zeros((3, 3)),
    {"x": np.zeros(3)}, {"x": np.zeros(2)}, {"x": np.zeros(5)}, {"y": np.zeros(3)}, {"x": np.zeros(3), "y": np.zeros(3)},
    {"y": np.zeros(1), "x": np.zeros(1)}, {"x": np.zeros(3), "y": 1.0}, {"x": np.zeros(3), "y": np.array(1.0)},
    {"x": np.zeros(1), "y": {"z": np.zeros(3)}}, {"x": np.zeros(3), "y": {"z": np.zeros(1)}}, {"x": np.zeros(3), "y": {"z": np.zeros(3)}},
]  # fmt: skip


@pytest.mark.parametrize("names", [None, frozenset("x"), frozenset("xy")])
@pytest.mark.parametrize("axis", [0, 1, -1, -2])
def test_compiled_and_uncompiled_select_alike(plain, names, axis):
    """The compiled and the uncompiled module select the same ragged rows."""
    twin = plain("batching.assembly._compatibility_cy")
    compiled = RaggedCompatibility((4, 8), axis, names)
    other = twin.RaggedCompatibility((4, 8), axis, names)
    tickets = tickets_of(RAGGED_KINDS)
    assert [compiled.bucket_of(row) for row in RAGGED_KINDS] == [other.bucket_of(row) for row in RAGGED_KINDS]
    for start in range(len(tickets)):
        turned = tickets[start:] + tickets[:start]
        for limit in (1, 2, 99):
            chosen = compiled.choose(turned, limit, False)
            assert same_objects(chosen, other.choose(turned, limit, False))
            shorter = compiled.choose(turned, limit, True)
            assert same_objects(shorter, other.choose(turned, limit, True))
            assert len(shorter) >= len(chosen)
            assert same_objects(take_stackable(turned, limit), twin.take_stackable(turned, limit))
            assert chosen[0] is turned[0]
            assert len(chosen) <= limit


def test_ragged_rows_differ_only_in_length():
    """Ragged rows are stacked together only if they differ in nothing but their length."""
    ragged = RaggedCompatibility((4, 8), 0, None)
    chosen = {
        start: [k for k, row in enumerate(RAGGED_KINDS) if ragged.choose(tickets_of([first, row]), 2, False)[1:]]
        for start, first in enumerate(RAGGED_KINDS)
    }
    assert chosen == {
        0: [0], 1: [1], 2: [2], 3: [3], 4: [4], 5: [5], 6: [6, 7], 7: [6, 7], 8: [8], 9: [9], 10: [10, 11], 11: [10, 11],
        12: [12], 13: [13], 14: [14, 16], 15: [15], 16: [14, 16],
    }  # fmt: skip


arrays = st.builds(
    np.zeros,
    st.lists(st.integers(0, 2), max_size=3).map(tuple),
    st.sampled_from(["f4", "f8", ">f4", "l", "q", "?", "U3", "U4", [("a", "i4")], [("b", "i4")]]).map(np.dtype),
)
leaves = arrays | st.sampled_from([1, True, 1.0, 1j, "a", b"a", np.float32(1), np.float64(1)])
names_of_rows = st.sampled_from("xyz")
rows_to_compare = leaves | st.dictionaries(names_of_rows, leaves | st.dictionaries(names_of_rows, leaves), max_size=2)


def are_stackable(first, other):
    """Return whether two rows can be stacked, compared part by part."""
    if type(first) is not type(other):
        return False
    if isinstance(first, dict):
        return first.keys() == other.keys() and all(are_stackable(first[name], other[name]) for name in first)
    return not isinstance(first, np.ndarray) or (first.dtype == other.dtype and first.shape == other.shape)


def also_changed(rows):
    """Return a strategy for pairs of rows, which are often of one kind."""
    return st.tuples(rows, rows) | rows.map(lambda row: (row, copy.deepcopy(row)))


@given(pair=also_changed(rows_to_compare))
def test_kinds_are_equal_where_rows_are_alike(pair, plain):
    """Two rows have the same kind exactly when they can be stacked, and kinds are hashable."""
    first, other = pair

    for kind in (kind_of, plain("batching.assembly._compatibility_cy").kind_of):
        assert (kind(first) == kind(other)) == are_stackable(first, other)
        assert not are_stackable(first, other) or hash(kind(first)) == hash(kind(other))


def with_length(value, axis, length):
    """Return an array like ``value`` with another length along an axis, or ``value`` itself if it lacks the axis."""
    if type(value) is not np.ndarray or not -value.ndim <= axis < value.ndim:
        return value
    shape = list(value.shape)
    shape[axis] = length
    return np.zeros(shape, value.dtype)


@given(
    pair=also_changed(arrays | st.dictionaries(names_of_rows, leaves, min_size=1, max_size=2)),
    axis=st.sampled_from([0, 1, -1, -2]),
    names=st.sampled_from([None, frozenset("x"), frozenset("xy")]),
    length=st.none() | st.integers(0, 2),
)
def test_ragged_kinds_are_equal_where_chosen(pair, axis, names, length, plain):
    """Rows of one bucket have the same kind exactly when they can be padded and stacked."""
    first, other = pair
    if length is not None and type(other) is dict:
        other = {name: with_length(value, axis, length) for name, value in other.items()}
    elif length is not None:
        other = with_length(other, axis, length)

    for ragged in (
        RaggedCompatibility((1, 2), axis, names),
        plain("batching.assembly._compatibility_cy").RaggedCompatibility((1, 2), axis, names),
    ):
        if ragged.bucket_of(first) != ragged.bucket_of(other) or ragged.bucket_of(first) < 0:
            continue  # of different buckets, or rejected by `Buckets.check`
        together = len(ragged.choose(tickets_of([first, other]), 2, False)) == 2
        assert (ragged.kind_of(first) == ragged.kind_of(other)) == together
        assert not together or hash(ragged.kind_of(first)) == hash(ragged.kind_of(other))


@pytest.mark.parametrize(
    ("axis", "names", "first", "other", "same"),
    [
        (-1, None, np.zeros((3, 2)), np.zeros((3, 1)), True),
        (-1, None, np.zeros((3, 2)), np.zeros((4, 2)), False),
        (0, frozenset("x"), {"x": np.zeros(2), "y": np.zeros(3)}, {"x": np.zeros(1), "y": np.zeros(3)}, True),
        (0, frozenset("x"), {"x": np.zeros(2), "y": np.zeros(3)}, {"x": np.zeros(2), "y": np.zeros(4)}, False),
        (1, None, {"x": np.zeros((3, 2)), "y": np.zeros(3)}, {"x": np.zeros((3, 1)), "y": np.zeros(4)}, False),
    ],
    ids=["last-axis", "other-axis", "ragged-name", "other-name", "without-the-axis"],
)
def test_only_the_ragged_axis_may_differ(axis, names, first, other, same, plain):
    """The kind of a ragged row ignores its length along the ragged axis, and nothing else."""
    for ragged in (
        RaggedCompatibility((1, 2), axis, names),
        plain("batching.assembly._compatibility_cy").RaggedCompatibility((1, 2), axis, names),
    ):
        assert (ragged.kind_of(first) == ragged.kind_of(other)) == same


@pytest.mark.parametrize(
    ("buckets", "first", "other", "same"),
    [
        (None, np.zeros(3), np.ones(3), True),
        (None, np.zeros(3), np.zeros(4), False),
        (Buckets((4,)), np.zeros(3), np.zeros(4), True),
        (Buckets((4,)), np.zeros(3), np.zeros(3, np.float32), False),
    ],
    ids=["one-shape", "two-shapes", "two-lengths", "two-types"],
)
def test_assembler_tells_kinds_apart(buckets, first, other, same):
    """`kind_of`, which policies use, is equal for rows that can share a batch, with and without buckets."""
    made = assembler(buckets=buckets)

    assert (made.kind_of(first) == made.kind_of(other)) == same


def test_results_of_copies_are_dropped():
    results = np.arange(8).reshape(4, 2)
    rows = split_rows(results, 3, "f", 4)
    assert [row.tolist() for row in rows] == [[0, 1], [2, 3], [4, 5]]
    assert all(np.shares_memory(row, results) for row in rows)
    assert split_rows([1, 2, 3], 3, "f", 4) == [1, 2, 3]
    assert split_rows([1, 2], 2, "f", 2) == [1, 2]
    for wrong in ([], [1], [1, 2, 3, 4, 5]):
        assert isinstance(split_rows(wrong, 2, "f", 4), BackendError)
    assert isinstance(split_rows([], 2, "f"), BackendError)


def test_shorter_rows_join_a_longer_one_not_vice_versa():
    """Shorter rows join a batch whose first row is longer, never the other way round."""
    made = assembler(buckets=Buckets((4, 8), pad_value=-1))
    rows = [np.arange(6), np.arange(3), np.arange(8), np.arange(2, dtype=np.int32)]
    chosen = made.select(tickets_of(rows), True)
    assert same_objects([ticket.inputs for ticket in chosen], rows[:3])
    assert made.assemble(rows[:2]).tolist() == [[0, 1, 2, 3, 4, 5, -1, -1], [0, 1, 2, -1, -1, -1, -1, -1]]
    short_first = made.select(tickets_of([rows[1], rows[0]]), True)
    assert same_objects([ticket.inputs for ticket in short_first], [rows[1]])
