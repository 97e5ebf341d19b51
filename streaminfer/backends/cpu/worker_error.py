"""Stand-in for exceptions of a worker process that cannot be pickled."""

from streaminfer.errors import text_of_error

__all__ = ["WorkerError", "text_of_failure"]


class WorkerError(Exception):
    """Stand-in for an exception of a worker process that cannot be pickled; its message has class and text."""


def text_of_failure(error: BaseException) -> str:
    """Return class and message of an exception that a function raised, in a worker process or here."""
    return str(error) if isinstance(error, WorkerError) else text_of_error(error)
