"""A region of shared memory: written arrays can be read back, and arrays that do not fit are an error."""

import mmap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaminfer.backends.triton.shared_memory.region import Region, required_bytes

F32 = np.float32


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["f4", "f2", "i8", "u1", "?"]), st.lists(st.integers(0, 5), max_size=3), st.booleans()
        ),
        min_size=1,
        max_size=5,
    )
)
def test_arrays_round_trip_through_a_region(wanted):
    rng = np.random.default_rng(0)
    arrays = {}
    for number, (kind, shape, reverse) in enumerate(wanted):
        array = rng.integers(0, 2, shape).astype(kind)
        arrays[str(number)] = array.T if reverse else array
    size = required_bytes(array.nbytes for array in arrays.values())
    region = Region("r", mmap.mmap(-1, max(1, size)))
    places = region.write(arrays)
    ends = 0
    for name, array in arrays.items():
        offset, byte_size = places[name]
        assert (offset % 64, byte_size) == (0, array.nbytes)
        assert offset >= ends
        ends = offset + byte_size
        back = region.read(offset, array.dtype, array.shape)
        assert back.dtype == array.dtype
        assert np.array_equal(back, array)
    assert ends <= size


def test_oversized_write_is_an_error_without_effect():
    """Arrays that do not fit in a region are an error, and no part of them is written."""
    region = Region("r", mmap.mmap(-1, 256))
    first = region.write({"x": np.arange(40, dtype=F32)})
    with pytest.raises(ValueError, match="r: expected at most 256 bytes, got 384"):
        region.write({"x": np.ones(1, F32), "y": np.ones(33, np.float64), "z": np.ones(33, np.float64)[:0]})
    assert region.read(first["x"][0], F32, [40]).tolist() == list(range(40))
    with pytest.raises(ValueError, match="expected numbers or booleans, got object"):
        region.write({"x": np.array(["text"], object)})
    assert region.reserve({"y": 64}) == {"y": (192, 64)}
    with pytest.raises(ValueError, match="expected at most 256 bytes, got 320"):
        region.reserve({"z": 1})
    for offset, shape in ((0, [65]), (256, [1]), (-4, [1])):
        with pytest.raises(ValueError, match="expected an array within 256 bytes"):
            region.read(offset, F32, shape)
