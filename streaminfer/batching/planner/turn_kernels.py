"""Whose turn it is on a device that several models share: the arithmetic of the decision.

*Design*. Each model brings its queue in deadline order and what a batch of it takes. A candidate is a first batch of
one model: for each number of requests passed over, the largest batch that is on time for its first one, up to the
largest batch there is. Each candidate is played forward over sampled arrivals, with a simple rule for what comes after
it. Each model has the largest batch that is on time once requests that would be late are passed over. The batch that
has to start first goes first if the one with most requests for its time can still follow in time; otherwise that one
goes first. The candidate with the most requests on time, by weight, less a price for the time that the device is busy,
is chosen: time has a price because what is behind the horizon needs it too. This is a rollout (Bertsekas, Tsitsiklis
and Wu, "Rollout algorithms for combinatorial optimization", Journal of Heuristics 3, 1997), and a heuristic.

Where models do not fit in the device's memory together, loading one is set-up of its next batch. In a play those leave
whose next batch has to start last, as in :mod:`~streaminfer.batching.device.resident_set`. Loads take most of the time
then, and time is worth no more than what is queued and arrives: at the rate of a fast model's full batches, a batch of
a slow one would be worth less than its time, and the model would leave memory with its queue unserved.

Arrivals are drawn from a fixed table of exponential gaps: evenly spaced ones let a plan end exactly at their deadlines,
which no real ones allow. Every candidate is played against the same arrivals, and the same queues give the same turn.

*Complexity*. A play of each candidate for each of eight samples, each O(arrivals + batches) up to the horizon.

Importing this module imports Numba: serving calls what was compiled of it ahead of time (``kernel_loader``).
"""

import numpy as np
from numpy.typing import NDArray

from streaminfer._internal.loading.numba_jit import jit

__all__ = ["EXPORTS", "choose_turn"]

FAR_NS = 2**62
_SAMPLES = 8
_MOST_EXPECTED = 256
"""So many arrivals of a model are played; the horizon of all models, the longest time limit, ends there."""
_PRICE = 0.35
"""Of what the device could serve: what its time is worth."""
_GAPS = np.random.default_rng(0).exponential(1.0, 1024)

_Array = NDArray[np.int64]
_Floats = NDArray[np.float64]


@jit
def _load(
    model: int,
    free: int,
    sizes: _Array,
    setups_ns: _Array,
    loads_ns: _Array,
    heads: _Array,
    counts: _Array,
    ends: _Array,
    durations: _Array,
) -> int:
    """Note that a model comes into memory, and others leave it; return the bytes that are free by then."""
    free -= sizes[model]
    setups_ns[model] = 0
    while free < 0:
        latest, latest_ns = -1, -FAR_NS
        for other in range(sizes.size):
            if other != model and sizes[other] > 0 and setups_ns[other] == 0:
                start_ns = FAR_NS
                if heads[other] < counts[other]:
                    start_ns = ends[other, heads[other]] - durations[other, 1]
                if start_ns > latest_ns:
                    latest, latest_ns = other, start_ns
        if latest < 0:
            return 0
        free += sizes[latest]
        setups_ns[latest] = loads_ns[latest]
    return free


@jit
def _play(
    now_ns: int,
    first: int,
    head: int,
    size: int,
    ends: _Array,
    releases: _Array,
    counts: _Array,
    durations: _Array,
    caps: _Array,
    weights: _Floats,
    price: float,
    free: int,
    sizes: _Array,
    setups_ns: _Array,
    loads_ns: _Array,
) -> float:
    """Return what is on time, by weight, less the price of the busy time, if a model starts with a batch."""
    models = caps.size
    heads = np.zeros(models, np.int64)
    there = np.zeros(models, np.int64)
    setups_ns = setups_ns.copy()
    heads[first] = head + size
    busy_ns = setups_ns[first] + durations[first, size]
    time_ns = now_ns + busy_ns
    value = weights[first] * size
    if setups_ns[first] > 0:
        free = _load(first, free, sizes, setups_ns, loads_ns, heads, counts, ends, durations)
    while True:
        urgent, urgent_size, urgent_start_ns, next_ns = -1, 0, FAR_NS, FAR_NS
        dense, dense_size, dense_start_ns, density = -1, 0, FAR_NS, 0.0
        for model in range(models):
            while there[model] < counts[model] and releases[model, there[model]] <= time_ns:
                there[model] += 1
            if there[model] < counts[model]:
                next_ns = min(next_ns, releases[model, there[model]])
            while heads[model] < there[model]:
                rows = min(there[model] - heads[model], caps[model])
                takes_ns = setups_ns[model] + durations[model, rows]
                start_ns = ends[model, heads[model]] - takes_ns
                if time_ns <= start_ns:
                    if start_ns < urgent_start_ns:
                        urgent, urgent_size, urgent_start_ns = model, rows, start_ns
                    rate = weights[model] * rows / takes_ns
                    if rate > density:
                        dense, dense_size, dense_start_ns, density = model, rows, start_ns, rate
                    break
                heads[model] += 1
        if urgent < 0:
            if next_ns == FAR_NS:
                return float(value - price * busy_ns)
            time_ns = next_ns
            continue
        if urgent != dense and time_ns + setups_ns[urgent] + durations[urgent, urgent_size] > dense_start_ns:
            urgent, urgent_size = dense, dense_size
        heads[urgent] += urgent_size
        takes_ns = setups_ns[urgent] + durations[urgent, urgent_size]
        time_ns += takes_ns
        busy_ns += takes_ns
        if setups_ns[urgent] > 0:
            free = _load(urgent, free, sizes, setups_ns, loads_ns, heads, counts, ends, durations)
        value += weights[urgent] * urgent_size


