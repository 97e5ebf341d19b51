"""`ResidentSet`: its invariants, and its loads against the fewest that any choice of evictions needs."""

import math
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaminfer.batching.device.resident_set import ResidentSet


def next_use(sequence, at):
    def needed(key):
        return next((later for later in range(at + 1, len(sequence)) if sequence[later] == key), math.inf)

    return needed


def serve(sequence, sizes, memory):
    """Load each model of a sequence when it is due; return the number of loads."""
    resident = ResidentSet(memory)
    loads = 0
    for at, key in enumerate(sequence):
        if not resident.is_loaded(key):
            leaving = resident.victims(key, sizes[key], (), next_use(sequence, at))
            resident.begin(key, sizes[key], leaving, at)
            resident.end(at, succeeded=True)
            loads += 1
        assert resident.is_loaded(key)
        assert sum(resident.bytes_of.values()) <= memory
    return loads


def fewest_loads(sequence, places):
    """Return the fewest loads that a sequence needs, by exhaustive search over all evictions."""

    @cache
    def least(at, inside):
        if at == len(sequence):
            return 0
        key = sequence[at]
        if key in inside:
            return least(at + 1, inside)
        if len(inside) < places:
            return 1 + least(at + 1, inside | {key})
        return 1 + min(least(at + 1, inside - {other} | {key}) for other in inside)

    return least(0, frozenset())


@given(sequence=st.lists(st.sampled_from("abcde"), max_size=14), places=st.integers(1, 4))
@settings(max_examples=150, deadline=None)
def test_equal_models_need_the_fewest_loads_possible(sequence, places):
    """Models of one size are loaded as rarely as any choice of evictions allows."""
    assert serve(sequence, dict.fromkeys("abcde", 10), 10 * places + 9) == fewest_loads(tuple(sequence), places)


@given(
    sequence=st.lists(st.sampled_from("abcd"), max_size=14),
    sizes=st.fixed_dictionaries({key: st.integers(1, 9) for key in "abcd"}),
    memory=st.integers(9, 25),
)
@settings(max_examples=100, deadline=None)
def test_models_of_any_size_stay_within_memory(sequence, sizes, memory):
    """Models of any sizes never take more memory than there is."""
    loads = serve(sequence, sizes, memory)

    if sum(sizes.values()) <= memory:
        assert loads == len(set(sequence))


def resident(memory=10, **sizes):
    one = ResidentSet(memory)
    for key, needs in sizes.items():
        one.begin(key, needs, (), 0)
        one.end(5, succeeded=True)
    return one


def test_a_model_that_fits_after_evictions_stays():
    """The small model stays although it is needed last, because the large model has to leave anyway."""
    one = resident(a=2, b=8)

    assert one.victims("c", 8, (), {"a": 9, "b": 5}.__getitem__) == ["b"]


def test_a_model_that_is_busy_stays():
    one = resident(a=5, b=5)

    assert one.victims("c", 5, {"a"}, {"a": 9, "b": 5}.__getitem__) == ["b"]
    assert one.victims("c", 10, {"a"}, {"a": 9, "b": 5}.__getitem__) is None


def test_loading_model_takes_memory_and_cannot_run():
    """A model that is being loaded takes memory and cannot run yet."""
    one = ResidentSet(10)
    one.begin("a", 8, (), 100)

    assert not one.is_loaded("a")
    assert one.victims("b", 5, {"a"}, lambda _: 0.0) is None
    one.end(130, succeeded=False)
    assert one.bytes_of == {}
    assert one.load_ns("a") == 0


def test_model_that_failed_to_unload_keeps_its_memory():
    """A model that could not be unloaded still takes its memory."""
    one = resident(a=4, b=3)
    one.begin("c", 9, ["a", "b"], 0)

    one.end(1, succeeded=False, retained=1)

    assert one.bytes_of == {"b": 3}


def test_load_duration_is_learned():
    one = resident(a=5)
    assert one.load_ns("a") == 5

    one.begin("a", 5, ["a"], 100)
    assert one.expected_end_ns() == 105
    assert one.end(115, succeeded=True) == 15
    assert one.load_ns("a") == pytest.approx(8)
