"""Content keys: equal contents have one key, whatever their memory layout; different contents have other keys."""

import copy
import enum
import math
import os
import subprocess
import sys
from collections import OrderedDict, namedtuple
from types import MappingProxyType

import hypothesis.extra.numpy as hnp
import ml_dtypes
import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from streaminfer.caching._keys_cy import KeyMaker
from streaminfer.caching.keys import content_key, key_maker
from streaminfer.errors import InvalidInput, MissingExtra

pytestmark = pytest.mark.uncompiled

DTYPES = ("f4", "f8", "i4", "u1", "i8", "f2", ">f4", "?", "c8", "M8[s]", "<U3", "S4")
SECRET = b"0123456789abcdef"

arrays = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(np.dtype(dtype), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(st.characters(), max_size=6)
    | st.binary(max_size=6)
    | st.complex_numbers()
)
values = st.recursive(
    scalars | arrays,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=2), inner, max_size=3)
    ),
    max_leaves=6,
)


def canonical(value):
    """Return the contents of a value in a form that can be compared: the oracle of the keys."""
    if isinstance(value, np.ndarray):
        return ("array", value.dtype.str, value.shape, value.tobytes())
    if isinstance(value, (list, tuple)):
        return (type(value).__name__, *map(canonical, value))
    if isinstance(value, dict):
        return ("mapping", frozenset((canonical(key), canonical(item)) for key, item in value.items()))
    if isinstance(value, float):
        return ("float", np.float64(value).tobytes())
    if isinstance(value, complex):
        return ("complex", np.complex128(value).tobytes())
    return (type(value).__name__, value)


def layouts(array):
    """Yield arrays with the same contents in other memory layouts."""
    yield array.copy(order="C")
    yield array.copy(order="F")
    frozen = array.copy()
    frozen.setflags(write=False)
    yield frozen
    if array.ndim:
        wide = np.repeat(array, 2, axis=-1)
        yield wide[..., ::2]
        yield array[::-1].copy()[::-1]
        yield array.T.copy().T


@given(arrays)
def test_memory_layout_does_not_change_the_key(array):
    for secret in (None, SECRET):
        assert {content_key(other, secret=secret) for other in layouts(array)} == {content_key(array, secret=secret)}
        assert {content_key((other,), secret=secret) for other in layouts(array)} == {
            content_key((array,), secret=secret)
        }


@given(values, values)
def test_keys_are_equal_only_for_equal_contents(one, other):
    assert (content_key(one) == content_key(other)) == (canonical(one) == canonical(other))


@given(st.lists(values, min_size=2, max_size=5))
def test_adjacent_items_are_not_concatenated(many):
    """Each way to cut a list in two has a key of its own."""
    keys = {content_key([many[:place], many[place:]]) for place in range(len(many) + 1)}
    assert len(keys) == len(many) + 1


@given(st.lists(st.text(max_size=3), min_size=4, max_size=4), st.lists(st.text(max_size=3), min_size=4, max_size=4))
def test_model_and_tenant_are_part_of_the_key(one, other):
    """Model, version, preprocessing and tenant are part of the key."""

    def key(names):
        return content_key(b"x", **dict(zip(("model", "version", "preprocessing", "tenant"), names, strict=True)))

    assert (key(one) == key(other)) == (one == other)


