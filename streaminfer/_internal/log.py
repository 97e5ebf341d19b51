"""`Log`: where the package logs. No handler or filter of a user can fail a request, a task or a stop there."""

import contextlib
import logging
import traceback
from typing import Any

__all__ = ["Log"]


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
