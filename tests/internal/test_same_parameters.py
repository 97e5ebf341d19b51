"""`define_with_parameters`: a compiled function takes, passes on and sees what the wrapped function would."""

import functools
import inspect

import pytest

from streaminfer._internal.same_parameters import define_with_parameters

pytestmark = pytest.mark.uncompiled

SOURCE = """
def passed({parameters}):
    __seen.append({values})
    return __function({arguments})
"""


def plain(a, /, b, c=3, *, d, e=5):
    return a, b, c, d, e


def none():
    return ()


def collected(a, *args, **kwargs):
    return a, args, kwargs


@pytest.mark.parametrize(
    ("function", "arguments", "keywords", "values"),
    [
        (plain, (1, 2), {"d": 4}, (1, 2, 3, 4, 5)),
        (plain, (1,), {"b": 2, "c": 0, "d": 4, "e": 6}, (1, 2, 0, 4, 6)),
        (none, (), {}, ()),
        (collected, (1, 2), {"x": 3}, ((1, 2), {"x": 3})),
        (functools.partial(plain, 1), (2,), {"d": 4}, ((2,), {"d": 4})),
    ],
)
def test_arguments_are_passed_on(function, arguments, keywords, values):
    seen = []
    passed = define_with_parameters(function, SOURCE, {"__seen": seen})["passed"]

    assert passed(*arguments, **keywords) == function(*arguments, **keywords)
    assert seen == [values]


def test_parameters_are_those_of_the_function():
    passed = define_with_parameters(plain, SOURCE, {"__seen": []})["passed"]

    assert inspect.signature(passed) == inspect.signature(plain)
    with pytest.raises(TypeError, match=r"passed\(\) missing 1 required keyword-only argument: 'd'"):
        passed(1, 2)
    assert passed.__kwdefaults__ is not plain.__kwdefaults__
