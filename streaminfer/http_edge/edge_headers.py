"""Header fields of a response for HTTP caches: which may store it, for how long, and how to revalidate it.

**Who.** A response is ``no-store`` if it is degraded, belongs to a live stream or contains a person's data
(``subject``, because a copy outside cannot be erased), or if the request or the computation forbids storing it. A
response to a tenant, or to a request with credentials, is ``private``. The policy can allow shared caches to store
responses to tenants, with one copy per credential. Credentials without a tenant may be in a header that is not in
``Vary``, such as a cookie; such responses stay ``private``. Each response varies by the credentials header, so that a
cache never returns a copy for other credentials, even if it ignores RFC 9111 §3.5 (as nginx does). No response is
``public`` without need.

**How long.** A cache uses a copy for at most ``fresh_s`` without revalidation. An erased response is therefore used
elsewhere for that long, plus the stale windows (RFC 5861). No copy is used after ``computed_s + lifetime_s``: freshness
and windows are limited to the time that remains. By default ``max-age`` is the *remaining* time from ``Date``, because
nginx ignores ``Age``. For caches that count ``Age``, the policy can send it, with a ``max-age`` from the computation
(RFC 9111 §5.1).

**Revalidation.** ``ETag``, and ``Last-Modified`` only after the second of the computation has passed, so that no later
response can have the same date (RFC 9110 §8.8.2.2).
"""

import math
import re
from collections.abc import Iterable
from typing import Any

import attrs

from streaminfer._internal.validation import check_duration, check_instance, expected, field_check
from streaminfer.http_edge.entity_tags import is_entity_tag
from streaminfer.http_edge.http_dates import http_date
from streaminfer.request import Request, Response

__all__ = ["EdgePolicy", "edge_headers"]

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_A_TAG = 'an entity tag with its quotes, such as "a" or W/"a"'
_LATEST_S = 253_402_300_799.0  # the end of the year 9999


def _names(value: Any) -> Any:
    return tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else value


def _check_seconds(name: str, value: Any) -> float:
    if (seconds := check_duration(name, value)) < 1.0:
        raise ValueError(expected(name, "at least one second, the unit of HTTP", value))
    return seconds


_is_flag = field_check(check_instance, bool, "True or False")


@attrs.frozen(kw_only=True)
class EdgePolicy:
    """Policy for the caches outside the process that store the responses of one service.

    Args:
        fresh_s: seconds ≥ 1 for which a copy is used without revalidation. An erasure takes this long to reach it.
        lifetime_s: seconds ≥ 1 after its computation for which a response is used anywhere: its retention, and the time
            for which this process can revalidate it. ``None``: as long as revalidation confirms it.
        stale_while_revalidate_s: seconds after ``fresh_s`` for which a copy is used while it is revalidated.
        stale_if_error_s: seconds after ``fresh_s`` for which a copy is used while this process is unreachable.
        client_s: ``fresh_s`` of caches for one user, such as a browser's, which no operator can clear; ``None``: the
            same. Not allowed with a stale window, which ``s-maxage`` forbids (RFC 9111 §5.2.2.10).
        immutable: whether the response at an address never changes, so that reloading a page needs no request.
        vary: further request headers on which the response depends.
        credentials: the request header that identifies the tenant.
        share_tenants: whether shared caches may store responses to tenants, one copy per value of ``credentials``. A
            withdrawn credential still gives access to its stored copies. Responses without a tenant are not shared if
            the request was ``authorized``.
        send_age: send the age in ``Age``, and ``max-age`` from the computation, for caches that count ``Age``.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.
    """

    fresh_s: float = attrs.field(validator=field_check(_check_seconds))
    lifetime_s: float | None = attrs.field(default=None, validator=field_check(_check_seconds, optional=True))
    stale_while_revalidate_s: float = attrs.field(default=0.0, validator=field_check(check_duration))
    stale_if_error_s: float = attrs.field(default=0.0, validator=field_check(check_duration))
    client_s: float | None = attrs.field(default=None, validator=field_check(_check_seconds, optional=True))
    immutable: bool = attrs.field(default=False, validator=_is_flag)
    vary: tuple[str, ...] = attrs.field(default=(), converter=_names)
    credentials: str = "authorization"
    share_tenants: bool = attrs.field(default=False, validator=_is_flag)
    send_age: bool = attrs.field(default=False, validator=_is_flag)
    vary_field: str = attrs.field(init=False, repr=False)
    _windows: tuple[tuple[str, int], ...] = attrs.field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        if self.client_s is not None and (self.stale_while_revalidate_s or self.stale_if_error_s):
            expectation = "None where there is a stale window, since s-maxage forbids one"
            raise ValueError(expected("client_s", expectation, self.client_s))
        check_instance("vary", self.vary, tuple, "names of request headers")
        for name, value in (*(("vary", each) for each in self.vary), ("credentials", self.credentials)):
            check_instance(name, value, str, "the name of a request header")
            if not _TOKEN.fullmatch(value) or value == "*":
                raise ValueError(expected(name, "the name of a request header", value))
        varying = dict.fromkeys(each.lower() for each in (*self.vary, self.credentials))
        object.__setattr__(self, "vary_field", ", ".join(varying))
        windows = {"stale-while-revalidate": self.stale_while_revalidate_s, "stale-if-error": self.stale_if_error_s}
        object.__setattr__(self, "_windows", tuple((it, int(windows[it])) for it in windows if windows[it] >= 1.0))


