"""Codec of records: a value is decoded exactly as it was encoded, or not at all."""

import contextlib
import enum
import struct
from collections import OrderedDict
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from streaminfer.caching.codec import CorruptRecord, encode, first_value
from streaminfer.caching.codec import decode as decode_all

HEADER = 32
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.complex_numbers(),
    st.text(),
    st.binary(),
    st.characters(categories=["Cs"]),
)
dtypes = st.one_of(
    hnp.scalar_dtypes(), hnp.byte_string_dtypes(), hnp.unicode_string_dtypes(), hnp.array_dtypes(max_size=3)
)
plain_dtypes = dtypes.filter(lambda dtype: not dtype.hasobject)
arrays = st.one_of(
    hnp.arrays(plain_dtypes, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)),
    hnp.arrays(st.sampled_from([">f4", "<f8", ">i2", "<u8", "|b1"]), hnp.array_shapes(max_side=4)).map(np.transpose),
    hnp.arrays("<f4", (6,)).map(lambda array: array[::-2]),
)
numpy_scalars = hnp.scalar_dtypes().flatmap(lambda dtype: hnp.arrays(dtype, ())).map(lambda array: array[()])
values = st.recursive(
    scalars | arrays | numpy_scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.one_of(st.text(), st.integers(), st.tuples(st.binary(), st.booleans())), inner, max_size=3),
    ),
    max_leaves=12,
)


def decode(record):
    """Return the value of a record that has only one."""
    (value,) = decode_all(record)
    return value


def image(value):
    """Return all parts of a value that can be compared, with types and bits."""
    if isinstance(value, (np.ndarray, np.generic)):
        return (type(value), value.dtype, value.dtype.str, value.shape, value.tobytes())
    if isinstance(value, (list, tuple)):
        return (type(value), [image(item) for item in value])
    if isinstance(value, dict):
        return (dict, [(image(key), image(item)) for key, item in value.items()])
    if isinstance(value, float):
        return (float, struct.pack("<d", value))
    if isinstance(value, complex):
        return (complex, struct.pack("<dd", value.real, value.imag))
    return (type(value), value)


@given(values)
def test_round_trip(value):
    assert image(decode(encode(value))) == image(value)


