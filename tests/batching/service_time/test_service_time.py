"""ServiceTime: given as a line or a table, its tables, its files, its best size."""

import json

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaminfer.batching.service_time.service_time import ServiceTime, best_size, whole_ns

seconds = st.floats(1e-6, 1e3)


@st.composite
def tables(draw):
    sizes = sorted(draw(st.sets(st.integers(1, 200), min_size=1, max_size=8)))
    return dict(zip(sizes, sorted(draw(st.lists(seconds, min_size=len(sizes), max_size=len(sizes)))), strict=True))


service_times = st.one_of(
    st.builds(ServiceTime.affine, seconds, st.floats(0.0, 10.0)), st.builds(ServiceTime.table, tables())
)


def test_affine():
    service_time = ServiceTime.affine(0.004, 0.00025)
    assert service_time.seconds(1) == 0.00425
    assert service_time.seconds(64) == 0.02
    assert service_time.table_ns(4).tolist() == [0, 4_250_000, 4_500_000, 4_750_000, 5_000_000]
    assert service_time.table_ns(4).dtype == np.int64


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({4: 0.008}, {1: 0.002, 4: 0.008, 10: 0.02}),  # one entry: proportional
        ({2: 0.003, 6: 0.005, 8: 0.009}, {1: 0.0025, 2: 0.003, 4: 0.004, 7: 0.007, 10: 0.013}),
        ({8: 0.001, 16: 0.101}, {1: 0.000125, 4: 0.0005, 12: 0.051}),  # below 8: at least proportional
        ({8: 0.005, 64: 0.005}, {1: 0.005, 30: 0.005, 100: 0.005}),
    ],
)
def test_table_interpolates_and_extrapolates(table, expected):
    service_time = ServiceTime.table(table)
    for size, wanted in expected.items():
        assert service_time.seconds(size) == pytest.approx(wanted, rel=1e-12)


def test_a_table_of_an_affine_time_is_that_time():
    line = ServiceTime.affine(0.004, 0.00025)
    table = ServiceTime.table({size: line.seconds(size) for size in (3, 7, 40)})
    np.testing.assert_array_equal(table.table_ns(100), line.table_ns(100))


@given(service_times, st.integers(1, 300))
def test_tables_are_positive_and_agree_with_seconds(service_time, largest):
    """Tables are positive, never fall and agree with `seconds`."""
    table = service_time.table_ns(largest)
    assert table.shape == (largest + 1,)
    assert table[0] == 0
    assert table[1] >= 1
    assert (np.diff(table) >= 0).all()
    for size in {1, (largest + 1) // 2, largest}:
        assert table[size] == pytest.approx(service_time.seconds(size) * 1e9, rel=1e-9, abs=1)


@given(service_times, st.integers(1, 300))
def test_best_size_has_98_percent_of_top_throughput(service_time, largest):
    """The best size has at least 98 % of the highest throughput."""
    throughput = [size / service_time.seconds(size) for size in range(1, largest + 1)]
    best = service_time.best_batch_size(largest)
    assert 1 <= best <= largest
    assert throughput[best - 1] >= 0.98 * max(throughput) * (1 - 1e-9)


@given(st.lists(st.floats(1e-9, 1e3), min_size=1, max_size=60))
def test_best_size_has_most_worth_near_top_throughput(times):
    """The best size has the most worth among the sizes close to the highest throughput."""
    table = np.array([0.0, *sorted(times)])
    sizes = np.arange(1, len(table))
    throughput = sizes / table[1:]
    worth = throughput * sizes**-0.05

    best = best_size(table)

    assert throughput[best - 1] >= 0.98 * throughput.max() * (1 - 1e-12)
    assert worth[best - 1] >= worth[throughput >= 0.98 * throughput.max()].max() * (1 - 1e-12)


@given(st.lists(st.floats(1e-9, 1e3), min_size=1, max_size=60), st.floats(1e-3, 1e12))
def test_whole_nanoseconds_are_positive_and_bounded(times, unit_ns):
    """Whole nanoseconds are at least 1 and at most three years."""
    table = np.array([0.0, *sorted(times)])
    whole = whole_ns(table, unit_ns)
    assert whole[0] == 0
    np.testing.assert_allclose(whole[1:], np.clip(table * unit_ns, 1.0, 1e17)[1:], rtol=1e-12, atol=0.5)


def test_best_sizes_of_known_devices():
    assert ServiceTime.affine(0.004, 0.00025).best_batch_size(64) == 64
    assert ServiceTime.affine(0.0, 0.001).best_batch_size(64) == 1
    blaze = {1: 3.04, 4: 14.24, 8: 30.24, 16: 66.24, 32: 157.76}  # larger batches cost more than their share
    assert ServiceTime.table({size: ms / 1e3 for size, ms in blaze.items()}).best_batch_size(32) == 1
    silero = {1: 0.087, 4: 0.2, 8: 0.344, 16: 0.608, 32: 1.184}
    assert ServiceTime.table({size: ms / 1e3 for size, ms in silero.items()}).best_batch_size(32) >= 16


def test_absurdly_long_times_do_not_overflow():
    table = ServiceTime.affine(1e300, 1e300).table_ns(8)
    assert table.tolist() == [0] + [10**17] * 8


def test_equality_hash_and_immutability():
    first, second = ServiceTime.table({1: 0.1, 2: 0.2}), ServiceTime.table({2: 0.2, 1: 0.1})
    assert first == second
    assert hash(first) == hash(second)
    assert first != ServiceTime.table({1: 0.1, 2: 0.3})
    with pytest.raises(AttributeError):
        first.sizes = (1,)
    with pytest.raises(ValueError):
        first.table_ns(4)[1] = 7


def test_repr():
    line, table = ServiceTime.affine(0.004, 0.00025), ServiceTime.table({1: 0.1, 2: 0.2})
    assert repr(line) == "ServiceTime.affine(setup_s=0.004, per_item_s=0.00025)"
    assert repr(table) == "ServiceTime.table({1: 0.1, 2: 0.2})"
    assert repr(ServiceTime.table({size: size * 0.001 for size in range(1, 11)})) == (
        "<ServiceTime of 10 sizes, 1: 0.001 … 10: 0.01, then 0.001 an item>"
    )
    assert repr(ServiceTime((1, 2), (0.1, 0.2), 0.3)).startswith("<ServiceTime of 2 sizes")  # no table has this slope


@given(service_time=service_times)
def test_saved_and_loaded_is_the_same(tmp_path_factory, service_time):
    path = tmp_path_factory.mktemp("saved") / "service_time.json"
    service_time.save(path)
    assert ServiceTime.load(path) == service_time
    assert ServiceTime.load(str(path)) == service_time


GOOD = {"format": "streaminfer.service_time", "version": 1, "sizes": [1, 2], "times_s": [0.1, 0.2], "per_item_s": 0.1}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": "other"}, "format 'streaminfer.service_time'"),
        ({"version": 2}, "version: expected 1, got 2"),
        ({"sizes": [1]}, "as many sizes as times_s"),
        ({"sizes": []}, "as many sizes as times_s"),
        ({"sizes": "12"}, "as many sizes as times_s"),
        ({"sizes": [2, 1]}, "sizes: expected ascending"),
        ({"sizes": [1, 1]}, "sizes: expected ascending"),
        ({"sizes": [1, "2"]}, "sizes: expected ascending"),
        ({"sizes": [1.5, 2]}, "sizes: expected a whole number"),
        ({"sizes": [-1, 2]}, "sizes: expected a whole number"),
        ({"times_s": [0.2, 0.1]}, "times_s: expected a time of size 2 of at least 0.2"),
        ({"times_s": [0.0, 0.1]}, "times_s: expected a finite number of seconds > 0"),
        ({"times_s": [None, 0.1]}, "times_s: expected a finite number of seconds > 0"),
        ({"per_item_s": -1.0}, "per_item_s: expected a finite number of seconds ≥ 0"),
        ({"per_item_s": float("nan")}, "per_item_s: expected a finite number of seconds ≥ 0"),
        ({"sizes": [0], "times_s": [0.0], "per_item_s": 0.0}, "per_item_s: expected a finite number of seconds > 0"),
    ],
)
def test_bad_files_are_named(tmp_path, change, says):
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(GOOD | change))
    with pytest.raises(ValueError, match=r"bad\.json: not a saved ServiceTime") as raised:
        ServiceTime.load(path)
    assert says in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"[1, 2]", b"{", b"\xff\xfe"])
