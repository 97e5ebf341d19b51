"""`StreamSettings`: settings of the streams of a session."""

import attrs

from streaminfer.streams.policies import FramePolicy

__all__ = ["StreamSettings"]


@attrs.frozen(slots=True)
class StreamSettings:
    """Settings of streams, which `StreamSession` explains, and values derived from them."""

    policy: FramePolicy
    max_in_flight: int
    max_age_ns: int
    deadline_ns: int | None
    resets_after_gap: bool
    priority: int
    tenant: str | None

    waits: bool = attrs.field(init=False, default=attrs.Factory(lambda it: it.policy.waits, takes_self=True))
    """The source is held while the service is busy."""
    may_drop: bool = attrs.field(
        init=False, default=attrs.Factory(lambda it: not it.policy.waits or it.max_age_ns > 0, takes_self=True)
    )
    """Frames can be dropped; a frame that the service would reject is dropped before it is sent."""
