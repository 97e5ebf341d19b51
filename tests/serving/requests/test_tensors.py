import enum
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaminfer.backends.signature import TensorSpec
from streaminfer.errors import BackendError, InvalidInput
from streaminfer.serving.errors import RequestRejected
from streaminfer.serving.limits import Limits
from streaminfer.serving.requests.tensors import (
    Tensor,
    check_shape,
    datatype_of,
    decode,
    decode_list,
    encode,
    encode_list,
)

LIMITS = Limits(max_rank=3, max_elements=100, max_strings=10, max_rows=20)
NUMBERS = ["bool", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"]


def tensor(datatype, shape, elements, spec=None, data=None):
    return Tensor("x", datatype, shape, elements, spec, None, data)


@given(st.sampled_from(NUMBERS), st.binary(min_size=64, max_size=64))
def test_numbers_pass_both_ways_as_bytes(kind, content):
    dtype = np.dtype(kind)
    array = np.frombuffer(content, np.uint8)
    array = (array % 2).astype(bool) if kind == "bool" else array.view(dtype)
    array = array.reshape(2, -1)

    datatype, raw = encode("x", array, None)
    back = decode(tensor(datatype, array.shape, array.size), memoryview(bytes(raw)), keeps_bytes=True)

    assert back.dtype == dtype
    assert back.tobytes() == array.tobytes()


@given(st.sampled_from([kind for kind in NUMBERS if kind != "f2"]), st.data())
def test_numbers_pass_both_ways_as_json(kind, data):
    dtype = np.dtype(kind)
    elements = {"b": st.booleans(), "f": st.floats(allow_nan=False, allow_infinity=False, width=dtype.itemsize * 8)}
    if dtype.kind in "iu":
        bounds = np.iinfo(dtype)
        elements[dtype.kind] = st.integers(int(bounds.min), int(bounds.max))
    array = np.array(data.draw(st.lists(elements[dtype.kind], min_size=4, max_size=4)), dtype).reshape(2, 2)

    datatype, listed = encode_list("x", array)

    for form in (listed, array.tolist()):
        back = decode_list(tensor(datatype, [2, 2], 4, data=form), keeps_bytes=True)
        assert back.dtype == dtype
        assert np.array_equal(back, array)


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=5))
def test_bytes_pass_both_ways(elements):
    array = np.empty(len(elements), object)
    array[:] = elements

    datatype, raw = encode("x", array, None)
    back = decode(tensor(datatype, array.shape, array.size), memoryview(raw), keeps_bytes=True)

    assert back.tolist() == elements


def test_aligned_numbers_are_views():
    content = bytearray(np.arange(6, dtype=np.float32).tobytes())

    array = decode(tensor("FP32", [2, 3], 6), memoryview(content), keeps_bytes=True)

    content[0:4] = np.float32(9).tobytes()
    assert array[0, 0] == 9


def test_unaligned_numbers_are_copied():
    content = memoryview(b"?" + np.arange(6, dtype=np.float32).tobytes())[1:]

    array = decode(tensor("FP32", [6], 6), content, keeps_bytes=True)

    assert array.flags.aligned
    assert array.tolist() == [0, 1, 2, 3, 4, 5]


def test_bfloat16_is_float32_for_callers():
    spec = TensorSpec("x", np.dtype(np.float32), (None, 2), is_bfloat16=True)
    content = np.array([0x3F80, 0xC000], np.uint16).tobytes()

    array = decode(tensor("BF16", [1, 2], 2, spec), memoryview(content), keeps_bytes=True)

    assert array.dtype == np.float32
    assert array.tolist() == [[1.0, -2.0]]
    datatype, raw = encode("x", array, "BF16")
    assert (datatype, bytes(raw)) == ("BF16", content)


def test_bfloat16_is_kept_for_models_that_declare_it():
    import ml_dtypes

    spec = TensorSpec("x", np.dtype(ml_dtypes.bfloat16), (None, 2))
    array = decode(tensor("BF16", [1, 2], 2, spec), memoryview(b"\x80\x3f\x00\xc0"), keeps_bytes=True)

    assert array.dtype == ml_dtypes.bfloat16
    assert datatype_of(array.dtype) == "BF16"
    assert bytes(encode("x", array, None)[1]) == b"\x80\x3f\x00\xc0"
    assert encode_list("x", array) == ("FP32", [1.0, -2.0])
    listed = decode_list(tensor("BF16", [1, 2], 2, spec)._replace(data=[1.0, -2.0]), keeps_bytes=True)
    assert (listed.dtype, listed.tolist()) == (array.dtype, [[1.0, -2.0]])


