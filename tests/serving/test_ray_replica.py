"""Replica of a deployment: a factory that fails, and the settings of calls."""

import asyncio
from types import SimpleNamespace

import pytest

from streaminfer.serving.ray.replica import StackReplica
from streaminfer.testing import run


def test_a_replica_without_a_stack_ends():
    """`__del__` of a replica without a stack raises no error; Ray would log it next to the error of the factory."""

    def make_stack():
        raise OSError("no such model")

    async def main():
        replica = SimpleNamespace()
        with pytest.raises(OSError, match="no such model"):
            await StackReplica.__init__(replica, make_stack, "model", None, None)

        await StackReplica.__del__(replica)

    run(lambda _loop: main())


def test_handle_passes_all_settings_of_a_call():
    """A call through a handle has the same settings as a call of the stack."""

    async def service(inputs, **settings):
        return inputs, settings

    settings = {"timeout_s": 0.1, "stream_id": "s", "tags": ["t"], "store": False}

    assert asyncio.run(StackReplica.infer(SimpleNamespace(_service=service), 1.0, **settings)) == (1.0, settings)
