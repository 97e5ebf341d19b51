"""Redis server for the tests in this folder."""

from redis_server import server

__all__ = ["server"]
