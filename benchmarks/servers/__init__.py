"""Real servers on loopback, and ways to break them, for the tests and the benchmarks.

Everything here is started on demand: the servers' packages go into environments of their own beside ``.venv``, made
at first use (:mod:`servers.environments`).
"""
