"""Text is stacked as Python strings, each with its own length."""

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest

from streaminfer._internal.text import text_bytes
from streaminfer.batching.assembly._compatibility_cy import kind_of, take_stackable
from streaminfer.batching.assembly._prepare_cy import prepare
from streaminfer.batching.assembly.assembler import POOLED_FROM, Assembler
from streaminfer.errors import InvalidInput


def stack_rows(rows, batch_axes):
    """Return the rows stacked into one batch, without limits, padding or fixed sizes."""
    return Assembler(stack=True, batch_axes=batch_axes, max_batch_size=64).assemble(rows)


def assembler(**arguments):
    return Assembler(**({"stack": True, "batch_axes": {}, "max_batch_size": 64} | arguments))


def tickets_of(rows):
    return [SimpleNamespace(inputs=row) for row in rows]


def rows_of(tickets):
    return [ticket.inputs for ticket in tickets]


@pytest.mark.parametrize(
    "texts",
    [["a", "long\0"], [b"a", b"long\0"], [["a", "long\0"]] * 2, [np.array(["a", "b"]), np.array(["long", ""])]],
    ids=["str", "bytes", "lists", "arrays"],
)
def test_text_is_stacked_as_objects(texts):
    """A batch has exactly the strings of its requests, whatever their lengths."""
    rows = [prepare(text) for text in texts]
    assert kind_of(rows[0]) == kind_of(rows[1])

    stacked = stack_rows(rows, {})

    assert stacked.dtype == object
    assert stacked.tolist() == [list(text) if isinstance(text, np.ndarray) else text for text in texts]


@pytest.mark.parametrize("text", ["a", np.str_("a"), np.array("a"), np.array("a", object)], ids=repr)
def test_scalar_text_becomes_a_string(text):
    """A single text of any type becomes a Python string, so that it can share a batch with other texts."""
    assert type(prepare(text)) is str


def test_arrays_of_bytes_are_stacked_unchanged():
    """Bytes are stacked as objects, as a server reads them, because NumPy's bytes type drops trailing zeros."""
    rows = [prepare(np.array([b"\xff", b"long\0"], object)), prepare(np.array([b"", b"\0"], object))]

    stacked = stack_rows(rows, {})

    assert stacked.dtype == object
    assert stacked.tolist() == [[b"\xff", b"long\0"], [b"", b"\0"]]
    assert type(prepare(np.array(b"a\0", object))) is bytes
    assert text_bytes(rows[0]) == 6


def test_strings_and_bytes_share_no_batch():
    """Strings and bytes are not stacked together, so a request of the wrong type fails alone."""
    texts = [np.full(2, text, object) for text in ("a", b"a", "b", b"b")]
    tickets = tickets_of(list(map(prepare, texts)))

    assert take_stackable(tickets, 4) == tickets[::2]
    assert take_stackable(tickets[1:], 4) == tickets[1::2]


@pytest.mark.parametrize("inputs", [["a", 1], np.array(["a", None]), np.array(["a", b"b"], object)], ids=repr)
def test_text_mixed_with_other_types_is_rejected(inputs):
    """Text mixed with other types is rejected, because NumPy would turn numbers into text."""
    with pytest.raises(InvalidInput, match="inputs: expected"):
        prepare(inputs)


@pytest.mark.parametrize("kind", [str, bytes])
def test_one_long_text_does_not_widen_the_others(kind):
    """A batch of one text of 2 MB and 63 short ones allocates less than 100 kB, not 64 times the long text."""
    long, short = ("x" * 2_000_000, "short") if kind is str else (b"x" * 2_000_000, b"short")
    rows = [prepare(text) for text in [long, *[short] * 63]]
    lists = prepare([long, *[short] * 63]) if kind is str else None
    made = assembler()
    tracemalloc.start()

    stacked = made.assemble(rows)
    nested = None if lists is None else made.assemble([lists] * 2)

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000
    assert stacked[0] is long
    assert nested is None or nested.shape == (2, 64)


def test_text_arrays_use_no_pooled_memory():
    """Arrays of strings, however large, are not written into pooled buffers, which are for plain memory."""
    row = np.full(POOLED_FROM // 8, "text", object)
    (only,) = assembler().assemble([row])
    assert only[-1] is row[-1]


def test_bytes_of_texts_are_added_up():
    """The bytes of a batch of texts are 4 per character, including the copies that pad the batch."""
    made = assembler(max_batch_bytes=47)
    tickets = tickets_of(["abc", "abcdef", "ab", "a", "b", "c"])
    assert rows_of(made.select(tickets)) == ["abc", "abcdef", "ab"]
    named = [{"t": np.array([ticket.inputs], object)} for ticket in tickets]
    assert len(made.select(tickets_of(named))) == 3
    with pytest.raises(InvalidInput, match="got 48"):
        made.prepare("x" * 12)
    filled = assembler(max_batch_bytes=47, preferred_sizes=[2, 4])
    assert rows_of(filled.select(tickets)) == ["abc", "abcdef", "a"]  # "ab" would be there twice
