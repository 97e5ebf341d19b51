"""TLS to a Redis server: the trusted authorities, and the client's certificate.

This module makes the TLS contexts itself. Those of ``redis`` trust the system's authorities even if others are given,
ask on the terminal for the password of an encrypted key, and are never renewed while the client lives.
"""

import asyncio
import ssl
from types import SimpleNamespace
from typing import Any

import attrs

from streaminfer._internal.validation import check_instance, is_name

__all__ = ["TlsFiles", "own_tls"]


@attrs.frozen
class TlsFiles:
    """Paths of TLS files, which are read for each new connection.

    Attributes:
        ca: certificates of the trusted authorities; ``None``: those of the system.
        certificate: the client's certificate; ``None``: no certificate.
        key: the unencrypted key of ``certificate``; ``None``: it is in the same file.

    Raises:
        TypeError: a value is not a path.
        ValueError: there is a key without a certificate.
    """

    ca: str | None
    certificate: str | None
    key: str | None

    def __attrs_post_init__(self) -> None:
        for name, path in attrs.asdict(self).items():  # an empty path would mean the system's authorities
            check_instance(f"tls_{name}", path, lambda it: it is None or is_name(it), "a path, or None")
        if self.certificate is None and self.key is not None:
            raise ValueError("tls_certificate: expected one, since there is a tls_key, got None")

    def get(self) -> ssl.SSLContext:
        """Return the context of a new connection; blocks for milliseconds.

        Raises:
            OSError: a file cannot be read, or its content is invalid. The message names it, which those of ``ssl``
                do not; ``redis`` adds the server's address.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca)
        except OSError as error:
            text = f"tls_ca: expected certificates in PEM, got {self.ca!r}: {error.strerror}"
            raise OSError(error.errno, text) from error
        if self.certificate is not None:
            try:
                context.load_cert_chain(self.certificate, self.key, password=b"")
            except OSError as error:
                text = (
                    "tls_certificate, tls_key: expected a certificate and its unencrypted key in PEM, "
                    f"got {self.certificate!r}, {self.key!r}: {error.strerror}"
                )
                raise OSError(error.errno, text) from error
        return context


def own_tls(connection: type[Any], files: TlsFiles, *, blocking: bool = False) -> type[Any]:
    """Return a class of TLS connections that make their contexts from files.

    Args:
        connection: a class of ``redis.asyncio``.
        files: the TLS files.
        blocking: whether ``connection`` is a class of ``redis``.
    """

    class Connection(connection):  # type: ignore[misc]
        if blocking:

            def _wrap_socket_with_ssl(self, sock: Any) -> ssl.SSLSocket:
                return files.get().wrap_socket(sock, server_hostname=self.host)

        else:

            async def _connect(self) -> None:
                context = await asyncio.to_thread(files.get)
                self.ssl_context = SimpleNamespace(get=lambda: context)  # as `redis` reads it
                await super()._connect()

    return Connection
