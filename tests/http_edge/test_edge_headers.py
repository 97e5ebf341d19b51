"""Header fields, entity tags and addresses of responses: which cache may store a response, and for how long."""

import hashlib
import math
import re
import subprocess
import sys

import pytest
import xxhash
from hypothesis import example, given
from hypothesis import strategies as st

import streaminfer as si
from streaminfer.http_edge import EdgePolicy, content_path, edge_headers, entity_tag

NOW_S = 784_111_777.25  # Sun, 06 Nov 1994 08:49:37 GMT
DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
REQUEST = si.Request("x")
ANSWER = si.Response([1.0])


def said(policy=None, request=REQUEST, response=ANSWER, now_s=NOW_S, **more):
    return edge_headers(EdgePolicy(fresh_s=60) if policy is None else policy, request, response, now_s=now_s, **more)


def directives(headers):
    found = {}
    for each in headers["cache-control"].split(", "):
        name, _, value = each.partition("=")
        assert name not in found
        found[name] = int(value) if value else True
    return found


def test_headers_of_a_plain_response():
    assert said(etag='"a"') == {
        "cache-control": "max-age=60, must-revalidate",
        "date": DATE,
        "vary": "authorization",
        "etag": '"a"',
    }


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"stale_while_revalidate_s": 30}, "max-age=60, stale-while-revalidate=30"),
        ({"stale_if_error_s": 600}, "max-age=60, stale-if-error=600"),
        (
            {"stale_while_revalidate_s": 30, "stale_if_error_s": 600, "immutable": True},
            "max-age=60, stale-while-revalidate=30, stale-if-error=600, immutable",
        ),
        ({"client_s": 5}, "max-age=5, s-maxage=60, must-revalidate"),
        ({"client_s": 500}, "max-age=60, s-maxage=60, must-revalidate"),
        ({"lifetime_s": 20}, "max-age=20, must-revalidate"),
        ({"lifetime_s": 70, "stale_while_revalidate_s": 30}, "max-age=60, stale-while-revalidate=10"),
        ({"lifetime_s": 60, "stale_if_error_s": 30}, "max-age=60, must-revalidate"),
        ({"immutable": True}, "max-age=60, must-revalidate, immutable"),
        ({"stale_if_error_s": 0.9}, "max-age=60, must-revalidate"),
    ],
)
def test_cache_control_of_each_setting(settings, text):
    assert said(EdgePolicy(fresh_s=60, **settings))["cache-control"] == text


@pytest.mark.parametrize(
    ("request_", "response", "more"),
    [
        (REQUEST, si.Response([1.0], True), {}),
        (REQUEST, ANSWER, {"store": False}),
        (si.Request("x", store=False), ANSWER, {}),
        (si.Request("x", subject="anna"), ANSWER, {}),
        (si.Request("x", stream_id=7), ANSWER, {}),
    ],
)
@pytest.mark.parametrize("share_tenants", [False, True])
def test_responses_that_must_not_be_stored(request_, response, more, share_tenants):
    policy = EdgePolicy(fresh_s=60, share_tenants=share_tenants, send_age=True, immutable=True, stale_if_error_s=9)
    got = said(policy, request_, response, etag='"a"', computed_s=NOW_S - 5, **more)
    assert got == {"cache-control": "no-store", "date": DATE, "vary": "authorization"}


def test_response_past_its_lifetime_is_not_stored():
    policy = EdgePolicy(fresh_s=60, lifetime_s=100, stale_if_error_s=60)
    assert said(policy, computed_s=NOW_S - 99)["cache-control"] == "max-age=1, must-revalidate"
    assert said(policy, computed_s=NOW_S - 99.1)["cache-control"] == "no-store"
    assert said(policy, computed_s=NOW_S - 1e6)["cache-control"] == "no-store"


def test_response_from_the_future_has_age_zero():
    """A response computed in the future has the age and lifetime of one computed at present."""
    got = said(EdgePolicy(fresh_s=60, lifetime_s=30, send_age=True), computed_s=NOW_S + 50)
    assert (got["age"], got["cache-control"]) == ("0", "max-age=30, must-revalidate")
    assert "last-modified" not in got


@pytest.mark.parametrize(("request_", "more"), [(si.Request("x", tenant="t"), {}), (REQUEST, {"authorized": True})])
def test_response_to_a_tenant_is_private_or_varies(request_, more):
    policy = EdgePolicy(fresh_s=60, client_s=5)
    assert said(policy, request_, **more)["cache-control"] == "private, max-age=5, must-revalidate"
    shared = EdgePolicy(fresh_s=60, client_s=5, share_tenants=True, credentials="Cookie", vary=["Accept"])
    got = said(shared, request_, **more)
    one_for_each = "public, max-age=5, s-maxage=60, must-revalidate"
    assert got["cache-control"] == ("private, max-age=5, must-revalidate" if more else one_for_each)
    assert got["vary"] == "accept, cookie"
    assert said(EdgePolicy(fresh_s=60), request_, **more)["cache-control"] == "private, max-age=60, must-revalidate"


