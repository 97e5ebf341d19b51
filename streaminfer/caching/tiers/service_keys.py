"""`ServiceKeys`: keys from a service that several machines call, such as a key management system."""

from typing import Protocol, runtime_checkable

from streaminfer._internal.validation import check_instance
from streaminfer.caching.tiers.encryption import Key, hashed_subject

__all__ = ["KeyService", "ServiceKeys"]

_INDEX_NAME = "index"
_ID_SIZE = 16


@runtime_checkable
class KeyService(Protocol):
    """Secrets by name, for all machines that share a tier: two calls to a key management system.

    Called from the threads of tiers, several at once; it may block. What it raises is a failure of the tier, and an
    erasure that could not destroy a key is tried again.
    """

    def get(self, name: str, *, create: bool, lasts_s: float | None = None) -> bytes | None:
        """Return the 32 secret bytes of a name.

        Args:
            name: ASCII letters and digits that tell nothing.
            create: make them where there are none; two callers at once must get the same.
            lasts_s: with ``create``, seconds for which they must be there from now on; after the last of all calls has
                ended, the service may destroy them. ``None``: for good.

        Returns:
            The bytes; ``None``: there are none, and ``create`` is false.
        """

    def destroy(self, name: str) -> bool:
        """Destroy the secret of a name, for good and for all; return whether there was one."""


class ServiceKeys:
    """Keys of a `KeyService`: a key for each subject, the same on every machine that calls the service.

    Nothing is cached: each record that is written or read costs a call, and a destroyed key is gone everywhere at once.
    There is no rotation: a subject has one key until it is destroyed, or the service ends it after its time.

    Args:
        service: a `KeyService`. It sees keyed hashes for names, and ``"index"`` for the secret that they are made by.

    Raises:
        TypeError: the service has not these methods.

    Threads: as many as the service allows.
    """

    def __init__(self, service: KeyService) -> None:
        check_instance("service", service, lambda it: isinstance(it, KeyService), "a KeyService: get and destroy")
        self._service = service
        self._secret = service.get(_INDEX_NAME, create=True) or b""
        Key(bytes(_ID_SIZE), self._secret)  # of the right size

    def current(self, subject: str | None, lasts_s: float | None = None) -> Key:
        """Return the key of a subject, or of what has none; make it if there is none."""
        key_id = self._id_of(subject)
        return Key(key_id, self._service.get(key_id.hex(), create=True, lasts_s=lasts_s) or b"")

    def find(self, key_id: bytes) -> Key | None:
        """Return the key of that id; ``None``: destroyed, or never one of these."""
        secret = self._service.get(bytes(key_id).hex(), create=False)
        return None if secret is None else Key(bytes(key_id), secret)

    def destroy(self, subject: str) -> int:
        """Destroy the key of a subject: what it sealed can never be read again; return how many there were."""
        check_instance("subject", subject, lambda it: isinstance(it, str), "a string")
        return int(self._service.destroy(self._id_of(subject).hex()))

    def index_secret(self) -> bytes:
        """Return 32 bytes that stay the same for as long as the service stores them."""
        return self._secret

    def _id_of(self, subject: str | None) -> bytes:
        return hashed_subject(self._secret, subject)[:_ID_SIZE]

    def __repr__(self) -> str:
        return f"<ServiceKeys of {type(self._service).__name__}>"
