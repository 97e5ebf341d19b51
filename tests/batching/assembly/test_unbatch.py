"""`split_rows`: cuts arrays in a mapping or tuple, takes a list as one result per row, and rejects all else."""

import asyncio
from typing import NamedTuple

import numpy as np
import pytest

import streaminfer as si
from streaminfer.batching.assembly.unbatch import split_rows
from streaminfer.request import Batch
from streaminfer.testing.faults import FaultPlan, Faulty, row_errors


class Detections(NamedTuple):
    boxes: object
    scores: object


def outputs(rows):
    """Return boxes of shape (rows, 4) and scores of shape (rows,), whose values identify their row."""
    return np.arange(rows * 4.0).reshape(rows, 4), np.arange(float(rows))


class Pending:
    def __await__(self):
        yield


class Frame:
    """Table like a pandas data frame: its length is the number of rows, and its iteration gives column names."""

    shape = (2, 2)
    columns = (0, 1)

    def __len__(self):
        return 2

    def __getitem__(self, column):
        return f"column {column}"


@pytest.mark.parametrize("rows", range(1, 10))
@pytest.mark.parametrize("padded", [0, 9])
def test_split_rows_tuple(rows, padded):
    """Each caller gets a tuple of its rows, even if there are as many rows as outputs."""
    boxes, scores = outputs(padded or rows)

    result = split_rows((boxes, scores), rows, "f", padded)

    assert [type(row) for row in result] == [tuple] * rows
    for row, (box, score) in enumerate(result):
        assert np.array_equal(box, boxes[row])
        assert score == scores[row]


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_split_rows_mapping(rows):
    """Each caller gets a dict of its rows; nested outputs keep their form, and a list is a column of results."""
    boxes, scores = outputs(rows)
    names = [f"name {row}" for row in range(rows)]

    result = split_rows({"boxes": boxes, "more": (scores, {"names": names})}, rows, "f")

    for row, one in enumerate(result):
        assert np.array_equal(one["boxes"], boxes[row])
        assert one["more"] == (scores[row], {"names": names[row]})


def test_split_rows_named_tuple():
    """A named tuple of arrays gives each caller a named tuple."""
    second = split_rows(Detections(*outputs(3)), 3, "f")[1]
    assert second.scores == 1.0
    assert np.array_equal(second.boxes, [4, 5, 6, 7])


@pytest.mark.parametrize("rows", [[np.ones(3)], [(1, 2), ValueError("bad")]], ids=["one row", "two rows"])
def test_split_rows_list_is_unchanged(rows):
    """A list with one result per row is taken unchanged, whatever its entries are."""
    assert split_rows(rows, len(rows), "f") is rows


def test_split_rows_error_in_column():
    """An exception in one output of a row is that row's result."""
    error = ValueError("bad")
    first, second = split_rows({"x": [1.0, error], "y": np.zeros(2)}, 2, "f")
    assert first == {"x": 1.0, "y": 0.0}
    assert second is error


@pytest.mark.parametrize(
    ("results", "words"),
    [
        (list(outputs(3)), ["a list has one result per row", "2 entries of 3 rows", "tuple or a mapping"]),
        ([np.zeros((3, 5))], ["1 entries of 3 rows each"]),
        ((1.0, 2.0, 3.0), ["a tuple is cut row by row", "output [0]", "got float", "return a list of 3"]),
        ((np.zeros((2, 3)), np.zeros(3)), ["output [0]", "got shape (2, 3)"]),
        ((np.zeros(3), np.array(1.0)), ["output [1]", "got shape ()"]),
        ({"x": np.zeros(3), "k": 5}, ["a mapping is cut", "output ['k']", "got int"]),
        ({"x": ["a", "b"]}, ["output ['x']", "got a list of 2"]),
        ({"x": {"y": np.zeros(2)}}, ["output ['x']['y']"]),
        ({}, ["an empty one"]),
        ((), ["an empty one"]),
        ({"x": "abc"}, ["output ['x']", "got str"]),
        (Pending(), ["got Pending: await it"]),
    ],
)
def test_split_rows_rejects_ambiguous_results(results, words):
    """Results that could be read in two ways are a `BackendError` that says what to return."""
    error = split_rows(results, 3, "model")
    assert isinstance(error, si.BackendError)
    assert str(error).startswith("model: ")
    for word in words:
        assert word in str(error)


def test_split_rows_rejects_a_table():
    """A table is rejected, because iterating over it gives the names of its columns, not its rows."""
    assert isinstance(split_rows(Frame(), 2, "f"), si.BackendError)
    assert isinstance(split_rows({"x": Frame()}, 2, "f"), si.BackendError)


@pytest.mark.parametrize("rows", [1, 2, 5])
async def test_dispatcher_and_split_rows_agree(loop, rows):
    """The dispatcher and `split_rows` give the same rows."""
    predict = si.AdaptiveBatcher(max_batch_size=8).wrap(lambda x: (x[:, None] * np.arange(4), x + 1))

    answers = await asyncio.gather(*(predict(float(value)) for value in range(rows)))

    for value, (box, score) in enumerate(answers):
        assert np.array_equal(box, value * np.arange(4))
        assert score == value + 1


class Columns:
    """Backend with two outputs, the second of which may be an error for a row."""

    def __init__(self, *errors):
        self.errors = errors

    async def infer(self, batch):
        return {"x": np.arange(3.0), "y": list(self.errors)}


@pytest.mark.parametrize(
    ("errors", "counts"),
    [((ValueError(), ValueError(), ValueError()), (0, 1)), ((ValueError(), 2, 3), (1, 0)), ((1, 2), (0, 1))],
    ids=["all-fail", "one-fails", "unreadable"],
)
def test_a_breaker_judges_rows(errors, counts):
    """A breaker around a backend judges the rows that callers get, not the outputs."""
    breaker = si.CircuitBreaker()
    guarded = breaker.wrap(Columns(*errors))

    asyncio.run(guarded.infer(Batch(None, [si.Request(None)] * 3)))

    seen = breaker.statistics()
    assert (seen.succeeded, seen.failed) == counts


def test_injected_row_errors_hit_rows_not_outputs():
    """If a model has several outputs, an injected row error replaces a row, not an output."""
    plan = FaultPlan(row_errors(OSError, rate=1.0))
    rows = asyncio.run(Faulty(Columns(1, 2, 3), plan).infer(Batch(None, [si.Request(None)] * 3)))
    assert [type(row) for row in rows] == [OSError] * 3


class Failing:
    """Results that raise when they are read, with an error whose message cannot be read either."""

    class Error(Exception):
        def __str__(self):
            raise RuntimeError

    def __init__(self, length=1):
        self.length = length

    def __len__(self):
        if self.length is None:
            raise self.Error
        return self.length

    def __getitem__(self, _):
        raise self.Error


@pytest.mark.parametrize("results", [Failing(), Failing(None), {"x": Failing(None)}], ids=["row", "length", "column"])
def test_unreadable_results_fail_their_batch(results):
    """If results raise when they are read, callers get a `BackendError` and do not wait forever."""
    failure = split_rows(results, 1, "f")

    assert isinstance(failure, si.BackendError)
    assert "but the rows of what came cannot be read: Error: its message" in str(failure) or str(failure).startswith(
        "f: a mapping is cut"
    )
