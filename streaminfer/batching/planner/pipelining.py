"""Overhead of the round trip to a model, which pipelining hides behind the previous batch.

*Idea.* A model server or a pool of threads has its own queue. If the next batch is sent only after the previous
response arrives, the device idles for one round trip: the overhead. A full batch cannot become fuller, so it is
*pipelined*: sent just early enough to be queued at the model when the previous batch ends. It is not sent earlier,
because its requests cannot be changed after that. A batch that is not pipelined takes its device time plus the
overhead. A pipelined batch is ready earlier by the overhead than if it had been sent at its predecessor's end.

*Learning.* A pipelined batch keeps the device *busy* from the end of the previous batch to its own end. Batches of the
same size that were not pipelined took longer, by the overhead: the median of the last five, less the busy time, goes
into an exponential mean. The difference can be negative, because durations are noisy. Its size is limited to the time
by which the batch was sent early, which bounds the effect of a stall. If a batch gained all of that time, it arrived
too late to be queued: the overhead is at least that long, and the mean is raised faster. The overhead never exceeds
half of a batch's duration. The service time learns the sum of busy time and overhead, so it would not reveal a wrong
overhead. Therefore, after 32 pipelined batches the next one or two are not pipelined, and the 8 that follow are
compared with them.

*When.* A batch may be sent from the earliest instant at which the previous one can end (2.5 times its margin before its
upper estimate), less the overhead and less a millisecond, by which event loops wake late. Nothing is sent once the
previous batch is a margin past its upper estimate: if a model hangs, it need not get a second batch.

*Complexity.* A few additions per batch. Synchronous, takes the time as an argument.
"""

from collections import deque

__all__ = ["PipelineOverhead"]

_NEWEST_WEIGHT, _NEWEST_WEIGHT_AT_BOUND = 1 / 64, 1 / 8
_ALONE_AFTER = 32
_COMPARED = 8
_REFERENCES = 5
_MARGINS = 2.5
_LOOP_NS = 1_000_000


class PipelineOverhead:
    """Learned overhead of the round trip to the model; belongs to one batcher.

    Attributes:
        overhead_ns: nanoseconds by which pipelining makes a batch ready earlier.
    """

    def __init__(self) -> None:
        self.overhead_ns = 0
        self._in_a_row = 0
        self._compared = 0
        self._size = 0  # size of the last batches that were not pipelined
        self._alone: deque[int] = deque(maxlen=_REFERENCES)  # their durations

    def window_ns(self, ends_ns: int, margin_ns: int) -> tuple[int, int]:
        """Return the first and the last instant at which the next batch should be sent.

        Args:
            ends_ns: upper estimate of the previous batch's end.
            margin_ns: distance of that estimate from the mean one.

        Returns:
            Two instants; if the second is before the first, the batch should not be pipelined.
        """
        if self._in_a_row >= _ALONE_AFTER:
            return ends_ns, -1
        return ends_ns - round(_MARGINS * margin_ns) - self.overhead_ns - _LOOP_NS, ends_ns + margin_ns

    def effective_start_ns(self, sent_ns: int, ended_ns: int) -> int:
        """Return the instant from which a pipelined batch counts as running, as if it had been sent alone.

        Args:
            sent_ns: when it was sent.
            ended_ns: when the previous batch ended, or is expected to end.
        """
        return max(sent_ns, ended_ns - self.overhead_ns)

    def observe_alone(self, size: int, took_ns: int) -> None:
        """Learn from a batch that was not pipelined: its number of requests and its nanoseconds."""
        self._in_a_row = 0
        if size != self._size:
            self._size = size
            self._alone.clear()
        self._alone.append(took_ns)

    def observe_pipelined(self, size: int, busy_ns: int, early_ns: int) -> int:
        """Learn from a pipelined batch.

        Args:
            size: number of its requests.
            busy_ns: from the end of the previous batch to its own end.
            early_ns: how long before the end of the previous batch it was sent.

        Returns:
            The nanoseconds that it would have taken without pipelining.
        """
        self._in_a_row += 1
        if size == self._size and self._in_a_row <= _COMPARED:
            alone_ns = sorted(self._alone)[len(self._alone) // 2]
            gained_ns = alone_ns - busy_ns
            if gained_ns < early_ns:
                self._compared += 1
                weight = max(_NEWEST_WEIGHT, 1 / (2 + self._compared))
                self.overhead_ns += round(weight * (max(gained_ns, -early_ns) - self.overhead_ns))
            elif early_ns > self.overhead_ns:
                self.overhead_ns += round(_NEWEST_WEIGHT_AT_BOUND * (early_ns - self.overhead_ns))
            self.overhead_ns = max(min(self.overhead_ns, alone_ns // 2), 0)
        return busy_ns + min(self.overhead_ns, early_ns)
