"""Delivery of captured frames by a device: with jitter, clock skew and loss."""

import random
from collections.abc import Iterator

import attrs

from streaminfer._internal.validation import LONGEST_S, check_duration, check_number, field_check
from streaminfer.loadtest.devices.loss import GilbertElliott

__all__ = ["Capture", "Delivery", "captures", "check_loss", "check_run", "draw_jitter_ns"]

JITTER_SHAPE = 2.0
"""Shape of the gamma distribution of delays: never negative, with a longer tail than a normal distribution."""


check_loss = field_check(check_number, "a share ≥ 0 and < 1", lambda it: 0.0 <= it < 1.0)
"""Check the share of lost items."""
check_run = field_check(check_number, "a number of items ≥ 1 and ≤ 1,000,000", lambda it: 1.0 <= it <= 1e6)
"""Check the mean length of a run of losses."""
_check_skew = field_check(check_number, "parts per million from -100,000 to 100,000", lambda it: -1e5 <= it <= 1e5)


@attrs.frozen(kw_only=True)
class Delivery:
    """Timing of a device.

    Attributes:
        jitter_s: standard deviation of the delay from capture to delivery.
        loss: share of the frames that are lost inside the device.
        loss_run: mean number of successive frames that are lost together; 1: losses are independent.
        skew_ppm: by how much the clock of the device runs faster than ours, in parts per million.
    """

    jitter_s: float = attrs.field(default=0.0, validator=field_check(check_duration))
    loss: float = attrs.field(default=0.0, validator=check_loss)
    loss_run: float = attrs.field(default=1.0, validator=check_run)
    skew_ppm: float = attrs.field(default=0.0, validator=_check_skew)


@attrs.frozen(slots=True)
class Capture:
    """One frame of a device.

    Attributes:
        number: number of the frame, from 0.
        captured_ns: instant of capture, from the start.
        delivered_ns: instant of delivery, never before that of an earlier frame; ``None`` if the frame was lost.
    """

    number: int
    captured_ns: int
    delivered_ns: int | None


def draw_jitter_ns(jitter_s: float, rng: random.Random) -> int:
    """Return a random delay with a standard deviation of ``jitter_s``."""
    delay_s = rng.gammavariate(JITTER_SHAPE, jitter_s / JITTER_SHAPE**0.5) if jitter_s else 0.0
    return round(min(delay_s, LONGEST_S) * 1e9)


def captures(delivery: Delivery, period_s: float, seed: int) -> Iterator[Capture]:
    """Yield the frames of a device without end; equal seeds give equal frames.

    Args:
        delivery: timing of the device.
        period_s: seconds from a frame to the next, on the clock of the device.
        seed: seed of jitter and loss.
    """
    rng = random.Random(f"device {seed}")  # noqa: S311 - repeatable, not secret; differs from the seed of a `Link`
    losses = GilbertElliott(delivery.loss, delivery.loss_run, rng)
    period_ns = period_s * 1e9 / (1.0 + delivery.skew_ppm / 1e6)
    last_ns = number = 0
    while True:
        captured_ns = round(number * period_ns)
        delivered_ns = captured_ns + draw_jitter_ns(delivery.jitter_s, rng)
        is_lost = losses.loses()
        if not is_lost:
            last_ns = delivered_ns = max(delivered_ns, last_ns)
        yield Capture(number, captured_ns, None if is_lost else delivered_ns)
        number += 1