@given(values, st.data())
def test_a_flipped_bit_is_never_a_value(value, data):
    record = bytearray(encode(value))
    at = data.draw(st.integers(0, len(record) * 8 - 1))
    record[at // 8] ^= 1 << (at % 8)
    with pytest.raises(CorruptRecord):
        decode(bytes(record))


def test_each_flipped_bit_of_a_record_is_detected():
    record = encode({"a": np.arange(3, dtype="<f4"), "b": [1, "x", None]})
    for at in range(len(record) * 8):
        altered = bytearray(record)
        altered[at // 8] ^= 1 << (at % 8)
        with pytest.raises(CorruptRecord):
            decode(altered)


@given(values, st.data())
def test_truncated_or_extended_record_is_no_value(value, data):
    """A record that was cut short or extended is never decoded to a value."""
    record = encode(value)
    with pytest.raises(CorruptRecord):
        decode(record[: data.draw(st.integers(0, len(record) - 1))])
    with pytest.raises(CorruptRecord):
        decode(record + b"\0")


def with_checksum(body, head_size=None):
    body = struct.pack("<Q", len(body) if head_size is None else head_size) + body
    return struct.pack("<6sHQQ", b"si-ser", 2, len(body), xxhash.xxh3_64_intdigest(body, seed=2)) + body


@settings(max_examples=500)
@given(st.data())
def test_altered_body_decodes_or_is_corrupt(data):
    """A record with an altered body and a valid checksum gives a value or raises `CorruptRecord`."""
    record = encode(data.draw(values))
    (head_size,) = struct.unpack_from("<Q", record, 24)
    body = bytearray(record[HEADER:])
    for _ in range(data.draw(st.integers(0, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(CorruptRecord):
        decode_all(with_checksum(bytes(body), head_size))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"?",
        b"nullnull",
        b'"\xff"',
        b"{}",
        b'{"t":[],"d":[]}',
        b'{"x":1}',
        b'{"t":1}',
        b'{"i":"x"}',
        b'{"d":[[[]],[1]]}',
        b'{"d":[[1,2],[1]]}',
        b'{"a":["\'<f4\'",[4611686018427387904,4611686018427387904],false,0]}',
        b'{"a":["\'<f4\'",[1],false,64]}',
        b'{"a":["\'<f4\'",[1],false,-4]}',
        b'{"a":["\'|O8\'",[0],false,0]}',
        b'{"a":["open(\'x\')",[0],false,0]}',
        b"[" * 100_000,
    ],
)
def test_forged_body_is_rejected(body):
    with pytest.raises(CorruptRecord):
        decode(with_checksum(body))


def test_arrays_are_aligned_read_only_views():
    record = encode(["odd", np.arange(5, dtype=">f8"), np.arange(4, dtype=np.int32)])
    _, first, second = decode(record)
    whole = np.frombuffer(record, np.uint8)
    for array in (first, second):
        assert not array.flags.writeable
        assert np.shares_memory(array, whole)
        assert (array.ctypes.data - whole.ctypes.data) % 16 == 0
        with pytest.raises(ValueError):
            array.flags.writeable = True


def test_views_on_a_mutable_buffer_are_read_only_too():
    assert not decode(bytearray(encode(np.zeros(3)))).flags.writeable


def test_memory_order_is_kept():
    array = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    assert decode(encode(array)).flags.f_contiguous


def test_a_mapping_proxy_is_written_as_a_dict():
    assert decode(encode(MappingProxyType({"a": 1}))) == {"a": 1}


class Pair(NamedTuple):
    a: int
    b: int


class Color(enum.IntEnum):
    RED = 1


class Metres(np.float64):
    pass


@pytest.mark.parametrize(
    "value",
    [
        object(),
        {1},
        bytearray(b"x"),
        Color.RED,
        OrderedDict(a=1),
        Pair(1, 2),
        np.ma.zeros(3),
        np.array([None, 1]),
        np.zeros(2, np.dtype("f4", metadata={"unit": "m"})),
        np.zeros(2, np.dtype([("a", np.dtype("f4", metadata={"unit": "m"}))])),
        np.dtype("f4"),
        Metres(1.0),
        np.rec.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")])[0],
        np.zeros(2, np.dtype([("r", (np.record, [("a", "i4")]))])),
        np.str_("a\0"),
        np.bytes_(b"a\0"),
        len,
    ],
)
def test_value_that_would_change_is_an_error(value):
    """A value that would be decoded as something else raises `TypeError`, which names its place."""
    with pytest.raises(TypeError, match=r"value\['deep'\]\[1\]: expected None"):
        encode({"deep": [0, value]})


def test_nesting_is_bounded():
    value = []
    for _ in range(64):
        value = [value]
    assert decode(encode(value)) == value
    with pytest.raises(ValueError, match="nested deeper"):
        encode([value])
    itself = []
    itself.append(itself)
    with pytest.raises(ValueError, match="within itself"):
        encode(itself)


def test_encoded_bytes_are_stable():
    """A changed format needs a new version number, and a change of this test."""
    record = encode(["label"], (True, b"x"))
    assert record[:16] == bytes.fromhex("73692d73657202004800000000000000")
    assert record[24:HEADER] == struct.pack("<Q", 34)
    assert record[HEADER:] == b'["label"]\n{"t":[true,{"b":[0,1]}]}'.ljust(48, b"\0") + b"x".ljust(16, b"\0")
    assert decode_all(record) == [["label"], (True, b"x")]


def test_first_value_is_read_from_a_partial_record():
    record = encode(["label", 1], "x" * 5000)
    assert first_value(record[: HEADER + 12]) == ["label", 1]
    assert first_value(record[: HEADER + 11]) is None
    assert first_value(record[:20]) is None
    assert first_value(b"x" + record[1:]) is None


def test_error_names_another_format_version():
    record = bytearray(encode(1))
    record[6] = 9
    with pytest.raises(CorruptRecord, match="version 9"):
        decode(record)
