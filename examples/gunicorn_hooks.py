"""Settings of gunicorn for `flask_doubles`: each worker starts its stack after the fork and stops it at its end."""

from typing import Any

workers = 2
worker_class = "gthread"
threads = 16  # requests of one worker that can share a batch


def post_worker_init(_worker: Any) -> None:
    """Start the stack; gunicorn accepts requests for this worker afterwards."""
    from flask_doubles import infer  # noqa: PLC0415 - the worker has loaded the application

    infer.start()


def worker_exit(_server: Any, _worker: Any) -> None:
    """Complete the requests in flight and stop."""
    from flask_doubles import infer  # noqa: PLC0415 - as above

    infer.stop()
