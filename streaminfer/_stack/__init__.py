"""Parts of `Stack`: composition, lifecycle, many calls, statistics."""
