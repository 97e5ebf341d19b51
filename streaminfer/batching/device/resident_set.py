"""Models in a device's memory: a state machine without loop, thread or clock.

*Design*. A model that is not in memory is *loaded* before its next batch, and models that are not needed meanwhile are
evicted until it fits. Victims are the models whose next batch is needed last; for models of one size, no other choice
needs fewer loads (L. A. Belady, "A study of replacement algorithms for a virtual-storage computer", IBM Systems Journal
5, 1966). Victims that fit after all stay. One load runs at a time. The expected duration of a load is the exponential
mean of earlier ones, evictions included; 0 before the first.

*Invariants*. The models in memory, or about to be there, never exceed the memory. A busy model is not evicted.

*Complexity*. O(models · log models) for a load.
"""

from collections.abc import Callable, Collection, Hashable
from typing import Generic, TypeVar

__all__ = ["ResidentSet"]

_NEWEST_WEIGHT = 0.3

K = TypeVar("K", bound=Hashable)


class ResidentSet(Generic[K]):
    """Models in a device's memory.

    Args:
        memory_bytes: the size of the memory.

    Attributes:
        bytes_of: bytes of each model in memory, or about to be there.
        loading: the model that is being loaded; ``None``: none is.
    """

    def __init__(self, memory_bytes: int) -> None:
        self.memory_bytes = memory_bytes
        self.bytes_of: dict[K, int] = {}
        self.loading: K | None = None
        self._began_ns = 0
        self._leaving: dict[K, int] = {}
        self._load_ns: dict[K, float] = {}

    def is_loaded(self, key: K) -> bool:
        """Return whether a model can run."""
        return key in self.bytes_of and key != self.loading

    def load_ns(self, key: K | None) -> int:
        """Return the expected nanoseconds of a load of a model; 0: unknown, or no model."""
        return 0 if key is None else round(self._load_ns.get(key, 0.0))

    def expected_end_ns(self) -> int:
        """Return when the running load is expected to end."""
        return self._began_ns if self.loading is None else self._began_ns + self.load_ns(self.loading)

    def victims(self, key: K, needs: int, busy: Collection[K], needed_ns: Callable[[K], float]) -> list[K] | None:
        """Return the models that must leave before another one can be loaded.

        Args:
            key: the model to load.
            needs: its bytes.
            busy: models that must not leave now.
            needed_ns: returns when a model's next batch has to start.

        Returns:
            ``None``: there is no room for it now.
        """
        short = needs + sum(self.bytes_of.values()) - self.memory_bytes
        leaving: list[K] = []
        idle = [other for other in self.bytes_of if other != key and other not in busy]
        for other in sorted(idle, key=needed_ns, reverse=True):
            if short <= 0:
                break
            leaving.append(other)
            short -= self.bytes_of[other]
        if short > 0:
            return None
        for other in reversed(leaving.copy()):  # those that are needed first
            if short + self.bytes_of[other] <= 0:
                short += self.bytes_of[other]
                leaving.remove(other)
        return leaving

    def begin(self, key: K, needs: int, leaving: Collection[K], now_ns: int) -> None:
        """Note that a model is being loaded, after others have left."""
        self._leaving = {other: self.bytes_of.pop(other) for other in leaving}
        self.bytes_of[key] = needs
        self.loading = key
        self._began_ns = now_ns

    def end(self, now_ns: int, *, succeeded: bool, retained: int = 0) -> int:
        """Note that the load ended.

        Args:
            now_ns: when it ended.
            succeeded: the model can run.
            retained: how many of those that were to leave, the last ones, have stayed.

        Returns:
            The nanoseconds that the load took.
        """
        key, self.loading = self.loading, None
        duration_ns = now_ns - self._began_ns
        if key is not None and succeeded:
            before = self._load_ns.get(key, float(duration_ns))
            self._load_ns[key] = before + _NEWEST_WEIGHT * (duration_ns - before)
        elif key is not None:
            del self.bytes_of[key]
        self.bytes_of |= dict(list(self._leaving.items())[len(self._leaving) - retained :])
        self._leaving = {}
        return duration_ns
