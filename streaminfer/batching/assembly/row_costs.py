"""Limits on what the rows of a batch come to together: bytes, or whatever a user counts."""

import math
from collections.abc import Callable
from typing import Any

import attrs

from streaminfer._internal.validation import check_instance, check_number, expected
from streaminfer.errors import InvalidInput, text_of_error

__all__ = ["CostLimit", "first_within", "make_cost_limit"]


@attrs.frozen
class CostLimit:
    """The most that the rows of a batch may cost together.

    Attributes:
        row_cost: what a row costs, of what its request brought.
        max_batch_cost: of all rows of a batch, copies that fill it up included.
    """

    row_cost: Callable[[Any], float]
    max_batch_cost: float

    def cost_of(self, prepared: Any, copies: int) -> float:
        """Return what a row costs.

        Args:
            prepared: what its request brought, ready to be stacked.
            copies: how often it stands in the smallest batch.

        Raises:
            InvalidInput: more than a batch may cost, or there is no telling.
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
    """Return the limit that two arguments of a batcher set; ``None`` where they are.

    Raises:
        TypeError, ValueError: one of the wrong type or out of range, or one without the other.
    """
    if row_cost is None and max_batch_cost is None:
        return None
    if max_batch_cost is None:
        raise ValueError(expected("max_batch_cost", "a number beside row_cost", max_batch_cost))
    check_instance("row_cost", row_cost, callable, "a function of what a request brings, beside max_batch_cost")
    most = check_number("max_batch_cost", max_batch_cost, "a finite number above 0", lambda it: 0.0 < it < math.inf)
    return CostLimit(row_cost, most)


def first_within(
    tickets: list[Any], size_of: Callable[[Any], float], most: float, padded_size: Callable[[int], int]
) -> list[Any]:
    """Return the first ticket and those that fit into a limit with it, in their order.

    Args:
        tickets: at least one.
        size_of: what one of them takes of the limit.
        most: the limit.
        padded_size: how many rows a batch of a size is filled up to, with copies of its last row.
    """
    total = 0.0
    chosen: list[Any] = []
    for ticket in tickets:
        own = size_of(ticket)
        copies = padded_size(len(chosen) + 1) - len(chosen)
        if chosen and total + copies * own > most:
            continue  # a smaller one behind a large one may still fit
        total += own
        chosen.append(ticket)
    return chosen
