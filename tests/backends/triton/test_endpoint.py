"""Addresses of servers, connections that may be unencrypted, and headers that are never shown."""

import traceback

import pytest

from streaminfer.backends.triton import TritonBackend
from streaminfer.backends.triton.endpoint import Tls, find_endpoint
from streaminfer.backends.triton.transport.headers import Headers, scrub
from streaminfer.errors import BackendError


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("127.0.0.1:9", "127.0.0.1:9"),
        ("127.9.9.9", "127.9.9.9:8001"),
        ("localhost", "localhost:8001"),
        ("LOCALHOST:1", "localhost:1"),
        ("grpc://[::1]:5", "[::1]:5"),
        ("[::ffff:127.0.0.1]:5", "[::ffff:127.0.0.1]:5"),
        ("unix:/tmp/x.sock", "unix:/tmp/x.sock"),
        ("unix:///tmp/x.sock", "unix:/tmp/x.sock"),
    ],
)
def test_local_address_needs_no_encryption(url, target):
    """An address that cannot leave this machine needs no encryption."""
    address = find_endpoint(url, "grpc", None, False)
    assert (address.target, address.local, address.tls) == (target, True, None)


@pytest.mark.parametrize(
    "url",
    ["127.0.0.1.evil.com:8001", "localhost.evil.com", "10.0.0.1", "triton", "[::ffff:10.0.0.1]", "[fe80::1]:5", "127.1",
     "0.0.0.0:8001", "2130706433"],
)  # fmt: skip
def test_other_hosts_need_tls_or_insecure(url):
    """A host that is not local needs TLS, or `insecure=True`."""
    with pytest.raises(ValueError, match=r"tls: expected a Tls or True.*insecure=True"):
        find_endpoint(url, "grpc", None, False)
    assert find_endpoint(url, "grpc", None, True).tls is None
    assert find_endpoint(url, "grpc", True, False).tls == Tls()


def test_scheme_selects_protocol_and_encryption():
    """The scheme of a URL selects the protocol and whether the connection is encrypted."""
    assert find_endpoint("grpcs://triton:1", "grpc", None, False).tls == Tls()
    address = find_endpoint("https://triton/behind/this/", "http", None, False)
    assert (address.target, address.path, str(address)) == ("triton:8000", "/behind/this", "triton:8000/behind/this")
    tls = Tls(ca=b"pem", server_name="triton")
    assert find_endpoint("grpcs://10.0.0.1", "grpc", tls, False).tls is tls


@pytest.mark.parametrize(
    ("url", "protocol", "tls", "insecure", "named"),
    [
        ("http://localhost", "grpc", None, False, "url"),
        ("xds://localhost", "grpc", None, False, "url"),
        ("grpcss://localhost", "grpc", None, False, "url"),
        ("localhost:0", "grpc", None, False, "url"),
        ("localhost:99999", "grpc", None, False, "url"),
        ("local host", "grpc", None, False, "url"),
        ("", "grpc", None, False, "url"),
        ("unix:", "grpc", None, False, "url"),
        ("localhost/path", "grpc", None, False, "url"),
        ("http://localhost/?x", "http", None, False, "url"),
        ("grpc://10.0.0.1", "grpc", True, False, "url"),
        ("grpcs://10.0.0.1", "grpc", False, False, "tls"),
        ("grpcs://10.0.0.1", "grpc", None, True, "insecure"),
        ("10.0.0.1", "grpc", True, True, "insecure"),
    ],
)
def test_invalid_or_contradictory_address_is_rejected(url, protocol, tls, insecure, named):
    """A URL that is invalid, or contradicts the other arguments, is rejected with the argument's name."""
    with pytest.raises(ValueError, match=f"^{named}: expected"):
        find_endpoint(url, protocol, tls, insecure)


def test_password_in_address_is_rejected_and_not_shown():
    """A password in the URL is rejected, and the error does not show it."""
    with pytest.raises(ValueError, match="headers=") as caught:
        find_endpoint("https://me:hunter2@triton", "http", None, False)
    assert "hunter2" not in str(caught.value)


