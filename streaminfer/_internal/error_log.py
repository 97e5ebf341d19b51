"""Logs that never fail their caller because of a user's handler or filter, and a log of background errors."""

import contextlib
import logging
import traceback
from typing import Any

from streaminfer.errors import text_of_error

__all__ = ["ErrorLog", "Log"]


class Log(logging.LoggerAdapter[logging.Logger]):
    """Log with a name. Errors that a handler or filter raises are printed, as `logging` does for its own handlers.

    Args:
        name: name of the logger.
    """

    def __init__(self, name: str) -> None:
        super().__init__(logging.getLogger(name))

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log a record."""
        try:
            self.logger.log(level, msg, *args, **kwargs, stacklevel=2)  # location of the caller, not of this line
        except Exception:  # noqa: BLE001 - a handler that fails must not stop the work that is logged
            if logging.raiseExceptions:
                with contextlib.suppress(OSError, ValueError, AttributeError):  # stderr is closed or missing
                    traceback.print_exc()


class ErrorLog:
    """Logs the first error of each class from each source, with its traceback. Thread-safe.

    The caller counts all errors, because later ones are not logged.

    Args:
        logger: name of the log.
    """

    def __init__(self, logger: str) -> None:
        self._logger = logger
        self._logged: set[tuple[str, type[BaseException]]] = set()

    def report(self, source: str, error: BaseException) -> None:
        """Log an error, unless one of its class was logged for this source.

        Args:
            source: the part that failed, the subject of the message.
            error: an exception.
        """
        kind = type(error)
        if (source, kind) in self._logged:
            return
        self._logged.add((source, kind))
        text = "%s failed: %s (later errors of this class are not logged)\n%s"
        # as text, because a handler that keeps records would keep the objects of the traceback's frames alive
        trace = "".join(traceback.format_exception(error)).rstrip()
        Log(self._logger).warning(text, source, text_of_error(error), trace)
