"""Leases of a shared tier: one of its users computes an answer, and the others wait for the entry."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

__all__ = ["Leases", "Leasing"]


class Leases(Protocol):
    """The leases of one tier, a key at a time.

    Attributes:
        lease_s: how long a lease lasts at most, and how long others wait for it.
    """

    lease_s: float

    async def take(self, key: str | bytes, token: bytes) -> bool:
        """Take the lease of a key, unless another has it; raises nothing of the medium.

        Returns:
            Whether to compute: the lease is held by this token now, who held it had nothing to share, or the tier
            failed. Otherwise another computes.
        """
        ...

    async def open(self, key: str | bytes, token: bytes) -> None:
        """End a lease of this token without an entry: its waiters compute at once. A put ends it as well."""
        ...


@runtime_checkable
class Leasing(Protocol):
    """A shared tier that has leases, or ``None`` where they are switched off."""

    leases: Leases | None