def test_credentials_without_tenant_are_never_shared():
    """A response to credentials without a tenant is private, because it does not vary by all credentials.

    They may be a cookie, and one user would get the response to another."""
    policy = EdgePolicy(fresh_s=60, share_tenants=True)
    assert said(policy, authorized=True)["cache-control"] == "private, max-age=60, must-revalidate"
    tenant = si.Request("x", tenant="t")
    assert said(policy, tenant, authorized=True)["cache-control"] == "public, max-age=60, must-revalidate"
    assert said(policy)["cache-control"] == "max-age=60, must-revalidate"


def test_all_responses_of_a_policy_vary_by_credentials():
    """All responses of a policy vary by the credentials, whatever the request."""
    policy = EdgePolicy(fresh_s=60, vary=("Accept", "ACCEPT", "authorization"))
    for request in (REQUEST, si.Request("x", tenant="t"), si.Request("x", store=False)):
        assert said(policy, request)["vary"] == "accept, authorization"


def test_last_modified_is_sent_once_its_second_is_over():
    """`Last-Modified` is sent only once the second that it names has passed."""
    policy = EdgePolicy(fresh_s=60)
    assert "last-modified" not in said(policy)
    assert "last-modified" not in said(policy, computed_s=NOW_S - 0.2)
    assert said(policy, computed_s=NOW_S - 0.3)["last-modified"] == "Sun, 06 Nov 1994 08:49:36 GMT"


def test_age_header_is_sent_if_enabled():
    policy = EdgePolicy(fresh_s=60, lifetime_s=100, send_age=True, client_s=10)
    got = said(policy, computed_s=NOW_S - 29.5)
    assert (got["age"], got["cache-control"]) == ("30", "max-age=40, s-maxage=90, must-revalidate")
    assert said(policy)["age"] == "0"
    assert "age" not in said(EdgePolicy(fresh_s=60), computed_s=NOW_S - 30)


SECONDS = st.floats(1.0, 1e6)
WINDOWS = st.sampled_from([0.0, 0.5, 1.0]) | st.floats(0.0, 1e6)


@given(
    fresh_s=SECONDS,
    lifetime_s=st.none() | SECONDS,
    windows=st.tuples(WINDOWS, WINDOWS),
    client_s=st.none() | SECONDS,
    age_s=st.floats(0.0, 1e6) | st.floats(0.0, 3.0),
    send_age=st.booleans(),
    tenant=st.none() | st.just("t"),
    share=st.booleans(),
    degraded=st.booleans(),
)
@example(60.0, 60.0, (9.0, 9.0), None, 30.0, True, None, False, False)
def test_no_copy_is_used_past_its_limits(
    fresh_s, lifetime_s, windows, client_s, age_s, send_age, tenant, share, degraded
):
    policy = EdgePolicy(
        fresh_s=fresh_s,
        lifetime_s=lifetime_s,
        stale_while_revalidate_s=windows[0] if client_s is None else 0.0,
        stale_if_error_s=windows[1] if client_s is None else 0.0,
        client_s=client_s,
        send_age=send_age,
        share_tenants=share,
    )
    got = edge_headers(
        policy,
        si.Request("x", tenant=tenant),
        si.Response(1, degraded),
        now_s=1e9 + age_s,
        computed_s=1e9,
        etag='"a"',
    )
    orders = directives(got)
    left_s = (math.inf if lifetime_s is None else lifetime_s) - age_s
    if degraded or min(fresh_s, left_s) < 1:
        assert orders == {"no-store": True}
        assert not {"etag", "age", "last-modified"} & got.keys()
        return
    age = int(got.get("age", 0))
    assert send_age == ("age" in got)
    assert age >= (age_s if send_age else 0) - 1e-6
    ends = [orders["max-age"] - age, orders.get("s-maxage", 0) - age]
    window = max(orders.get("stale-while-revalidate", 0), orders.get("stale-if-error", 0))
    assert 1 <= max(ends) <= fresh_s
    assert max(ends) + window <= left_s + 1e-6
    assert max(ends) > min(fresh_s, left_s) - 1 - 1e-6 or client_s is not None
    assert ("must-revalidate" in orders) == (window == 0)
    assert ("private" in orders) == (tenant is not None and not share)
    assert ("public" in orders) == (tenant is not None and share)
    assert "authorization" in got["vary"]


