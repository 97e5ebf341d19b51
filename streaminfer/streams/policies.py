"""Frame policies: which frames of a stream are sent, and what happens while frames wait to be sent.

A policy is a frozen record that the streams of a session share. It makes one selector per stream, which holds the state
of that stream. A selector is synchronous and knows no time but the capture times of the frames.
"""

import itertools
from typing import Protocol, runtime_checkable

import attrs

from streaminfer._internal.validation import check_count, check_instance, check_number, expected, field_check

__all__ = ["Block", "EveryNth", "FramePolicy", "FrameSelector", "LatestOnly", "RateSelector", "TargetRate"]

MAX_FRAMES = 2**31 - 1
"""Maximum number of frames of a stream that wait, or are in flight: the largest C ``int``."""


class FrameSelector(Protocol):
    """Selects the frames of interest of one stream."""

    def takes(self, captured_ns: int) -> bool:
        """Return whether a frame is of interest; called once per frame, in the order of arrival."""
        ...


@runtime_checkable
class FramePolicy(Protocol):
    """Rules for the frames of each stream of a session.

    Attributes:
        max_waiting: how many frames of a stream may wait to be sent, ≥ 1.
        waits: hold the source while ``max_waiting`` frames wait; otherwise the oldest frame is dropped.
    """

    @property
    def max_waiting(self) -> int: ...  # noqa: D102 - see above

    @property
    def waits(self) -> bool: ...  # noqa: D102

    def make_selector(self) -> FrameSelector | None:
        """Return the selector of a new stream; ``None``: every frame is of interest."""
        ...


@attrs.frozen(slots=True)
class Block:
    """Lose nothing: the source waits while the service is busy. For files, and for sound that must be complete.

    Attributes:
        max_waiting: how many frames are read ahead.
        waits: the source is held.
    """

    max_waiting: int = attrs.field(default=4, validator=field_check(check_count, at_most=MAX_FRAMES))
    waits: bool = attrs.field(default=True, init=False, repr=False)

    def make_selector(self) -> None:
        """Return nothing: every frame is of interest."""


@attrs.frozen(slots=True)
class LatestOnly:
    """Send the newest frame; drop a frame that still waits when the next one arrives. For cameras.

    Attributes:
        max_waiting: the newest one.
        waits: the source is not held.
    """

    max_waiting: int = attrs.field(default=1, init=False, repr=False)
    waits: bool = attrs.field(default=False, init=False, repr=False)

    def make_selector(self) -> None:
        """Return nothing: every frame is of interest."""


_check_then = field_check(check_instance, Block | LatestOnly, "a Block or a LatestOnly")
_check_per_s = field_check(check_number, "a number of frames a second, from 1e-6 to 1e6", lambda it: 1e-6 <= it <= 1e6)


@attrs.frozen(slots=True)
class _Thinned:
    """Base of policies that select some frames and leave these to another policy."""

    then: Block | LatestOnly = attrs.field(factory=LatestOnly, validator=_check_then, kw_only=True)

    @property
    def max_waiting(self) -> int:
        """That of ``then``."""
        return self.then.max_waiting

    @property
    def waits(self) -> bool:
        """That of ``then``."""
        return self.then.waits


@attrs.frozen(slots=True)
class EveryNth(_Thinned):
    """Take the first of every ``n`` frames and drop the others as ``skipped``.

    Attributes:
        n: size of a group of frames, of which the first is taken.
        then: policy for the frames that are taken.
    """

    n: int = attrs.field(validator=field_check(check_count))

    def make_selector(self) -> FrameSelector:
        """Return a counter."""
        return _EveryNthSelector(self.n)


@attrs.frozen(slots=True)
class TargetRate(_Thinned):
    """Take at most ``per_s`` frames per second of capture on average, evenly, and drop the others as ``skipped``.

    Attributes:
        per_s: frames per second, from 1e-6 to 1e6.
        then: policy for the frames that are taken.
    """

    per_s: float = attrs.field(validator=_check_per_s)

    def make_selector(self) -> FrameSelector:
        """Return a selector that takes a frame whenever one is due."""
        return RateSelector(self.per_s, round(1e9 / self.per_s) // 8)  # a source of exactly this rate may have jitter


class _EveryNthSelector:
    def __init__(self, n: int) -> None:
        self._n = n
        self._numbers = itertools.count()

    def takes(self, captured_ns: int) -> bool:  # noqa: ARG002 - counts
        return next(self._numbers) % self._n == 0


class RateSelector:
    """Selects one frame per interval; a capture far from the due time restarts the intervals.

    Args:
        per_s: frames per second.
        tolerance_ns: how early a frame may come, so that a source of exactly this rate loses no frame.
    """

    def __init__(self, per_s: float, tolerance_ns: int) -> None:
        self._interval_ns = round(1e9 / per_s)
        self._tolerance_ns = tolerance_ns
        self._due_ns: int | None = None

    def takes(self, captured_ns: int, *, begins: bool = False) -> bool:
        """Return whether a frame is of interest; ``begins`` takes the frame and restarts the intervals."""
        due_ns, interval_ns = self._due_ns, self._interval_ns
        if begins or due_ns is None or not due_ns - 2 * interval_ns < captured_ns < due_ns + interval_ns:
            self._due_ns = captured_ns + interval_ns
            return True
        if captured_ns < due_ns - self._tolerance_ns:
            return False
        self._due_ns = due_ns + interval_ns
        return True


def check_policy(name: str, policy: object) -> FramePolicy:
    """Check and return a frame policy.

    Raises:
        TypeError, ValueError: ``policy`` is not a frame policy, or its ``max_waiting`` is out of range.
    """
    if isinstance(policy, type) or not isinstance(policy, FramePolicy):
        raise TypeError(expected(name, "a frame policy, such as LatestOnly(), EveryNth(2) or Block()", policy))
    check_count(f"{name}.max_waiting", policy.max_waiting, at_most=MAX_FRAMES)
    return policy
