"""What a window of time brought: every request that was due in it, and how it ended."""

from array import array

import streaminfer as si

__all__ = ["Meter"]


class Meter:
    """Counts the requests of one kind that were due in a window.

    Latency runs from the instant a request was *due*, not from when the sender came to sending it: a sender
    that is held up does not hide the wait (coordinated omission).

    Args:
        slo_ns: an answer within it is on time.

    Attributes:
        sent: requests that were due.
        on_time: answered within the objective.
        lost: how many ended without an answer, by the class name of the error.
        latency: of the answers.
        batches: for each batch that answered one of them: when it began and when the model had finished
            (monotonic nanoseconds), and its size.
    """

    def __init__(self, slo_ns: int) -> None:
        self.slo_ns = slo_ns
        self.sent = 0
        self.on_time = 0
        self.lost: dict[str, int] = {}
        self.latency = si.LatencyHistogram()
        self._batches = array("q")
        self._last_batch_ns = 0

    def answered(self, latency_ns: int, response: si.Response) -> None:
        """Counts an answer."""
        self.latency.record_ns(latency_ns)
        if latency_ns <= self.slo_ns:
            self.on_time += 1
        timings = response.timings
        # the rows of a batch are handed back one after the other: to see a new batch, compare with the last one
        if timings is not None and timings.started_ns != self._last_batch_ns:
            self._last_batch_ns = timings.started_ns
            self._batches.extend((timings.started_ns, timings.inferred_ns, timings.batch_size))

    def failed(self, error: Exception) -> None:
        """Counts a request that ended without an answer."""
        name = type(error).__name__
        self.lost[name] = self.lost.get(name, 0) + 1

    @property
    def ended(self) -> int:
        """Requests that were answered or lost."""
        return self.latency.count + sum(self.lost.values())

    @property
    def missed(self) -> int:
        """Requests that were lost or answered too late."""
        return self.ended - self.on_time

    @property
    def share_on_time(self) -> float:
        """Share of the requests that ended, lost ones included, from 0 to 1; 0 before the first."""
        return self.on_time / self.ended if self.ended else 0.0

    @property
    def batches(self) -> list[tuple[int, int, int]]:
        """Begin and end in monotonic nanoseconds, and size, of each batch."""
        numbers = iter(self._batches)
        return list(zip(numbers, numbers, numbers, strict=True))
