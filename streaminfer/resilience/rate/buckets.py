"""One token bucket per tenant, stored as an instant: the state machine of `RateLimit`.

*Design.* The generic cell rate algorithm stores one number per bucket: the instant at which the bucket is full again. A
request moves this instant by one interval. If the instant would then lie more than a burst in the future, the request
is rejected. When the instant has passed, the bucket is full, like a bucket that was never used, so it can be forgotten
without a change of any decision.

*Memory.* At most ``max_tenants`` buckets that are not full, besides the buckets of tenants with an individual rate.
When all are in use, further tenants share one more bucket of the common rate. A bucket that is not full is never
forgotten; otherwise a caller could empty it, name enough other tenants, and get a full bucket again.

*Complexity.* O(1) for a known tenant, O(log n) for a new one. A heap orders the buckets by an instant that is no later
than the real one, and a request looks at no more than ``_MAX_EXPIRIES`` of its entries: no request pays for all others.

*Invariants.* In any span of time ``t`` a bucket admits at most ``burst + t · per_s`` requests. A tenant's own bucket is
full at first, even if the tenant drew from the shared bucket. Each tenant of the table has one entry in the heap.

*References.* ITU-T I.371, Annex A: virtual scheduling.

Threads: none; a caller takes a lock.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Mapping

import attrs

__all__ = ["Bucket", "TenantBuckets"]

_MAX_EXPIRIES = 16
_SHARED = object()


@attrs.frozen
class Bucket:
    """Rate of a bucket, and its limit.

    Attributes:
        interval_ns: nanoseconds per request.
        ahead_ns: a request is admitted if the instant at which the bucket is full is at most this far in the future.
    """

    interval_ns: int
    ahead_ns: int


class TenantBuckets:
    """The buckets of all tenants.

    Args:
        common: the bucket of a tenant without an individual rate.
        own: tenant → its bucket; ``None``: the tenant is not limited.
        max_tenants: maximum number of tenants without an individual rate that have separate buckets.

    Attributes:
        admitted: requests that were admitted.
        rejected: requests that were rejected.
        shared: requests that drew from the shared bucket, because the table was full.
    """

    def __init__(self, common: Bucket, individual: Mapping[Hashable, Bucket | None], max_tenants: int) -> None:
        self._common = common
        self._individual = dict(individual)
        self._max_tenants = max_tenants
        self._individual_full_ns: dict[Hashable, int] = {}  # includes the shared bucket
        self._full_ns: dict[Hashable, int] = {}
        self._heap: list[tuple[int, int, Hashable]] = []
        self._serial = 0  # tenants themselves may have no order
        self.admitted = 0
        self.rejected = 0
        self.shared = 0

    @property
    def tenants(self) -> int:
        """Number of tenants without an individual rate in the table."""
        return len(self._full_ns)

    def set_bucket(self, tenant: Hashable, bucket: Bucket | None, now_ns: int) -> None:
        """Give a tenant an individual rate; requests that it has drawn remain drawn, at most the whole new bucket."""
        before = self.bucket_of(tenant)
        drawn_ns = max(self._full_ns.pop(tenant, 0), self._individual_full_ns.pop(tenant, 0)) - now_ns
        self._individual[tenant] = bucket
        if before is not None and bucket is not None and drawn_ns > 0:
            drawn_ns = drawn_ns * bucket.interval_ns // before.interval_ns
            self._individual_full_ns[tenant] = now_ns + min(drawn_ns, bucket.ahead_ns + bucket.interval_ns)

    def bucket_of(self, tenant: Hashable) -> Bucket | None:
        """Return the bucket of a tenant; ``None``: the tenant is not limited."""
        return self._individual.get(tenant, self._common)

    def take(self, tenant: Hashable, now_ns: int) -> int:
        """Admit one request, or return how long it would have to wait.

        Returns:
            0: admitted. Otherwise nanoseconds, > 0, after which the next request of this tenant is admitted.
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
        """Return the table with the instant of a tenant's bucket, and the key in this table."""
        if tenant in self._individual:
            return self._individual_full_ns, tenant
        if tenant in self._full_ns or self._has_place(now_ns):
            return self._full_ns, tenant
        return self._individual_full_ns, _SHARED

    def _has_place(self, now_ns: int) -> bool:
        """Forget some full buckets; return whether the table has a place for one more tenant."""
        for _ in range(_MAX_EXPIRIES):
            if not self._heap or self._heap[0][0] > now_ns:
                break
            _, serial, tenant = self._heap[0]
            full_ns = self._full_ns.get(tenant, 0)
            if full_ns <= now_ns:
                self._full_ns.pop(tenant, None)
                heapq.heappop(self._heap)
            else:  # the bucket was used again since
                heapq.heapreplace(self._heap, (full_ns, serial, tenant))
        return len(self._full_ns) < self._max_tenants
