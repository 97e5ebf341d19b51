"""Where the rows of a batch lie in a folded convolution, and when folding pays.

Invariants: ``block`` is a multiple of the stride, so each row begins at a window. It holds the row and enough zeros
that, with those before the next row, no window of a row reads another row.

Cost: a copy to the layout and one back, and the windows across borders: ``block / stride`` windows a row. A
convolution is folded where copying takes less than what is saved: the multiplications of columns that are filled up
today, and the calls of a product for each row and group. A row alone takes longer than before.
"""

from typing import Any

import attrs
import numpy.typing as npt

__all__ = ["Convolution", "Layout", "lay_out"]

COLUMNS = 16
"""Columns of a product of matrices that the processor computes at once."""
CALL = 4_000.0
"""Multiplications that take as long as the call of a product, beside what it computes."""
COPYING = 40.0
"""Multiplications that take as long as copying a value. Both fit 5,000 random convolutions in batches of 8 and 32."""


@attrs.frozen
class Convolution:
    """A convolution over one axis, whose weights are known.

    Attributes:
        node: of the graph.
        weights: shape (filters, channels of a group, taps).
        group: how many groups of channels there are.
        dilation: positions from one tap to the next.
        stride: positions from one window to the next.
        padding: zeros before and behind a row, or the name of the automatic kind.
    """

    node: Any
    weights: npt.NDArray[Any]
    group: int
    dilation: int
    stride: int
    padding: tuple[int, int] | str

    @property
    def span(self) -> int:
        """Positions from the first tap of a window to its last."""
        return int(self.weights.shape[2] - 1) * self.dilation + 1

    def padded(self, length: int) -> tuple[int, int]:
        """The zeros before and behind a row of a length."""
        if not isinstance(self.padding, str):
            return self.padding
        if self.padding == "VALID":
            return 0, 0
        total = max(0, (-(-length // self.stride) - 1) * self.stride + self.span - length)
        less, more = total // 2, total - total // 2
        return (less, more) if self.padding == "SAME_UPPER" else (more, less)


@attrs.frozen
class Layout:
    """Where the rows of a folded convolution lie.

    Attributes:
        block: positions of a row and its zeros.
        before: zeros before the row, of the block.
        length: of the row.
        windows: outputs of a row.
        stride: of the convolution over all rows.
        weights: of it.
    """

    block: int
    before: int
    length: int
    windows: int
    stride: int
    weights: npt.NDArray[Any]

    @property
    def computed(self) -> int:
        """Windows that are computed for a row, with those across its end."""
        return self.block // self.stride

    def pays(self, one: Convolution) -> bool:
        """Whether a batch takes less time than row by row."""
        filters, channels, taps = one.weights.shape
        filled_up = COLUMNS * -(-self.windows // COLUMNS)
        saved = filters * channels * (taps * filled_up - self.weights.shape[2] * self.computed) + CALL * one.group
        copied = channels * one.group * self.block + filters * (self.computed + self.windows)
        return bool(saved > COPYING * copied)


def lay_out(one: Convolution, length: int) -> Layout | None:
    """Return how the rows lie end to end; ``None`` where a row has no output."""
    before, behind = one.padded(length)
    windows = (length + before + behind - one.span) // one.stride + 1
    if windows < 1:
        return None
    if windows > 1:
        needed = max(before + length, (windows - 1) * one.stride + one.span - before, windows * one.stride)
        block = -(-needed // one.stride) * one.stride
        return Layout(block, before, length, windows, one.stride, one.weights)
    if one.dilation > 1 or before >= one.span:  # taps between which, or behind which, the row lies
        block = max(before + length, one.span)
        return Layout(block, before, length, 1, block, one.weights)
    # the one window of a row begins where the row begins; taps that read nothing but padding are cut off
    return Layout(length, 0, length, 1, length, one.weights[:, :, before : before + length])
