"""Deadline, priority, tenant and stream of a request; of several timeouts, the tightest wins.

They come from headers (HTTP headers, or gRPC metadata) and from the protocol's parameters. Proxies and clients use
different names for timeouts; each timeout is a duration from the arrival of the request:

==================================  ===========================  =============================
source                              name                         unit
==================================  ===========================  =============================
Triton's clients (parameter)        ``timeout``                  µs; 0: none
gRPC gateways                       ``grpc-timeout``             digits and H, M, S, m, u or n
Envoy                               ``x-envoy-expected-rq-…-ms`` ms; 0: none
Ray Serve's clients                 ``x-request-timeout-seconds``  seconds; 0: none
this package                        ``x-streaminfer-timeout-s``  seconds
==================================  ===========================  =============================
"""

import math
import re
import types
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple, Protocol

from streaminfer._internal.validation import brief
from streaminfer.errors import InvalidInput
from streaminfer.request import check_priority

__all__ = ["SETTING_HEADERS", "TIME_LEFT", "RequestSettings", "read_settings", "read_timeout_s"]

SETTING_HEADERS = (
    "grpc-timeout",
    "x-envoy-expected-rq-timeout-ms",
    "x-request-timeout-seconds",
    "x-streaminfer-priority",
    "x-streaminfer-stream-id",
    "x-streaminfer-tenant",
    "x-streaminfer-timeout-s",
)
"""Headers that `read_settings` looks at."""

TIME_LEFT = "x-streaminfer-time-left-s"
"""Header of the response: seconds left until the deadline."""

_GRPC_UNITS_S = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_GRPC_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])", re.ASCII)
_NUMBER = re.compile(r"[0-9]{1,15}(\.[0-9]{1,30})?([eE]-[0-9]{1,3})?", re.ASCII)
"""Formats of a double in Python, Java, Go, C++ and JavaScript: up to 23 decimals, small ones with an exponent."""
_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,10}", re.ASCII)
_LONGEST_NAME = 256
_NONE: Mapping[str, Any] = types.MappingProxyType({})


class Headers(Protocol):
    """Headers of any framework, by lower-case name."""

    def get(self, name: str, /) -> str | None:
        """Return the value of a header; ``None`` if it was not sent."""


class RequestSettings(NamedTuple):
    """Settings of a request, from its headers and parameters.

    Attributes:
        timeout_s: seconds from the arrival of the request; ``None``: no timeout.
        priority: a lower number is more urgent.
        tenant: the tenant on whose behalf the request is sent.
        stream_id: the stream of the request.
        starts_stream: whether the stream starts with this request.
        ends_stream: whether the stream ends with this request.
    """

    timeout_s: float | None = None
    priority: int = 0
    tenant: str | None = None
    stream_id: Hashable = None
    starts_stream: bool = False
    ends_stream: bool = False


def read_settings(headers: Headers, parameters: Mapping[str, Any]) -> RequestSettings:
    """Return the settings of a request; headers override parameters, and of several timeouts the tightest wins.

    Args:
        headers: headers by lower-case name.
        parameters: parameters of the protocol.

    Raises:
        InvalidInput: a header or parameter cannot be read.
    """
    priority = parameters.get("priority", 0)
    if (text := headers.get("x-streaminfer-priority")) is not None:
        if not _WHOLE_NUMBER.fullmatch(text):
            raise _invalid("x-streaminfer-priority", "a whole number of 32 bits", text)
        priority = int(text)
    check_priority(priority)
    stream_id: Any = headers.get("x-streaminfer-stream-id") or parameters.get("sequence_id")
    if stream_id is not None and type(stream_id) not in {int, str}:
        raise _invalid("sequence_id", "a number or a text", stream_id)
    if isinstance(stream_id, str) and len(stream_id) > _LONGEST_NAME:
        raise _invalid("sequence_id", f"at most {_LONGEST_NAME} characters", stream_id)
    stream_id = stream_id or None  # Triton's clients send 0 or "" for no stream
    starts, ends = parameters.get("sequence_start", False), parameters.get("sequence_end", False)
    if not isinstance(starts, bool) or not isinstance(ends, bool):
        raise _invalid("sequence_start, sequence_end", "true or false", (starts, ends))
    tenant = headers.get("x-streaminfer-tenant")
    if tenant is not None and len(tenant) > _LONGEST_NAME:
        raise _invalid("x-streaminfer-tenant", f"at most {_LONGEST_NAME} characters", tenant)
    return RequestSettings(read_timeout_s(headers, parameters), priority, tenant, stream_id, starts, ends)


def read_timeout_s(headers: Headers, parameters: Mapping[str, Any] = _NONE) -> float | None:
    """Return the tightest of all timeouts; ``None`` if the request has none.

    Args:
        headers: a mapping by lower-case name, or the headers object of a web framework.
        parameters: parameters of the protocol.

    Raises:
        InvalidInput: a header or parameter cannot be read.
    """
    tightest = math.inf
    if timeout_us := parameters.get("timeout", 0):
        if isinstance(timeout_us, bool) or not isinstance(timeout_us, int) or timeout_us < 0:
            raise _invalid("timeout", "whole microseconds ≥ 0", timeout_us)
        tightest = min(timeout_us, 10**18) / 1e6
    if (text := headers.get("grpc-timeout")) is not None:
        parts = _GRPC_TIMEOUT.fullmatch(text)
        if parts is None:
            raise _invalid("grpc-timeout", "up to 8 digits and one of H, M, S, m, u, n", text)
        tightest = min(tightest, int(parts[1]) * _GRPC_UNITS_S[parts[2]])
    if (text := headers.get("x-envoy-expected-rq-timeout-ms")) is not None:
        tightest = min(tightest, _number("x-envoy-expected-rq-timeout-ms", text) / 1e3 or math.inf)
    if (text := headers.get("x-request-timeout-seconds")) is not None:
        tightest = min(tightest, _number("x-request-timeout-seconds", text) or math.inf)
    if (text := headers.get("x-streaminfer-timeout-s")) is not None:
        tightest = min(tightest, _number("x-streaminfer-timeout-s", text))
    return None if tightest == math.inf else tightest


def _number(name: str, text: str) -> float:
    if not _NUMBER.fullmatch(text):
        raise _invalid(name, "a number ≥ 0", text)
    return float(text)


def _invalid(name: str, expectation: str, received: object) -> InvalidInput:
    return InvalidInput(f"{name}: expected {expectation}, got {brief(received)}")
