"""Bounded buffer of frames between a decoder and the event loop."""

import asyncio
import threading
from collections import deque

import attrs

from streaminfer._runtime.waiters import wake_from_thread
from streaminfer.streams.frame import Frame

__all__ = ["HAS_READER", "Handoff"]

HAS_READER = "another task already waits for the next frame of this source"


class Handoff:
    """Buffer between one producer, in any thread, and one consumer, in an event loop.

    A full buffer makes the producer wait, or drops the oldest frame. If the dropped frame was a discontinuity, the next
    frame becomes one. The frame after a dropped chunk of sound always becomes one.

    Args:
        capacity: frames that may wait.
        drops: drop the oldest frame instead of waiting.
        contiguous: each frame continues the one before it.

    Attributes:
        dropped: frames dropped so far.
        closed: whether the consumer wants no more; the producer may wait for it.
    """

    def __init__(self, capacity: int, *, drops: bool, contiguous: bool) -> None:
        self._capacity = capacity
        self._drops = drops
        self._contiguous = contiguous
        self._frames: deque[Frame] = deque()
        self._changed = threading.Condition()
        self._waiter: asyncio.Future[None] | None = None
        self._ended = False
        self._error: BaseException | None = None
        self.closed = threading.Event()
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._frames)

    def put(self, frame: Frame) -> bool:
        """Add a frame; ``False``: the consumer has closed."""
        with self._changed:
            if not self._drops:
                self._changed.wait_for(lambda: self.closed.is_set() or len(self._frames) < self._capacity)
            if self.closed.is_set():
                self.dropped += 1
                return False
            self._frames.append(frame)
            if len(self._frames) > self._capacity:
                oldest = self._frames.popleft()
                self.dropped += 1
                if self._contiguous or oldest.discontinuity:
                    self._frames[0] = attrs.evolve(self._frames[0], discontinuity=True)
            self._wake()
            return True

    def finish(self, error: BaseException | None = None) -> None:
        """End the stream after the frames that wait, with an error if there is one."""
        with self._changed:
            if not self._ended:
                self._ended, self._error = True, error
            self._wake()

    def close(self) -> None:
        """Drop the frames that wait; accept and return no more frames."""
        with self._changed:
            self.closed.set()
            self._ended, self._error = True, None
            self.dropped += len(self._frames)
            self._frames.clear()
            self._changed.notify_all()
            self._wake()

    async def get(self) -> Frame:
        """Return the next frame.

        Raises:
            StopAsyncIteration: the stream has ended, or was closed.
            RuntimeError: another task waits already.
        """
        while True:
            with self._changed:
                if self._frames:
                    frame = self._frames.popleft()
                    self._changed.notify()
                    return frame
                if self._ended:
                    error, self._error = self._error, None
                    raise error or StopAsyncIteration
                if self._waiter is not None:
                    raise RuntimeError(HAS_READER)
                waiter = self._waiter = asyncio.get_running_loop().create_future()
            try:
                await waiter
            finally:
                self._waiter = None

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None:
            wake_from_thread(waiter)
