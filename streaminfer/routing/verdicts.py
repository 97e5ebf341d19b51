"""One `admission` for several services."""

from collections.abc import Iterable

from streaminfer.protocols import Admission, sooner

__all__ = ["first_accepting"]


def first_accepting(verdicts: Iterable[Admission]) -> Admission | None:
    """Return the first verdict that accepts; if none does, the first rejection, with the soonest time to retry.

    Args:
        verdicts: verdicts of the services, best first; not read beyond the first one that accepts.

    Returns:
        The verdict; ``None``: ``verdicts`` is empty.
    """
    rejection: Admission | None = None
    for verdict in verdicts:
        if verdict.ok:
            return verdict
        if rejection is None:
            rejection = verdict
        else:
            rejection = rejection._replace(retry_after_s=sooner(rejection.retry_after_s, verdict.retry_after_s))
    return rejection
