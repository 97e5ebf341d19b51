"""A roll-out under load, many times: a new version of a model is loaded beside the old one, which is then unloaded.

Requests go through a cache and a batcher to one backend without a pause. Some have new inputs, others have one of a few
inputs that the cache knows. A response is *right* if it belongs to its input, and its version is not older than a
version seen before the request was sent, in responses of the server and in those of the cache, which has responses of
all versions. A request that ends with an error is *lost*.
"""

import asyncio
import itertools
import time
from collections import Counter
from typing import Any

import attrs
import numpy as np

import streaminfer as si
from servers.triton_server import TritonServer

__all__ = ["MODEL", "RolloutReport", "roll_out"]

MODEL = "versioned"
REPEATED = 4  # inputs that come again and again


@attrs.frozen
class RolloutReport:
    """What became of the requests.

    Attributes:
        rounds: roll-outs.
        answered: how many requests were answered by each version.
        from_cache: those that the cache answered.
        lost: those that ended with an error, by what that said.
        wrong: answers that were not right.
        versions: those that the backend said it had, in their order.
    """

    rounds: int
    answered: Counter[int]
    from_cache: int
    lost: Counter[str]
    wrong: list[str]
    versions: list[str]


class _Callers:
    def __init__(self, service: Any, timeout_s: float) -> None:
        self._service = service
        self._timeout_s = timeout_s
        self._inputs = itertools.count(REPEATED)
        self.newest = 0
        self.from_cache = 0
        self.answered: Counter[int] = Counter()
        self.lost: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.ended = False

    async def run(self, repeated: int | None) -> None:
        """One request after the other until the end."""
        while not self.ended:
            await self._ask(next(self._inputs) if repeated is None else repeated)
            await asyncio.sleep(0 if repeated is None else 0.001)  # a hit suspends no task

    async def until(self, version: int) -> None:
        """Until a request that was sent to it was answered by this version or a later one."""
        while self.newest < version:
            await asyncio.sleep(0.001)

    async def _ask(self, x: int) -> None:
        newest = self.newest
        deadline_ns = time.monotonic_ns() + round(self._timeout_s * 1e9)
        request = si.Request(np.array([x], np.float32), deadline_ns=deadline_ns)
        try:
            response = await self._service.call(request)
        except Exception as error:
            self.lost[f"{type(error).__name__}: {error}"] += 1
            return
        value, version = (int(one) for one in response.outputs)
        self.answered[version] += 1
        self.from_cache += response.source == "cache"
        if value != x or version < newest:
            self.wrong.append(f"{x} at version {newest}: {value} of version {version} from {response.source}")
        self.newest = max(self.newest, version)


async def roll_out(
    server: TritonServer, backend: Any, rounds: int, *, both_s: float = 0.05, timeout_s: float = 30.0
) -> RolloutReport:
    """Rolls a version out under load, round after round; the server has version 1 before and afterwards.

    Args:
        server: with the model ``versioned``.
        backend: for that model, not started.
        rounds: how often.
        both_s: how long both versions are there in a round. Each other round has one load call that exchanges them.
        timeout_s: of each request: generous, since a machine that stalls is not what is looked for.
    """
    stack = si.Stack(si.EdgeCache(max_bytes=50_000_000), si.AdaptiveBatcher(max_batch_size=8), backend)
    versions = []
    try:
        async with stack as service:
            callers = _Callers(service, timeout_s)
            async with asyncio.TaskGroup() as running:
                for repeated in (*range(REPEATED), None, None, None, None, None, None):
                    running.create_task(callers.run(repeated))
                await callers.until(1)
                for version in range(2, rounds + 2):
                    if version % 2:
                        await asyncio.to_thread(server.set_versions, MODEL, version - 1, version)
                        await callers.until(version)
                        await asyncio.sleep(both_s)
                    await asyncio.to_thread(server.set_versions, MODEL, version)
                    await callers.until(version)
                    versions.append(backend.description.version)
                callers.ended = True
    finally:
        await asyncio.to_thread(server.set_versions, MODEL, 1)
    return RolloutReport(rounds, callers.answered, callers.from_cache, callers.lost, callers.wrong, versions)