def edge_headers(
    policy: EdgePolicy,
    request: Request,
    response: Response,
    *,
    now_s: float,
    computed_s: float | None = None,
    etag: str | None = None,
    store: bool = True,
    authorized: bool = False,
) -> dict[str, str]:
    """Return the caching header fields of a successful response (2xx).

    For an error, send ``cache-control: no-store``.

    Args:
        policy: the policy for caches.
        request: its tenant, subject, stream and ``store`` decide which caches may store the response.
        response: from the `Stack`; a degraded or stale one is not stored.
        now_s: the current time of the wall clock, seconds since 1970.
        computed_s: when the response was computed, on the same clock; ``None``: now.
        etag: from :func:`~streaminfer.http_edge.entity_tag`; ``None``: no tag.
        store: ``False`` if the computation called ``no_store``, or for another reason.
        authorized: whether the HTTP request had credentials (``Authorization``, a cookie), even without a tenant.
            If others may request the same response, ``credentials`` or ``vary`` must name the header.

    Returns:
        ``cache-control``, ``date``, ``vary``, and, if they apply, ``etag``, ``last-modified`` and ``age``; names in
        lower case.

    Raises:
        TypeError, ValueError: an argument has the wrong type, an instant is out of range, or a tag is malformed.

    Thread-safe.

    Example:
        >>> import streaminfer as si
        >>> policy = EdgePolicy(fresh_s=60, lifetime_s=3600, stale_while_revalidate_s=30)
        >>> answer = si.Response([1.0])
        >>> edge_headers(policy, si.Request("x"), answer, now_s=9.5)["cache-control"]
        'max-age=60, stale-while-revalidate=30'
        >>> edge_headers(policy, si.Request("x", subject="anna"), answer, now_s=9.5)["cache-control"]
        'no-store'
    """
    if type(policy) is not EdgePolicy or type(request) is not Request or type(response) is not Response:
        check_instance("policy", policy, EdgePolicy, "an EdgePolicy")
        check_instance("request", request, Request, "a Request")  # not a framework's
        check_instance("response", response, Response, "a Response")
    now = _whole_second("now_s", now_s)
    headers = {"cache-control": "no-store", "date": http_date(now), "vary": policy.vary_field}
    if etag is not None:
        if type(etag) is not str:
            check_instance("etag", etag, str, _A_TAG)
        if not is_entity_tag(etag):
            raise ValueError(expected("etag", _A_TAG, etag))
    computed = now if computed_s is None else _whole_second("computed_s", computed_s)
    age_s = now_s - computed_s if computed_s is not None and computed_s < now_s else 0.0
    may_store = store and request.store and not response.degraded
    if not may_store or request.subject is not None or request.stream_id is not None:
        return headers
    left_s = (math.inf if policy.lifetime_s is None else policy.lifetime_s) - age_s
    fresh_s = int(min(policy.fresh_s, left_s))
    if fresh_s < 1:  # less than a second of freshness remains
        return headers
    age = math.ceil(age_s) if policy.send_age else 0
    tenant = request.tenant is not None
    audience = ("public, " if tenant and policy.share_tenants else "private, ") if tenant or authorized else ""
    headers["cache-control"] = _cache_control(policy, fresh_s, age, left_s - fresh_s, audience)
    if policy.send_age:
        headers["age"] = str(age)
    if etag is not None:
        headers["etag"] = etag
    if computed < now:
        headers["last-modified"] = http_date(computed)
    return headers


def _cache_control(policy: EdgePolicy, fresh_s: int, age: int, beyond_s: float, audience: str) -> str:
    """Return the field; the windows begin when freshness ends, and end ``beyond_s`` later at the latest."""
    if policy.client_s is None:
        text = f"{audience}max-age={age + fresh_s}"
    else:
        text = f"{audience}max-age={age + min(fresh_s, int(policy.client_s))}"
        if audience != "private, ":
            text = f"{text}, s-maxage={age + fresh_s}"
    windows = policy._windows if beyond_s >= 1.0 else ()
    for name, window_s in windows:
        text = f"{text}, {name}={window_s if window_s <= beyond_s else int(beyond_s)}"
    if not windows:
        text = f"{text}, must-revalidate"  # otherwise a cache may use it stale without the origin (RFC 9111 §4.2.4)
    return f"{text}, immutable" if policy.immutable else text


def _whole_second(name: str, seconds: Any) -> int:
    """Return the whole second of an instant."""
    if type(seconds) is not float and (isinstance(seconds, bool) or not isinstance(seconds, int | float)):
        raise TypeError(expected(name, "seconds since 1970", seconds))
    if not 0.0 <= seconds <= _LATEST_S:
        raise ValueError(expected(name, "seconds since 1970, before the year 10000", seconds))
    return int(seconds)
