"""Conditional requests: the rules of RFC 9110 §13, and anything else that a client may send."""

import calendar
import email.utils
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streaminfer.http_edge import answer_conditional
from streaminfer.http_edge.entity_tags import compares_strongly, compares_weakly
from streaminfer.http_edge.http_dates import http_date, parse_http_date

T = 784_111_777
BEFORE, AT, AFTER = (email.utils.formatdate(T + shift, usegmt=True) for shift in (-1, 0, 1))
FULL = {
    "cache-control": "max-age=60",
    "date": AFTER,
    "vary": "accept",
    "etag": '"a"',
    "last-modified": AT,
    "content-type": "text/plain",
    "content-length": "2",
    "content-location": "/x",
    "x-else": "1",
}


def status(request_headers, method="GET", headers=FULL):
    return answer_conditional(method, request_headers, headers, b"hi")[0]


@pytest.mark.parametrize(
    ("field", "matches"),
    [
        ('"a"', True),
        ('W/"a"', True),
        ('"b"', False),
        ('"b", "a"', True),
        ('"b","a","c"', True),
        ('"b" , W/"a"', True),
        (', ,"b",, "a",', True),
        ("*", True),
        (' \t"a" ', True),
        ('"A"', False),
        ('""', False),
        # malformed: matches nothing
        ("a", False),
        ("", False),
        ('"a', False),
        ('a"', False),
        ('"a" "a"', False),
        ('"a", b', False),
        ('"a", *', False),
        ('*, "a"', False),
        ("**", False),
        ('w/"a"', False),
        ('W/ "a"', False),
        ('"a"\n', False),
        ("'a'", False),
        ('"a";q=1', False),
        ('"x"a"', False),
        ('"b, "a""', False),
    ],
)
def test_if_none_match(field, matches):
    assert status({"If-None-Match": field}) == (304 if matches else 200)
    assert status({"If-None-Match": field}, "HEAD") == (304 if matches else 200)
    assert status({"If-None-Match": field}, "POST") == (412 if matches else 200)


@pytest.mark.parametrize(
    ("field", "etag", "holds"),
    [
        ('"a"', '"a"', True),
        ('"b", "a"', '"a"', True),
        ("*", '"a"', True),
        ("*", None, True),
        ('W/"a"', '"a"', False),
        ('"a"', 'W/"a"', False),
        ('W/"a"', 'W/"a"', False),
        ('"b"', '"a"', False),
        ('"a"', None, False),
        ('"a", b', '"a"', False),
        ("", '"a"', False),
    ],
)
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_if_match(field, etag, holds, method):
    headers = {name: value for name, value in FULL.items() if name != "etag"} | ({"etag": etag} if etag else {})
    assert status({"if-match": field}, method, headers) == (200 if holds else 412)


def test_a_weak_tag_of_ours_is_compared_weakly():
    for field in ('"a"', 'W/"a"'):
        assert status({"if-none-match": field}, headers={"etag": 'W/"a"'}) == 304


@pytest.mark.parametrize(
    ("date", "got"),
    [(BEFORE, 200), (AT, 304), (AFTER, 304), ("Sunday, 06-Nov-94 08:49:37 GMT", 304), ("yesterday", 200), ("", 200)],
)
def test_if_modified_since(date, got):
    assert status({"if-modified-since": date}) == got
    assert status({"if-modified-since": date}, "HEAD") == got
    assert status({"if-modified-since": date}, "POST") == 200
    assert status({"if-modified-since": date}, headers={"etag": '"a"'}) == 200
    assert status({"if-modified-since": date}, headers={"last-modified": "never"}) == 200


@pytest.mark.parametrize(("date", "got"), [(BEFORE, 412), (AT, 200), (AFTER, 200), ("yesterday", 200)])
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_if_unmodified_since(date, got, method):
    assert status({"if-unmodified-since": date}, method) == got


@pytest.mark.parametrize(
    ("fields", "got"),
    [
        ({"if-none-match": '"b"', "if-modified-since": AFTER}, 200),
        ({"if-none-match": '"a"', "if-modified-since": BEFORE}, 304),
        ({"if-none-match": "garbage", "if-modified-since": AFTER}, 200),
        ({"if-match": '"a"', "if-unmodified-since": BEFORE}, 200),
        ({"if-match": '"b"', "if-unmodified-since": AFTER}, 412),
        ({"if-match": '"b"', "if-none-match": '"a"'}, 412),
        ({"if-match": '"a"', "if-none-match": '"a"'}, 304),
        ({"if-unmodified-since": BEFORE, "if-none-match": '"a"'}, 412),
        ({"if-unmodified-since": AFTER, "if-none-match": '"a"'}, 304),
        ({"if-unmodified-since": AFTER, "if-modified-since": AFTER}, 304),
        ({"if-range": '"a"', "range": "bytes=0-0"}, 200),
    ],
)
def test_precedence_of_conditions(fields, got):
    assert status(fields) == got


