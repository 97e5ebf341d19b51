"""Layout of a batch's rows in a folded convolution, and the decision whether folding pays.

Invariants: a *block* is the part of the layout for one row. It is a multiple of the stride, so each row begins at a
window. It holds the row and zeros; with the zeros before the next row, these are enough that no window of a row reads
another row.

Cost: one copy into the layout, one copy back, and the windows across borders: each row costs ``block / stride``
windows. Folding saves the multiplications of unused columns, and one call of a product for each row and group. A
convolution is folded if copying takes less time than is saved. A single row takes longer than before.
"""

from typing import Any

import attrs
import numpy.typing as npt

__all__ = ["Convolution", "Layout", "lay_out"]

COLUMNS = 16
"""Columns of a matrix product that the processor computes at once."""
CALL = 4_000.0
"""Cost of calling a matrix product, without its computation, in multiplications."""
COPYING = 40.0
"""Cost of copying a value, in multiplications. Both constants fit 5,000 random convolutions in batches of 8 and 32."""


@attrs.frozen
class Convolution:
    """A convolution over one axis with known weights.

    Attributes:
        node: the node of the graph.
        weights: shape (filters, channels of a group, taps).
        group: number of groups of channels.
        dilation: positions from one tap to the next.
        stride: positions from one window to the next.
        padding: zeros before and after a row, or the name of the automatic kind.
    """

    node: Any
    weights: npt.NDArray[Any]
    group: int
    dilation: int
    stride: int
    padding: tuple[int, int] | str

    @property
    def span(self) -> int:
        """Number of positions from the first tap of a window to its last."""
        return int(self.weights.shape[2] - 1) * self.dilation + 1

    def padded(self, length: int) -> tuple[int, int]:
        """Return the zeros before and after a row of a length."""
        if not isinstance(self.padding, str):
            return self.padding
        if self.padding == "VALID":
            return 0, 0
        total = max(0, (-(-length // self.stride) - 1) * self.stride + self.span - length)
        smaller, larger = total // 2, total - total // 2
        return (smaller, larger) if self.padding == "SAME_UPPER" else (larger, smaller)


@attrs.frozen
class Layout:
    """Layout of the rows of a folded convolution.

    Attributes:
        block: positions of a row and its zeros.
        before: zeros in the block before the row.
        length: positions of the row.
        windows: outputs of a row.
        stride: stride of the convolution over all rows.
        weights: weights of the convolution over all rows.
    """

    block: int
    before: int
    length: int
    windows: int
    stride: int
    weights: npt.NDArray[Any]

    @property
    def computed(self) -> int:
        """Number of windows that are computed per row, those across its end included."""
        return self.block // self.stride

    def is_faster(self, convolution: Convolution) -> bool:
        """Return whether a batch takes less time folded than row by row."""
        filters, channels, taps = convolution.weights.shape
        padded_windows = COLUMNS * -(-self.windows // COLUMNS)
        saved_work = (
            filters * channels * (taps * padded_windows - self.weights.shape[2] * self.computed)
            + CALL * convolution.group
        )
        copied = channels * convolution.group * self.block + filters * (self.computed + self.windows)
        return bool(saved_work > COPYING * copied)


def lay_out(convolution: Convolution, length: int) -> Layout | None:
    """Return the layout of rows end to end; ``None`` if a row has no output."""
    before, after = convolution.padded(length)
    windows = (length + before + after - convolution.span) // convolution.stride + 1
    if windows < 1:
        return None
    if windows > 1:
        needed = max(
            before + length,
            (windows - 1) * convolution.stride + convolution.span - before,
            windows * convolution.stride,
        )
        block = -(-needed // convolution.stride) * convolution.stride
        return Layout(block, before, length, windows, convolution.stride, convolution.weights)
    if convolution.dilation > 1 or before >= convolution.span:
        # the row may lie between the taps, or after the last one
        block = max(before + length, convolution.span)
        return Layout(block, before, length, 1, block, convolution.weights)
    # the one window of a row begins at the row's start; taps that read only padding are cut off
    return Layout(length, 0, length, 1, length, convolution.weights[:, :, before : before + length])