def test_name_parts_are_not_concatenated():
    """Model, version, preprocessing and tenant enter the key as separate parts."""
    keys = [
        content_key(1, model="ab", version="c"),
        content_key(1, model="a", version="bc"),
        content_key(1, model="abc"),
        content_key(1, version="abc"),
        content_key(1, preprocessing="abc"),
        content_key(1, tenant="abc"),
        content_key(("abc", 1)),
    ]
    assert len(set(keys)) == len(keys)
    assert content_key(1, tenant=None) == content_key(1, tenant="") == content_key(1)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.zeros(4, "f4"), np.zeros(4, "i4")),
        (np.zeros((2, 3), "f4"), np.zeros((3, 2), "f4")),
        (np.zeros((2, 3), "f4"), np.zeros((1, 2, 3), "f4")),
        (np.arange(6.0).reshape(2, 3), np.arange(6.0).reshape(2, 3).T),
        (np.array([1, 2], "<i4"), np.array([1, 2], ">i4")),
        (np.array([1, 2], "<i4"), np.array([1, 2], "<i4").view(">i4")),
        (np.array(0.0), np.array(-0.0)),
        (np.zeros(2, "M8[s]"), np.zeros(2, "M8[ms]")),
        (np.zeros(0, "f4"), np.zeros((0, 2), "f4")),
        (0.0, -0.0),
        (1, True),
        (1, 1.0),
        (0, False),
        (None, False),
        ("a", b"a"),
        ("", None),
        ([1, 2], (1, 2)),
        ([1, 2], {1, 2}),
        ({}, []),
        ({"a": 1}, {"a": 2}),
        ({"a": {"b": 1}}, {"b": {"a": 1}}),
        (2**63, -(2**63)),
        (-1, 2**64 - 1),
        (float("nan"), np.float64("nan")),
        (b"x" * 1025, b"x" * 1024),
        ([b"x" * 1025], xxhash.xxh3_128_digest(b"x" * 1025)),
    ],
)
def test_different_inputs_have_different_keys(one, other):
    assert content_key(one) != content_key(other)
    assert content_key((one,)) != content_key((other,))
    assert content_key(one, secret=SECRET) != content_key(other, secret=SECRET)


Point = namedtuple("Point", "x y")  # noqa: PYI024


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({"a": 1}, MappingProxyType({"a": 1})),
        ({3, 1, 2}, {1, 2, 3}),
        ({1, 2}, frozenset((2, 1))),
        (b"ab", bytearray(b"ab")),
        (b"ab", memoryview(b"ab")),
        (b"ac", memoryview(b"abc")[::2]),
        (np.arange(3.0), memoryview(np.arange(3.0))),
        (float("nan"), math.nan),
        (np.array([np.nan]), np.array([np.nan])),
        (np.array(3, "q"), np.array(3, "l")),
        (np.float32(1), np.array(1, "f4")),
        ("\ud800", "\ud800"),
    ],
)
def test_equal_inputs_have_one_key(one, other):
    assert content_key(one) == content_key(other)
    assert content_key((one,), secret=SECRET) == content_key((other,), secret=SECRET)


Size = namedtuple("Size", "x y")  # noqa: PYI024


class Level(enum.IntEnum):
    LOW = 1


class Other(enum.IntEnum):
    LOW = 1


class Word(enum.StrEnum):
    A = "a"


class Loud(str):  # noqa: SLOT000 - as users write them
    def __str__(self):
        return "loud"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Point(1, 2), (1, 2)),
        (Point(1, 2), Size(1, 2)),
        (Level.LOW, 1),
        (Level.LOW, Other.LOW),
        (Word.A, "a"),
        (Loud("a"), "a"),
        (Loud("a"), Loud("b")),
        (OrderedDict(a=1), {"a": 1}),
        (np.array([[1, 2]]).view(np.matrix), np.array([[1, 2]])),
        (np.rec.array([1, 2]), np.array([1, 2])),
        (np.ma.array([1, 2]), np.array([1, 2])),
    ],
    ids=lambda value: f"{type(value).__name__}",
)
def test_the_class_is_part_of_the_key(one, other):
    """Values that differ only by class have different keys, because a function may treat the classes differently."""
    assert content_key(one) != content_key(other)
    assert content_key({"x": (one,)}) != content_key({"x": (other,)})
    assert content_key(one) == content_key(copy.deepcopy(one))


def test_the_tenant_may_be_a_string_of_another_class():
    """A tenant is identified by its text, whatever the class of the string."""
    assert content_key(1, tenant=Word.A) == content_key(1, tenant="a")
    assert content_key(1, tenant=Loud("a")) == content_key(1, tenant="a")


