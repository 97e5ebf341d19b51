"""`Frame`: one item of a live source, with the instant at which it was captured."""

from typing import Any

import attrs

__all__ = ["Frame"]


@attrs.frozen(slots=True)
class Frame:
    """One item of a live source: a picture, or a chunk of sound.

    Attributes:
        inputs: inputs of the model, without a batch axis.
        captured_ns: instant of capture, on the clock of the `Stack`. The age of a result counts from it.
        position_s: position in the medium, in seconds from its start; ``None``: unknown.
        discontinuity: the frame does not continue the previous one, as after a reconnect; the stream's state is reset.
    """

    inputs: Any
    captured_ns: int
    position_s: float | None = None
    discontinuity: bool = False