@jit
def choose_turn(
    now_ns: int,
    deadlines: _Array,
    offsets: _Array,
    fixed: _Array,
    durations: _Array,
    caps: _Array,
    gaps_ns: _Floats,
    limits_ns: _Array,
    weights: _Floats,
    free: int,
    sizes: _Array,
    setups_ns: _Array,
    loads_ns: _Array,
) -> tuple[int, int, int]:
    """The model whose batch goes next, and that batch.

    Args:
        now_ns: the present instant.
        deadlines: shape (n,): model after model, ascending within each; of a model with a fixed batch, that batch.
        offsets: shape (models + 1,): where each model begins in ``deadlines``.
        fixed: shape (models,): the size of the one batch that a model may send; 0: the kernel chooses; -1: none now.
        durations: shape (models, largest cap + 1), nanoseconds of a batch by its size, nondecreasing.
        caps: shape (models,): the largest batch of each.
        gaps_ns: shape (models,): expected time between arrivals; infinite: none are expected.
        limits_ns: shape (models,): time limit of expected arrivals.
        weights: shape (models,): what a request on time is worth.
        free: bytes of the device's memory that no model takes.
        sizes: shape (models,): bytes of each model; 0: it is always there.
        setups_ns: shape (models,): what loading takes a model that is not in memory, at least 1; 0: it is there.
        loads_ns: shape (models,): what loading takes each model, at least 1.

    Returns:
        The model, how many of its requests to pass over and how many to send behind them; (-1, 0, 0) where no batch
        would be on time.
    """
    models = caps.size
    horizon_ns = limits_ns.max()
    most_queued = 0
    best_rate, offered_rate = 0.0, 0.0
    for model in range(models):
        most_queued = max(most_queued, offsets[model + 1] - offsets[model])
        horizon_ns = int(min(float(horizon_ns), gaps_ns[model] * _MOST_EXPECTED))
        best_rate = max(best_rate, weights[model] * caps[model] / durations[model, caps[model]])
    for model in range(models):
        queued = offsets[model + 1] - offsets[model]
        offered_rate += weights[model] * (queued / max(horizon_ns, 1) + 1.0 / max(gaps_ns[model], 1.0))
    price = _PRICE * (min(best_rate, offered_rate) if sizes.max() > 0 else best_rate)
    ends = np.empty((_SAMPLES, models, most_queued + _MOST_EXPECTED), np.int64)
    releases = np.empty((_SAMPLES, models, most_queued + _MOST_EXPECTED), np.int64)
    counts = np.empty((_SAMPLES, models), np.int64)
    for sample in range(_SAMPLES):
        for model in range(models):
            count = 0
            latest_ns = 0
            for at in range(offsets[model], offsets[model + 1]):
                latest_ns = deadlines[at]
                ends[sample, model, count], releases[sample, model, count] = latest_ns, now_ns
                count += 1
            passed_ns = 0.0
            for expected in range(_MOST_EXPECTED):
                passed_ns += gaps_ns[model] * _GAPS[(257 * sample + 61 * model + expected) % _GAPS.size]
                if passed_ns > horizon_ns:
                    break
                releases[sample, model, count] = now_ns + int(passed_ns)
                latest_ns = max(latest_ns, now_ns + int(passed_ns) + limits_ns[model])
                ends[sample, model, count] = latest_ns
                count += 1
            counts[sample, model] = count
    best_model, best_head, best_size, best_value = -1, 0, 0, -1e300
    for model in range(models):
        queued = offsets[model + 1] - offsets[model]
        largest = 0
        for head in range(queued if fixed[model] == 0 else int(fixed[model] > 0)):
            deadline_ns = deadlines[offsets[model] + head]
            full = min(queued - head, caps[model]) if fixed[model] == 0 else fixed[model]
            size = full
            while fixed[model] == 0 and size > 0 and now_ns + setups_ns[model] + durations[model, size] > deadline_ns:
                size -= 1
            if size <= largest and size < full:
                continue
            largest = max(largest, size)
            if size > 0:
                value = 0.0
                for sample in range(_SAMPLES):
                    value += _play(
                        now_ns,
                        model,
                        head,
                        size,
                        ends[sample],
                        releases[sample],
                        counts[sample],
                        durations,
                        caps,
                        weights,
                        price,
                        free,
                        sizes,
                        setups_ns,
                        loads_ns,
                    )
                if value > best_value:
                    best_model, best_head, best_size, best_value = model, head, size, value
            if size == full:
                break
    return best_model, best_head, best_size


_READ = "Array(int64, 1, 'C', readonly=True)"
_READ_2D = "Array(int64, 2, 'C', readonly=True)"
_READ_FLOATS = "Array(float64, 1, 'C', readonly=True)"

_SIGNATURE = (
    f"int64, {_READ}, {_READ}, {_READ}, {_READ_2D}, {_READ}, {_READ_FLOATS}, {_READ}, {_READ_FLOATS}, "
    f"int64, {_READ}, {_READ}, {_READ}"
)

EXPORTS = {"choose_turn": (choose_turn, f"UniTuple(int64, 3)({_SIGNATURE})")}
"""The kernel, as in :data:`streaminfer.batching.planner.kernels.EXPORTS`."""