def test_files_of_another_format_are_rejected(tmp_path, content):
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.json: not a saved ServiceTime"):
        ServiceTime.load(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        ServiceTime.load(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: ServiceTime.affine(-1.0, 0.1), ValueError, "setup_s: expected"),
        (lambda: ServiceTime.affine("1", 0.1), TypeError, "setup_s: expected"),
        (lambda: ServiceTime.affine(0.1, float("inf")), ValueError, "per_item_s: expected"),
        (lambda: ServiceTime.affine(0.0, 0.0), ValueError, "per_item_s: expected"),
        (lambda: ServiceTime.table({}), ValueError, "times_s: expected"),
        (lambda: ServiceTime.table([(1, 0.1)]), TypeError, "times_s: expected"),
        (lambda: ServiceTime.table({0: 0.1}), ValueError, "times_s: a size: expected"),
        (lambda: ServiceTime.table({1.5: 0.1}), TypeError, "times_s: a size: expected"),
        (lambda: ServiceTime.table({1: 0.0}), ValueError, r"times_s\[1\]: expected"),
        (lambda: ServiceTime.table({1: 0.2, 2: 0.1}), ValueError, "times_s: expected a time of size 2"),
        (lambda: ServiceTime.affine(1, 1).seconds(0), ValueError, "size: expected"),
        (lambda: ServiceTime.affine(1, 1).seconds(1.0), TypeError, "size: expected"),
        (lambda: ServiceTime.affine(1, 1).table_ns(0), ValueError, "max_batch_size: expected"),
        (lambda: ServiceTime.affine(1, 1).best_batch_size("8"), TypeError, "max_batch_size: expected"),
    ],
)
def test_bad_arguments_are_named(make, error, says):
    with pytest.raises(error, match=says):
        make()


def test_plot():
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    table = ServiceTime.table({2: 0.003, 6: 0.005})
    ax = table.plot()
    line, points = ax.lines
    np.testing.assert_allclose(line.get_ydata()[:6], [table.seconds(size) for size in range(1, 7)])
    assert points.get_xdata().tolist() == [2, 6]
    assert ServiceTime.affine(0.004, 0.00025).plot(ax) is ax
    assert len(ax.lines) == 3  # an affine time has no measured points
    highest = max(line.get_ydata().max() for line in ax.lines)
    low, high = ax.get_ylim()
    assert low == 0.0
    assert highest <= high <= 1.2 * highest
    plt.close("all")
