"""Single flight: concurrent callers of one key share a computation."""
