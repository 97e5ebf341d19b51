"""The table of a cache: entries, index, eviction, expiry."""
