"""Traces: their arguments, their files, and their text."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaminfer.simulation.trace import Trace

pytestmark = pytest.mark.uncompiled

INF, NAN = float("inf"), float("nan")


def same(a, b):
    return all(
        np.array_equal(getattr(a, name), getattr(b, name)) and getattr(a, name).dtype == getattr(b, name).dtype
        for name in ("arrivals_s", "limits_s", "priorities")
    )


def test_arrivals_start_at_zero_and_fields_default():
    trace = Trace([100.0, 100.5, 100.5, 102.0])
    assert trace.arrivals_s.tolist() == [0.0, 0.5, 0.5, 2.0]
    assert trace.limits_s.tolist() == trace.deadlines_s.tolist() == [INF] * 4
    assert trace.priorities.tolist() == [0] * 4
    assert (len(trace), trace.duration_s, trace.rate) == (4, 2.0, 1.5)


def test_deadlines_are_arrival_and_limit():
    trace = Trace([0, 1, 2], [0.5, NAN, INF], [1, -2, 3])
    assert trace.limits_s.tolist() == [0.5, INF, INF]
    assert trace.deadlines_s.tolist() == [0.5, INF, INF]
    assert trace.priorities.tolist() == [1, -2, 3]


@pytest.mark.parametrize(("arrivals_s", "duration_s", "rate"), [([], 0.0, 0.0), ([7], 0.0, 0.0), ([7, 7], 0.0, INF)])
def test_rates_of_degenerate_traces(arrivals_s, duration_s, rate):
    """Duration and rate of a trace are defined even without distinct arrivals."""
    trace = Trace(np.array(arrivals_s, float))
    assert (len(trace), trace.duration_s, trace.rate) == (len(arrivals_s), duration_s, rate)


def test_arrays_are_read_only_copies():
    arrivals, limits = np.array([0.0, 1.0]), np.array([1.0, 1.0])
    trace = Trace(arrivals, limits)
    arrivals[1] = limits[0] = 9.0
    assert trace.arrivals_s.tolist() == [0.0, 1.0]
    assert trace.limits_s.tolist() == [1.0, 1.0]
    for array in (trace.arrivals_s, trace.limits_s, trace.priorities):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    with pytest.raises(AttributeError):
        trace.limits_s = limits


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda trace: pickle.loads(pickle.dumps(trace))])
def test_the_arrays_of_a_copy_are_constant_too(copied):
    trace = Trace([1.0, 2.0], [0.5, NAN], [1, 2])
    other = copied(trace)
    assert same(other, trace)
    assert not any(it.flags.writeable for it in (other.arrivals_s, other.limits_s, other.priorities))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([5.0, 3.0],), ValueError, "arrivals_s: expected ascending .* element 1 .* got 3.0"),
        (([0.0, 2e9],), ValueError, "arrivals_s: expected seconds from 0 to"),
        (([0.0, NAN],), ValueError, "arrivals_s: expected finite"),
        (([NAN, 1.0],), ValueError, "arrivals_s: expected finite"),
        (([[0.0]],), ValueError, "arrivals_s: expected one dimension"),
        ((["a"],), TypeError, "arrivals_s: expected"),
        (([0.0], [0.5, 1]), ValueError, "limits_s: expected one for each of 1 arrivals"),
        (([0.0], [0.0]), ValueError, "limits_s: expected seconds > 0"),
        (([0.0, 1.0], [1.0, -1.0]), ValueError, r"limits_s: .*-1\.0"),
        (([0.0], ["x"]), TypeError, "limits_s"),
        (([0.0], None, [0.5]), TypeError, "priorities: expected whole numbers"),
        (([0.0], None, [1, 2]), ValueError, "priorities: expected one for each"),
        (([0.0], None, [2**31]), ValueError, "priorities: expected whole numbers of 32 bits"),
    ],
)
def test_invalid_trace_arguments_raise(arguments, error, message):
    with pytest.raises(error, match=message):
        Trace(*arguments)


@given(
    st.lists(
        st.tuples(st.floats(0, 1e6), st.one_of(st.just(INF), st.floats(1e-9, 1e6)), st.integers(-(2**31), 2**31 - 1)),
        max_size=20,
    )
)
def test_saved_trace_round_trips(tmp_path_factory, requests):
    requests.sort()
    trace = Trace(*(np.array([request[i] for request in requests], kind) for i, kind in enumerate((float, float, int))))
    path = tmp_path_factory.mktemp("traces") / "trace.of.monday"
    trace.save(path)
    assert [file.name for file in path.parent.iterdir()] == ["trace.of.monday"]
    assert same(Trace.load(path), trace)
    assert same(Trace.load(str(path)), trace)


def test_save_replaces_an_existing_file(tmp_path):
    path = tmp_path / "trace.npz"
    Trace(np.arange(1000.0)).save(path)
    Trace([0.0]).save(path)
    assert len(Trace.load(path)) == 1


def stored(**changes):
    whole = {
        "format": "streaminfer.trace", "version": 1, "arrivals_s": [0.0], "limits_s": [1.0], "priorities": [0],
    } | changes  # fmt: skip
    return {name: value for name, value in whole.items() if value is not None}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (stored(format="something"), "format: expected streaminfer.trace 1"),
        (stored(version=2), "streaminfer.trace 2"),
        (stored(format=None), "format"),
        (stored(limits_s=None), "limits_s"),
        (stored(arrivals_s=[1.0, 0.0]), "arrivals_s: expected ascending"),
        (stored(arrivals_s=np.array([object()])), "pickle"),
    ],
)
def test_archive_of_another_kind_is_an_error(tmp_path, arrays, message):
    path = tmp_path / "other.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=rf"other\.npz: not a saved Trace: .*{message}"):
        Trace.load(path)


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04 cut short"])
def test_file_of_another_kind_is_an_error(tmp_path, content):
    path = tmp_path / "other.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a saved Trace"):
        Trace.load(path)


def test_damaged_file_is_an_error_or_loads_unchanged(tmp_path):
    """A trace file with any byte changed either loads unchanged or raises a `ValueError`."""
    path = tmp_path / "damaged.npz"
    trace = Trace(np.random.default_rng(0).random(200).cumsum())
    trace.save(path)
    content = path.read_bytes()
    refused = 0
    for position in range(0, len(content), 13):
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        try:
            assert same(Trace.load(path), trace)  # a byte of the archive that is never read, such as of a time
        except ValueError as error:
            assert "damaged.npz: not a saved Trace" in str(error)
            refused += 1
    assert refused > 50


def test_npy_file_of_one_array_is_an_error(tmp_path):
    path = tmp_path / "one.npy"
    np.save(path, np.zeros(3))
    with pytest.raises(ValueError, match="it is one array"):
        Trace.load(path)


def test_load_of_a_missing_file_raises(tmp_path):
    with pytest.raises(FileNotFoundError):
        Trace.load(tmp_path / "none.npz")


def test_repr_shows_arrivals_rate_and_limits():
    assert repr(Trace([0.0, 0.5])) == "<Trace of 2 arrivals in 0.5 s, 2 a second, no time limits>"
    assert repr(Trace([0.0, 0.5], [0.1, 0.1])) == "<Trace of 2 arrivals in 0.5 s, 2 a second, time limits 0.1 s>"
    assert "time limits 0.1 to 0.3 s for 2 of them" in repr(Trace([0.0, 0.5, 1], [0.1, NAN, 0.3]))