@pytest.mark.parametrize(
    ("settings", "error", "named"),
    [
        ({"fresh_s": 0.9}, ValueError, "fresh_s"),
        ({"fresh_s": math.inf}, ValueError, "fresh_s"),
        ({"fresh_s": "60"}, TypeError, "fresh_s"),
        ({"fresh_s": None}, TypeError, "fresh_s"),
        ({"lifetime_s": 0.5}, ValueError, "lifetime_s"),
        ({"client_s": 0}, ValueError, "client_s"),
        ({"client_s": 5, "stale_if_error_s": 1}, ValueError, "client_s"),
        ({"client_s": 5, "stale_while_revalidate_s": 1}, ValueError, "client_s"),
        ({"stale_while_revalidate_s": -1}, ValueError, "stale_while_revalidate_s"),
        ({"stale_if_error_s": math.nan}, ValueError, "stale_if_error_s"),
        ({"vary": "accept"}, TypeError, "vary"),
        ({"vary": ["*"]}, ValueError, "vary"),
        ({"vary": ["a b"]}, ValueError, "vary"),
        ({"vary": [b"accept"]}, TypeError, "vary"),
        ({"credentials": "a\r\nx: y"}, ValueError, "credentials"),
        ({"immutable": 1}, TypeError, "immutable"),
        ({"share_tenants": "no"}, TypeError, "share_tenants"),
        ({"send_age": None}, TypeError, "send_age"),
    ],
)
def test_wrong_policy_is_rejected(settings, error, named):
    with pytest.raises(error, match=f"^{named}: expected"):
        EdgePolicy(**{"fresh_s": 60, **settings})


@pytest.mark.parametrize(
    ("more", "error", "named"),
    [
        ({"now_s": "0"}, TypeError, "now_s"),
        ({"now_s": True}, TypeError, "now_s"),
        ({"now_s": math.nan}, ValueError, "now_s"),
        ({"now_s": -1}, ValueError, "now_s"),
        ({"now_s": 1e12}, ValueError, "now_s"),
        ({"computed_s": math.inf}, ValueError, "computed_s"),
        ({"etag": "a"}, ValueError, "etag"),
        ({"etag": '"a"\r\nx: y'}, ValueError, "etag"),
        ({"etag": b'"a"'}, TypeError, "etag"),
        ({"policy": 60}, TypeError, "policy"),
        ({"request": None}, TypeError, "request"),
        ({"response": [1.0]}, TypeError, "response"),
    ],
)
def test_wrong_arguments_are_rejected(more, error, named):
    with pytest.raises(error, match=f"^{named}: expected"):
        said(**more)


def test_entity_tag_is_the_hash_of_the_body():
    assert entity_tag(b"a") == f'"{xxhash.xxh3_128_hexdigest(b"a")}"' == entity_tag(bytearray(b"a"))
    assert entity_tag(b"a", weak=True) == "W/" + entity_tag(memoryview(b"a"))
    assert entity_tag(b"b") != entity_tag(b"a")
    with pytest.raises(TypeError, match="content: expected bytes"):
        entity_tag("a")


def test_view_with_gaps_is_hashed_as_its_bytes():
    gaps = memoryview(b"a-b-c-")[::2]
    assert entity_tag(gaps) == entity_tag(b"abc")
    assert content_path(gaps, version="1") == content_path(b"abc", version="1")


def test_content_path_has_the_digest_of_the_body():
    digest = hashlib.sha256(b"[1]").hexdigest()
    assert content_path(b"[1]", version="m-1.2_3~") == f"/v1/infer/m-1.2_3~/{digest}"
    assert content_path(memoryview(b"[1]"), version="1", prefix="/a/b") == f"/a/b/1/{digest}"
    assert re.fullmatch(r"/v1/infer/1/[0-9a-f]{64}", content_path(b"", version="1"))


@pytest.mark.parametrize("text", ["", "..", ".a", "a/b", "a b", "a?b", "a\n", "é", 'a"'])
def test_content_path_rejects_ambiguous_parts(text):
    """The version and prefix of a content path hold no character that has another meaning in a URL."""
    with pytest.raises(ValueError, match=r"^version: expected"):
        content_path(b"", version=text)
    with pytest.raises(ValueError, match=r"^prefix: expected"):
        content_path(b"", version="1", prefix=f"{text}/")
    for name, given_ in (("version", {"version": 1}), ("prefix", {"version": "1", "prefix": b"/a"})):
        with pytest.raises(TypeError, match=f"^{name}: expected"):
            content_path(b"", **given_)
    with pytest.raises(TypeError, match=r"^body: expected"):
        content_path("", version="1")


def test_caching_does_not_import_http_edge():
    code = (
        "import sys, streaminfer.caching as c; c.EdgeCache; c.content_key; "
        "print([m for m in sys.modules if m.startswith('streaminfer.http_edge')])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
