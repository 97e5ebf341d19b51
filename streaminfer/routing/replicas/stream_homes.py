"""State of streams at replicas; it moves with its stream from one replica to another."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Any

from streaminfer.errors import InvalidInput, Overloaded, StreamInferError
from streaminfer.protocols import StreamStates
from streaminfer.routing.replicas.replica import ReplicaHandle
from streaminfer.routing.stream_states import AllStreamStates

__all__ = ["StreamHomes"]

_MOST_HOMES = 65_536  # bound for callers that never end a stream; the oldest are forgotten


class StreamHomes(AllStreamStates):
    """Stream states of the replicas, and the location of each stream's state.

    Args:
        handles: returns the handles of all replicas.
        next_of: returns the stream states of the replica that gets the next request of a stream; ``None``: there is no
            replica, or its model keeps no state.

    Attributes:
        lost: streams whose state ended with a removed replica, because the next one had no place for them.
    """

    def __init__(
        self,
        handles: Callable[[], Iterable[ReplicaHandle]],
        next_of: Callable[[Hashable], StreamStates | None],
    ) -> None:
        super().__init__(self.get_states)
        self.lost = 0
        self._handles = handles
        self._next_of = next_of
        # a dict would search for the oldest entry through all removed ones
        self._homes: OrderedDict[Hashable, StreamStates] = OrderedDict()

    def get_states(self) -> list[StreamStates]:
        """Return the stream states of the replicas with a recurrent model."""
        return [handle.states for handle in self._handles() if handle.states is not None]

    def move(self, stream_id: Hashable, states: StreamStates | None) -> None:
        """Move the state of a stream to the replica that gets its next request.

        If there is no state that this replica can use, the stream starts there from its initial state, because any
        state that this replica has of the stream is outdated. If the move fails, the state stays where it is.

        Raises:
            Overloaded: the replica has no place for the stream.
        """
        home = self._homes.get(stream_id)
        if states is None or home is states:
            return
        if home is not None:
            try:
                states.import_state(stream_id, home.export_state(stream_id))
            except Overloaded:  # the request is rejected, and the stream keeps its state
                raise
            except StreamInferError:  # there is no state, or it is of another model
                states.end_stream(stream_id)
        self._settle(stream_id, states)

    def _settle(self, stream_id: Hashable, states: StreamStates) -> None:
        """Remember where the state of a stream is; its state at the previous replica is outdated."""
        home = self._homes.get(stream_id)
        if home is not None and home is not states:
            home.end_stream(stream_id)
        elif home is None and len(self._homes) >= _MOST_HOMES:
            self._homes.popitem(last=False)
        self._homes[stream_id] = states

    async def leave(self, home: StreamStates) -> None:
        """Move the states of a replica that is about to stop to the replicas that get the streams' next requests."""
        for stream_id in [stream_id for stream_id, states in self._homes.items() if states is home]:
            if self._homes.get(stream_id) is home:  # it has not moved or ended meanwhile
                try:
                    self.move(stream_id, self._next_of(stream_id))
                except Overloaded:  # its state ends with the replica, which must not stay in memory
                    del self._homes[stream_id]
                    self.lost += 1
                except Exception:  # noqa: BLE001, S110 — its next request tries again, and gets the error
                    pass
            await asyncio.sleep(0)  # so that requests need not wait for all streams

    def forget(self) -> None:
        """Forget where the states are, because all replicas stop."""
        self._homes.clear()

    def reset_stream(self, stream_id: Hashable) -> None:
        """Reset the stream at every replica, also at one that leaves."""
        super().reset_stream(stream_id)
        home = self._homes.get(stream_id)
        if home is not None and home not in self.get_states():
            home.reset_stream(stream_id)

    def end_stream(self, stream_id: Hashable) -> None:
        """End the stream at every replica, also at one that leaves."""
        home = self._homes.pop(stream_id, None)
        super().end_stream(stream_id)
        if home is not None and home not in self.get_states():
            home.end_stream(stream_id)

    def import_state(self, stream_id: Hashable, state: Any) -> None:
        """Let the stream continue from ``state`` at the replica that gets its next request; an error changes nothing.

        Raises:
            InvalidInput: this replica has not the model of this state.
            Overloaded: this replica has no place for the stream.
        """
        states = self._next_of(stream_id)
        if states is None:
            raise InvalidInput(f"stream_id: no replica keeps state of {stream_id!r}")
        states.import_state(stream_id, state)
        self._settle(stream_id, states)

    def export_state(self, stream_id: Hashable) -> Any:
        """Return a copy of a stream's state from the replica that served it last, else from the first that has one.

        Raises:
            InvalidInput: no replica has state of the stream.
        """
        home = self._homes.get(stream_id)
        return super().export_state(stream_id) if home is None else home.export_state(stream_id)
