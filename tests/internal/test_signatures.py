"""Annotations may name what only type checkers import; since CPython 3.14 they are evaluated when they are read."""

import sys

import pytest

import streaminfer as si
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
def test_a_backend_is_checked_without_evaluating_its_annotations(functions, backend):
    async def main(loop):
        async with si.Stack(si.AdaptiveBatcher(max_batch_size=2), functions[backend](), clock=loop.clock) as stack:
            return await stack(1.0)

    assert run(main) == 1.0


def test_a_cached_function_needs_the_names_of_its_parameters_only(functions):
    cached = si.EdgeCache().wrap(functions["by_user"], subject="user")

    async def main(_loop):
        return await cached(1.0, "ada")

    assert run(main) == 1.0


def test_a_batched_function_is_told_from_others_by_its_keywords(functions):
    async def main(loop):
        batched = si.AdaptiveBatcher(max_batch_size=2, clock=loop.clock).wrap(functions["batched"])
        return await si.EdgeCache(clock=loop.clock).wrap(batched)(1.0, priority=1)

    assert run(main) == 1.0
