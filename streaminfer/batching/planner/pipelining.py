"""`PipelineOverhead`: the way to a model and back, hidden behind the batch before.

*Idea.* A model server, or a pool of threads, keeps a queue of its own. Whoever sends it the next batch only when the
answer to the last one has come leaves the device idle for as long as both ways take: the hand-over. A full batch cannot
become fuller by waiting, so it is sent *ahead*: early enough to lie there when the one before ends, and no earlier,
since who is in it cannot be changed any more. What a batch takes by itself is its time at the device and the
hand-over; behind another one it is ready by the hand-over earlier than if it had been sent at that one's end.

*Learning.* A batch that was ahead keeps the device *busy* from the end of the one before to its own. Batches of its
size that went by themselves took longer, by the hand-over: what the median of the last five took, less that, goes into
an exponential mean. It may be negative, since noise is, and no more than the batch was sent early, which bounds what a
stall can teach. A batch that gained all of that came too late to wait: the hand-over is no shorter, perhaps longer, and
the mean is raised faster. It never exceeds half of what a batch takes. The service time learns from what a batch was
busy with and the hand-over together, so nothing else would tell when that has become wrong: after 32 ahead the next
ones, one or two, go by themselves, and the 8 that follow are compared with them.

*When.* From the earliest instant at which the batch before could end, which is 2.5 times its band before its upper
estimate, less the hand-over and less a millisecond, by which event loops wake late. Once it is past the upper estimate
by a band, nothing is sent: a model that hangs need not take a second batch with it.

*Cost.* A few additions a batch. Synchronous, takes the time as an argument.
"""

from collections import deque

__all__ = ["PipelineOverhead"]

_NEWEST, _NEWEST_AT_BOUND = 1 / 64, 1 / 8
_ALONE_AFTER = 32
_COMPARED = 8
_REFERENCES = 5
_BANDS = 2.5
_LOOP_NS = 1_000_000


class PipelineOverhead:
    """What is known of the way to the model and back; belongs to one batcher.

    Attributes:
        takes_ns: nanoseconds by which a batch that was sent ahead is answered earlier.
    """

    __slots__ = ("_alone", "_compared", "_in_a_row", "_size", "takes_ns")

    def __init__(self) -> None:
        self.takes_ns = 0
        self._in_a_row = 0
        self._compared = 0
        self._size = 0  # of the last batches that were sent alone,
        self._alone: deque[int] = deque(maxlen=_REFERENCES)  # and what they took

    def window_ns(self, ends_ns: int, band_ns: int) -> tuple[int, int]:
        """From when until when the next batch should be sent.

        Args:
            ends_ns: the upper estimate of when the batch before ends.
            band_ns: how far that is from the central one.

        Returns:
            Two instants, the second before the first where a batch should go by itself.
        """
        if self._in_a_row >= _ALONE_AFTER:
            return ends_ns, -1
        return ends_ns - round(_BANDS * band_ns) - self.takes_ns - _LOOP_NS, ends_ns + band_ns

    def effective_start_ns(self, sent_ns: int, ended_ns: int) -> int:
        """From when on a batch that was sent ahead counts, as if it had been by itself.

        Args:
            sent_ns: when it was sent.
            ended_ns: when the one before ended, or is thought to end.
        """
        return max(sent_ns, ended_ns - self.takes_ns)

    def alone(self, size: int, took_ns: int) -> None:
        """Learns from a batch that went by itself: how many requests it had, and what it took."""
        self._in_a_row = 0
        if size != self._size:
            self._size = size
            self._alone.clear()
        self._alone.append(took_ns)

    def ahead(self, size: int, busy_ns: int, early_ns: int) -> int:
        """Learns from a batch that was sent ahead.

        Args:
            size: how many requests it had.
            busy_ns: from the end of the one before to its own.
            early_ns: how long before the end of the one before it was sent.

        Returns:
            Nanoseconds that it would have taken by itself.
        """
        self._in_a_row += 1
        if size == self._size and self._in_a_row <= _COMPARED:
            alone_ns = sorted(self._alone)[len(self._alone) // 2]
            gained_ns = alone_ns - busy_ns
            if gained_ns < early_ns:
                self._compared += 1
                weight = max(_NEWEST, 1 / (2 + self._compared))
                self.takes_ns += round(weight * (max(gained_ns, -early_ns) - self.takes_ns))
            elif early_ns > self.takes_ns:
                self.takes_ns += round(_NEWEST_AT_BOUND * (early_ns - self.takes_ns))
            self.takes_ns = max(min(self.takes_ns, alone_ns // 2), 0)
        return busy_ns + min(self.takes_ns, early_ns)

    def __repr__(self) -> str:
        return f"PipelineOverhead({self.takes_ns / 1e6:.3f} ms)"
