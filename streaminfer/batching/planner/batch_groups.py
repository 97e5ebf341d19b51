"""Groups of queued requests that can share a batch: one length bucket, and inputs that can be stacked.

Pure functions of groups and the time: the deadline order of a group, its late requests, and the batch to send if all
groups together are on time.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streaminfer.batching.planner.bucket_model import BucketModel
from streaminfer.batching.queue._feasibility_cy import fill_deadlines
from streaminfer.batching.queue._ticket_cy import NEVER, Ticket

__all__ = [
    "PATIENCE_NS",
    "Group",
    "batch_to_compare",
    "count_on_time",
    "first_groups",
    "first_if_all_on_time",
    "in_deadline_order",
    "in_one_batch",
    "with_rows_for_free",
    "without_late",
]

PATIENCE_NS = 2_000_000_000
"""Time for which a request without a deadline is queued before it is guaranteed a share."""
_FREE_DURATION_RATIO = 1.02
"""Rows that lengthen a batch by no more than this factor are added although they may be late."""
_MAX_GROUPS = 16
"""Most groups that a decision considers."""

_Array = NDArray[np.int64]


class Group(NamedTuple):
    """Queued requests that can share a batch, in deadline order.

    Attributes:
        model: the durations of the bucket.
        tickets: the requests.
        deadlines: shape (n,), int64.
        untimed: whether some requests have no deadline.
    """

    model: BucketModel
    tickets: list[Ticket]
    deadlines: _Array
    untimed: bool


def in_deadline_order(model: BucketModel, tickets: list[Ticket]) -> Group:
    """Return the tickets by deadline; one without a deadline is sorted as if it had two seconds after its arrival."""
    deadlines = np.empty(len(tickets), np.int64)
    untimed = fill_deadlines(tickets, deadlines, PATIENCE_NS)
    if untimed < 0:
        untimed = ~untimed
        order = np.argsort(deadlines, kind="stable")
        tickets = [tickets[position] for position in order.tolist()]
        deadlines = deadlines[order]
    return Group(model, tickets, deadlines, untimed > 0)


def in_one_batch(groups: list[Group], now_ns: int) -> list[Ticket]:
    """Return all queued tickets, the longest first, if one batch of the longest bucket is on time and as fast."""
    longest = max(groups, key=lambda group: group.tickets[0].bucket).model
    size = sum(len(group.tickets) for group in groups)
    if size >= longest.durations.size:
        return []
    together_ns = int(longest.durations[size])
    apart_ns = sum(int(model.durations[min(len(some), model.durations.size - 1)]) for model, some, _, _ in groups)
    if together_ns > apart_ns or now_ns + together_ns > min(int(group.deadlines[0]) for group in groups):
        return []
    by_length = sorted(groups, key=lambda group: -group.tickets[0].bucket)
    return [ticket for group in by_length for ticket in group.tickets]


def first_if_all_on_time(groups: list[Group], now_ns: int, *, surely: bool) -> tuple[Group, int] | None:
    """Return the first batch if all full batches, in the order of their first deadlines, are on time.

    Args:
        groups: at least one.
        now_ns: the present instant.
        surely: there are several priorities. In a single group, deadlines then decide only if one batch holds all
            requests and is on time even if it is slow: a less urgent request before urgent ones could take the time
            that they need when more arrive.
    """
    if len(groups) == 1:
        group = groups[0]
        table = group.model.upper_timetable if surely else group.model.timetable
        if table is None or (surely and len(group.tickets) > table.cap):
            return None
        if not table.all_on_time(group.deadlines, now_ns):
            return None
        return group, min(len(group.tickets), table.cap)
    batches = _in_order(groups)
    time_ns = now_ns
    for first_ns, at, begin, end in batches:
        if time_ns + int(groups[at].model.durations[end - begin]) > first_ns:
            return None
        time_ns += int(groups[at].model.steps[end - begin])
    _, at, begin, end = batches[0]
    return groups[at], end - begin


def first_groups(groups: list[Group], now_ns: int) -> list[Group]:
    """Return the groups that a decision considers: those with the earliest deadlines.

    Groups in which all requests have been queued for too long, without a deadline, get only the places that others
    leave, but at least one; otherwise they would take all places.
    """
    if len(groups) <= _MAX_GROUPS:
        return groups
    overdue = [group for group in groups if group.deadlines[-1] < now_ns]
    others = [group for group in groups if group.deadlines[-1] >= now_ns][: _MAX_GROUPS - len(overdue[:1])]
    return overdue[: _MAX_GROUPS - len(others)] + others


def count_on_time(groups: list[Group], now_ns: int) -> int:
    """Return how many requests are on time if all are sent in full batches, in the order of their first deadlines."""
    count, time_ns = 0, now_ns
    for _, at, begin, end in _in_order(groups):
        model, deadlines = groups[at].model, groups[at].deadlines[begin:end]
        in_time = int(np.count_nonzero(deadlines >= time_ns + model.durations[end - begin]))
        if in_time:  # a batch without a request on time is not sent
            count += in_time
            time_ns += int(model.steps[end - begin])
    return count


def _in_order(groups: list[Group]) -> list[tuple[int, int, int, int]]:
    """Return full batches by first deadline: that deadline, the group's index, and the range of its positions."""
    batches: list[tuple[int, int, int, int]] = []
    for at, (model, _, deadlines, _) in enumerate(groups):
        cap = model.durations.size - 1
        for number, first_ns in enumerate(deadlines[::cap].tolist()):
            batches.append((first_ns, at, number * cap, min((number + 1) * cap, deadlines.size)))
    batches.sort()
    return batches


