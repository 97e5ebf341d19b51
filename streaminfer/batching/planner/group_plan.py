"""Plans for a queue that is not all on time: choose the group to serve first, and its requests.

*Design.* The compiled kernels choose with the queued requests and the expected arrivals: the group to serve first, how
many requests of one class to pass over, and how many to send after them. If there are other groups, that is the largest
batch that is on time, because a plan of one group alone would save its first requests with time that the others need. A
size that was not measured yet, or not for long, may be sent instead.

*Overload.* Durations scatter, and a plan by their mean ends exactly at deadlines, so its first requests are often late.
While more requests arrive than the device can serve, some are lost in any case. The planner then passes over first
requests that would be late in a batch slower than five of six, but over no more than arrive in excess.

*Classes.* If one batch cannot hold the whole queue, the most urgent priority is planned as if alone, with its share of
the arrivals. The same applies to requests in several groups: the requests of that priority choose the group to serve
first. Less urgent requests fill its batch within three limits: the first deadline of the batch is met, urgent requests
of other groups stay on time, and a more urgent request that arrives meanwhile can still be served.
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
from streaminfer.batching.service_time.service_time import best_size

__all__ = ["choose_group", "plan_batch"]

_UNIFORM = 0.05
"""Time limits that differ by no more than this share count as equal."""
_MAX_DROPS = 16
"""Most requests that the exact plan drops."""
_LEAST_FREE = 0.1
"""Smallest share of time that counts as free if urgent requests alone nearly exceed the device's capacity."""

_Array = NDArray[np.int64]


def choose_group(groups: list[Group], now_ns: int, *, by_class: bool) -> tuple[Group, list[Group]]:
    """Return the group to serve first, and the other groups that it must not delay.

    Args:
        groups: at least one; no request in them is late even alone.
        now_ns: the present instant.
        by_class: only the most urgent class decides, and the others are reduced to its requests.
    """
    if len(groups) == 1:
        return groups[0], []
    if not by_class:
        at = _first_of(groups, now_ns)
        return groups[at], groups[:at] + groups[at + 1 :]
    urgent = _most_urgent(ticket for group in groups for ticket in group.tickets)
    urgent_groups, parts = [], []
    for group in groups:
        positions = _of_class(group.tickets, urgent)
        if positions:
            urgent_groups.append(group)
            tickets = [group.tickets[at] for at in positions]
            parts.append(Group(group.model, tickets, group.deadlines[positions], group.untimed))
    first_batch = first_if_all_on_time(parts, now_ns, surely=False)
    at = _first_of(parts, now_ns) if first_batch is None else [part is first_batch[0] for part in parts].index(True)
    return urgent_groups[at], parts[:at] + parts[at + 1 :]


def _first_of(groups: list[Group], now_ns: int) -> int:
    """Return the position of the group that should be served first for most requests on time in all groups."""
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
    """Return the next batch, of requests of one group, and the reason for it.

    Args:
        queue: the queued requests, with the classes and time limits of recent ones.
        group: at least one request; none is late even alone.
        now_ns: the present instant.
        beside: the other groups, which the batch must not delay, from :func:`choose_group`.

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
    class_positions = set(of_class)
    others = sorted(
        (at for at in range(len(tickets)) if at not in class_positions),
        key=lambda at: (tickets[at].deadline_ns == NEVER, tickets[at].priority, at),
    )
    gap_ns = queue.events.gap_ns(now_ns)
    rates = [(part / gap_ns, limit_ns) for priority, (part, limit_ns) in classes.items() if priority <= urgent[1]]
    most = _largest_beside(model, len(chosen), now_ns, beside, share / gap_ns)
    added = fill_with_less_urgent(now_ns, model, own[head:], len(chosen), deadlines[others], most, rates)
    batch = chosen + [tickets[others[at]] for at in added]
    compared = batch_to_compare(group, batch, model.size_instead_of(len(batch), len(tickets)), beside, now_ns)
    return (compared, "exploration") if compared else (batch, "planned")


def _most_urgent(tickets: Iterable[Ticket]) -> tuple[bool, int]:
    """Return the most urgent class: requests with a deadline first, then by priority."""
    return min((ticket.deadline_ns == NEVER, ticket.priority) for ticket in tickets)


def _of_class(tickets: Sequence[Ticket], class_key: tuple[bool, int]) -> list[int]:
    """Return the positions of the tickets of a class."""
    untimed, priority = class_key
    return [
        at
        for at, ticket in enumerate(tickets)
        if ticket.priority == priority and (ticket.deadline_ns == NEVER) == untimed
    ]


def _largest_beside(model: BucketModel, size: int, now_ns: int, beside: list[Group], rate: float) -> int:
    """Return the largest batch that makes no more urgent requests of other groups late than the smallest does.

    More requests of their class will join the other groups before their turn, so the time that such rows take is kept
    free. If some urgent requests are late anyway, no time is kept free.

    Args:
        model: model of the batch.
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
    tightened = [one._replace(deadlines=now_ns + ((one.deadlines - now_ns) * free).astype(np.int64)) for one in beside]
    end_ns, total = now_ns + int(model.steps[size]), sum(len(one.tickets) for one in beside)
    on_time = count_on_time(tightened, end_ns)
    if on_time < total:
        tightened, on_time = beside, count_on_time(beside, end_ns)
        if on_time == total:
            return size
    while low < high:
        middle = (low + high + 1) // 2
        if count_on_time(tightened, now_ns + int(model.steps[middle])) < on_time:
            high = middle - 1
        else:
            low = middle
    return high


def _choose(
    queue: RequestQueue, model: BucketModel, deadlines: _Array, now_ns: int, share: float, is_alone: bool
) -> tuple[int, int]:
    """Return how many requests of one class to pass over, and how many to send after them."""
    table = model.timetable
    if table is not None and table.all_on_time(deadlines, now_ns):
        return 0, min(deadlines.size, table.cap)
    limits = queue.events.recent_limits_ns() or [PATIENCE_NS]
    shortest, longest = min(limits), max(limits)
    durations, steps = model.durations, model.steps
    if durations[-1] > longest:  # a size that is always too slow cannot be the best
        feasible = max(1, int(np.searchsorted(durations, longest, side="right")) - 1)
        best = best_size(durations[: feasible + 1])
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
    # if limits differ, the first request is not the oldest, and after a short surge there may be time for the others
    if is_uniform or steps[-1] > gap_ns * (len(steps) - 1):
        slow_end_ns = now_ns + int(durations[size] * model.spread)
        head += _unlikely_on_time(deadlines[head : deadlines.size - size], slow_end_ns, steps[size] / gap_ns - size)
    return int(head), int(size)


def _unlikely_on_time(deadlines: _Array, slow_end_ns: int, surplus: float) -> int:
    """Return how many more requests to pass over, so that the batch gets requests that are more likely on time.

    Args:
        deadlines: deadlines of the requests that others can replace.
        slow_end_ns: when a batch ends that is slower than most.
        surplus: how many more requests arrive while the batch runs than it holds; as many are lost in any case.
    """
    return min(int(np.searchsorted(deadlines, slow_end_ns)), max(int(surplus), 0))
