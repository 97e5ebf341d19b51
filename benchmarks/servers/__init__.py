"""Real servers on loopback, and ways to break them, for the tests and the benchmarks.

Servers start on demand: their packages are in separate environments beside ``.venv``, which are made at first use
(:mod:`servers.environments`).
"""
