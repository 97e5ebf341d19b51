"""Notices among the users of a shared tier: which entries they deleted or erased there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import attrs

__all__ = ["Announces", "Notice"]


@attrs.frozen(kw_only=True)
class Notice:
    """Another user of the tier deleted or erased something there; exactly one of these is given.

    Attributes:
        key: whose entry.
        subject: whose entries.
        tag: with which tag.
    """

    key: str | bytes | None = None
    subject: str | None = None
    tag: str | None = None


@runtime_checkable
class Announces(Protocol):
    """A shared tier whose users hear of what others of them deleted and erased."""

    def hear(self, listener: Callable[[Notice], object]) -> None:
        """Call ``listener`` with each notice from now on, on the event loop of the tier."""
        ...
