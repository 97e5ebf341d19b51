"""`StreamSettings`: what the streams of a session have in common."""

import attrs

from streaminfer.streams.policies import FramePolicy

__all__ = ["StreamSettings"]


@attrs.frozen(slots=True)
class StreamSettings:
    """Settings of a stream, as `StreamSession` explains them, and what follows from them."""

    policy: FramePolicy
    max_in_flight: int
    max_age_ns: int
    deadline_ns: int | None
    resets_after_gap: bool
    weight: float
    priority: int
    tenant: str | None

    waits: bool = attrs.field(init=False)
    """The source is held while the service is busy."""
    asks_first: bool = attrs.field(init=False)
    """A frame that the service would reject is dropped before it is sent."""

    @waits.default
    def _policy_waits(self) -> bool:
        return self.policy.waits

    @asks_first.default
    def _may_drop(self) -> bool:
        return not self.policy.waits or self.max_age_ns > 0