def without_late(groups: list[Group], now_ns: int) -> tuple[list[Group], list[Group], list[Ticket], list[Ticket]]:
    """Separate the requests that can be on time alone from the rest.

    Returns:
        The groups without their late requests; the whole groups that had late ones; the requests without a deadline
        that have been queued for too long, the most urgent first; the requests that surely miss their deadline.
    """
    remaining: list[Group] = []
    late: list[Group] = []
    overdue: list[Ticket] = []
    rejected: list[Ticket] = []
    for group in groups:
        late_count = int(np.searchsorted(group.deadlines, now_ns + group.model.durations[1]))
        crowded = len(group.tickets) > len(group.model.durations) - 1
        earliest_end_ns = now_ns + (int(group.model.durations[1]) if crowded else group.model.min_duration_ns)
        for ticket in group.tickets[:late_count]:
            if ticket.deadline_ns == NEVER:
                overdue.append(ticket)
            elif ticket.deadline_ns < earliest_end_ns:
                rejected.append(ticket)
        if late_count < len(group.tickets):
            remaining.append(
                Group(group.model, group.tickets[late_count:], group.deadlines[late_count:], group.untimed)
            )
        if late_count:
            late.append(group)
    overdue.sort(key=lambda ticket: (ticket.priority, ticket.enqueued_ns))
    return remaining, late, overdue, rejected


def with_rows_for_free(batch: list[Ticket], group: Group, rejected: list[Ticket], now_ns: int) -> list[Ticket]:
    """Return the batch, filled with likely late requests as far as they do not slow it down."""
    durations = group.model.durations
    longest_ns = min(
        int(durations[len(batch)] * _FREE_DURATION_RATIO), min(ticket.deadline_ns for ticket in batch) - now_ns
    )
    max_size = int(np.searchsorted(durations, longest_ns, side="right")) - 1
    if max_size <= len(batch) or len(batch) == len(group.tickets):
        return batch
    excluded = {id(ticket) for ticket in batch}.union(map(id, rejected))
    others = [ticket for ticket in group.tickets if id(ticket) not in excluded]
    return batch + others[::-1][: max_size - len(batch)]


def batch_to_compare(group: Group, batch: list[Ticket], size: int, others: list[Group], now_ns: int) -> list[Ticket]:
    """Return a batch of another size, to measure that size; empty if there is no time for it.

    If there are no other groups, a smaller size may be worth making some requests late.

    Args:
        group: the group of the batch.
        batch: the batch that would otherwise be sent.
        size: from `BucketModel.size_instead_of`; 0: none.
        others: the groups whose requests must not become late.
        now_ns: the present instant.
    """
    compared = batch[:size] if size < len(batch) else group.tickets[:size]
    if not compared:
        return []
    if not _leaves_time_for(group, compared, others, now_ns):
        may_cost = not others and size < len(batch)
        if not (may_cost and group.model.is_worth_losses(size, len(batch))):
            return []
    group.model.compare_soon(len(compared))
    return compared


def _leaves_time_for(group: Group, batch: list[Ticket], others: list[Group], now_ns: int) -> bool:
    """Return whether all requests with a deadline stay on time even if an exploring batch takes twice as long."""
    ends_ns = now_ns + 2 * max(group.model.expected_ns(len(batch)), int(group.model.durations[-1]))
    if min(ticket.deadline_ns for ticket in batch) < ends_ns:
        return False
    sent = set(map(id, batch))
    remaining: list[Group] = []
    for one in (group, *others):
        positions = [at for at, it in enumerate(one.tickets) if it.deadline_ns != NEVER and id(it) not in sent]
        if positions:
            remaining.append(
                Group(one.model, [one.tickets[at] for at in positions], one.deadlines[positions], untimed=False)
            )
    return not remaining or first_if_all_on_time(remaining, ends_ns, surely=False) is not None
