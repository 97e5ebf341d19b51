"""A tier in a Redis server."""
