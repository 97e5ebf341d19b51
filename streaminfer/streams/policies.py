"""Frame policies: which frames of a stream are sent, and what happens to those that wait while it cannot be sent yet.

A policy is a frozen record, shared by the streams of a session. What it must remember of one stream is in the selector
that it makes for it: synchronous, and with no other time than that of the frames.
"""

from typing import Protocol, runtime_checkable

import attrs

from streaminfer._internal.validation import check_count, check_instance, check_number, expected, field_check

__all__ = ["Block", "EveryNth", "FramePolicy", "FrameSelector", "LatestOnly", "RateSelector", "TargetRate"]

MAX_FRAMES = 2**31 - 1
"""Frames of a stream that may wait, or be in flight: what compiled code counts."""


class FrameSelector(Protocol):
    """Choice of the frames of one stream that are of interest."""

    def takes(self, captured_ns: int) -> bool:
        """Return whether a frame is of interest; called once for each, in the order of arrival."""
        ...


@runtime_checkable
class FramePolicy(Protocol):
    """Frame policy, for a session.

    Attributes:
        max_waiting: how many frames of a stream may wait to be sent, ≥ 1.
        waits: the source is held while so many wait; otherwise the oldest is dropped.
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

    @property
    def waits(self) -> bool:  # no class variable: pyright takes that for no attribute of the protocol
        """True."""
        return True

    def make_selector(self) -> None:
        """Return nothing: every frame is of interest."""


@attrs.frozen(slots=True)
class LatestOnly:
    """Send the newest frame: one that is not sent when the next arrives is dropped. For cameras.

    Attributes:
        max_waiting: the newest one.
        waits: the source is not held.
    """

    @property
    def max_waiting(self) -> int:
        """1."""
        return 1

    @property
    def waits(self) -> bool:
        """False."""
        return False

    def make_selector(self) -> None:
        """Return nothing: every frame is of interest."""


def _check_then(name: str, value: object) -> None:
    check_instance(name, value, lambda it: isinstance(it, (Block, LatestOnly)), "a Block or a LatestOnly")


_check_per_s = field_check(check_number, "a number of frames a second, from 1e-6 to 1e6", lambda it: 1e-6 <= it <= 1e6)


@attrs.frozen(slots=True)
class _Thinned:
    """Some of the frames, and what another policy does with these."""

    then: Block | LatestOnly = attrs.field(factory=LatestOnly, validator=field_check(_check_then), kw_only=True)

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
        n: how many frames there are for each that is taken.
        then: what happens to those that are taken.
    """

    n: int = attrs.field(validator=field_check(check_count))

    def make_selector(self) -> FrameSelector:
        """Return a counter."""
        return _EveryNthSelector(self.n)


@attrs.frozen(slots=True)
class TargetRate(_Thinned):
    """Take at most so many frames a second of capture on average, evenly, and drop the others as ``skipped``.

    Attributes:
        per_s: frames a second, from 1e-6 to 1e6.
        then: what happens to those that are taken.
    """

    per_s: float = attrs.field(validator=_check_per_s)

    def make_selector(self) -> FrameSelector:
        """Return a clock of the times at which frames are due."""
        return RateSelector(self.per_s, round(1e9 / self.per_s) // 8)  # a source of just this rate may have jitter


class _EveryNthSelector:
    def __init__(self, n: int) -> None:
        self._n = n
        self._until_next = 0

    def takes(self, captured_ns: int) -> bool:  # noqa: ARG002 - counts
        if self._until_next:
            self._until_next -= 1
            return False
        self._until_next = self._n - 1
        return True


class RateSelector:
    """Choice of frames that are due once in an interval. A capture that is far from that begins the intervals again.

    Args:
        per_s: frames a second.
        tolerance_ns: by which a frame may come before it is due, so that a source of just this rate loses nothing.
    """

    def __init__(self, per_s: float, tolerance_ns: int) -> None:
        self._interval_ns = round(1e9 / per_s)
        self._tolerance_ns = tolerance_ns
        self._due_ns: int | None = None

    def takes(self, captured_ns: int, *, begins: bool = False) -> bool:
        """Return whether a frame is of interest; one that ``begins`` the intervals again always is."""
        due_ns, interval_ns = self._due_ns, self._interval_ns
        if begins or due_ns is None or not due_ns - 2 * interval_ns < captured_ns < due_ns + interval_ns:
            self._due_ns = captured_ns + interval_ns
            return True
        if captured_ns < due_ns - self._tolerance_ns:
            return False
        self._due_ns = due_ns + interval_ns
        return True


def check_policy(name: str, policy: object) -> FramePolicy:
    """Return a frame policy.

    Raises:
        TypeError: it is none.
    """
    if isinstance(policy, type) or not isinstance(policy, FramePolicy):
        raise TypeError(expected(name, "a frame policy, such as LatestOnly(), EveryNth(2) or Block()", policy))
    check_count(f"{name}.max_waiting", policy.max_waiting, at_most=MAX_FRAMES)
    return policy
