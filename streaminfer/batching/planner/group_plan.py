"""Plans where not everything queued is on time: which group is served first, and which of its requests.

*Design.* The compiled kernels choose, with the queued requests and the expected arrivals: the group whose batch goes
first, and how many requests of one class are passed over and how many are sent behind them. Beside other groups that is
the largest batch in time: a plan of one group alone saves its first requests by time that the others need. A size that
was not measured yet, or not for long, may be sent instead.

*Overload.* Durations scatter, and a plan by their mean ends exactly at deadlines, so its first requests are often late.
While more requests come than the device can serve, some are lost in any case: as many of the first ones are passed over
as do not end in time in a batch that is slower than five of six, but no more than come in excess.

*Classes.* Where one batch cannot hold all that is queued, the most urgent priority is planned as if alone, with its
share of the arrivals; also where requests are in groups, of which its own requests choose the first. Less urgent
requests fill its batch as far as its first deadline allows, as far as its requests of other groups stay on time, and as
far as a more urgent request that arrives meanwhile can still be served.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from streaminfer.batching.planner import kernel_loader
from streaminfer.batching.planner.batch_groups import (
    PATIENCE_NS,
    Group,
    batch_to_compare,
    count_on_time,
    first_if_all_on_time,
)
from streaminfer.batching.planner.bucket_model import BucketModel
from streaminfer.batching.planner.class_filling import fill_with_less_urgent
from streaminfer.batching.queue._queue_cy import RequestQueue
from streaminfer.batching.queue._ticket_cy import NEVER, Ticket
from streaminfer.batching.service_time._curve_cy import best_size

__all__ = ["choose_group", "plan_batch"]

_UNIFORM = 0.05
"""Time limits that differ by no more than this share are about equal."""
_MAX_DROPS = 16
"""The exact plan drops at most so many requests."""
_LEAST_FREE = 0.1
"""Where urgent requests alone are nearly more than the device can serve, so much of their time counts."""

_Array = NDArray[np.int64]


def choose_group(groups: list[Group], now_ns: int, *, by_class: bool) -> tuple[Group, list[Group]]:
    """Return the group whose batch goes first, and the others that it must not delay.

    Args:
        groups: at least one, none of which has a request that is late alone.
        now_ns: the present instant.
        by_class: only the most urgent class decides, and the others are those with requests of it, without the rest.
    """
    if len(groups) == 1:
        return groups[0], []
    if not by_class:
        at = _first_of(groups, now_ns)
        return groups[at], groups[:at] + groups[at + 1 :]
    urgent = _most_urgent(ticket for group in groups for ticket in group.tickets)
    whole, parts = [], []
    for group in groups:
        positions = _of_class(group.tickets, urgent)
        if positions:
            whole.append(group)
            tickets = [group.tickets[at] for at in positions]
            parts.append(Group(group.model, tickets, group.deadlines[positions], group.untimed))
    found = first_if_all_on_time(parts, now_ns, surely=False)
    at = _first_of(parts, now_ns) if found is None else [part is found[0] for part in parts].index(True)
    return whole[at], parts[:at] + parts[at + 1 :]


def _first_of(groups: list[Group], now_ns: int) -> int:
    """Return the position of the group with which most requests of all groups are on time."""
    if len(groups) == 1:
        return 0
    longest = max(group.model.durations.size for group in groups)
    durations = np.ones((len(groups), longest), np.int64)
    steps = np.ones((len(groups), longest), np.int64)
    for at, (model, _, _, _) in enumerate(groups):
        durations[at, : model.durations.size] = model.durations
        steps[at, : model.steps.size] = model.steps
    offsets = np.cumsum([0, *(group.deadlines.size for group in groups)])
    caps = np.array([group.model.durations.size - 1 for group in groups])
    deadlines = np.concatenate([group.deadlines for group in groups])
    return int(kernel_loader.load().choose_bucket(now_ns, deadlines, offsets, caps, durations, steps))


def plan_batch(queue: RequestQueue, group: Group, now_ns: int, beside: list[Group]) -> tuple[list[Ticket], str]:
    """Return the batch to send, of requests of one group none of which is late alone, and why.

    Args:
        queue: the requests, with the classes and time limits of recent ones.
        group: at least one request.
        now_ns: the present instant.
        beside: what it must not delay of other groups, as :func:`choose_group` returns it.

    Returns:
        The requests, and the reason of the `Decision`: ``"planned"`` or ``"exploration"``.
    """
    model, tickets, deadlines, untimed = group
    is_alone = not beside
    size = model.size_to_explore(len(tickets))
    if size and now_ns + int(model.durations[min(size, len(model.durations) - 1)]) > int(deadlines[0]):
        return tickets[-size:], "exploration"
    if not queue.several_priorities and not untimed:
        head, size = _choose(queue, model, deadlines, now_ns, 1.0, is_alone)
        if model.compares:
            smaller = model.size_at_a_loss(size, is_alone)
            if smaller:
                return tickets[head : head + smaller], "exploration"
            larger = model.size_to_try_again(size, min(len(tickets), model.cap))
            if larger:
                return tickets[-larger:], "exploration"
        return tickets[head : head + size], "planned"
    urgent = _most_urgent(tickets)
    classes = queue.events.recent_classes()
    of_class = _of_class(tickets, urgent)
    own = deadlines[of_class]
    share = classes.get(urgent[1], (1.0, 0))[0]
    head, size = _choose(queue, model, own, now_ns, share, is_alone)
    chosen = [tickets[at] for at in of_class[head : head + size]]
    kept = set(of_class)
    others = sorted(
        (at for at in range(len(tickets)) if at not in kept),
        key=lambda at: (tickets[at].deadline_ns == NEVER, tickets[at].priority, at),
    )
    added = fill_with_less_urgent(
        now_ns,
        model.slow,
        urgent_deadline_ns=int(own[head]),
        urgent_size=len(chosen),
        urgent_left=max(len(of_class) - head - size, 0),
        most=_most_beside(model, len(chosen), now_ns, beside, share / queue.events.gap_ns(now_ns)),
        others=deadlines[others],
        rates=[
            (part / queue.events.gap_ns(now_ns), limit_ns)
            for priority, (part, limit_ns) in classes.items()
            if priority <= urgent[1]
        ],
        means=model.durations,
        steps=model.slow_steps,
    )
    batch = chosen + [tickets[others[at]] for at in added]
    compared = batch_to_compare(group, batch, model.size_instead_of(len(batch), len(tickets)), beside, now_ns)
    return (compared, "exploration") if compared else (batch, "planned")


def _most_urgent(tickets: Iterable[Ticket]) -> tuple[bool, int]:
    """Return the class that goes first: those with a deadline, then by priority."""
    return min((ticket.deadline_ns == NEVER, ticket.priority) for ticket in tickets)


def _of_class(tickets: Sequence[Ticket], wanted: tuple[bool, int]) -> list[int]:
    """Return the positions of the tickets of a class."""
    untimed, priority = wanted
    return [
        at
        for at, ticket in enumerate(tickets)
        if ticket.priority == priority and (ticket.deadline_ns == NEVER) == untimed
    ]


def _most_beside(model: BucketModel, size: int, now_ns: int, beside: list[Group], rate: float) -> int:
    """Return the largest batch that makes no more urgent requests of other groups late than the smallest does.

    Others of their class join them until it is their turn, so a part of their time is kept free: what the rows that
    come meanwhile take. Where some are late anyway, nothing is kept free.

    Args:
        model: of the batch.
        size: its smallest size.
        now_ns: when it starts.
        beside: the other groups.
        rate: arrivals of the urgent class per nanosecond.
    """
    low, high = size, len(model.steps) - 1
    if not beside:
        return high
    row_ns = float(model.steps[high] - model.steps[1]) / max(high - 1, 1)
    free = max(1.0 - rate * row_ns, _LEAST_FREE)
    hurried = [one._replace(deadlines=now_ns + ((one.deadlines - now_ns) * free).astype(np.int64)) for one in beside]
    behind_ns, all_of_them = now_ns + int(model.steps[size]), sum(len(one.tickets) for one in beside)
    on_time = count_on_time(hurried, behind_ns)
    if on_time < all_of_them:
        hurried, on_time = beside, count_on_time(beside, behind_ns)
        if on_time == all_of_them:
            return size
    while low < high:
        middle = (low + high + 1) // 2
        if count_on_time(hurried, now_ns + int(model.steps[middle])) < on_time:
            high = middle - 1
        else:
            low = middle
    return high


def _choose(
    queue: RequestQueue, model: BucketModel, deadlines: _Array, now_ns: int, share: float, is_alone: bool
) -> tuple[int, int]:
    """Return how many requests of one class to pass over, and how many to send behind them."""
    table = model.timetable
    if table is not None and table.all_on_time(deadlines, now_ns):
        return 0, min(deadlines.size, table.cap)
    limits = queue.events.recent_limits_ns() or [PATIENCE_NS]
    shortest, longest = min(limits), max(limits)
    durations, steps = model.durations, model.steps
    if durations[-1] > longest:  # of the sizes for which there is never time, none is the best
        feasible = max(1, int(np.searchsorted(durations, longest, side="right")) - 1)
        best = best_size(durations[: feasible + 1].astype(np.float64))
        durations, steps = durations[: best + 1], steps[: best + 1]
    gap_ns = queue.events.gap_ns(now_ns) / share
    is_uniform = longest - shortest <= _UNIFORM * longest
    kernels = kernel_loader.load()
    if is_alone:
        head, size = kernels.choose(
            now_ns, deadlines, durations, steps, np.array(limits, np.int64), gap_ns, is_uniform, _MAX_DROPS
        )
    else:
        head, size = kernels.drop_heads(now_ns, deadlines, deadlines.size, durations)
    # where limits differ, the first one is not the oldest: behind a short surge there may be time for others later
    if is_uniform or steps[-1] > gap_ns * (len(steps) - 1):
        slow_end_ns = now_ns + int(durations[size] * model.spread)
        head += _unsure(deadlines[head : deadlines.size - size], slow_end_ns, steps[size] / gap_ns - size)
    return int(head), int(size)


def _unsure(deadlines: _Array, slow_end_ns: int, surplus: float) -> int:
    """Return how many more requests to pass over, so that the batch has some that are surer to be on time.

    Args:
        deadlines: of the requests in whose place others can go.
        slow_end_ns: when a batch ends that is slower than most.
        surplus: how many more requests come while the batch runs than it holds: so many are lost in any case.
    """
    return min(int(np.searchsorted(deadlines, slow_end_ns)), max(int(surplus), 0))
