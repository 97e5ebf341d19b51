"""Clairvoyant optimum: the most requests that any schedule serves on time, with all arrivals known in advance.

The problem: requests arrive at r_i and a response is worth something until r_i + SLO. One worker runs batches of at
most B; a batch of b takes t(b), begins when all its members have arrived, and is not interrupted. Which requests are
served, in which batches, so that most are on time? The result is a yardstick: a policy's share of it shows how much
better decisions could gain, and how much only a faster model could.

*Contiguous batches suffice.* In order of arrival the deadlines ascend too. Take any schedule. (1) Let x < y be served,
with y in an earlier batch than x; swap them. The earlier batch begins after r_y ≥ r_x and ends before the later one,
which ends by d_x. The later one begins after the earlier one and so after r_y, and ends by d_x ≤ d_y. Sizes and times
stay; after finitely many swaps each batch has requests that are neighbors among the served ones. (2) Let a batch with
first member x pass over a dropped request z, where x < z < its last. It begins after the arrival of its last, so after
r_z, and ends by d_x ≤ d_z: serve z in place of x. The number served stays and their positions move up, so this ends
too. Then each batch is a run of neighbors, and a schedule is a walk over the requests in order: drop one, or batch the
next b. The proof uses no property of t.

*The program.* After the first i requests, the rest depends only on how many were served and when the worker is free:
F_i(k), the earliest finish with k of them served. F_i(k) is the minimum of F_{i-1}(k), a drop, and of
max(F_{i-b}(k-b), r_i) + t(b) over the sizes b for which that is by the deadline of the batch's first request. The
result is the largest reachable k for i = n. It is the program of Baptiste (2000) for equal time limits, in which he
iterates by the number of drops. Iterated by prefix instead, two prunings make it short at any load:

* of the k with F_i(k) ≤ r_{i+1} only the largest matters, because nothing starts before the next arrival; this also
  splits the trace into busy periods;
* of the others only those that no larger k equals or beats.

The remaining F_i(k) are in (r_{i+1}, d_i]. So k varies by no more than the number of requests that have arrived and are
still in time, and by no more than the worker can serve within one SLO. With W of them: O(n · B · W) time, O(B · W)
memory, never O(n²) in overload.

Source: P. Baptiste, "Batching identical jobs", Mathematical Methods of Operations Research 52 (2000).
"""

from numpy.typing import ArrayLike

from streaminfer.batching.service_time.service_time import ServiceTime
from streaminfer.simulation.devices.model_load import ModelLoad
from streaminfer.simulation.devices.optimum import most_on_time

__all__ = ["clairvoyant_optimum"]


def clairvoyant_optimum(arrivals_s: ArrayLike, *, slo_s: float, service_time: ServiceTime, max_batch_size: int) -> int:
    """Return the most requests that any schedule of one worker could serve within the SLO.

    Thread-safe; runs without the interpreter lock. If no kernels were compiled ahead of time, the first call on a
    machine compiles them, which takes some seconds.

    Args:
        arrivals_s: shape (n,), seconds ≥ 0, ascending.
        slo_s: time limit of every request, from its arrival. A response at that very instant is on time.
        service_time: durations of batches by size.
        max_batch_size: the most requests in a batch.

    Returns:
        How many of the n.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.
    """
    load = ModelLoad(arrivals_s, slo_s=slo_s, service_time=service_time, max_batch_size=max_batch_size)
    return most_on_time(load)
