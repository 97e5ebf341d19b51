"""`StreamStore`: actor that knows the owner of each stream, and stores a recent snapshot of it."""

import asyncio
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

from streaminfer._internal.loading.extras import require
from streaminfer.protocols import Clock
from streaminfer.serving.ray.stream_ledger import Claim, StreamLedger, StreamMoves

__all__ = ["RemoteStreamStore", "StreamStore", "store_actor"]

RELEASE_LIMIT_NS = 1_500_000_000
"""Time that a living owner has to release a stream: a step may run, or its machine may be busy."""
POLL_S = 10.0
"""Seconds for which a replica's call for wanted streams stays open."""
_NAMESPACE = "streaminfer"
_IDLE_LIMIT_S = 120.0


class StreamStore:
    """Stores owners and snapshots in memory; a Ray actor, or an object of one event loop.

    Args:
        clock: monotonic nanoseconds.
        on_idle: called when no replica has called for two minutes.
    """

    def __init__(self, clock: Clock = time.monotonic_ns, on_idle: Callable[[], None] | None = None) -> None:
        self._clock = clock
        self._on_idle = on_idle
        self._ledger = StreamLedger()
        self._wanted: dict[str, set[Hashable]] = {}
        self._wake_ups: dict[str, asyncio.Future[None]] = {}
        self._releases: dict[Hashable, asyncio.Future[None]] = {}
        self._idle_timer: asyncio.TimerHandle | None = None

    async def claim(self, stream_id: Hashable, replica: str) -> Claim:
        """Make a stream the replica's, and return its state; a living owner gets 1.5 seconds to release it."""
        claim = self._ledger.claim(stream_id, replica, self._clock())
        while claim.owner:
            if await self._wait_for_release(stream_id, claim.owner):
                claim = self._ledger.claim(stream_id, replica, self._clock())  # another replica may have been faster
            else:
                claim = self._ledger.take(stream_id, replica, claim.owner, self._clock())
        return claim

    async def _wait_for_release(self, stream_id: Hashable, owner: str) -> bool:
        """Wait for an owner to release a stream; return whether to claim it again."""
        released = self._releases.setdefault(stream_id, asyncio.get_running_loop().create_future())
        claimed = self._wanted.setdefault(owner, set())
        claimed.add(stream_id)
        wake_up = self._wake_ups.get(owner)
        if wake_up is not None and not wake_up.done():
            wake_up.set_result(None)
        ends_ns = self._clock() + RELEASE_LIMIT_NS
        try:
            while not released.done():
                left_ns = min(ends_ns, self._ledger.silent_from_ns(owner)) - self._clock()
                if left_ns <= 0:
                    break
                await asyncio.wait([released], timeout=left_ns / 1e9)
            return released.done()
        finally:
            claimed.discard(stream_id)
            if self._releases.get(stream_id) is released:  # not released: other claims of the stream look again
                self._end_waiting([stream_id])
            if not claimed and self._wanted.get(owner) is claimed:
                del self._wanted[owner]

    async def wanted(self, replica: str) -> list[Hashable]:
        """Wait until other replicas claim streams of this replica, at most ten seconds, and return these streams."""
        self._restart_idle_timer()  # this is a replica's first call, and the replica may end before its first snapshot
        self._ledger.mark_alive(replica, self._clock())
        if not self._wanted.get(replica):
            wake_up = self._wake_ups[replica] = asyncio.get_running_loop().create_future()
            try:
                await asyncio.wait([wake_up], timeout=POLL_S)
            finally:
                if self._wake_ups.get(replica) is wake_up:
                    del self._wake_ups[replica]
        return list(self._wanted.pop(replica, ()))

    async def store(self, replica: str, records: Mapping[Hashable, Any]) -> list[Hashable]:
        """Store snapshots of a replica, note that it is alive, and return the streams that belong to others."""
        now_ns = self._clock()
        self._restart_idle_timer()
        self._ledger.expire(now_ns)
        return self._ledger.store(replica, records, now_ns)

    async def pass_on(self, replica: str, records: Mapping[Hashable, Any]) -> None:
        """Store final states, and wake the claims that wait for them."""
        self._ledger.pass_on(replica, records, self._clock())
        self._end_waiting(records)

    async def forget(self, stream_ids: list[Hashable]) -> None:
        """Forget streams that ended; a claim that waits for one starts it again."""
        self._ledger.forget(stream_ids)
        self._end_waiting(stream_ids)

    async def statistics(self) -> StreamMoves:
        """Return the counts of streams that moved."""
        return self._ledger.statistics()

    def _end_waiting(self, stream_ids: Iterable[Hashable]) -> None:
        for stream_id in stream_ids:
            released = self._releases.pop(stream_id, None)
            if released is not None:
                released.set_result(None)

    def _restart_idle_timer(self) -> None:
        """Restart the timer that fires when no replica calls."""
        if self._on_idle is not None:
            if self._idle_timer is not None:
                self._idle_timer.cancel()
            self._idle_timer = asyncio.get_running_loop().call_later(_IDLE_LIMIT_S, self._on_idle)


class StoreActor(StreamStore):
    """The store as an actor; it ends when its deployment has been gone for two minutes."""

    def __init__(self) -> None:
        ray = require("ray", extra="ray", purpose="ray_deployment")
        super().__init__(on_idle=lambda: ray.kill(ray.get_runtime_context().current_actor))


class RemoteStreamStore:
    """A `StreamStore` in an actor; its calls return awaitables.

    Args:
        connect: returns a handle of the actor, and creates the actor if it does not exist.
        died: the error of calls to an actor that was killed for good and is not restarted.
    """

    def __init__(self, connect: Callable[[], Any], actor_died: type[Exception]) -> None:
        self._connect, self._actor_died = connect, actor_died
        self._actor = connect()

    async def wanted(self, replica: str) -> list[Hashable]:
        """Wait for claims of a replica's streams; if the actor has died, raise, and send later calls to a new one."""
        try:
            streams: list[Hashable] = await self._actor.wanted.remote(replica)
        except self._actor_died:
            self._actor = self._connect()
            raise
        return streams

    def __getattr__(self, name: str) -> Any:
        return getattr(self._actor, name).remote


def store_actor(ray: Any, deployment: str) -> RemoteStreamStore:
    """Return the store of a deployment; the first replica creates it, on the node of Serve's controller.

    Args:
        ray: the module ``ray``.
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
