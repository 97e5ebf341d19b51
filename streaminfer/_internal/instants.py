"""The instant that never comes, in nanoseconds on a monotonic clock."""

__all__ = ["NEVER_NS"]

NEVER_NS = 2**63 - 1
"""The largest instant of 64 bits; the deadline of a request that has none, whatever a batcher's objective says."""
