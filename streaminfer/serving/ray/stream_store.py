"""`StreamStore`: the actor that knows where streams are, and keeps a recent snapshot of each."""

import asyncio
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

from streaminfer._internal.loading.extras import require
from streaminfer.protocols import Clock
from streaminfer.serving.ray.stream_ledger import Claim, StreamLedger, StreamMoves

__all__ = ["RemoteStreamStore", "StreamStore", "store_actor"]

ANSWER_NS = 1_500_000_000
"""How long an owner that lives has to hand a stream over: its step may run, or its machine be busy."""
POLL_S = 10.0
"""How long a replica's question for what others want stays open."""
_NAMESPACE = "streaminfer"
_ALONE_S = 120.0


class StreamStore:
    """Keeps owners and snapshots in memory; a Ray actor, or an object of one event loop.

    Args:
        clock: monotonic nanoseconds.
        leave: called when no replica has called for two minutes.
    """

    def __init__(self, clock: Clock = time.monotonic_ns, leave: Callable[[], None] | None = None) -> None:
        self._clock = clock
        self._leave = leave
        self._ledger = StreamLedger()
        self._wanted: dict[str, set[Hashable]] = {}
        self._wakes: dict[str, asyncio.Future[None]] = {}
        self._handed: dict[Hashable, set[asyncio.Future[None]]] = {}
        self._alone: asyncio.TimerHandle | None = None

    async def claim(self, stream_id: Hashable, replica: str) -> Claim:
        """Make a stream the replica's, and return what it has; an owner that lives is asked, and has 1.5 seconds."""
        claim = self._ledger.claim(stream_id, replica, self._clock())
        while claim.owner:
            if await self._ask(stream_id, claim.owner):
                claim = self._ledger.claim(stream_id, replica, self._clock())  # another one may have been faster
            else:
                claim = self._ledger.take(stream_id, replica, claim.owner, self._clock())
        return claim

    async def _ask(self, stream_id: Hashable, owner: str) -> bool:
        """Ask an owner for a stream; return whether it answered."""
        handed = asyncio.get_running_loop().create_future()
        waiting = self._handed.setdefault(stream_id, set())
        waiting.add(handed)
        wanted = self._wanted.setdefault(owner, set())
        wanted.add(stream_id)
        wake = self._wakes.get(owner)
        if wake is not None and not wake.done():
            wake.set_result(None)
        ends_ns = self._clock() + ANSWER_NS
        try:
            while not handed.done():
                left_ns = min(ends_ns, self._ledger.silent_from_ns(owner)) - self._clock()
                if left_ns <= 0:
                    break
                await asyncio.wait([handed], timeout=left_ns / 1e9)
            return handed.done()
        finally:
            waiting.discard(handed)
            if not waiting and self._handed.get(stream_id) is waiting:
                del self._handed[stream_id]
                wanted.discard(stream_id)  # no claim waits for it
            if not wanted and self._wanted.get(owner) is wanted:
                del self._wanted[owner]

    async def wanted(self, replica: str) -> list[Hashable]:
        """Wait for claims of a replica's streams, ten seconds at most."""
        self._leave_later()  # a replica begins with this call, and may end before its first snapshot
        self._ledger.hear(replica, self._clock())
        if not self._wanted.get(replica):
            wake = self._wakes[replica] = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(POLL_S):
                    await wake
            except TimeoutError:
                pass  # no stream is wanted
            finally:
                if self._wakes.get(replica) is wake:
                    del self._wakes[replica]
        return list(self._wanted.pop(replica, ()))

    async def store(self, replica: str, records: Mapping[Hashable, Any]) -> list[Hashable]:
        """Keep snapshots of a replica, note that it lives, and return the streams that are another one's."""
        now_ns = self._clock()
        self._leave_later()
        self._ledger.expire(now_ns)
        return self._ledger.store(replica, records, now_ns)

    async def hand_over(self, replica: str, records: Mapping[Hashable, Any]) -> None:
        """Keep final states and end the waiting for them."""
        self._ledger.hand_over(replica, records, self._clock())
        self._end_waiting(records)

    async def forget(self, stream_ids: list[Hashable]) -> None:
        """Forget streams that ended; who waits for one begins it again."""
        self._ledger.forget(stream_ids)
        self._end_waiting(stream_ids)

    async def statistics(self) -> StreamMoves:
        """What became of streams."""
        return self._ledger.statistics()

    def _end_waiting(self, stream_ids: Iterable[Hashable]) -> None:
        for stream_id in stream_ids:
            for handed in self._handed.get(stream_id, ()):
                if not handed.done():
                    handed.set_result(None)

    def _leave_later(self) -> None:
        """Start again to count how long no replica has called."""
        if self._leave is not None:
            if self._alone is not None:
                self._alone.cancel()
            self._alone = asyncio.get_running_loop().call_later(_ALONE_S, self._leave)


class StoreActor(StreamStore):
    """The store as an actor, which ends when its deployment has been gone for two minutes."""

    def __init__(self) -> None:
        ray = require("ray", extra="ray", purpose="ray_deployment")
        super().__init__(leave=lambda: ray.kill(ray.get_runtime_context().current_actor))


class RemoteStreamStore:
    """A `StreamStore` in an actor: its calls, which return what can be awaited.

    Args:
        connect: returns a handle of the actor, which it makes where there is none.
        died: the error of a call of an actor that is not started again, because it was killed for good.
    """

    def __init__(self, connect: Callable[[], Any], died: type[Exception]) -> None:
        self._connect, self._died = connect, died
        self._use(connect())

    async def wanted(self, replica: str) -> list[Hashable]:
        """Wait for claims of a replica's streams; where the actor has died, the calls that follow are of a new one."""
        try:
            streams: list[Hashable] = await self._actor.wanted.remote(replica)
        except self._died:
            self._use(self._connect())
            raise
        return streams

    def _use(self, actor: Any) -> None:
        self._actor = actor  # its methods hold it weakly
        self.claim, self.forget, self.statistics = actor.claim.remote, actor.forget.remote, actor.statistics.remote
        self.store, self.hand_over = actor.store.remote, actor.hand_over.remote


def store_actor(ray: Any, deployment: str) -> RemoteStreamStore:
    """Return the store of a deployment; the first replica makes it, on the node of Serve's controller.

    Args:
        ray: the module.
        deployment: name of the application and the deployment.
    """
    options = {
        "name": f"streams of {deployment}",
        "namespace": _NAMESPACE,
        "get_if_exists": True,
        "lifetime": "detached",
        "num_cpus": 0,
        "max_concurrency": 10_000,
        "max_restarts": -1,
        "resources": {"node:__internal_head__": 0.001},
    }
    return RemoteStreamStore(ray.remote(StoreActor).options(**options).remote, ray.exceptions.ActorDiedError)
