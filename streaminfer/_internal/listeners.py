"""Listeners of events: told in order with no lock held; their failures are logged and reach no caller."""

import threading
import weakref
from asyncio import CancelledError, get_running_loop
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, NoReturn, TypeVar

from streaminfer._internal.forking import at_fork
from streaminfer._internal.validation import brief, check_instance

__all__ = ["LISTENER_ERRORS", "ListenerFailures", "Listeners", "raise_in_loop"]

E = TypeVar("E")

LISTENER_ERRORS = (Exception, CancelledError)
"""Errors that end with the listener that raised them; an interrupt goes on."""

MAX_ROUNDS = 8
"""Rounds of one delivery, so that a listener whose calls cause events does not go on for ever."""


def raise_in_loop(interrupt: BaseException) -> None:
    """Raise an interrupt in a turn of the running loop of its own, so that what goes on here is completed."""
    get_running_loop().call_soon(_raise, interrupt)


def _raise(interrupt: BaseException) -> NoReturn:
    raise interrupt


class ListenerFailures:
    """Logs the first failure of each listener. Thread-safe.

    Args:
        logger: name of the log.
        source: the object that calls the listeners, for the log.
    """

    __slots__ = ("_failed", "_logger", "_source")

    def __init__(self, logger: str, source: str) -> None:
        self._logger = logger
        self._source = source
        self._failed: dict[int, Any] = {}  # holds the listener, so that no other one gets its number

    def report(self, listener: Any, told: object, failure: BaseException) -> None:
        """Log a failure, unless this listener failed before.

        Args:
            listener: an observer or a callable.
            told: the event.
            failure: the exception of the listener.
        """
        if id(listener) in self._failed:
            return
        self._failed[id(listener)] = listener
        from streaminfer._internal.error_log import Log  # noqa: PLC0415 - listeners that behave do without

        name = getattr(listener, "__qualname__", None) or brief(listener)
        message = "%s: the listener %s failed on: %s (its later failures are not logged)"
        Log(self._logger).error(message, self._source, name, told, exc_info=failure)


class Listeners(Generic[E]):
    """Listeners of one object. Thread-safe.

    One thread at a time delivers, so that listeners get events in order. A thread that finds another one delivering
    leaves its events to that one and does not wait: a listener can call the object, whose events it gets after it has
    returned, and a listener that never returns delays no other call.

    Args:
        logger: name of the log.
        source: the object, for the log.
        what: a listener, for the error of a wrong one.
        describe: returns the text of an event for the log; ``None``: the event itself.

    Attributes:
        errors: exceptions of listeners.
    """

    __slots__ = ("__weakref__", "_changing", "_delivering", "_describe", "_failures", "_functions", "_what", "errors")

    def __init__(self, logger: str, source: str, what: str, describe: Callable[[E], object] | None = None) -> None:
        self.errors = 0
        self._failures = ListenerFailures(logger, source)
        self._what = what
        self._describe = describe
        self._functions: tuple[Callable[[E], object], ...] = ()
        self.begin_again()
        _OF_ALL.add(self)

    def begin_again(self) -> None:
        """Forget the threads that deliver: in a forked process they are not there to end."""
        self._changing = threading.Lock()
        self._delivering = threading.Lock()  # never waited for

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
            changed: called under a lock when listeners come or go: true if there are any.

        Returns:
            A function that removes it.

        Raises:
            TypeError: not a callable.
        """
        check_instance("listener", listener, callable, self._what)

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

    def deliver(self, take: Callable[..., Iterable[E]], *arguments: Any) -> bool:
        """Tell the pending events, unless another thread does.

        An event that comes between the last look and the return can be left to this thread: a caller that cannot leave
        it to its next call repeats this while events are pending and the result is true.

        Args:
            take: iterates over the pending events and removes each; called until there are none.
            arguments: of ``take``.

        Returns:
            False if another thread delivers, or if listeners cause events without end.
        """
        delivering = self._delivering  # by name: a listener may fork, after which there is another one
        if not delivering.acquire(blocking=False):
            return False
        try:
            for _ in range(MAX_ROUNDS):
                found = False
                for event in take(*arguments):
                    found = True
                    for listener in self._functions:
                        try:
                            listener(event)
                        except LISTENER_ERRORS as failure:
                            self.errors += 1
                            told = self._describe(event) if self._describe else event
                            self._failures.report(listener, told, failure)
                if not found:
                    return True
        finally:
            delivering.release()
        return False


_OF_ALL: weakref.WeakSet[Listeners[Any]] = weakref.WeakSet()


def _after_fork() -> None:
    for listeners in list(_OF_ALL):
        listeners.begin_again()


at_fork(after_in_child=_after_fork)
