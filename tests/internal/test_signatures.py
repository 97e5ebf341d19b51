"""Functions with annotations that only type checkers know, and functions with the parameters of others.

CPython 3.14 evaluates annotations when they are read.
"""

import functools
import inspect
import sys

import pytest

import streaminfer as si
from streaminfer._internal.signatures import define_with_parameters
from streaminfer.testing import run

FUTURE = "from __future__ import annotations\n"
FUNCTIONS = """
import streaminfer as si

class Backend:
    returns_new_arrays = True
    async def infer(self, batch: OnlyTypeCheckersKnow) -> Awaitable[OnlyTypeCheckersKnow]:
        return batch.inputs

class Plain:
    def infer(self, batch: OnlyTypeCheckersKnow) -> Awaitable[OnlyTypeCheckersKnow]:
        return Backend().infer(batch)

async def by_user(x: OnlyTypeCheckersKnow, user: str) -> OnlyTypeCheckersKnow:
    return x

async def batched(xs: OnlyTypeCheckersKnow) -> OnlyTypeCheckersKnow:
    return xs
"""


@pytest.fixture(params=[FUTURE] if sys.version_info < (3, 14) else [FUTURE, ""], ids=lambda it: it.split("\n")[0][-11:])
def functions(request):
    names = {"__name__": "functions"}
    exec(request.param + FUNCTIONS, names)  # noqa: S102 - annotations are read as the module says at its top
    return names


@pytest.mark.parametrize("backend", ["Backend", "Plain"])
def test_backend_check_evaluates_no_annotations(functions, backend):
    """A backend is checked without evaluating its annotations."""

    async def main(loop):
        async with si.Stack(si.AdaptiveBatcher(max_batch_size=2), functions[backend](), clock=loop.clock) as stack:
            return await stack(1.0)

    assert run(main) == 1.0


def test_cached_function_needs_only_parameter_names(functions):
    """A cached function needs only the names of its parameters, not their annotations."""
    cached = si.EdgeCache().wrap(functions["by_user"], subject="user")

    async def main(_loop):
        return await cached(1.0, "ada")

    assert run(main) == 1.0


def test_batched_function_is_known_by_its_keywords(functions):
    """A cache recognizes a batched function by its keyword parameters, not by its annotations."""

    async def main(loop):
        batched = si.AdaptiveBatcher(max_batch_size=2, clock=loop.clock).wrap(functions["batched"])
        return await si.EdgeCache(clock=loop.clock).wrap(batched)(1.0, priority=1)

    assert run(main) == 1.0


# -- functions with the same parameters --------------------------------------------------------------------------------

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


def named_as_in_the_source(__function, __seen=0):  # noqa: PYI063 - an older way to write positional parameters
    return __function, __seen


@pytest.mark.parametrize(
    ("function", "arguments", "keywords", "values"),
    [
        (plain, (1, 2), {"d": 4}, (1, 2, 3, 4, 5)),
        (plain, (1,), {"b": 2, "c": 0, "d": 4, "e": 6}, (1, 2, 0, 4, 6)),
        (none, (), {}, ()),
        (collected, (1, 2), {"x": 3}, ((1, 2), {"x": 3})),
        (named_as_in_the_source, (1,), {}, ((1,), {})),
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
