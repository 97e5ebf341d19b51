"""`MovingStreams`: a stack in a deployment, with streams that move between replicas together with their state."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Hashable, Iterable, Mapping
from typing import Any

import attrs

from streaminfer._internal.error_log import Log
from streaminfer._runtime.lifecycle import end_tasks, stop_together
from streaminfer.errors import InvalidInput, Overloaded
from streaminfer.protocols import Capabilities, StreamStates, Wrapper
from streaminfer.request import Request, Response
from streaminfer.serving.ray.stream_ledger import IDLE_NS, Claim
from streaminfer.serving.ray.stream_store import RemoteStreamStore, StreamStore
from streaminfer.stack import Stack

__all__ = ["SNAPSHOT_S", "MovingStreams"]

SNAPSHOT_S = 0.5
"""Seconds between two snapshots; with the transfer to the store, a snapshot is less than a second old."""
_STORE_S = 2.0
"""Time limit of a call of the store, seconds; a stream without its past is better than no stream."""
_LOG = Log("streaminfer")


@attrs.define(eq=False)
class _Stream:
    """A stream of this replica.

    Attributes:
        settled: set unless the stream is being claimed, moved or ended.
        in_flight: number of running requests.
        changed: whether the state has changed since the latest snapshot.
        used_ns: instant of the latest request.
        idle: set when no request runs; exists while a release waits for that.
        has_local_state: whether the state was reset or imported here while the stream was not settled, so that the
            state in the store is older.
        rejection: why the claim failed: the replica has no room for the state.
    """

    settled: asyncio.Event = attrs.field(factory=asyncio.Event)
    in_flight: int = 0
    changed: bool = False
    used_ns: int = 0
    idle: asyncio.Event | None = None
    has_local_state: bool = False
    rejection: Overloaded | None = None


class MovingStreams(Wrapper):
    """Claims the state of a stream before its first request, and passes it on when another replica claims it.

    If the store does not respond within two seconds, the stream starts with the state that its replica has, and the
    error is logged.

    Args:
        inner: a stack that stores the state of streams.
        states: the part of the stack that stores them.
        store: the store of the deployment.
        replica: id of this replica.
    """

    def __init__(
        self, inner: Stack, states: StreamStates, store: StreamStore | RemoteStreamStore, replica: str
    ) -> None:
        super().__init__(inner)
        self._states = states
        self._store = store
        self._replica = replica
        self._streams: dict[Hashable, _Stream] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def capabilities(self) -> Capabilities:
        """Return the stack's capabilities; a stream that ends here is also forgotten in the store."""
        # no ``enforces_deadline``: a claim takes time before the batcher sees the request, so outer layers need timers
        return super().capabilities()._replace(stream_states=self, enforces_deadline=False)

    async def start(self) -> None:
        """Start the stack, and begin to send snapshots."""
        self._streams.clear()  # streams are claimed again: a stop may have cancelled their claims
        await self.inner.start()
        self._spawn(self._send_snapshots())
        self._spawn(self._serve_claims())

    async def stop(self, *, drain: bool = True) -> None:
        """Give all streams to the store if ``drain`` is true, and stop the stack."""
        try:
            if drain:
                # before the tasks are cancelled, so that a running release completes
                await self._release_all(list(self._streams))
        finally:
            try:
                await end_tasks(self._tasks)
            finally:
                await self.inner.stop(drain=drain)

    async def call(self, request: Request) -> Response:
        """Serve one request, after its stream is claimed."""
        if request.stream_id is None:
            response: Response = await self.inner.call(request)
            return response
        stream = await self._own(request.stream_id)
        stream.in_flight += 1
        try:
            response = await self.inner.call(request)
        finally:
            stream.in_flight -= 1
            stream.changed = True
            stream.used_ns = self.inner.clock()
            if not stream.in_flight and stream.idle is not None:
                stream.idle.set()
        return response

    # -- the state of streams -----------------------------------------------------------------------------------

    def reset_stream(self, stream_id: Hashable) -> None:
        """Make the next step start from the initial state."""
        self._states.reset_stream(stream_id)
        self._prefer_local_state(stream_id)

    def end_stream(self, stream_id: Hashable) -> None:
        """Forget a stream, also in the store; later requests start the stream again."""
        self._states.end_stream(stream_id)
        previous = self._streams.get(stream_id)
        is_own = previous is not None and previous.settled.is_set()
        stream = self._streams[stream_id] = _Stream()
        self._spawn(self._end(stream_id, stream, previous, is_own))

    def export_state(self, stream_id: Hashable) -> Any:
        """Return a copy of the state of a stream."""
        return self._states.export_state(stream_id)

    def import_state(self, stream_id: Hashable, state: Any) -> None:
        """Make the next step continue from ``state``."""
        self._states.import_state(stream_id, state)
        self._prefer_local_state(stream_id)

    async def settle(self, stream_id: Hashable) -> _Stream | None:
        """Wait until the stream is settled, and return it; ``None`` if it does not belong to this replica."""
        while (stream := self._streams.get(stream_id)) is not None and not stream.settled.is_set():
            await stream.settled.wait()
        return stream

    # -- inside -------------------------------------------------------------------------------------------------

    def _prefer_local_state(self, stream_id: Hashable) -> None:
        """Make the state that a stream has here replace the state in other replicas and the store."""
        stream = self._streams.get(stream_id)
        if stream is None:
            stream = self._begin_claim(stream_id)
        stream.changed = True
        stream.has_local_state = not stream.settled.is_set()

    async def _own(self, stream_id: Hashable) -> _Stream:
        """Wait until a stream belongs to this replica, and return it."""
        while (stream := await self.settle(stream_id)) is None:
            stream = self._begin_claim(stream_id)  # the claim continues if the request is cancelled
            await stream.settled.wait()
            if stream.rejection is not None:
                raise stream.rejection
        return stream

    def _begin_claim(self, stream_id: Hashable) -> _Stream:
        stream = self._streams[stream_id] = _Stream()
        self._spawn(self._claim(stream_id, stream))
        return stream

    async def _claim(self, stream_id: Hashable, stream: _Stream) -> None:
        stream.used_ns = self.inner.clock()
        try:
            async with _store_call("stream %r starts without the state that the store may have", stream_id):
                claim = await self._store.claim(stream_id, self._replica)
                if not stream.has_local_state:
                    stream.rejection = self._take_over(stream_id, claim)
            if stream.rejection is not None:  # the state goes back to the store, for the next claim
                async with _store_call("stream %r was not moved", stream_id):
                    await self._store.pass_on(self._replica, {stream_id: claim.record})
                self._drop(stream_id, stream)
        finally:
            stream.settled.set()
        if stream.rejection is not None and stream.has_local_state:  # set while the state went back to the store
            self._prefer_local_state(stream_id)

    def _take_over(self, stream_id: Hashable, claim: Claim) -> Overloaded | None:
        """Import the state that a claim returned, unless this replica's own is as new; return why it cannot."""
        if claim.is_other:
            self._states.end_stream(stream_id)  # an old state, from before another replica had the stream
        if claim.record is not None and self._export(stream_id) is None:
            try:
                self._states.import_state(stream_id, claim.record)
            except Overloaded as error:
                return error
        return None

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _drop(self, stream_id: Hashable, stream: _Stream) -> None:
        if self._streams.get(stream_id) is stream:
            del self._streams[stream_id]

    async def _serve_claims(self) -> None:
        """Release the streams that other replicas claim, until the task is cancelled."""
        while True:
            claimed: list[Hashable] | None = None
            async with _store_call("the store of streams does not answer", limit_s=None):
                claimed = await self._store.wanted(self._replica)
            if claimed is None:  # the store may have been restarted without its data, so all states are sent again
                for stream in self._streams.values():
                    stream.changed = True
                await asyncio.sleep(SNAPSHOT_S)
            if claimed:
                self._spawn(self._release_all(claimed))  # in a task, so that a long step delays no other stream

    async def _release_all(self, stream_ids: Iterable[Hashable]) -> None:
        """Give states to the store: those of idle streams in one call, the others after their requests."""
        idle, busy = {}, []
        for stream_id in stream_ids:
            stream = self._streams.get(stream_id)
            if stream is None or stream.in_flight or not stream.settled.is_set():
                busy.append(stream_id)
            else:
                stream.settled.clear()
                idle[stream_id] = stream
        await stop_together([self._pass_on(idle), *map(self._release, busy)])

    async def _release(self, stream_id: Hashable) -> None:
        """Give the state of a stream to the store, after the requests in flight."""
        stream = await self.settle(stream_id) if stream_id in self._streams else _Stream()
        if stream is None:
            return  # the stream has ended or was moved meanwhile, or the store has its snapshot
        self._streams[stream_id] = stream
        stream.settled.clear()
        try:
            if stream.in_flight:
                stream.idle = asyncio.Event()
                await stream.idle.wait()
            await self._pass_on({stream_id: stream})
        finally:
            stream.settled.set()

    async def _pass_on(self, streams: Mapping[Hashable, _Stream]) -> None:
        """Give the states of unsettled streams without requests in flight to the store."""
        records = {}
        try:
            for stream_id, stream in streams.items():
                records[stream_id] = self._export(stream_id)
                self._states.end_stream(stream_id)
                stream.has_local_state = False  # the exported record includes that state
            if records:
                async with _store_call("%d streams were not moved", len(records)):
                    await self._store.pass_on(self._replica, records)
        finally:
            for stream_id, stream in streams.items():
                self._drop(stream_id, stream)
                stream.settled.set()
        for stream_id, stream in streams.items():
            if stream.has_local_state:
                self._prefer_local_state(stream_id)

    async def _send_snapshots(self) -> None:
        while True:
            await asyncio.sleep(SNAPSHOT_S)
            now_ns = self.inner.clock()
            records, streams = {}, self._streams.copy()
            for stream_id, stream in streams.items():
                if stream.changed and stream.settled.is_set():
                    stream.changed = False
                    records[stream_id] = self._export(stream_id)
                elif stream.settled.is_set() and not stream.in_flight and now_ns - stream.used_ns >= IDLE_NS:
                    del self._streams[stream_id]
            rejected: list[Hashable] | None = None
            async with _store_call("snapshots of %d streams were not stored", len(records)):
                rejected = await self._store.store(self._replica, records)
            if rejected is None:  # the call failed, so the snapshots are sent again
                for stream_id in records.keys() & self._streams.keys():
                    self._streams[stream_id].changed = True
            for stream_id in rejected or ():  # the store took this replica for dead, and another one has the stream
                previous = streams.get(stream_id)
                if (
                    previous is not None and self._streams.get(stream_id) is previous
                ):  # else it was started again meanwhile
                    self._states.end_stream(stream_id)
                    del self._streams[stream_id]

    async def _end(self, stream_id: Hashable, stream: _Stream, previous: _Stream | None, is_own: bool) -> None:
        try:
            if previous is not None:
                await previous.settled.wait()
            async with _store_call("stream %r was not forgotten in the store", stream_id):
                if not is_own:
                    await self._store.claim(stream_id, self._replica)  # makes its owner release the stream
                    self._states.end_stream(stream_id)
                await self._store.forget([stream_id])
        finally:
            self._drop(stream_id, stream)
            stream.settled.set()

    def _export(self, stream_id: Hashable) -> Any:
        try:
            return self._states.export_state(stream_id)
        except InvalidInput:
            return None  # the stream has no state


@contextlib.asynccontextmanager
async def _store_call(failure: str, *args: object, limit_s: float | None = _STORE_S) -> AsyncIterator[None]:
    """Limit the time of a call of the store, and log its error: streams are served without the store."""
    try:
        async with asyncio.timeout(limit_s):
            yield
    except Exception:  # noqa: BLE001 - the store's actor may fail in any way
        _LOG.exception(failure, *args)
