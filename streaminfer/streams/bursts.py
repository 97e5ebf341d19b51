"""Frames that are sent together, so that they share a batch, and are sent no earlier than a worker can take it.

A batcher forms a batch of what is queued when a worker becomes free. Frames that may be dropped do not wait there: a
newer one may come first. They wait in their streams, and are sent in *bursts*: one for each batch that runs at once,
and one that is queued meanwhile. Without that one the model would wait for the event loop after each batch, and a voice
detector completed half as many chunks. Sent one by one, frames would split into small batches.

A burst is over when three quarters of its requests have ended: a batch ends as a whole, and where a planner made two
batches of a burst the second is joined by the next burst.
"""

__all__ = ["Burst", "Bursts"]


class Burst:
    """Requests that were sent together."""

    __slots__ = ("ended", "is_over", "sent")

    def __init__(self) -> None:
        self.sent = 0
        self.ended = 0
        self.is_over = False


class Bursts:
    """Bursts in flight; synchronous, of one event loop.

    Attributes:
        at_once: how many bursts may be in flight; ``None``: there are no bursts, and each frame may be sent.
        in_flight: requests that have not ended.
    """

    def __init__(self) -> None:
        self.at_once: int | None = None
        self.in_flight = 0
        self._open: Burst | None = None
        self._count = 0

    def may_send(self) -> bool:
        """Return whether a request may be sent now, as one of the open burst or the first of another."""
        return self.at_once is None or self._open is not None or self._count < self.at_once

    def send(self) -> Burst | None:
        """Count a request that is sent, and return its burst."""
        self.in_flight += 1
        if self.at_once is None:
            return None
        burst = self._open
        if burst is None:
            burst = self._open = Burst()
            self._count += 1
        burst.sent += 1
        return burst

    def close(self) -> bool:
        """Send further requests in another burst; return whether the closed one is over already."""
        burst, self._open = self._open, None
        return burst is not None and self._has_ended(burst)

    def end(self, burst: Burst | None) -> bool:
        """Count a request that has ended; return whether its burst is over, which is true once."""
        self.in_flight -= 1
        if burst is None:
            return False
        burst.ended += 1
        return burst is not self._open and self._has_ended(burst)

    def make_room(self) -> None:
        """Let another burst be sent in place of one that is over."""
        self._count -= 1

    def _has_ended(self, burst: Burst) -> bool:
        if burst.is_over or burst.ended * 4 < burst.sent * 3:
            return False
        burst.is_over = True
        return True
