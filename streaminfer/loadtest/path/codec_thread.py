"""`CodecThread`: a thread that runs the codecs of several paths, one job after another."""

import queue
import threading
from collections.abc import Callable
from typing import Any, Self

from streaminfer.errors import Closed

__all__ = ["CodecThread"]


class CodecThread:
    """A thread for the codecs of several paths. Unlike in an executor, a job has no future and no lock.

    Use it as a context manager, around the paths.

    Args:
        name: name of the thread.
    """

    def __init__(self, name: str = "codec") -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[[Any], object], Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._ended = False

    def submit(self, job: Callable[[Any], object], argument: Any) -> None:
        """Queue a job; the thread runs jobs in order. A job must not raise.

        Raises:
            Closed: the thread has ended.
        """
        if self._ended:
            raise Closed(f"codec thread {self._thread.name!r} has ended")
        self._jobs.put((job, argument))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._jobs.get()) is not None:
            item[0](item[1])
