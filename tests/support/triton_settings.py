"""Settings of a Triton backend, for tests of its parts."""

import time

from streaminfer.backends.triton.endpoint import find_endpoint
from streaminfer.backends.triton.settings import Settings
from streaminfer.backends.triton.transport.headers import Headers


def make_settings(protocol="http", url="localhost:9", **given):
    """Return the settings of a backend of the model ``m``, to which nothing is sent."""
    defaults = {
        "address": find_endpoint(url, protocol, None, False),
        "protocol": protocol,
        "headers": Headers(None),
        "keepalive_s": None,
        "name": "the backend",
        "model": "m",
        "version": "",
        "clock": time.monotonic_ns,
        "non_finite": "allow",
        "max_streams": 1,
        "shared_memory": False,
        "may_be_unloaded": False,
        "timeout_s": 1.0,
        "load_timeout_s": 1.0,
        "statistics_every_s": None,
    }
    return Settings(**{**defaults, **given})
