"""State of streams at several services: sends an operation to every service that keeps state."""

from collections.abc import Callable, Hashable, Iterable
from typing import Any

from streaminfer.errors import InvalidInput
from streaminfer.protocols import Capabilities, StreamStates, adapt

__all__ = ["AllStreamStates", "states_of_all"]


class AllStreamStates:
    """Stream states of the services of a router; a stream may have state at any of them.

    Args:
        get_states: returns the stream states of the services.
    """

    def __init__(self, get_states: Callable[[], list[StreamStates]]) -> None:
        self._get_states = get_states

    def reset_stream(self, stream_id: Hashable) -> None:
        """Reset the stream at every service."""
        for states in self._get_states():
            states.reset_stream(stream_id)

    def end_stream(self, stream_id: Hashable) -> None:
        """End the stream at every service."""
        for states in self._get_states():
            states.end_stream(stream_id)

    def export_state(self, stream_id: Hashable) -> Any:
        """Return a copy of the state of a stream from the first service that has one.

        Raises:
            InvalidInput: no service has state of the stream.
        """
        rejection = InvalidInput(f"stream_id: no service keeps state of {stream_id!r}")
        for states in self._get_states():
            try:
                return states.export_state(stream_id)
            except InvalidInput as error:
                rejection = error
        raise rejection

    def import_state(self, stream_id: Hashable, state: Any) -> None:
        """Let the stream continue from ``state`` at every service with the model of this state.

        Raises:
            InvalidInput: no service has the model of this state.
        """
        imported, rejection = 0, InvalidInput(f"stream_id: no service keeps state of {stream_id!r}")
        for states in self._get_states():
            try:
                states.import_state(stream_id, state)
            except InvalidInput as error:
                rejection = error
            else:
                imported += 1
        if not imported:
            raise rejection


def states_of_all(services: Callable[[], Iterable[object]], offered: Iterable[Capabilities]) -> AllStreamStates | None:
    """Return the stream states of some services as one; ``None``: no service keeps state.

    Args:
        services: returns the services; called for each operation, because they may change.
        offered: capabilities of each service at this moment.
    """

    def get_states() -> list[StreamStates]:
        states_or_none = [adapt(service).capabilities().stream_states for service in services()]
        return [states for states in states_or_none if states is not None]

    return None if all(each.stream_states is None for each in offered) else AllStreamStates(get_states)
