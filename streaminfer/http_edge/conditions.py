"""Conditional requests (RFC 9110 §13): the client already has the response, or its condition fails.

The order is that of §13.2.2. First ``If-Match``, or else ``If-Unmodified-Since``: 412 if it fails. Then
``If-None-Match``, or else, for GET and HEAD, ``If-Modified-Since``: 304, or 412 for other methods. ``If-Range`` is
ignored, because without ranges it has no effect.

A malformed date is ignored, as in §13.1.3. A malformed list of tags matches nothing: ``If-None-Match`` then gives the
whole response, ``If-Match`` fails, and both take precedence over a date. A 304 is returned only if a tag or ``*``
matched, or if the response has not changed since the date.
"""

from collections.abc import Iterable, Mapping

from streaminfer._internal.validation import expected
from streaminfer.http_edge.entity_tags import compares_strongly, compares_weakly
from streaminfer.http_edge.http_dates import parse_http_date

__all__ = ["answer_conditional"]

Pairs = Iterable[tuple[str, str]] | Iterable[tuple[bytes, bytes]]

_CONDITIONS = frozenset(("if-match", "if-none-match", "if-modified-since", "if-unmodified-since"))
_LENGTHS = frozenset(map(len, _CONDITIONS))
_UNCONDITIONAL_METHODS = frozenset(("CONNECT", "OPTIONS", "TRACE"))
_LENGTH_FIELDS = frozenset(("content-length", "transfer-encoding"))
_BODY_FIELDS = frozenset(
    ("content-encoding", "content-language", "content-length", "content-range", "content-type", "transfer-encoding")
)


def answer_conditional(
    method: str,
    request_headers: Mapping[str, str] | Pairs,
    response_headers: Mapping[str, str],
    body: bytes = b"",
) -> tuple[int, dict[str, str], bytes]:
    """Return what to send if the response would be a 200.

    Pass the headers of the 200. If they are known before the body (a weak tag from the content key), call this without
    a body first: a 304 then saves the computation.

    Args:
        method: of the request, as sent.
        request_headers: its header fields: a mapping, or pairs as in ASGI; names in any case, text or bytes.
        response_headers: of the 200; names in lower case.
        body: of the 200.

    Returns:
        Status, header fields and body: 200 with all of them (for HEAD the length instead of the body); 304 without the
        body and the fields that describe it; or 412.

    Raises:
        TypeError: an argument has the wrong type. Data from a client never raise an error.

    Thread-safe.

    Example:
        >>> answer_conditional("GET", {"If-None-Match": '"a", W/"b"'}, {"etag": '"b"', "content-length": "7"})
        (304, {'etag': '"b"'}, b'')
    """
    if not isinstance(method, str):
        raise TypeError(expected("method", "a string", method))
    conditions = _conditions(request_headers)
    status = _status(method, conditions, response_headers) if conditions else 200
    if status == 200:
        headers = dict(response_headers)
        if method != "HEAD":
            return 200, headers, body
        if body and not _LENGTH_FIELDS & headers.keys():  # a framework would send 0, and caches would drop their copy
            headers["content-length"] = str(len(body))
        return 200, headers, b""
    if status == 412:
        return 412, {"cache-control": "no-store"}, b""
    omitted = _BODY_FIELDS | {"last-modified"} if "etag" in response_headers else _BODY_FIELDS
    return 304, {name: value for name, value in response_headers.items() if name not in omitted}, b""


def _conditions(headers: Mapping[str, str] | Pairs) -> dict[str, str]:
    """Return the conditional fields by lower-case name; fields of one name form one list (RFC 9110 §5.3)."""
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    conditions: dict[str, str] = {}
    for name, value in pairs:
        if len(name) not in _LENGTHS:
            continue
        text = name.lower() if isinstance(name, str) else str(name, "latin-1").lower()
        if text in _CONDITIONS:
            field = value if isinstance(value, str) else str(value, "latin-1")
            field = field.strip(" \t")
            conditions[text] = f"{conditions[text]}, {field}" if text in conditions else field
    return conditions


def _status(method: str, conditions: dict[str, str], headers: Mapping[str, str]) -> int:
    if method in _UNCONDITIONAL_METHODS:
        return 200
    etag = headers.get("etag")
    tags = conditions.get("if-match")
    if tags is not None:
        if tags != "*" and (etag is None or not compares_strongly(tags, etag)):
            return 412
    elif _changed_since(conditions.get("if-unmodified-since"), headers) is True:
        return 412
    reading = method in {"GET", "HEAD"}
    tags = conditions.get("if-none-match")
    if tags is not None:
        if tags == "*" or (etag is not None and compares_weakly(tags, etag)):
            return 304 if reading else 412
    elif reading and _changed_since(conditions.get("if-modified-since"), headers) is False:
        return 304
    return 200


def _changed_since(date: str | None, headers: Mapping[str, str]) -> bool | None:
    """Return whether the response changed after a date; ``None`` if a date is missing or malformed."""
    if date is None or "last-modified" not in headers:
        return None
    changed_s = parse_http_date(headers["last-modified"], 0)
    if changed_s is None:
        return None
    present_s = parse_http_date(headers.get("date", ""), 0)
    since_s = parse_http_date(date, changed_s if present_s is None else present_s)
    return None if since_s is None else changed_s > since_s
