"""Replica of a deployment whose factory fails."""

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
