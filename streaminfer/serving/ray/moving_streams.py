"""`MovingStreams`: a stack whose streams belong to one replica of a deployment at a time, and move with their state."""

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
"""Between two snapshots: with the way to the store, one is less than a second old."""
_STORE_S = 2.0
"""Seconds for a call of the store; a stream is better served without its past than not at all."""
_LOG = Log("streaminfer")


@attrs.define(eq=False)
class _Stream:
    """A stream of this replica.

    Attributes:
        settled: set unless the stream is being claimed or handed over, or ends.
        in_flight: requests that run.
        changed: the latest snapshot does not have its state.
        used_ns: instant of the latest request.
        idle: set when no request runs; where its release waits for that.
        is_set_here: it was reset or imported here while it was not settled, so what the store has is older.
        rejection: why the claim brought no stream: the replica has no place for its state.
    """

    settled: asyncio.Event = attrs.field(factory=asyncio.Event)
    in_flight: int = 0
    changed: bool = False
    used_ns: int = 0
    idle: asyncio.Event | None = None
    is_set_here: bool = False
    rejection: Overloaded | None = None


class MovingStreams(Wrapper):
    """Claims the state of a stream before its first request, and hands it over when another replica wants it.

    A store that does not answer within two seconds is passed over: the stream starts with what its replica has, and
    the log says so.

    Args:
        inner: a stack that keeps the state of streams.
        states: the keeper in it.
        store: of the deployment.
        replica: id of this one.
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
        """What the stack offers; streams that end are forgotten in the store too."""
        # the stack around it arms timers, because a claim takes time before the batcher knows the request
        return super().capabilities()._replace(stream_states=self, enforces_deadline=False)

    async def start(self) -> None:
        """Start the stack, and send snapshots from now on."""
        self._streams.clear()  # what a stop has cut short is claimed again: its work may not have begun
        await self.inner.start()
        self._spawn(self._send_snapshots())
        self._spawn(self._serve_claims())

    async def stop(self, *, drain: bool = True) -> None:
        """Hand all streams over, and stop the stack."""
        try:
            if drain:
                # first, so that a release that runs completes
                await self._release_all(list(self._streams))
        finally:
            try:
                await end_tasks(self._tasks)
            finally:
                await self.inner.stop(drain=drain)

    async def call(self, request: Request) -> Response:
        """Serve one request, after its stream was claimed."""
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
        """Let the next step start from the initial state."""
        self._states.reset_stream(stream_id)
        self._keep_here(stream_id)

    def end_stream(self, stream_id: Hashable) -> None:
        """Forget a stream, also in the store; requests that come behind it begin the stream again."""
        self._states.end_stream(stream_id)
        before = self._streams.get(stream_id)
        is_own = before is not None and before.settled.is_set()
        stream = self._streams[stream_id] = _Stream()
        self._spawn(self._end(stream_id, stream, before, is_own))

    def export_state(self, stream_id: Hashable) -> Any:
        """Return a copy of the state."""
        return self._states.export_state(stream_id)

    def import_state(self, stream_id: Hashable, state: Any) -> None:
        """Let the next step go on from ``state``."""
        self._states.import_state(stream_id, state)
        self._keep_here(stream_id)

    async def settle(self, stream_id: Hashable) -> _Stream | None:
        """Wait until the stream is settled, and return it; ``None``: it is not of this replica."""
        while (stream := self._streams.get(stream_id)) is not None and not stream.settled.is_set():
            await stream.settled.wait()
        return stream

    # -- inside -------------------------------------------------------------------------------------------------

    def _keep_here(self, stream_id: Hashable) -> None:
        """Let the state that a stream has here now replace what other replicas and the store have."""
        stream = self._streams.get(stream_id)
        if stream is None:
            stream = self._begin_claim(stream_id)
        stream.changed = True
        stream.is_set_here = not stream.settled.is_set()

    async def _own(self, stream_id: Hashable) -> _Stream:
        """Return the stream as soon as it belongs to this replica."""
        while (stream := await self.settle(stream_id)) is None:
            stream = self._begin_claim(stream_id)  # it goes on where the request is cancelled
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
            async with _asked("stream %r starts without the state that the store may have", stream_id):
                claim = await self._store.claim(stream_id, self._replica)
                if not stream.is_set_here:
                    stream.rejection = self._take_over(stream_id, claim)
            if stream.rejection is not None:  # the state is left to the next claim, here or elsewhere
                async with _asked("stream %r was not moved", stream_id):
                    await self._store.hand_over(self._replica, {stream_id: claim.record})
                self._drop(stream_id, stream)
        finally:
            stream.settled.set()
        if stream.rejection is not None and stream.is_set_here:  # meanwhile
            self._keep_here(stream_id)

    def _take_over(self, stream_id: Hashable, claim: Claim) -> Overloaded | None:
        """Go on from the state that came with a stream, unless this replica's own is as new; return why it cannot."""
        if claim.is_other:
            self._states.end_stream(stream_id)  # of the time before another replica had it
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
        """Hand over what other replicas want, as long as this one runs."""
        while True:
            wanted: list[Hashable] | None = None
            async with _asked("the store of streams does not answer", limit_s=None):
                wanted = await self._store.wanted(self._replica)
            if wanted is None:  # it may have been started again, and know nothing
                for stream in self._streams.values():
                    stream.changed = True
                await asyncio.sleep(SNAPSHOT_S)
            if wanted:
                self._spawn(self._release_all(wanted))  # a step that takes long holds up no other stream

    async def _release_all(self, stream_ids: Iterable[Hashable]) -> None:
        """Give states to the store: those of streams without a request in one call, the others as they come."""
        idle, others = {}, []
        for stream_id in stream_ids:
            stream = self._streams.get(stream_id)
            if stream is None or stream.in_flight or not stream.settled.is_set():
                others.append(stream_id)
            else:
                stream.settled.clear()
                idle[stream_id] = stream
        await stop_together([self._hand_over(idle), *map(self._release, others)])

    async def _release(self, stream_id: Hashable) -> None:
        """Give the state of a stream to the store, after its requests in flight."""
        stream = await self.settle(stream_id) if stream_id in self._streams else _Stream()
        if stream is None:
            return  # it has ended or was handed over meanwhile, or the store has its snapshot
        self._streams[stream_id] = stream
        stream.settled.clear()
        try:
            if stream.in_flight:
                stream.idle = asyncio.Event()
                await stream.idle.wait()
            await self._hand_over({stream_id: stream})
        finally:
            stream.settled.set()

    async def _hand_over(self, streams: Mapping[Hashable, _Stream]) -> None:
        """Give the states of streams to the store; none of them is settled or has a request in flight."""
        records = {}
        try:
            for stream_id, stream in streams.items():
                records[stream_id] = self._export(stream_id)
                self._states.end_stream(stream_id)
                stream.is_set_here = False  # the record has it
            if records:
                async with _asked("%d streams were not moved", len(records)):
                    await self._store.hand_over(self._replica, records)
        finally:
            for stream_id, stream in streams.items():
                self._drop(stream_id, stream)
                stream.settled.set()
        for stream_id, stream in streams.items():
            if stream.is_set_here:
                self._keep_here(stream_id)

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
            refused: list[Hashable] | None = None
            async with _asked("snapshots of %d streams were not stored", len(records)):
                refused = await self._store.store(self._replica, records)
            if refused is None:  # they are sent again
                for stream_id in records.keys() & self._streams.keys():
                    self._streams[stream_id].changed = True
            for stream_id in refused or ():  # this replica was taken for dead, and another one goes on
                had = streams.get(stream_id)
                if had is not None and self._streams.get(stream_id) is had:  # else it has begun again meanwhile
                    self._states.end_stream(stream_id)
                    del self._streams[stream_id]

    async def _end(self, stream_id: Hashable, stream: _Stream, before: _Stream | None, is_own: bool) -> None:
        try:
            if before is not None:
                await before.settled.wait()
            async with _asked("stream %r was not forgotten in the store", stream_id):
                if not is_own:
                    await self._store.claim(stream_id, self._replica)  # the replica that has it gives it up
                    self._states.end_stream(stream_id)
                await self._store.forget([stream_id])
        finally:
            self._drop(stream_id, stream)
            stream.settled.set()

    def _export(self, stream_id: Hashable) -> Any:
        try:
            return self._states.export_state(stream_id)
        except InvalidInput:
            return None  # it has none


@contextlib.asynccontextmanager
async def _asked(failure: str, *about: object, limit_s: float | None = _STORE_S) -> AsyncIterator[None]:
    """Limit the time of a call of the store, and log its error: streams are served without it."""
    try:
        async with asyncio.timeout(limit_s):
            yield
    except Exception:  # noqa: BLE001 - its actor may fail in any way
        _LOG.exception(failure, *about)
