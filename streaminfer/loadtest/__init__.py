"""Load tests: an open loop, tails that count from the intended send time, capacity at an SLO, verdicts on tails."""

from typing import TYPE_CHECKING

from streaminfer._internal.lazy import lazy_attributes

if TYPE_CHECKING:
    from streaminfer.loadtest.sample import Measured, Sample

__all__ = ["Measured", "Sample"]

_HOMES = {
    "Measured": "loadtest.sample",
    "Sample": "loadtest.sample",
}

if not TYPE_CHECKING:  # type checkers know the names from the block above, and refuse others
    __getattr__, __dir__ = lazy_attributes(__name__, _HOMES)
