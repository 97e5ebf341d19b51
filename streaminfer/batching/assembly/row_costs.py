"""Limits on the total of a batch's rows: bytes, or a cost that the user defines."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import attrs

from streaminfer._internal.validation import check_instance, check_number, expected
from streaminfer.errors import InvalidInput, text_of_error

__all__ = ["CostLimit", "first_within", "make_cost_limit"]


@attrs.frozen
class CostLimit:
    """The largest total cost of a batch's rows.

    Attributes:
        row_cost: returns the cost of a row from the inputs of its request.
        max_batch_cost: limit for all rows of a batch, including copies that pad it.
    """

    row_cost: Callable[[Any], float]
    max_batch_cost: float

    def cost_of(self, prepared: Any, copies: int) -> float:
        """Return the cost of a row.

        Args:
            prepared: the inputs of its request, ready to be stacked.
            copies: how many copies of the row the smallest batch has.

        Raises:
            InvalidInput: the cost exceeds the limit of a batch, or ``row_cost`` failed or returned no such number.
        """
        try:
            cost = self.row_cost(prepared)
        except Exception as error:
            raise InvalidInput(
                f"inputs: expected what row_cost can count, but it raised {text_of_error(error)}"
            ) from error
        try:
            cost = check_number("row_cost", cost, "a finite number ≥ 0", lambda it: 0.0 <= it < math.inf)
        except (TypeError, ValueError) as error:
            raise InvalidInput(str(error)) from None
        if copies * cost > self.max_batch_cost:
            raise InvalidInput(
                f"inputs: expected a cost of at most {self.max_batch_cost:g} in the smallest batch (max_batch_cost), "
                f"got {copies * cost:g}"
            )
        return cost


def make_cost_limit(row_cost: Any, max_batch_cost: Any) -> CostLimit | None:
    """Return the limit that two arguments of a batcher set; ``None`` if both are ``None``.

    Raises:
        TypeError, ValueError: one has the wrong type, is out of range, or is given without the other.
    """
    if row_cost is None and max_batch_cost is None:
        return None
    if max_batch_cost is None:
        raise ValueError(expected("max_batch_cost", "a number beside row_cost", max_batch_cost))
    check_instance("row_cost", row_cost, callable, "a function of what a request brings, beside max_batch_cost")
    limit = check_number("max_batch_cost", max_batch_cost, "a finite number above 0", lambda it: 0.0 < it < math.inf)
    return CostLimit(row_cost, limit)


def first_within(
    tickets: Sequence[Any], sizes: Iterable[float], limit: float, padded_size: Callable[[int], int]
) -> list[Any]:
    """Return the first ticket and those that fit into a limit with it, in their order.

    Args:
        tickets: at least one.
        sizes: how much of the limit each ticket takes; there may be more than tickets.
        limit: the limit.
        padded_size: returns the rows of a batch of a size after padding with copies of its last row.
    """
    total = 0.0
    chosen: list[Any] = []
    for ticket, own in zip(tickets, sizes, strict=False):
        copies = padded_size(len(chosen) + 1) - len(chosen)
        if chosen and total + copies * own > limit:
            continue  # a smaller row after a large one may still fit
        total += own
        chosen.append(ticket)
    return chosen
