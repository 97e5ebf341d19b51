"""TLS to a Redis server: the authorities that are trusted, and the client's own certificate.

The contexts are ours. Those of ``redis`` trust the system's authorities also where others are named, ask the terminal
for the password of an encrypted key, and are kept by a connection for as long as the client lives.
"""

import ssl
from typing import Any

import attrs

from streaminfer._internal.validation import check_instance

__all__ = ["TlsFiles", "own_tls"]


@attrs.frozen
class TlsFiles:
    """Paths of files, which are read for each connection that is made.

    Attributes:
        ca: the authorities' certificates; ``None``: the system's.
        certificate: the client's certificate; ``None``: it has none.
        key: of ``certificate``, unencrypted; ``None``: it is in the same file.

    Raises:
        TypeError: one is no path.
        ValueError: a key without a certificate.
    """

    ca: str | None
    certificate: str | None
    key: str | None

    def __attrs_post_init__(self) -> None:
        for name, path in attrs.asdict(self).items():  # an empty one would stand for the system's authorities
            check_instance(
                f"tls_{name}", path, lambda it: it is None or (isinstance(it, str) and it != ""), "a path, or None"
            )
        if self.certificate is None and self.key is not None:
            raise ValueError("tls_certificate: expected one, since there is a tls_key, got None")

    def get(self) -> ssl.SSLContext:
        """Return the context of a new connection; ``redis.asyncio`` asks for it by this name.

        Raises:
            OSError: a file cannot be read, or its content is not what it should be.
        """
        context = ssl.create_default_context(cafile=self.ca)
        if self.certificate is not None:
            context.load_cert_chain(self.certificate, self.key, password=b"")
        return context


def own_tls(connection: type[Any], files: TlsFiles, *, blocking: bool = False) -> type[Any]:
    """Return a class of connections with TLS whose contexts are made from files.

    Args:
        connection: a class of ``redis.asyncio``.
        files: of TLS.
        blocking: it is one of ``redis``.
    """

    class Connection(connection):  # type: ignore[misc]
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.ssl_context = files

        if blocking:

            def _wrap_socket_with_ssl(self, sock: Any) -> ssl.SSLSocket:
                return files.get().wrap_socket(sock, server_hostname=self.host)

    return Connection
