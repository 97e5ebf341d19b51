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

    Tiers call it from their threads, several at once; it may block. Its exceptions are failures of the tier, and the
    cache retries an erasure that could not destroy a key.
    """

    def get(self, name: str, *, create: bool, lasts_s: float | None = None) -> bytes | None:
        """Return the 32 secret bytes of a name.

        Args:
            name: ASCII letters and digits that reveal nothing.
            create: make them if there are none; two concurrent callers must get the same bytes.
            lasts_s: with ``create``, seconds from now for which the bytes must exist; when the times of all calls have
                passed, the service may destroy them. ``None``: for good.

        Returns:
            The bytes; ``None`` if there are none and ``create`` is false.
        """

    def destroy(self, name: str) -> bool:
        """Destroy the secret of a name permanently and for all machines; return whether there was one."""


class ServiceKeys:
    """Keys of a `KeyService`: a key for each subject, the same on every machine that calls the service.

    Nothing is cached: each record that is written or read costs a call, and a destroyed key is gone everywhere at once.
    There is no rotation: a subject has one key until it is destroyed, or until the service ends it after its time.

    Args:
        service: a `KeyService`. Names are keyed hashes; the secret for these hashes has the name ``"index"``.

    Raises:
        TypeError: the service lacks one of these methods.

    Thread-safe if the service is.
    """

    def __init__(self, service: KeyService) -> None:
        check_instance("service", service, KeyService, "a KeyService: get and destroy")
        self._service = service
        self._secret = service.get(_INDEX_NAME, create=True) or b""
        Key(bytes(_ID_SIZE), self._secret)  # checks the size of the secret

    def current(self, subject: str | None, lasts_s: float | None = None) -> Key:
        """Return the key of a subject, or of entries without one (``None``); make it if it does not exist."""
        key_id = self._id_of(subject)
        return Key(key_id, self._service.get(key_id.hex(), create=True, lasts_s=lasts_s) or b"")

    def find(self, key_id: bytes) -> Key | None:
        """Return the key with this id; ``None`` if it was destroyed or never existed."""
        secret = self._service.get(bytes(key_id).hex(), create=False)
        return None if secret is None else Key(bytes(key_id), secret)

    def destroy(self, subject: str) -> int:
        """Destroy the key of a subject, so that its records can never be read again; return the number of keys."""
        check_instance("subject", subject, str, "a string")
        return int(self._service.destroy(self._id_of(subject).hex()))

    def index_secret(self) -> bytes:
        """Return 32 bytes that stay the same for as long as the service stores them."""
        return self._secret

    def _id_of(self, subject: str | None) -> bytes:
        return hashed_subject(self._secret, subject)[:_ID_SIZE]

    def __repr__(self) -> str:
        return f"<ServiceKeys of {type(self._service).__name__}>"
