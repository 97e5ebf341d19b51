"""A roll-out under load, many times: a new version of a model is loaded beside the old one, which is then unloaded.

Requests go through a cache and a batcher to one backend without a pause. Some have new inputs, others have one of a few
inputs that the cache knows. A response is *right* if it belongs to its input, and if its version is not older than any
version that was seen before the request was sent. This holds for responses of the server and of the cache, which has
responses of all versions. A request that ends with an error is *lost*.
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
REPEATED = 4  # inputs that are sent again and again


@attrs.frozen
class RolloutReport:
    """Outcomes of the requests of all roll-outs.

    Attributes:
        rounds: number of roll-outs.
        answered: number of responses by version.
        from_cache: number of responses from the cache.
        lost: number of requests that ended with an error, by class and message of the error.
        wrong: descriptions of the responses that were not right.
        versions: versions that the backend reported, in order.
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
        """Send one request after the other until the end."""
        while not self.ended:
            await self._ask(next(self._inputs) if repeated is None else repeated)
            await asyncio.sleep(0 if repeated is None else 0.001)  # a hit does not suspend the task

    async def until(self, version: int) -> None:
        """Wait for a response of this version or a later one."""
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
    """Roll a new version out under load, round after round; the server has version 1 before and afterwards.

    Args:
        server: server with the model ``versioned``.
        backend: backend of that model, not started.
        rounds: number of roll-outs.
        both_s: seconds for which both versions are loaded. In every other round, one load call exchanges them instead.
        timeout_s: timeout of each request; generous, because stalls of the machine are not under test.
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