def test_structure_padding_does_not_change_the_key():
    dtype = np.dtype([("a", "u1"), ("b", "f8")], align=True)
    one, other = np.zeros(3, dtype), np.frombuffer(bytearray(b"\xff" * 3 * dtype.itemsize), dtype)
    other["a"], other["b"] = 0, 0.0
    assert one.tobytes() != other.tobytes()
    assert content_key(one) == content_key(other)
    other["b"][1] = 1.0
    assert content_key(one) != content_key(other)
    assert content_key(one) != content_key(one.astype([("c", "u1"), ("b", "f8")]))


def test_masked_values_do_not_change_the_key():
    one = np.ma.array([1, 2, 3], mask=[0, 1, 0])
    other = np.ma.array([1, 9, 3], mask=[0, 1, 0])
    assert content_key(one) == content_key(other)
    assert content_key(one) != content_key(np.ma.array([1, 2, 3], mask=[0, 0, 1]))
    assert content_key(one) != content_key(np.array([1, 2, 3]))


def test_arrays_of_objects_are_keyed_by_their_contents():
    assert content_key(np.array(["a", None], object)) == content_key(np.array(["a", None], object))
    assert content_key(np.array(["a", None], object)) != content_key(np.array(["a", 0], object))
    assert content_key(np.array(["a", "b"], object)) != content_key(np.array([["a"], ["b"]], object))


class Scaled:
    def __init__(self, fingerprint):
        self.fingerprint = fingerprint


def test_object_is_keyed_by_class_and_fingerprint():
    class Other(Scaled):
        pass

    assert content_key(Scaled("a")) == content_key(Scaled("a")) == content_key(Scaled(lambda: "a"))
    assert len({content_key(each) for each in (Scaled("a"), Scaled("b"), Scaled(b"a"), Other("a"), "a")}) == 5
    with pytest.raises(InvalidInput, match=r"expected a fingerprint of str or bytes, got builtins\.int"):
        content_key(Scaled(3))


class Metres(np.ndarray):
    pass


class Seconds(np.float64):
    pass


def test_types_of_other_packages_differ():
    """Types of other packages have different keys.

    NumPy uses the same type letters for many of them, and those of ``longdouble`` for one."""
    names = ("bfloat16", "float8_e4m3fn", "float8_e4m3", "float8_e4m3fnuz", "float8_e5m2", "int4", "uint4")
    zeros = [np.zeros(3, getattr(ml_dtypes, name)) for name in names]

    assert len({content_key(each) for each in zeros}) == len(names)
    assert len({content_key(each[0]) for each in zeros}) == len(names)
    assert content_key(zeros[0]) == content_key(zeros[0].copy())


def test_class_of_a_numpy_scalar_is_part_of_the_key():
    assert len({content_key(each) for each in (Seconds(1), Seconds(2), np.float64(1), 1.0)}) == 4


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (object(), "got builtins.object; give its class a `fingerprint`"),
        ([1, {"a": iter(())}], "tuple_iterator"),
        (np.zeros(2).view(Metres), "Metres, a subclass that may mean more"),
        (np.zeros(2, np.longdouble), "bytes without meaning"),
        (np.ma.zeros(2, [("a", "f4")]), "masked array with fields"),
        (np.array([object()]), "got builtins.object"),
    ],
)
def test_inputs_without_a_key_are_rejected(inputs, words):
    with pytest.raises(InvalidInput, match=words):
        content_key(inputs)


@pytest.mark.parametrize("holder", [list, dict, lambda: np.empty(1, object)])
def test_recursive_inputs_are_rejected(holder):
    inputs = holder()
    if isinstance(inputs, dict):
        inputs["a"] = inputs
    elif isinstance(inputs, list):
        inputs.append(inputs)
    else:
        inputs[0] = inputs
    with pytest.raises(InvalidInput, match="deeper than 64"):
        content_key(inputs)


