"""Stacks in a notebook: a name serves one stack, and a magic becomes code that awaits."""

import asyncio
import types

import pytest

import streaminfer as si
from streaminfer import notebook
from streaminfer.testing import ScriptedBackend


def stack(loop):
    return si.Stack(si.AdaptiveBatcher(max_batch_size=2), ScriptedBackend(), clock=loop.clock)


async def test_serve_replaces_the_stack_of_the_same_name(loop):
    """Serving a stack stops the one with the same name, and `stop_serving` stops all of them."""
    first, second, other = stack(loop), stack(loop), stack(loop)
    assert await notebook.serve(first) is first
    await notebook.serve(other, "other")
    assert first.ready
    await notebook.serve(second)
    assert not first.ready
    assert second.ready
    assert other.ready
    await notebook.stop_serving()
    assert not second.ready
    assert not other.ready
    assert len(asyncio.all_tasks()) == 1


async def test_concurrent_serve_calls_leave_one_stack(loop):
    """Of concurrent calls, the last stack that starts replaces the others, and nothing runs after the stop."""
    stacks = [stack(loop) for _ in range(4)]
    await asyncio.gather(*map(notebook.serve, stacks))
    assert [each.ready for each in stacks].count(True) == 1

    await notebook.stop_serving()

    assert not any(each.ready for each in stacks)
    assert len(asyncio.all_tasks()) == 1


async def test_failed_start_does_not_register_a_stack(loop):
    """A stack that fails to start is not registered under its name."""
    failing = si.Stack(si.AdaptiveBatcher(max_batch_size=2), FailingBackend(), clock=loop.clock)
    with pytest.raises(ZeroDivisionError):
        await notebook.serve(failing)
    await notebook.stop_serving()
    with pytest.raises(TypeError, match="service: expected a Stack"):
        await notebook.serve(3)


@pytest.mark.parametrize("of", [si.Stack.blocking, type], ids=["blocking", "class"])
async def test_unawaitable_service_is_rejected_before_start(loop, of):
    """A service that cannot be awaited is rejected before its start, and the service of the same name keeps running."""
    served, refused = stack(loop), stack(loop)
    await notebook.serve(served)
    with pytest.raises(TypeError, match="service: expected a Stack, or an object with async start and stop"):
        await notebook.serve(of(refused))
    assert served.ready
    assert refused.stack_state == "new"
    await notebook.stop_serving()


class Stubborn:
    """Service whose stop fails."""

    async def start(self):
        pass

    async def call(self, request):
        raise AssertionError

    async def stop(self, *, drain=True):
        raise OSError("lost device")


async def test_all_stacks_stop_if_one_stop_fails(loop):
    good = stack(loop)
    await notebook.serve(good, "good")
    await notebook.serve(Stubborn(), "bad")

    with pytest.raises(OSError, match="lost device"):
        await notebook.stop_serving()

    assert not good.ready
    await notebook.stop_serving()


class FailingBackend:
    async def infer(self, batch):
        raise NotImplementedError

    async def start(self):
        raise ZeroDivisionError


def make_shell():
    magics = {}
    return types.SimpleNamespace(
        input_transformers_cleanup=[],
        magics_manager=types.SimpleNamespace(magics={"line": magics}),
        register_magic_function=lambda function, magic_name: magics.update({magic_name: function}),
    )


@pytest.mark.parametrize(
    ("line", "call"),
    [("%serve service\n", "serve(service, 'service');"), ("%serve", "stop_serving();"), ("%serve   a_1  \n", "serve(a_1, 'a_1');")],
)  # fmt: skip
def test_magic_becomes_code_that_awaits(line, call):
    shell = make_shell()
    si.load_ipython_extension(shell)
    si.load_ipython_extension(shell)
    (transform,) = shell.input_transformers_cleanup
    (code,) = transform([line])
    assert code.startswith("await ")
    assert code.endswith(f".{call}\n")
    si.unload_ipython_extension(shell)
    si.unload_ipython_extension(shell)
    assert shell.input_transformers_cleanup == []


@pytest.mark.parametrize(
    "line", ["%served x\n", "%serve 1\n", "x = '%serve a'\n", " %serve a\n", "%serve a b\n", "%serve a; b\n"]
)
def test_other_lines_stay(line):
    assert notebook._expand([line]) == [line]


def test_magic_without_a_stack_shows_its_syntax():
    """A `%serve` line without a stack's name raises an error with the syntax; IPython would call the magic missing."""
    shell = make_shell()
    si.load_ipython_extension(shell)

    with pytest.raises(ValueError, match=r"%serve: expected the name of a stack, alone on a line .* got 'a  # now'"):
        shell.magics_manager.magics["line"]["serve"]("a  # now")

    si.unload_ipython_extension(shell)
    assert shell.magics_manager.magics == {"line": {}}


def test_magic_in_the_loading_cell_names_the_cell():
    """In the cell that loads the extension, the error asks for a later cell: IPython has transformed the whole cell."""
    shell = make_shell()
    si.load_ipython_extension(shell)

    with pytest.raises(ValueError, match=r"in a later cell than %load_ext, got 'service'"):
        shell.magics_manager.magics["line"]["serve"]("service")
