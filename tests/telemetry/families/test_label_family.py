"""Label families: a child per set of values, and a bound on the number of sets."""

import threading

import pytest

from streaminfer.telemetry import LabelFamily, LatencyHistogram

pytestmark = pytest.mark.uncompiled


def test_a_child_per_set_of_values():
    family = LabelFamily(LatencyHistogram, "route", "tenant")
    family.of("large", "gold").record(0.1)
    family.of("large", "gold").record(0.2)
    family.of("small", None).record(0.3)
    assert [(values, child.count) for values, child in family.items()] == [(("large", "gold"), 2), (("small", None), 1)]
    assert (len(family), family.overflowed) == (2, 0)
    assert repr(family) == "<LabelFamily of route, tenant: 2 sets, at most 256>"


def test_sets_beyond_the_bound_share_a_child():
    family = LabelFamily(LatencyHistogram, "tenant", max_sets=2)
    children = [family.of(str(number)) for number in range(5)]
    assert children[2] is children[3] is children[4] is not children[1]
    assert family.of("1") is children[1]
    assert [values for values, _ in family.items()] == [("0",), ("1",), ("other",)]
    assert family.overflowed == 3
    family.clear()
    assert (len(family), family.overflowed) == (0, 0)


def test_threads_get_one_child():
    made = []

    def make():
        made.append(LatencyHistogram())
        return made[-1]

    family = LabelFamily(make, "number", max_sets=20)
    start = threading.Barrier(8)
    got = [[] for _ in range(8)]

    def look(children):
        start.wait()
        children.extend(family.of(number) for number in range(50))

    threads = [threading.Thread(target=look, args=(children,)) for children in got]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(50):
        assert len({id(children[number]) for children in got}) == 1
    assert len(family) == 21
    assert family.overflowed == 8 * 30


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: LabelFamily(3, "a"), TypeError, "make: expected a class or a function"),
        (lambda: LabelFamily(list), ValueError, "labels: expected at least one name, each once"),
        (lambda: LabelFamily(list, "a", "a"), ValueError, "labels: expected at least one name, each once"),
        (lambda: LabelFamily(list, 3), TypeError, "labels: expected names of labels"),
        (lambda: LabelFamily(list, "a", max_sets=0), ValueError, "max_sets: expected a whole number"),
        (lambda: LabelFamily(list, "a", max_sets=2**70), ValueError, "max_sets: expected a whole number"),
        (lambda: LabelFamily(list, "a").of(), TypeError, "values: expected one for each label"),
        (lambda: LabelFamily(list, "a").of([]), TypeError, "unhashable"),
    ],
)
def test_bad_arguments(make, error, text):
    with pytest.raises(error, match=text):
        make()


def test_set_named_as_the_rest_stays_beside_it():
    """A label set with the name of the rest is listed beside the rest.

    Its own child is first, and the child of the rest is last.
    """
    family = LabelFamily(list, "tenant", max_sets=1)

    family.of("other").append("its own")
    family.of("second").append("the rest")

    assert list(family.items()) == [(("other",), ["its own"]), (("other",), ["the rest"])]
