"""Keys of a tier that were replaced or deleted, while the tier may still hold the old value."""

from streaminfer.caching.tiers.protocol import SKEW_NS

__all__ = ["NewerValues"]

MAX_KEYS = 10_000


class NewerValues:
    """For each key, the instant from which an entry of the tier may be used; an older one was replaced or deleted.

    Instants are those of the tier's wall clock. The clock may stand still between two changes of a key, or be set back
    by less than a minute. Each change is nevertheless later than everything stored or changed before it, if only by a
    nanosecond.
    """

    def __init__(self) -> None:
        self._since_ns: dict[str | bytes, int] = {}
        self._others_since_ns = 0
        self._latest_ns = 0

    def replace(self, key: str | bytes, now_ns: int, *, deletes: bool) -> None:
        """Note a change of a key; a deletion also covers entries that others stored at this same instant."""
        if now_ns <= self._latest_ns <= now_ns + SKEW_NS:
            now_ns = self._latest_ns + 1
        self._latest_ns = now_ns
        self._since_ns.pop(key, None)
        while len(self._since_ns) >= MAX_KEYS:  # forgotten keys share the latest of their instants
            oldest = next(iter(self._since_ns))
            self._others_since_ns = max(self._others_since_ns, self._since_ns.pop(oldest))
        self._since_ns[key] = now_ns + deletes

    def store(self, stored_ns: int) -> None:
        """Note that an entry with this instant is about to be stored."""
        self._latest_ns = max(self._latest_ns, stored_ns)

    def since_ns(self, key: str | bytes) -> int:
        """Return the instant from which an entry of a key may be used."""
        return self._since_ns.get(key, self._others_since_ns)

    def settle(self, key: str | bytes) -> None:
        """Note that the tier has stored the latest change of a key."""
        self._since_ns.pop(key, None)
