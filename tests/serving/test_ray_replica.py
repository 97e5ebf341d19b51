"""A replica of a deployment whose stack cannot be made."""

from types import SimpleNamespace

import pytest

from streaminfer.serving.ray.replica import StackReplica
from streaminfer.testing import run


def test_a_replica_without_a_stack_ends():
    """Ray awaits `__del__` of each replica, and logs its error next to that of the factory."""

    def make_stack():
        raise OSError("no such model")

    async def main():
        replica = SimpleNamespace()
        with pytest.raises(OSError, match="no such model"):
            await StackReplica.__init__(replica, make_stack, "model", None, None)

        await StackReplica.__del__(replica)

    run(lambda _loop: main())