def test_secret_changes_the_key_and_is_checked():
    key = content_key(np.zeros(3), secret=SECRET)
    assert len(key) == 32
    assert len(content_key(np.zeros(3))) == 16
    assert key != content_key(np.zeros(3), secret=SECRET + b"x")
    assert key == content_key(np.zeros(3), secret=bytes(bytearray(SECRET)))
    with pytest.raises(ValueError, match=r"secret: expected at least 16 bytes, got 7") as told:
        content_key(1, secret=b"hushhus")
    assert "hush" not in str(told.value)


@pytest.mark.parametrize(
    "wrong", [{"model": 3}, {"model": ["a"]}, {"version": None}, {"preprocessing": b""}, {"tenant": 3}]
)
def test_wrong_arguments_are_rejected(wrong):
    (name,) = wrong
    with pytest.raises(TypeError, match=f"{name}: expected a string"):
        content_key(1, **wrong)
    with pytest.raises(TypeError, match="secret: expected at least 16 bytes"):
        content_key(1, secret=bytearray(SECRET))


def test_key_encoding_is_stable():
    """The encoding of keys is stable, because stored responses outlive a process.

    A changed encoding must change its name, and this test."""
    inputs = {"image": np.arange(6, dtype="<f4").reshape(2, 3), "k": [1, -2.5, "é", b"b", None, True, 2**80, 1j]}
    assert content_key(inputs, model="m", version="1", preprocessing="p", tenant="t").hex() == GOLDEN
    assert content_key(inputs, secret=SECRET).hex() == GOLDEN_KEYED


GOLDEN = "8186596ba54eca906e9e46987978d078"
GOLDEN_KEYED = "83f4e41c8dcfa9288113c9d07066db28d7b1b5bc07a34d546c56bf7e8bd82e0c"


def test_another_process_makes_the_same_key():
    code = "from streaminfer.caching.keys import content_key; print(content_key({'a': {'b', 'c'}, 'd': 'e'}).hex())"
    told = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert told.stdout.strip() == content_key({"a": {"b", "c"}, "d": "e"}).hex()


@given(st.lists(values, min_size=1, max_size=3), st.none() | st.text(max_size=3))
def test_compiled_and_plain_code_make_equal_keys(plain, several, tenant):
    twin = plain("caching._keys_cy").KeyMaker(xxhash.xxh3_128_digest, b"prefix")
    maker = KeyMaker(xxhash.xxh3_128_digest, b"prefix")
    for inputs in several:
        assert maker.key(inputs, tenant) == twin.key(inputs, tenant)


@given(st.lists(arrays, min_size=1, max_size=6))
def test_memory_of_a_key_maker_changes_no_key(several):
    warm = KeyMaker(xxhash.xxh3_128_digest, b"")
    for array in [*several, *several]:
        assert warm.key((array,)) == KeyMaker(xxhash.xxh3_128_digest, b"").key((array,))
        assert warm.key((array,), "t") == KeyMaker(xxhash.xxh3_128_digest, b"").key((array,), "t")


def test_key_maker_handles_thousands_of_shapes():
    maker = KeyMaker(xxhash.xxh3_128_digest, b"")
    first = maker.key((np.zeros(1, "u1"),))
    for size in range(5000):
        maker.key([np.zeros(size, "u1")])
    assert maker.key((np.zeros(1, "u1"),)) == first


def test_a_missing_dependency_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "xxhash", None)
    monkeypatch.setitem(sys.modules, "blake3", None)
    with pytest.raises(MissingExtra, match=r"a content key needs xxhash.*streaminfer\[cache\]"):
        content_key(1, model="never asked before")
    with pytest.raises(MissingExtra, match=r"secret needs blake3.*streaminfer\[cache\]"):
        content_key(1, model="never asked before", secret=SECRET)


def test_makers_are_shared():
    assert key_maker("a", "1") is key_maker("a", "1")
