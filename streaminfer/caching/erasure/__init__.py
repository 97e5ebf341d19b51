"""Erasure in every place where a cache keeps data, and what may delay it."""
