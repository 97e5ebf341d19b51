"""Failures of observers and listeners: logged once each, and never those of the caller whose request they were told."""

from asyncio import CancelledError
from typing import Any

__all__ = ["LISTENER_ERRORS", "ListenerFailures"]

LISTENER_ERRORS = (Exception, CancelledError)
"""Errors that end with the listener that raised them; an interrupt goes on."""


class ListenerFailures:
    """Logs the first failure of each listener. Thread-safe.

    Args:
        logger: name of the log.
        source: what calls the listeners, for the log.
    """

    __slots__ = ("_failed", "_logger", "_source")

    def __init__(self, logger: str, source: str) -> None:
        self._logger = logger
        self._source = source
        self._failed: dict[int, Any] = {}  # keeps the listener, so that no other one gets its number

    def report(self, listener: Any, told: object, failure: BaseException) -> None:
        """Log a failure, unless this listener failed before.

        Args:
            listener: an observer or a callable.
            told: what it was told.
            failure: what it raised.
        """
        if id(listener) in self._failed:
            return
        self._failed[id(listener)] = listener
        import logging  # noqa: PLC0415 - listeners that behave do without

        name = getattr(listener, "__qualname__", None) or repr(listener)
        message = "%s: the listener %s failed on: %s (its later failures are not logged)"
        logging.getLogger(self._logger).error(message, self._source, name, told, exc_info=failure)