@pytest.mark.parametrize("method", ["OPTIONS", "TRACE", "CONNECT"])
def test_methods_without_selection_ignore_conditions(method):
    """Conditions are ignored for methods that select no representation."""
    assert status({"if-match": '"b"', "if-none-match": "*"}, method) == 200


def test_status_headers_and_body_of_each_outcome():
    assert answer_conditional("GET", {}, FULL, b"hi") == (200, FULL, b"hi")
    assert answer_conditional("HEAD", {}, FULL, b"hi") == (200, FULL, b"")
    kept = {name: FULL[name] for name in ("cache-control", "date", "vary", "etag", "content-location", "x-else")}
    assert answer_conditional("GET", {"if-none-match": "*"}, FULL, b"hi") == (304, kept, b"")
    dated = {"last-modified": AT, "date": AFTER, "content-length": "2"}
    assert answer_conditional("GET", {"if-modified-since": AT}, dated, b"hi") == (
        304,
        {"last-modified": AT, "date": AFTER},
        b"",
    )
    assert answer_conditional("GET", {"if-match": '"b"'}, FULL, b"hi") == (412, {"cache-control": "no-store"}, b"")
    headers = dict(FULL)
    answer_conditional("GET", {}, headers)[1]["x"] = "y"
    assert headers == FULL  # the caller's own headers are another dict


def test_head_has_the_content_length_of_get():
    """The response to HEAD has the content length of the response to GET (RFC 9110 §8.6).

    A framework would give its empty body the length 0."""
    assert answer_conditional("HEAD", {}, {"etag": '"a"'}, b"hi") == (200, {"etag": '"a"', "content-length": "2"}, b"")
    assert answer_conditional("HEAD", {}, {"etag": '"a"'}) == (200, {"etag": '"a"'}, b"")
    chunked = {"transfer-encoding": "chunked"}
    assert answer_conditional("HEAD", {}, chunked, b"hi") == (200, chunked, b"")
    assert answer_conditional("HEAD", {"if-none-match": "*"}, {}, b"hi") == (304, {}, b"")


def test_headers_of_asgi_and_of_any_case_are_read():
    assert status([(b"host", b"x"), (b"IF-none-match", b'"b"'), (b"if-none-match", b'W/"a"')]) == 304
    assert status([("If-None-Match", '"b"'), ("If-None-Match", '"c"')]) == 200
    assert status([(b"if-none-match", b'"\xe9"')], headers={"etag": '"é"'}) == 304
    assert status([("if-none-match", '"a"'), ("if-none-match", "b")]) == 200  # joined, the list is malformed
    assert status([("if-modified-since", AT), ("if-modified-since", AT)]) == 200  # joined, this is no date


@pytest.mark.parametrize("conditions", [{"if-none-match": "*"}, {}])
def test_method_must_be_text(conditions):
    with pytest.raises(TypeError, match=r"^method: expected"):
        answer_conditional(b"HEAD", conditions, FULL, b"hi")


# -- against a parser of another make --------------------------------------------------------------------------------


def tags_by_hand(field):
    """Parse a list of entity tags by RFC 9110, character by character; return ``None`` if it is malformed."""
    tags, at, wants_comma = [], 0, False
    while at < len(field):
        if field[at] in " \t":
            at += 1
        elif field[at] == ",":
            wants_comma = False
            at += 1
        else:
            weak = field.startswith("W/", at)
            start = at + 2 * weak
            if wants_comma or start >= len(field) or field[start] != '"':
                return None
            end = start + 1
            while end < len(field) and field[end] != '"':
                if not (field[end] == "!" or "#" <= field[end] <= "~" or "\x80" <= field[end] <= "\xff"):
                    return None
                end += 1
            if end >= len(field):
                return None
            tags.append((weak, field[start + 1 : end]))
            at, wants_comma = end + 1, True
    return tags


FIELDS = st.lists(st.sampled_from(['"a"', 'W/"a"', '"b"', '"', "a", "W/", ",", " ", "\t", "*", "\x80", "\n"])).map(
    "".join
)


@given(FIELDS, st.sampled_from(["a", "b", "ab", ""]), st.booleans())
@example('"a" , ,, W/"b"', "b", False)
def test_tag_lists_match_a_reference_parser(field, opaque, weak):
    tags = tags_by_hand(field) or []
    ours = f'W/"{opaque}"' if weak else f'"{opaque}"'
    assert compares_weakly(field, ours) == any(each == opaque for _, each in tags)
    assert compares_strongly(field, ours) == (not weak and (False, opaque) in tags)