def test_text_of_a_model_is_str():
    raw = memoryview(b"\x02\0\0\0\xc3\xa9\x01\0\0\0a")

    assert decode(tensor("BYTES", [2], 2), raw, keeps_bytes=False).tolist() == ["é", "a"]
    with pytest.raises(InvalidInput, match="UTF-8"):
        decode(tensor("BYTES", [1], 1), memoryview(b"\1\0\0\0\xff"), keeps_bytes=False)


@pytest.mark.parametrize(
    ("datatype", "shape", "status"),
    [
        ("FP32", [1, 1, 1, 1], 413),
        ("FP32", [21, 1], 413),
        ("FP32", [1, 101], 413),
        ("FP32", [1, 10**4000, 10**4000], 413),
        ("FP32", [1, 0, 2**62], 413),
        ("FP32", [1, 2**70, 0], 413),
        ("BYTES", [1, 11], 413),
        ("FP32", [0, 3], 400),
        ("FP32", [], 400),
        ("FP32", [-1, 3], 400),
        ("FP32", [True], 400),
        ("FP32", [1.0], 400),
        ("FP32", "11", 400),
        ("FP32", None, 400),
        ("OBJECT", [1], 400),
        (["FP32"], [1], 400),
    ],
)
def test_shapes_are_checked_before_anything_is_made(datatype, shape, status):
    with pytest.raises(RequestRejected if status == 413 else InvalidInput, match="expected"):
        check_shape("x", datatype, shape, LIMITS)


@pytest.mark.parametrize(
    ("datatype", "shape", "content"),
    [
        ("FP32", [2], b"1234567"),
        ("FP32", [2], b"123456789"),
        ("BOOL", [2], b"\x01\x02"),
        ("BYTES", [1], b"\x01\0\0"),
        ("BYTES", [1], b"\xff\xff\xff\xffa"),
        ("BYTES", [1], b"\0\0\0\0\0\0\0\0"),
        ("BYTES", [2], b"\0\0\0\0"),
    ],
)
def test_wrong_bytes_are_rejected(datatype, shape, content):
    with pytest.raises(InvalidInput, match="'x'"):
        decode(tensor(datatype, shape, shape[0]), memoryview(content), keeps_bytes=True)


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("FP32", [1.0]),
        ("FP32", [1.0, "2"]),
        ("FP32", [1.0, None]),
        ("FP32", [[1.0], 2.0]),
        ("FP32", [[1.0], [2.0, 3.0]]),
        ("FP32", [1.0, True]),
        ("FP32", [1.0, 10**400]),
        ("FP16", [1.0, 1e10]),
        ("FP32", {"0": 1.0, "1": 2.0}),
        ("FP32", None),
        ("INT8", [1, 128]),
        ("INT8", [1, 2.0]),
        ("UINT8", [1, -1]),
        ("INT64", [1, 2**63]),
        ("BOOL", [True, 1]),
        ("BYTES", ["a", 1]),
        ("BYTES", ["a", "\ud800"]),
    ],
)
def test_wrong_elements_are_rejected(datatype, data):
    with pytest.raises(InvalidInput, match="'x'"):
        decode_list(tensor(datatype, [2], 2, data=data), keeps_bytes=True)


def test_no_elements_are_fine():
    assert decode_list(tensor("INT8", [1, 0], 0, data=[[]]), keeps_bytes=True).shape == (1, 0)


def test_outputs_of_unknown_type_are_backend_errors():
    for array in (np.array(["2020-01-01"], "M8[s]"), np.array([object()], object)):
        with pytest.raises(BackendError, match="'y'"):
            encode("y", array, None)
        with pytest.raises(BackendError, match="'y'"):
            encode_list("y", array)


def test_json_has_text_of_any_class():
    """JSON accepts text of any class, such as the members of an enum of labels, as binary data does."""
    labels = enum.StrEnum("Label", ["face"])
    texts = np.array([np.str_("a"), labels.face, "c", b"d"], object)

    datatype, listed = encode_list("y", texts)

    assert (datatype, json.dumps(listed)) == ("BYTES", '["a", "face", "c", "d"]')
    assert bytes(encode("y", texts, None)[1])[-5:] == b"\x01\0\0\0d"


@pytest.mark.parametrize("array", [np.array([np.nan]), np.array([np.inf]), np.array([b"\xff"], object)])
def test_values_without_json_form_need_binary_data(array):
    """Numbers that JSON cannot represent are rejected with a reference to `binary_data`."""
    with pytest.raises(InvalidInput, match="binary_data"):
        encode_list("y", array)
