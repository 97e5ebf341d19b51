"""An `EdgeCache` with a retention policy: what comes by the mapping's methods is noted with its class and instant, too.

What is set at once, by ``cache[key] = value`` and ``update``, has no tags and so is of the default class.
``setdefault``, which looks and stores in one step, notes nothing: a report does not know the age of what it stored.
"""

from __future__ import annotations

from typing import Any

from streaminfer.caching.edge_cache import EdgeCache

__all__ = ["GovernedCache"]


class GovernedCache(EdgeCache):
    """What ``EdgeCache(retention=…)`` makes."""

    __slots__ = ()

    def __setitem__(self, key: Any, value: Any) -> None:
        self.put(key, value)

    def expire(self) -> int:
        """Frees what is past its time, and what had to be preserved and need not be any longer; how many expired."""
        gone = super().expire()
        if self._custody is not None:
            self._custody.settle(self.now())
        return gone
