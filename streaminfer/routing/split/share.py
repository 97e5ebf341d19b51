"""A share of the requests: the same ones for a key, or evenly spread.

*Design.* A key is hashed to a number from 0 to 1 and belongs to the share while that number is below it. So a key keeps
its side in every process and after a restart, and a share that grows keeps the keys it has. Requests without
a key are counted: each adds the share to a sum, and the one that brings the sum to 1 belongs to it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable

from streaminfer._internal.validation import check_number
from streaminfer.routing.stable_hash import HASH_SPAN, stable_hash

__all__ = ["RequestShare", "check_share"]

_TINY = 1e-9  # ten tenths are one


def check_share(share: object) -> float:
    """Return a share of the requests.

    Raises:
        TypeError, ValueError: no number from 0 to 1.
    """
    return check_number("share", share, "a share from 0 to 1", lambda it: 0.0 <= it <= 1.0)


class RequestShare:
    """Decides which requests belong to a share.

    Args:
        share: of the requests, from 0 to 1.
        salt: other keys belong to shares of another salt.

    Attributes:
        share: of the requests; it can be changed at any time.
    """

    def __init__(self, share: float, salt: str) -> None:
        self.share = share
        self._salt = hashlib.blake2b(salt.encode()).digest()
        self._sum = 0.0

    def has_key(self, key: Hashable) -> bool:
        """Say whether a key belongs to the share; the same in every process for text, bytes and whole numbers."""
        return stable_hash(key, self._salt) / HASH_SPAN < self.share

    def would_take(self) -> bool:
        """Say whether the next request without a key belongs to the share; changes nothing."""
        return self._sum + self.share + _TINY >= 1.0

    def take(self) -> bool:
        """Decide about one request without a key."""
        takes = self.would_take()
        self._sum += self.share - takes
        return takes
