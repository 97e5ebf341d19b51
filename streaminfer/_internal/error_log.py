"""Log of errors that no caller gets."""

import logging
import traceback

from streaminfer.errors import text_of_error

__all__ = ["ErrorLog"]


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
        logging.getLogger(self._logger).warning(text, source, text_of_error(error), trace)
