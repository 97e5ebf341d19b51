"""Which keys of a tier have a newer value, or none, than the tier may still hold."""

from streaminfer.caching.tiers.protocol import SKEW_NS

__all__ = ["NewerValues"]

MAX_KEYS = 10_000


class NewerValues:
    """By key the instant from which on an entry of a tier may be used: what is older was replaced, or deleted.

    Instants are of the tier's wall clock. It may stand still between two changes of a key, or be set back by less than
    a minute: each change is later than what was stored or changed before it all the same, by a nanosecond.
    """

    def __init__(self) -> None:
        self._since_ns: dict[str | bytes, int] = {}
        self._others_since_ns = 0
        self._latest_ns = 0

    def replace(self, key: str | bytes, now_ns: int, *, deletes: bool) -> None:
        """Note a change of a key; a deletion also concerns what others have stored at this instant."""
        if now_ns <= self._latest_ns <= now_ns + SKEW_NS:
            now_ns = self._latest_ns + 1
        self._latest_ns = now_ns
        self._since_ns.pop(key, None)
        while len(self._since_ns) >= MAX_KEYS:  # what is not known of each is held of all
            oldest = next(iter(self._since_ns))
            self._others_since_ns = max(self._others_since_ns, self._since_ns.pop(oldest))
        self._since_ns[key] = now_ns + deletes

    def store(self, stored_ns: int) -> None:
        """Note that an entry of an instant is about to be stored."""
        self._latest_ns = max(self._latest_ns, stored_ns)

    def since_ns(self, key: str | bytes) -> int:
        """Return from which instant on an entry of a key may be used."""
        return self._since_ns.get(key, self._others_since_ns)

    def settle(self, key: str | bytes) -> None:
        """Note that the tier has taken the latest change of a key."""
        self._since_ns.pop(key, None)