def test_certificate_needs_its_key_and_hides_it():
    """A certificate and its key must be given together, and `repr` does not show the key."""
    with pytest.raises(ValueError, match="key: expected one"):
        Tls(certificate="x.pem")
    with pytest.raises(ValueError, match="certificate: expected one"):
        Tls(key="x.pem")
    with pytest.raises(TypeError, match="ca: expected"):
        Tls(ca=3)
    assert "secret" not in repr(Tls(certificate=b"public", key=b"secret"))


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"model": ""}, ValueError, "model"),
        ({"model": 3}, TypeError, "model"),
        ({"version": 1}, TypeError, "version"),
        ({"protocol": "tcp"}, ValueError, "protocol"),
        ({"timeout_s": 0}, ValueError, "timeout_s"),
        ({"statistics_every_s": 0}, ValueError, "statistics_every_s"),
        ({"keepalive_s": -1}, ValueError, "keepalive_s"),
        ({"max_streams": 0}, ValueError, "max_streams"),
        ({"shared_memory": 1}, TypeError, "shared_memory"),
        ({"url": "10.0.0.1", "insecure": True, "shared_memory": True}, ValueError, "shared_memory"),
        ({"headers": 3}, TypeError, "headers"),
    ],
)
def test_arguments_are_checked(changes, error, named):
    arguments = {"url": "localhost", "model": "m", **changes}
    with pytest.raises(error, match=f"^{named}: expected"):
        TritonBackend(arguments.pop("url"), arguments.pop("model"), **arguments)


@pytest.mark.parametrize(
    "given",
    [{"authorization": "hunter2\n"}, {"bad name": "hunter2"}, {"content-length": "hunter2"}, {"x-bin": "hunter2"},
     {"authorization": b"hunter2"}],
)  # fmt: skip
def test_unsendable_headers_are_rejected_and_not_shown(given):
    """Headers that cannot be sent are rejected, and the error does not show their values."""
    with pytest.raises((ValueError, TypeError), match="headers: expected") as caught:
        Headers(given)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_headers_function_is_called_for_each_request():
    tokens = iter(["Bearer first", "Bearer second"])
    headers = Headers(lambda: {"Authorization": next(tokens)})
    assert headers.now() == (("authorization", "Bearer first"),)
    assert headers.now() == (("authorization", "Bearer second"),)
    assert "second" not in repr(headers)
    with pytest.raises(BackendError, match="headers: the function failed with StopIteration"):
        headers.now()


@pytest.mark.parametrize(
    ("sent", "text", "shown"),
    [
        ((("authorization", "Bearer first"),), "not first, not Bearer first", "not ***, not ***"),
        ((("x-tenant", "acme"), ("authorization", "Bearer acme-9f8e")), "not Bearer acme-9f8e", "not ***"),
        ((("x-flag", "yes"),), "yes", "yes"),
        ((), "no header", "no header"),
    ],
    ids=["the token of a scheme", "a value that begins with another one", "three characters", "none"],
)
def test_header_values_are_scrubbed_from_server_text(sent, text, shown):
    """Values of headers are removed from the text that a server returns.

    The whole value is removed first, and a value that is too short to be a secret stays.
    """
    assert scrub(text, sent) == shown


def test_address_and_fingerprint_before_start():
    plain = TritonBackend("localhost:9", "m", headers={"authorization": "hunter2"})
    assert (plain.address, plain.encrypted, plain.missing_extensions) == ("localhost:9", False, ())
    assert TritonBackend("triton:9", "m", tls=True).encrypted
    assert "hunter2" not in repr(plain) + str(vars(plain))
    # without a version the model is unknown, so no two such backends have the same fingerprint
    assert plain.fingerprint != TritonBackend("localhost:9", "m").fingerprint
    assert TritonBackend("localhost:9", "m", version="3").fingerprint == "triton grpc://localhost:9 m 3"