@given(
    st.dictionaries(
        st.sampled_from(["If-Match", "if-none-match", "IF-MODIFIED-SINCE", "if-unmodified-since", "x"]),
        FIELDS | st.text() | st.sampled_from([BEFORE, AT, AFTER]),
    ),
    st.sampled_from(["GET", "HEAD", "POST", "", "get"]),
)
def test_any_header_fields_get_a_valid_response(fields, method):
    got, headers, body = answer_conditional(method, fields, FULL, b"hi")
    none_match = fields.get("if-none-match")
    if got == 304:
        assert method in {"GET", "HEAD"}
        assert body == b""
        assert "content-length" not in headers
        if none_match is not None:
            assert none_match.strip(" \t") == "*" or ('"a"' in none_match and tags_by_hand(none_match))
        else:
            assert fields["IF-MODIFIED-SINCE"].strip() in {AT, AFTER}
    else:
        assert got in {200, 412}


def test_long_header_fields_are_parsed():
    for field in (", " * 30_000 + "x", '"b",' * 30_000 + "x", " " * 60_000 + "x", '"' + "b" * 60_000, "W/" * 30_000):
        assert status({"if-none-match": field}) == 200
    assert status({"if-none-match": '"b", ,' * 30_000 + 'W/"a"' + " ," * 30_000}) == 304


# -- dates -------------------------------------------------------------------------------------------------------------


@given(st.integers(-62_135_596_800, 253_402_300_799))
def test_dates_are_written_and_read(second):
    text = http_date(second)
    assert parse_http_date(text, 0) == second
    if second >= 0:
        assert text == email.utils.formatdate(second, usegmt=True)
        assert parse_http_date(time.asctime(time.gmtime(second)), 0) == second


@pytest.mark.parametrize(
    ("text", "second"),
    [
        ("Sun, 06 Nov 1994 08:49:37 GMT", T),
        ("Sunday, 06-Nov-94 08:49:37 GMT", T),
        ("Sun Nov  6 08:49:37 1994", T),
        ("Wed Nov 16 08:49:37 1994", T + 10 * 86_400),
        ("Sat, 31 Dec 2016 23:59:60 GMT", 1_483_228_800),
        ("Thu, 29 Feb 2024 00:00:00 GMT", 1_709_164_800),
        *(
            (text, None)
            for text in (
                "",
                "0",
                "Mon, 06 Nov 1994 08:49:37 GMT",  # it was a Sunday
                "Sun, 6 Nov 1994 08:49:37 GMT",
                "sun, 06 nov 1994 08:49:37 gmt",
                "Sun, 06 Nov 1994 08:49:37 UTC",
                "Sun, 06 Nov 1994 08:49:37 +0000",
                "Sun, 06 Nov 1994 08:49:37 GMT ",
                "Sun, 06 Nov 1994 08:49:37 GMT\n",
                "Sun, 06 Nov 1994 24:00:00 GMT",
                "Sun, 06 Nov 1994 08:60:00 GMT",
                "Sun, 06 Nov 1994 08:49:61 GMT",
                "Wed, 30 Feb 1994 08:49:37 GMT",
                "Sun, 00 Nov 1994 08:49:37 GMT",
                "Sat, 01 Jan 0000 00:00:00 GMT",
                "Sun, 06 Nov 94 08:49:37 GMT",
                "Sun, 06-Nov-94 08:49:37 GMT",
                "Sun Nov 06 08:49:37 94",
                "Sun, 06 Nov \uff11\uff19\uff19\uff14 08:49:37 GMT",
            )
        ),
    ],
)
def test_date_formats_are_parsed(text, second):
    assert parse_http_date(text, 1_800_000_000) == second


def at(year, month=1, day=1, *clock):
    return calendar.timegm((year, month, day, *(*clock, 0, 0, 0)[:3]))


@pytest.mark.parametrize(
    ("year", "now_s", "means"),
    [
        (94, at(2026), 1994),
        (20, at(2026), 2020),
        (75, at(2026), 2075),
        (76, at(2026), 2076),  # 1 January 2076, 50 years to the second: not more
        (77, at(2026), 1977),
        (76, at(2025, 12, 31, 23, 59, 59), 1976),
        (49, at(1999), 1949),
        (48, at(1999), 1948),
    ],
)
def test_years_of_two_digits(year, now_s, means):
    day = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")[calendar.weekday(means, 1, 1)]
    assert parse_http_date(f"{day}, 01-Jan-{year:02} 00:00:00 GMT", now_s) == at(means)
