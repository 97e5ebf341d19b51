"""Results that no caller gets: those of copies that filled a batch up, and of callers that have left."""

from collections.abc import Sequence
from typing import Any

from streaminfer._runtime.closing import close_dropped
from streaminfer.batching.queue._ticket_cy import Ticket

__all__ = ["close_unread_rows", "without_copies"]


def without_copies(results: list[Any], size: int, padded: int) -> list[Any]:
    """Return the results of a batch's requests; those of copies are closed, if they are answers.

    Args:
        results: what the model returned.
        size: how many requests the batch had.
        padded: how many rows the model was given.
    """
    if len(results) == size or len(results) != padded:
        return results  # there are none, or it is rejected as a whole
    for row in results[size:]:
        close_dropped(row)
    return results[:size]


def close_unread_rows(tickets: Sequence[Ticket], rows: Sequence[Any], *, have_ended: bool) -> None:
    """Close the rows that are answers, of the requests that have ended or of those that have not."""
    for ticket, row in zip(tickets, rows, strict=True):
        if (ticket.future is None) is have_ended:
            close_dropped(row)
