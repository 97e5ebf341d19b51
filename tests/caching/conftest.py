"""Redis server of the tests in this folder."""

from redis_server import server

__all__ = ["server"]
