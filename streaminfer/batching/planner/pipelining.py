"""Overhead of the way to a model and back, which pipelining hides behind the previous batch.

*Idea.* A model server, or a pool of threads, keeps a queue of its own. If the next batch is sent only after the
previous response arrives, the device idles for one round trip: the overhead. A full batch cannot become fuller, so it
is *pipelined*: sent early enough to be queued at the model when the previous batch ends, and no earlier, because its
requests cannot be changed after that. A batch of its own takes its time at the device and the overhead; behind another
one it is ready earlier by the overhead than if it had been sent at that one's end.

*Learning.* A pipelined batch keeps the device *busy* from the end of the previous one to its own. Batches of its size
that were not pipelined took longer, by the overhead: the median of the last five, less the busy time, goes into an
exponential mean. The difference may be negative, because durations are noisy, and counts for no more than the batch was
sent early, which bounds what a stall can teach. If a batch gained all of that, it came too late to be queued: the
overhead is no shorter, perhaps longer, and the mean is raised faster. It never exceeds half of what a batch takes. The
service time learns from the busy time and the overhead together, so nothing else would tell when the overhead has
become wrong: after 32 pipelined batches the next one or two are not, and the 8 that follow are compared with them.

*When.* From the earliest instant at which the previous batch can end, which is 2.5 times its margin before its upper
estimate, less the overhead and less a millisecond, by which event loops wake late. Nothing is sent once the previous
batch is a margin past its upper estimate: a model that hangs need not take a second batch with it.

*Complexity.* A few additions per batch. Synchronous, takes the time as an argument.
"""

from collections import deque

__all__ = ["PipelineOverhead"]

_NEWEST, _NEWEST_AT_BOUND = 1 / 64, 1 / 8
_ALONE_AFTER = 32
_COMPARED = 8
_REFERENCES = 5
_MARGINS = 2.5
_LOOP_NS = 1_000_000


class PipelineOverhead:
    """Learned overhead of the way to the model and back; belongs to one batcher.

    Attributes:
        overhead_ns: nanoseconds by which a pipelined batch is ready earlier.
    """

    def __init__(self) -> None:
        self.overhead_ns = 0
        self._in_a_row = 0
        self._compared = 0
        self._size = 0  # of the last batches that were not pipelined,
        self._alone: deque[int] = deque(maxlen=_REFERENCES)  # and what they took

    def window_ns(self, ends_ns: int, margin_ns: int) -> tuple[int, int]:
        """Return from when until when the next batch should be sent.

        Args:
            ends_ns: the upper estimate of when the previous batch ends.
            margin_ns: how far that is from the central one.

        Returns:
            Two instants, the second before the first where the batch should not be pipelined.
        """
        if self._in_a_row >= _ALONE_AFTER:
            return ends_ns, -1
        return ends_ns - round(_MARGINS * margin_ns) - self.overhead_ns - _LOOP_NS, ends_ns + margin_ns

    def effective_start_ns(self, sent_ns: int, ended_ns: int) -> int:
        """Return from when a pipelined batch counts as running, as if it had been sent by itself.

        Args:
            sent_ns: when it was sent.
            ended_ns: when the previous one ended, or is expected to end.
        """
        return max(sent_ns, ended_ns - self.overhead_ns)

    def observe_alone(self, size: int, took_ns: int) -> None:
        """Learn from a batch that was not pipelined: how many requests it had, and what it took."""
        self._in_a_row = 0
        if size != self._size:
            self._size = size
            self._alone.clear()
        self._alone.append(took_ns)

    def observe_pipelined(self, size: int, busy_ns: int, early_ns: int) -> int:
        """Learn from a pipelined batch.

        Args:
            size: how many requests it had.
            busy_ns: from the end of the previous one to its own.
            early_ns: how long before the end of the previous one it was sent.

        Returns:
            The nanoseconds that it would have taken by itself.
        """
        self._in_a_row += 1
        if size == self._size and self._in_a_row <= _COMPARED:
            alone_ns = sorted(self._alone)[len(self._alone) // 2]
            gained_ns = alone_ns - busy_ns
            if gained_ns < early_ns:
                self._compared += 1
                weight = max(_NEWEST, 1 / (2 + self._compared))
                self.overhead_ns += round(weight * (max(gained_ns, -early_ns) - self.overhead_ns))
            elif early_ns > self.overhead_ns:
                self.overhead_ns += round(_NEWEST_AT_BOUND * (early_ns - self.overhead_ns))
            self.overhead_ns = max(min(self.overhead_ns, alone_ns // 2), 0)
        return busy_ns + min(self.overhead_ns, early_ns)
