"""What a function raised in a worker process, where it cannot be sent as it is."""

from streaminfer.errors import text_of_error

__all__ = ["WorkerError", "text_of_failure"]


class WorkerError(Exception):
    """Stands for an exception of a worker process that cannot be pickled; its message has class and text of that."""


def text_of_failure(error: BaseException) -> str:
    """Return class and message of what a function raised, in a worker process or here."""
    return str(error) if isinstance(error, WorkerError) else text_of_error(error)
