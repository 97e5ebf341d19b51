"""Logs: no handler or filter of a user can fail a request, a task or a stop there; and errors that no caller gets."""

import contextlib
import logging
import traceback
from typing import Any

from streaminfer.errors import text_of_error

__all__ = ["ErrorLog", "Log"]


class Log(logging.LoggerAdapter[logging.Logger]):
    """Log of a name. What a handler or filter raises is printed, as `logging` does with errors of its own handlers.

    Args:
        name: of the logger.
    """

    def __init__(self, name: str) -> None:
        super().__init__(logging.getLogger(name))

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log a record."""
        try:
            self.logger.log(level, msg, *args, **kwargs, stacklevel=2)  # of the caller, not of this line
        except Exception:  # noqa: BLE001 - whatever it is, what goes on here is completed
            if logging.raiseExceptions:
                with contextlib.suppress(OSError, ValueError, AttributeError):  # stderr is closed, or there is none
                    traceback.print_exc()


class ErrorLog:
    """Logs the first error of each class of each source with its traceback. Thread-safe.

    The caller counts them all, because later ones are not logged.

    Args:
        logger: name of the log.
    """

    def __init__(self, logger: str) -> None:
        self._logger = logger
        self._logged: set[tuple[str, type[BaseException]]] = set()

    def report(self, source: str, error: BaseException) -> None:
        """Log an error, unless one of its class was logged for this source.

        Args:
            source: what failed, the subject of the message.
            error: an exception.
        """
        kind = type(error)
        if (source, kind) in self._logged:
            return
        self._logged.add((source, kind))
        text = "%s failed: %s (later errors of this class are not logged)\n%s"
        # as text: a handler that keeps records would keep what the traceback's frames hold, such as connections
        trace = "".join(traceback.format_exception(error)).rstrip()
        Log(self._logger).warning(text, source, text_of_error(error), trace)
