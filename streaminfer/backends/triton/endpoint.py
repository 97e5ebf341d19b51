"""Address of a server, and the decision whether requests to it may be unencrypted.

Rule: TLS is required, unless the address cannot leave this machine (a Unix socket, ``localhost``, an address that the
standard library calls loopback) or the caller explicitly allows it (``insecure=True``). A host is judged by what it
*is* once parsed, never by how it begins: ``127.0.0.1.evil.com`` is a name in another domain.
"""

import ipaddress
import os
import re
import ssl
import tempfile
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import attrs

from streaminfer._internal.validation import check_instance, expected, field_check, is_name

__all__ = ["Endpoint", "Protocol", "Tls", "find_endpoint"]

Protocol = Literal["grpc", "http"]
Pem = str | os.PathLike[str] | bytes

_PORTS = {"grpc": 8001, "http": 8000}
_ENCRYPTED = {"grpc": False, "grpcs": True, "http": False, "https": True}
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?")


_PEM = field_check(check_instance, str | os.PathLike | bytes, "a path, PEM bytes, or None", optional=True)
_NAME = field_check(check_instance, is_name, "a name, or None", optional=True)


@attrs.frozen
class Tls:
    """TLS settings: how the server proves its identity and, with a certificate and a key, how this client does.

    Files are read at each start of a backend, and not again while it runs.

    Attributes:
        ca: the certificates of the authorities to trust, as a path or PEM bytes; ``None``: the system's.
        certificate: this client's certificate chain, as a path or PEM bytes, for servers that want one (mutual TLS).
        key: the private key of ``certificate``, unencrypted, as a path or PEM bytes; never shown.
        server_name: the name in the server's certificate, if it differs from the host's.

    Raises:
        TypeError: a field of the wrong type.
        ValueError: a certificate without a key, or a key without a certificate.
    """

    ca: Pem | None = attrs.field(default=None, validator=_PEM, repr=False)
    certificate: Pem | None = attrs.field(default=None, validator=_PEM, repr=False)
    key: Pem | None = attrs.field(default=None, validator=_PEM, repr=False)
    server_name: str | None = attrs.field(default=None, validator=_NAME)

    def __attrs_post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            present, missing = ("key", "certificate") if self.certificate is None else ("certificate", "key")
            raise ValueError(f"{missing}: expected one, since there is a {present}, got None")

    def read(self, field: str) -> bytes | None:
        """Return the PEM bytes of ``"ca"``, ``"certificate"`` or ``"key"``; ``None`` if the field is empty.

        Raises:
            OSError: there is no such file.
        """
        value = getattr(self, field)
        return value if value is None or isinstance(value, bytes) else Path(value).read_bytes()

    def context(self) -> ssl.SSLContext:
        """Return these settings for the standard library's TLS.

        Raises:
            OSError: a file cannot be read.
            ValueError: the content of a file is invalid.
        """
        ca = self.read("ca")
        # bundles have comments with non-ASCII letters, which the standard library rejects; with an empty text it would
        # trust the system's authorities
        text = None if ca is None else ca.decode("ascii", "ignore") or "\n"
        try:
            context = ssl.create_default_context(cadata=text)
        except ssl.SSLError as error:
            raise ValueError(f"tls.ca: expected certificates in PEM, got something else: {error}") from error
        certificate, key = self.read("certificate"), self.read("key")
        if certificate is not None and key is not None:
            # the standard library reads these from files only; this file is private, and deleted at once
            handle, path = tempfile.mkstemp(suffix=".pem")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(certificate.rstrip(b"\n") + b"\n" + key)
                context.load_cert_chain(path, password=b"")  # without a password, OpenSSL would prompt for one
            except ssl.SSLError as error:
                raise ValueError(
                    "tls.certificate, tls.key: expected a certificate and its private key, unencrypted, in PEM, "
                    f"got something else: {error}"
                ) from error
            finally:
                Path(path).unlink()
        return context


