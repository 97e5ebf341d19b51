"""`Transfer`: one frame of a device on its way to the model, whatever carries it."""

import asyncio
from typing import Literal

import attrs

from streaminfer.streams.frame import Frame

__all__ = ["Loss", "Transfer", "complete"]

Loss = Literal["encoder", "network", "undecodable"]


@attrs.define(slots=True)
class Transfer:
    """One frame of a device, and how it came.

    Attributes:
        captured_ns: instant of capture.
        frames: for the model: one picture, any number of chunks of sound; none if it was lost.
        lost: where: ``"encoder"``: it was behind; ``"network"``; ``"undecodable"``: it needs one that was lost.
        stages_s: seconds of each stage that it passed: ``capture``, ``encode``, ``uplink``, ``edge``, ``decode``.
        cpu_s: CPU seconds of ``encode``, ``decode`` and ``prepare``.
        size: bytes of its unit.
        resent: packets that were sent again.
    """

    captured_ns: int
    frames: list[Frame] = attrs.field(factory=list)
    lost: Loss | None = None
    stages_s: dict[str, float] = attrs.field(factory=dict)
    cpu_s: dict[str, float] = attrs.field(factory=dict)
    size: int = 0
    resent: int = 0

    def charge(self, totals: dict[str, float], **cpu_s: float) -> None:
        """Note the CPU seconds of stages, here and in the totals of a path."""
        for stage, seconds in cpu_s.items():
            self.cpu_s[stage] = seconds
            totals[stage] += seconds


def complete(done: asyncio.Future[Transfer], transfer: Transfer, error: BaseException | None, name: str) -> None:
    """Complete the future of a transfer; nothing if its caller was cancelled, or the path was closed.

    Args:
        done: what the caller awaits.
        transfer: its result.
        error: why there is none; ``None``: there is one.
        name: of the path, for messages.
    """
    if done.done():
        return
    if error is None:
        done.set_result(transfer)
        return
    if isinstance(error, StopIteration):  # no future takes it
        error = RuntimeError(f"media path {name!r}: {error!r}")
    done.set_exception(error)
    done.exception()  # a caller that has gone does not read it
