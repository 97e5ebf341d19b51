"""Results that no caller gets: those of copies that padded a batch, and of callers that have left."""

from collections.abc import Sequence
from typing import Any

from streaminfer._runtime.closing import close_dropped
from streaminfer.batching.queue._ticket_cy import Ticket

__all__ = ["close_unread_rows", "without_copies"]


def without_copies(results: list[Any], size: int, padded: int) -> list[Any]:
    """Return the results of a batch's requests; close the results of copies if they are streams of outputs.

    Args:
        results: results of the model.
        size: how many requests the batch had.
        padded: how many rows the model got.
    """
    if len(results) == size or len(results) != padded:
        return results  # without copies, or of a wrong length, for which the batch fails as a whole
    for row in results[size:]:
        close_dropped(row)
    return results[:size]


def close_unread_rows(tickets: Sequence[Ticket], rows: Sequence[Any], *, have_ended: bool) -> None:
    """Close the rows that are streams of outputs, of the requests that have ended or of those that have not."""
    for ticket, row in zip(tickets, rows, strict=True):
        if (ticket.future is None) is have_ended:
            close_dropped(row)
