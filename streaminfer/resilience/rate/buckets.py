"""One token bucket per tenant, as an instant: the state machine of `RateLimit`.

*Design.* The generic cell rate algorithm keeps one number for a bucket: the instant at which it is full again. A
request moves that instant by one interval, and is rejected where it would lie more than a burst in the future. A bucket
whose instant has passed is full, like one that was never used, so it can be forgotten without changing any decision.

*Memory.* At most ``max_tenants`` buckets that are not full, besides those of tenants with a rate of their own. When all
are taken, further tenants share one more bucket of the common rate: a bucket that is not full is never forgotten, or a
caller could empty it, name enough other tenants, and have it back.

*Complexity.* O(1) for a known tenant. For another one O(log n): a heap orders the buckets by an instant that is no
later than the real one, and at most ``_LOOKS`` of its entries are looked at, so that no request pays for all others.

*Invariants.* In any span of time ``t`` a bucket admits at most ``burst + t · per_s`` requests. A tenant's own bucket is
full at first, whatever the tenant drew from the shared one. Each tenant of the table has one entry in the heap.

*References.* ITU-T I.371, Annex A: virtual scheduling.

Threads: none; a caller takes a lock.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Mapping

import attrs

__all__ = ["Bucket", "TenantBuckets"]

_LOOKS = 16
_SHARED = object()


@attrs.frozen
class Bucket:
    """How fast a bucket fills, and how far it may be drawn ahead.

    Attributes:
        interval_ns: nanoseconds per request.
        ahead_ns: how far in the future the instant at which it is full may lie when a request is admitted.
    """

    interval_ns: int
    ahead_ns: int


class TenantBuckets:
    """The buckets of all tenants.

    Args:
        common: the bucket of a tenant without a rate of its own.
        own: tenant → its bucket; ``None``: it is not limited.
        max_tenants: so many tenants without a rate of their own are told apart.

    Attributes:
        admitted: requests that were admitted.
        rejected: requests that were not.
        shared: requests that were judged by the shared bucket, because the table was full.
    """

    def __init__(self, common: Bucket, own: Mapping[Hashable, Bucket | None], max_tenants: int) -> None:
        self._common = common
        self._own = dict(own)
        self._max_tenants = max_tenants
        self._own_full_ns: dict[Hashable, int] = {}  # of the shared bucket too
        self._full_ns: dict[Hashable, int] = {}
        self._heap: list[tuple[int, int, Hashable]] = []
        self._serial = 0  # tenants themselves may have no order
        self.admitted = 0
        self.rejected = 0
        self.shared = 0

    @property
    def tenants(self) -> int:
        """How many tenants without a rate of their own are in the table."""
        return len(self._full_ns)

    def set_bucket(self, tenant: Hashable, bucket: Bucket | None, now_ns: int) -> None:
        """Give a tenant a rate of its own; the requests that it has drawn remain drawn, at most all of the bucket."""
        before = self.bucket_of(tenant)
        drawn_ns = max(self._full_ns.pop(tenant, 0), self._own_full_ns.pop(tenant, 0)) - now_ns
        self._own[tenant] = bucket
        if before is not None and bucket is not None and drawn_ns > 0:
            drawn_ns = drawn_ns * bucket.interval_ns // before.interval_ns
            self._own_full_ns[tenant] = now_ns + min(drawn_ns, bucket.ahead_ns + bucket.interval_ns)

    def bucket_of(self, tenant: Hashable) -> Bucket | None:
        """Return the rate of a tenant; ``None``: it is not limited."""
        return self._own.get(tenant, self._common)

    def take(self, tenant: Hashable, now_ns: int) -> int:
        """Admit one request, or say how long it would have to wait.

        Returns:
            0: admitted. Otherwise nanoseconds, > 0, after which the next one of this tenant is.
        """
        bucket = self.bucket_of(tenant)
        if bucket is None:
            self.admitted += 1
            return 0
        table, name = self._place(tenant, now_ns)
        self.shared += name is _SHARED
        full_ns = table.get(name, 0)
        wait_ns = full_ns - now_ns - bucket.ahead_ns
        if wait_ns > 0:
            self.rejected += 1
            return wait_ns
        self.admitted += 1
        full_ns = max(full_ns, now_ns) + bucket.interval_ns
        if table is self._full_ns and tenant not in table:
            self._serial += 1
            heapq.heappush(self._heap, (full_ns, self._serial, tenant))
        table[name] = full_ns
        return 0

    def wait_ns(self, tenant: Hashable, now_ns: int) -> int:
        """Return how long the next request of a tenant would have to wait, in nanoseconds; changes no decision."""
        bucket = self.bucket_of(tenant)
        if bucket is None:
            return 0
        table, name = self._place(tenant, now_ns)
        return max(table.get(name, 0) - now_ns - bucket.ahead_ns, 0)

    def _place(self, tenant: Hashable, now_ns: int) -> tuple[dict[Hashable, int], Hashable]:
        """Return where it is written when the bucket of a tenant is full again, and under which name."""
        if tenant in self._own:
            return self._own_full_ns, tenant
        if tenant in self._full_ns or self._has_place(now_ns):
            return self._full_ns, tenant
        return self._own_full_ns, _SHARED

    def _has_place(self, now_ns: int) -> bool:
        """Whether the table has a place for one more tenant, once some that are full have been forgotten."""
        for _ in range(_LOOKS):
            if not self._heap or self._heap[0][0] > now_ns:
                break
            _, serial, tenant = self._heap[0]
            full_ns = self._full_ns.get(tenant, 0)
            if full_ns <= now_ns:
                self._full_ns.pop(tenant, None)
                heapq.heappop(self._heap)
            else:  # it was used again since
                heapq.heapreplace(self._heap, (full_ns, serial, tenant))
        return len(self._full_ns) < self._max_tenants