@attrs.frozen
class Endpoint:
    """Address of a server.

    Attributes:
        host: a name or an address, without brackets; empty for a Unix socket.
        port: its port; 0 for a Unix socket.
        path: the path of the Unix socket, or the prefix of the server's HTTP paths.
        tls: how the connection is encrypted; ``None``: it is not encrypted.
    """

    host: str
    port: int
    path: str
    tls: Tls | None

    @property
    def local(self) -> bool:
        """True if requests to the address cannot leave this machine."""
        return not self.host or _is_loopback(self.host)

    @property
    def target(self) -> str:
        """Address for gRPC: ``host:port``, or ``unix:`` and the path."""
        if not self.host:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return self.target + (self.path if self.host else "")


def find_endpoint(url: str, protocol: Protocol, tls: "Tls | bool | None", insecure: bool) -> Endpoint:
    """Parse an address, and decide whether the connection is encrypted.

    Args:
        url: ``host``, ``host:port``, with ``grpc://``, ``grpcs://``, ``http://`` or ``https://`` before it or not, or
            ``unix:`` and a path.
        protocol: the protocol of the server.
        tls: how to encrypt; true: with the system's authorities; ``None`` or false: the scheme of ``url`` decides.
        insecure: whether an unencrypted connection to another machine is allowed.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: the address is invalid, arguments contradict each other, or another machine is named without TLS.
    """
    check_instance("url", url, str, "an address")
    check_instance("tls", tls, bool | Tls | None, "a Tls, True, False or None")
    check_instance("insecure", insecure, bool, "True or False")
    requested_tls = Tls() if tls is True else tls or None
    if url.startswith("unix:"):
        path = url.removeprefix("unix:")
        path = path.removeprefix("//") if path.startswith("///") else path
        if not path:
            raise ValueError(expected("url", "a path after unix:", url))
        address = Endpoint("", 0, path, requested_tls)
    else:
        address = _parse(url, protocol, requested_tls, tls is False)
    if protocol == "http" and not address.host and address.tls is not None:
        raise ValueError("tls: expected None, since HTTP through a Unix socket cannot be encrypted here, got one")
    if address.tls is not None and insecure:
        raise ValueError("insecure: expected False, since tls= or the address's scheme encrypts, got True")
    if address.tls is None and not address.local and not insecure:
        raise ValueError(
            f"tls: expected a Tls or True, since {address} is not this machine, got None: what is sent there could be "
            "read and changed on its way; insecure=True sends it all the same"
        )
    return address


def _parse(url: str, protocol: Protocol, tls: Tls | None, is_tls_disabled: bool) -> Endpoint:
    scheme, separator, rest = url.partition("://")
    scheme, rest = (scheme.lower(), rest) if separator else (protocol, url)
    if scheme.rstrip("s") != protocol or scheme not in _ENCRYPTED:
        raise ValueError(f"url: expected no scheme, {protocol}:// or {protocol}s:// with protocol={protocol!r}, got "
                         f"{scheme}://")  # fmt: skip
    if "@" in rest:
        raise ValueError("url: expected no user name or password in it, got one (not shown): headers= carries them")
    expectation = "host:port, perhaps with a scheme, or unix: and a path"
    if "?" in rest or "#" in rest:  # the rest may contain a token
        raise ValueError("url: expected nothing behind the path, got a query or a fragment (not shown)")
    try:
        parts = urlsplit(f"//{rest}")
        port = parts.port if parts.port is not None else _PORTS[protocol]
    except ValueError as error:
        raise ValueError(f"{expected('url', expectation, url)}: {error}") from None
    host, path = parts.hostname or "", parts.path.rstrip("/")
    if not _is_host(host) or port == 0:
        raise ValueError(expected("url", expectation, url))
    if path and protocol == "grpc":
        raise ValueError(expected("url", "no path: gRPC has none", url))
    if _ENCRYPTED[scheme]:
        if is_tls_disabled:
            raise ValueError(expected("tls", f"no False with {scheme}://", False))
        tls = tls or Tls()
    elif separator and tls is not None:
        raise ValueError(f"url: expected {protocol}s:// or no scheme, since tls= is given, got {scheme}://")
    return Endpoint(host, port, path, tls)


def _is_host(host: str) -> bool:
    is_name = bool(host) and all(_LABEL.fullmatch(label) for label in host.removesuffix(".").split("."))
    return is_name or _ip_address(host) is not None


def _is_loopback(host: str) -> bool:
    address = _ip_address(host)
    return host == "localhost" if address is None else (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _ip_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
