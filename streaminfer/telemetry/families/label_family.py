"""`LabelFamily`: one histogram, counter or other object per set of label values, with a bound on their number."""

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from streaminfer._internal.locking import thread_safe
from streaminfer._internal.validation import check_count, check_instance, expected
from streaminfer.telemetry.families._label_family_cy import LabelFamilyState
from streaminfer.telemetry.families.routes import OTHER

__all__ = ["OTHER", "LabelFamily"]

T = TypeVar("T")

if TYPE_CHECKING:
    from streaminfer.telemetry.families._label_family_cy import LabelFamilyState as _State
else:
    _State = thread_safe(LabelFamilyState)


class LabelFamily(_State, Generic[T]):
    """One child per set of label values; sets beyond a bound share one child, so that no client can fill the memory.

    Args:
        make: returns a new child: a class such as :class:`LatencyHistogram`, or a function without arguments.
        *labels: names of the labels, at least one.
        max_sets: most sets with their own child; later sets share the child with ``"other"`` for every label.

    Attributes:
        labels: names of the labels.
        max_sets: as given.
        overflowed: number of calls of :meth:`of` that returned the shared child.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range, or two labels have the same name.

    Threads: any number of threads may call it at once. If the label values are fixed, look the child up once and reuse
    it.

    Example:
        >>> from streaminfer.telemetry import LatencyHistogram
        >>> family = LabelFamily(LatencyHistogram, "route", "tenant", max_sets=100)
        >>> family.of("large", "gold").record(0.02)
        >>> [(values, child.count) for values, child in family.items()]
        [(('large', 'gold'), 1)]
    """

    def __init__(self, make: Callable[[], T], *labels: str, max_sets: int = 256) -> None:
        check_instance("make", make, callable, "a class or a function without arguments")
        for label in labels:
            check_instance("labels", label, str, "names of labels")
        if not labels or len(set(labels)) < len(labels):
            raise ValueError(expected("labels", "at least one name, each once", labels))
        self.labels = labels
        super().__init__(make, check_count("max_sets", max_sets, at_most=sys.maxsize))

    def of(self, *values: Any) -> T:
        """Return the child of some label values.

        Args:
            *values: hashable values, one per label, in the order of the labels.

        Raises:
            TypeError: the number of values is wrong, or a value cannot be hashed.
        """
        if len(values) != len(self.labels):
            raise TypeError(expected("values", f"one for each label of {self.labels}", values))
        child: T = self.child(values)
        return child

    def items(self) -> Iterator[tuple[tuple[Any, ...], T]]:
        """Iterate over the sets of values and their children at one moment; the shared child is last.

        If a caller uses ``"other"`` for all labels, that set has its own child, so these values can appear twice.
        """
        children, other = self.children()
        yield from children.items()
        if other is not None:
            yield (OTHER,) * len(self.labels), other

    def __len__(self) -> int:
        return sum(1 for _ in self.items())

    def __repr__(self) -> str:
        return f"<LabelFamily of {', '.join(self.labels)}: {len(self)} sets, at most {self.max_sets}>"
