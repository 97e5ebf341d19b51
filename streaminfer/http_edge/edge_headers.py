"""Header fields of a response for the caches on its way: which may store it, for how long, and how to revalidate it.

**Who.** An answer that is degraded, that belongs to a live stream, that the request or the computation forbids to keep,
or that carries a person's data (``subject``) is ``no-store``: a copy outside cannot be erased. An answer to a tenant,
or to a request with credentials, is ``private``; that to a tenant is not where the policy lets shared caches keep one
copy for each credential. Credentials that name no tenant may be in another header, such as a cookie, by which nothing
varies. Every answer of a policy varies by the header of the credentials, so that what was kept for one is
never given to another, also by caches that overlook RFC 9111 §3.5 (nginx does). None is ``public`` without need.

**How long.** A copy is used for at most ``fresh_s`` without asking: what is erased here is used elsewhere for that long
and for the stale windows (RFC 5861). Beyond ``computed_s + lifetime_s`` nothing is used: freshness and windows are
cut to what remains. By default ``max-age`` says what *remains* from ``Date``, since nginx ignores ``Age``; for
caches that count it, the policy can send ``Age``, and a ``max-age`` from the beginning (RFC 9111 §5.1).

**Asking again.** ``ETag``; and ``Last-Modified`` only once the second of the computation has passed, so that no later
answer can bear the same date (RFC 9110 §8.8.2.2).
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
_LATEST_S = 253_402_300_799  # the end of the year 9999


def _names(value: Any) -> Any:
    return tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else value


def _check_seconds(name: str, value: Any) -> None:
    if check_duration(name, value) < 1.0:
        raise ValueError(expected(name, "at least one second, the unit of HTTP", value))


_is_flag = field_check(check_instance, lambda it: isinstance(it, bool), "True or False")


@attrs.frozen(kw_only=True)
class EdgePolicy:
    """Policy for the caches outside the process that store the responses of one service.

    Args:
        fresh_s: for how long a copy is used without asking, seconds ≥ 1. An erasure takes this long to reach it.
        lifetime_s: for how long after its computation an answer is used anywhere, seconds ≥ 1: its retention, and how
            long this process can answer for it. ``None``: as long as asking again confirms it.
        stale_while_revalidate_s: for how much longer a copy is used while it is revalidated.
        stale_if_error_s: for how much longer a copy is used while this process cannot be reached.
        client_s: ``fresh_s`` of caches that serve one user, such as a browser's, which no operator can empty;
            ``None``: the same. Not with a stale window, which ``s-maxage`` forbids (RFC 9111 §5.2.2.10).
        immutable: the answer at an address never changes: reloading a page needs no request.
        vary: further request headers that the answer depends on.
        credentials: the request header from which the tenant is known.
        share_tenants: shared caches may keep answers to tenants, one copy for each value of ``credentials``. A
            credential that is withdrawn still opens what is kept for it. Answers without a tenant are not shared if the
            request was ``authorized``.
        send_age: states the age in ``Age``, and ``max-age`` from the computation on; for caches that count it.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.
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
    _lifetime: float = attrs.field(init=False, repr=False, eq=False)
    _window_s: float = attrs.field(init=False, repr=False, eq=False)
    _ending: str = attrs.field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        if self.client_s is not None and (self.stale_while_revalidate_s or self.stale_if_error_s):
            what = "None where there is a stale window, since s-maxage forbids one"
            raise ValueError(expected("client_s", what, self.client_s))
        check_instance("vary", self.vary, lambda it: isinstance(it, tuple), "names of request headers")
        for name, value in (*(("vary", each) for each in self.vary), ("credentials", self.credentials)):
            check_instance(name, value, lambda it: isinstance(it, str), "the name of a request header")
            if not _TOKEN.fullmatch(value) or value == "*":
                raise ValueError(expected(name, "the name of a request header", value))
        varying = dict.fromkeys(each.lower() for each in (*self.vary, self.credentials))
        object.__setattr__(self, "vary_field", ", ".join(varying))
        object.__setattr__(self, "_lifetime", math.inf if self.lifetime_s is None else self.lifetime_s)
        object.__setattr__(self, "_window_s", max(self.stale_while_revalidate_s, self.stale_if_error_s))
        object.__setattr__(self, "_ending", _ending(self, math.inf))  # of nearly all answers


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
    """Return the header fields about caching of a successful response (2xx).

    An error wants ``cache-control: no-store``.

    Args:
        policy: what caches may do.
        request: what was asked: its tenant, subject, stream and ``store`` decide who may keep the answer.
        response: what the `Stack` answered; a degraded one, stale ones included, is not stored.
        now_s: the present by the wall clock, seconds since 1970.
        computed_s: when the answer was computed, by the same clock; ``None``: now.
        etag: what :func:`~streaminfer.http_edge.entity_tag` gave; ``None``: no tag.
        store: ``False``: the computation said ``no_store``, or there is another reason.
        authorized: the HTTP request bore credentials (``Authorization``, a cookie), even if no tenant came of them.
            The policy's ``credentials`` or ``vary`` name their header where others may ask for the same answer.

    Returns:
        ``cache-control``, ``date``, ``vary``, and where they apply ``etag``, ``last-modified`` and ``age``; names in
        lower case.

    Raises:
        TypeError, ValueError: an argument of the wrong type, an instant that is none, or a tag that is not well formed.

    Threads: any number at once.

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
        check_instance("policy", policy, lambda it: isinstance(it, EdgePolicy), "an EdgePolicy")
        check_instance("request", request, lambda it: isinstance(it, Request), "a Request")  # no web framework's
        check_instance("response", response, lambda it: isinstance(it, Response), "a Response")
    now = _whole("now_s", now_s)
    headers = {"cache-control": "no-store", "date": http_date(now), "vary": policy.vary_field}
    if etag is not None:
        if type(etag) is not str:
            check_instance("etag", etag, lambda it: isinstance(it, str), _A_TAG)
        if not is_entity_tag(etag):
            raise ValueError(expected("etag", _A_TAG, etag))
    computed = now if computed_s is None else _whole("computed_s", computed_s)
    age_s = 0.0 if computed_s is None else max(now_s - computed_s, 0.0)
    may_store = store and request.store and not response.degraded
    if not may_store or request.subject is not None or request.stream_id is not None:
        return headers
    left_s = policy._lifetime - age_s
    fresh = int(min(policy.fresh_s, left_s))
    if fresh < 1:  # nothing is left of it
        return headers
    age = math.ceil(age_s) if policy.send_age else 0
    tenant = request.tenant is not None
    who = ("public, " if tenant and policy.share_tenants else "private, ") if tenant or authorized else ""
    headers["cache-control"] = _cache_control(policy, fresh, age, left_s - fresh, who)
    if policy.send_age:
        headers["age"] = str(age)
    if etag is not None:
        headers["etag"] = etag
    if computed < now:
        headers["last-modified"] = http_date(computed)
    return headers


def _cache_control(policy: EdgePolicy, fresh: int, age: int, beyond_s: float, who: str) -> str:
    """Return the field; both windows begin when freshness ends, and end with the lifetime, ``beyond_s`` later."""
    if policy.client_s is None:
        text = f"{who}max-age={age + fresh}"
    else:
        text = f"{who}max-age={age + min(fresh, int(policy.client_s))}"
        if who != "private, ":
            text = f"{text}, s-maxage={age + fresh}"
    return text + (policy._ending if beyond_s >= policy._window_s else _ending(policy, beyond_s))


def _ending(policy: EdgePolicy, beyond_s: float) -> str:
    revalidate = int(min(policy.stale_while_revalidate_s, beyond_s))
    error = int(min(policy.stale_if_error_s, beyond_s))
    text = f", stale-while-revalidate={revalidate}" if revalidate > 0 else ""
    if error > 0:
        text = f"{text}, stale-if-error={error}"
    if not text:
        text = ", must-revalidate"  # else a cache may use it stale when it cannot ask (RFC 9111 §4.2.4)
    return f"{text}, immutable" if policy.immutable else text


def _whole(name: str, seconds: Any) -> int:
    """Return the whole second of an instant."""
    if type(seconds) is not float and (isinstance(seconds, bool) or not isinstance(seconds, int | float)):
        raise TypeError(expected(name, "seconds since 1970", seconds))
    if not 0 <= seconds <= _LATEST_S:
        raise ValueError(expected(name, "seconds since 1970, before the year 10000", seconds))
    return int(seconds)
