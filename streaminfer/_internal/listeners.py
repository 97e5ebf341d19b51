"""Listeners of events: called in order with no lock held; their errors are logged and reach no caller."""

import threading
from asyncio import CancelledError, get_running_loop
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, NoReturn, TypeVar

from streaminfer._internal.forking import call_in_child
from streaminfer._internal.validation import brief, check_instance

__all__ = ["LISTENER_ERRORS", "ListenerFailures", "Listeners", "raise_in_loop"]

E = TypeVar("E")

LISTENER_ERRORS = (Exception, CancelledError)
"""Errors that are caught and counted for the listener; interrupts are raised again."""

MAX_ROUNDS = 8
"""Most rounds of one delivery, so that a listener that causes further events cannot keep it running for ever."""


def raise_in_loop(interrupt: BaseException) -> None:
    """Raise an interrupt in a separate callback of the running event loop, so that the current work is completed."""
    get_running_loop().call_soon(_raise, interrupt)


def _raise(interrupt: BaseException) -> NoReturn:
    raise interrupt


class ListenerFailures:
    """Logs the first failure of each listener. Thread-safe.

    Args:
        logger: name of the log.
        source: description of the object that calls the listeners, for the log.
    """

    __slots__ = ("_failed", "_logger", "_source")

    def __init__(self, logger: str, source: str) -> None:
        self._logger = logger
        self._source = source
        self._failed: dict[int, Any] = {}  # holds the listener, so that no later object gets the same id

    def report(self, listener: Any, description: object, failure: BaseException) -> None:
        """Log a failure, unless this listener failed before.

        Args:
            listener: an observer or a callable.
            description: the event.
            failure: the exception that the listener raised.
        """
        if id(listener) in self._failed:
            return
        self._failed[id(listener)] = listener
        from streaminfer._internal.error_log import Log  # noqa: PLC0415 - listeners that behave do without

        name = getattr(listener, "__qualname__", None) or brief(listener)
        message = "%s: the listener %s failed on: %s (its later failures are not logged)"
        Log(self._logger).error(message, self._source, name, description, exc_info=failure)


class Listeners(Generic[E]):
    """Listeners of one object. Thread-safe.

    One thread at a time delivers, so listeners get events in order. Another thread leaves its events to that one and
    does not wait. A listener can therefore call the object: it gets the resulting events after it has returned. A
    listener that never returns delays no other call.

    Args:
        logger: name of the log.
        source: description of the object, for the log.
        expectation: description of a valid listener, for the error about a wrong one.
        describe: returns the text of an event for the log; ``None``: the log has the event itself.

    Attributes:
        errors: number of exceptions that listeners raised.
    """

    def __init__(
        self, logger: str, source: str, expectation: str, describe: Callable[[E], object] | None = None
    ) -> None:
        self.errors = 0
        self._failures = ListenerFailures(logger, source)
        self._expectation = expectation
        self._describe = describe
        self._functions: tuple[Callable[[E], object], ...] = ()
        self.begin_again()
        call_in_child(self.begin_again)

    def begin_again(self) -> None:
        """Replace the locks: in a forked process, the threads that held them no longer exist."""
        self._changing = threading.Lock()
        self._delivering = threading.Lock()  # only tried, never waited for

    def __len__(self) -> int:
        return len(self._functions)

    def __iter__(self) -> Iterator[Callable[[E], object]]:
        return iter(self._functions)

    def add(
        self, listener: Callable[[E], object], changed: Callable[[bool], object] | None = None
    ) -> Callable[[], None]:
        """Add a listener for all later events.

        Args:
            listener: a function of an event.
            changed: called under a lock when this listener is added or removed; true if there are any listeners then.

        Returns:
            A function that removes the listener.

        Raises:
            TypeError: ``listener`` is not callable.
        """
        check_instance("listener", listener, callable, self._expectation)

        def change(functions: tuple[Callable[[E], object], ...]) -> None:
            self._functions = functions
            if changed is not None:
                changed(bool(functions))

        def remove() -> None:
            with self._changing:
                change(tuple(other for other in self._functions if other is not listener))

        with self._changing:
            change((*self._functions, listener))
        return remove

    def discard(self, listener: Callable[[E], object]) -> None:
        """Remove every listener that is equal to this one."""
        with self._changing:
            self._functions = tuple(other for other in self._functions if other != listener)

    def deliver(self, take: Callable[[], Iterable[E]]) -> bool:
        """Deliver the pending events to the listeners, unless another thread is delivering.

        If an event arrives after this thread's last look and before it returns, other threads may leave it to this
        thread. A caller that cannot leave such an event to its next call must repeat this call while events are
        pending and the result is true.

        Args:
            take: iterates over the pending events and removes each; called until no events are pending.

        Returns:
            False if another thread delivers, or if listeners cause events without end.
        """
        delivering = self._delivering  # kept in a local: if a listener forks, the attribute is another lock
        if not delivering.acquire(blocking=False):
            return False
        try:
            for _ in range(MAX_ROUNDS):
                had_events = False
                for event in take():
                    had_events = True
                    for listener in self._functions:
                        try:
                            listener(event)
                        except LISTENER_ERRORS as failure:
                            self.errors += 1
                            description = self._describe(event) if self._describe else event
                            self._failures.report(listener, description, failure)
                if not had_events:
                    return True
        finally:
            delivering.release()
        return False
