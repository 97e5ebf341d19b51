"""Choice of the next turn on a device that several models share: the arithmetic of the decision.

*Design*. The input is the queue of each model, in deadline order, and the durations of its batches. A candidate is a
first batch of one model: for each number of requests passed over, the largest batch that is on time for the first
remaining one. Each candidate is played forward over sampled arrivals, with one of two rules for the batches after it.
Each model offers the largest batch that is on time after late requests are passed over. By one rule the batch that has
to start first is sent first. By the other rule it is sent first only if the batch with most requests for its time can
still follow in time; otherwise that batch is first. A candidate's value is the weighted number of requests on time,
under the rule that suits it better, less a price for the busy time of the device, which later requests need too. The
candidate with the highest value is chosen. This is a rollout (Bertsekas, Tsitsiklis and Wu, "Rollout algorithms for
combinatorial optimization", Journal of Heuristics 3, 1997) of two base policies (Chang, Givan and Chong, "Parallel
rollout for online solution of partially observable Markov decision processes", Discrete Event Dynamic Systems 14,
2004), and a heuristic.

The price is a share of what the time could serve: full batches of the best model, but no more than is queued and
arrives. It is proportional to the backlog, up to a backlog of one: the share of their time limits that the queued
requests need in full batches. With a small queue there is time for a request of a rare model that costs more than many
requests of another one. At the full price, such a request would never be worth its time.

If the models do not all fit in the device's memory, the load of a model is set-up time of its next batch. To make room,
a play unloads the models whose next batch has to start last, as in
:mod:`~streaminfer.batching.device.resident_set`.

Arrivals are drawn from a fixed table of exponential gaps. With evenly spaced arrivals a plan could end exactly at their
deadlines, which real arrivals do not allow. Some samples have the rate of the last few arrivals, others that of many,
because it is unknown whether a burst has begun or a few requests arrived together by chance. Every candidate is played
against the same arrivals, so equal queues give the same turn.

*Complexity*. All candidates are played against a few samples, and the best of them against the others. A play is
O(arrivals + batches) up to the horizon.

Importing this module imports Numba; a serving process calls its kernels compiled ahead of time (``kernel_loader``).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streaminfer._internal.loading.numba_jit import jit

__all__ = ["EXPORTS", "choose_turn"]

FAR_NS = 2**62
_SAMPLES = 12
_FIRST_SAMPLES = 3
"""Number of samples against which all candidates are played, one for each rate."""
_FINALISTS = 6
"""Number of candidates that are also played against the other samples."""
_MOST_EXPECTED = 256
"""Most arrivals of a model in a play; the horizon of all models, the longest time limit, is cut to their mean time."""
_PRICE = 0.2
"""Price of the device's time, as a share of what it could serve."""
_GAPS = np.random.default_rng(0).exponential(1.0, 1024)

_Array = NDArray[np.int64]
_Floats = NDArray[np.float64]


class _Models(NamedTuple):
    """The models, as :func:`choose_turn` describes them."""

    durations: _Array
    caps: _Array
    weights: _Floats
    sizes: _Array
    setups_ns: _Array
    loads_ns: _Array


@jit
def _load(
    model: int, free: int, models: _Models, setups_ns: _Array, heads: _Array, ends: _Array, counts: _Array
) -> int:
    """Load a model into memory and unload others in the play; return the free bytes afterwards."""
    free -= models.sizes[model]
    setups_ns[model] = 0
    while free < 0:
        latest, latest_ns = -1, -FAR_NS
        for other in range(models.sizes.size):
            if other != model and models.sizes[other] > 0 and setups_ns[other] == 0:
                start_ns = FAR_NS
                if heads[other] < counts[other]:
                    start_ns = ends[other, heads[other]] - models.durations[other, 1]
                if start_ns > latest_ns:
                    latest, latest_ns = other, start_ns
        if latest < 0:
            return 0
        free += models.sizes[latest]
        setups_ns[latest] = models.loads_ns[latest]
    return free


@jit
def _play(
    now_ns: int, batch: _Array, sample: tuple[_Array, ...], models: _Models, free: int, price: float, rule: int
) -> float:
    """Return the weighted requests on time, less the price of the busy time, if a candidate is the first batch.

    By rule 1 the batch that has to start first is sent first, even if it makes others late.
    """
    ends, releases, counts = sample
    durations, caps, weights = models.durations, models.caps, models.weights
    first, head, size = batch[0], batch[1], batch[2]
    heads = np.zeros(caps.size, np.int64)
    arrived = np.zeros(caps.size, np.int64)
    setups_ns = models.setups_ns.copy()
    heads[first] = head + size
    busy_ns = setups_ns[first] + durations[first, size]
    time_ns = now_ns + busy_ns
    value = weights[first] * size
    if setups_ns[first] > 0:
        free = _load(first, free, models, setups_ns, heads, ends, counts)
    while True:
        urgent, urgent_size, urgent_start_ns, next_ns = -1, 0, FAR_NS, FAR_NS
        dense, dense_size, dense_start_ns, density = -1, 0, FAR_NS, 0.0
        for model in range(caps.size):
            while arrived[model] < counts[model] and releases[model, arrived[model]] <= time_ns:
                arrived[model] += 1
            if arrived[model] < counts[model]:
                next_ns = min(next_ns, releases[model, arrived[model]])
            while heads[model] < arrived[model]:
                rows = min(arrived[model] - heads[model], caps[model])
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
        urgent_end_ns = time_ns + setups_ns[urgent] + durations[urgent, urgent_size]
        if rule == 0 and urgent != dense and urgent_end_ns > dense_start_ns:
            urgent, urgent_size = dense, dense_size
        heads[urgent] += urgent_size
        takes_ns = setups_ns[urgent] + durations[urgent, urgent_size]
        time_ns += takes_ns
        busy_ns += takes_ns
        if setups_ns[urgent] > 0:
            free = _load(urgent, free, models, setups_ns, heads, ends, counts)
        value += weights[urgent] * urgent_size


@jit
def _first_batches(now_ns: int, deadlines: _Array, offsets: _Array, fixed: _Array, models: _Models) -> _Array:
    """Return the candidates, shape (k, 3): the model, how many of its requests to pass over, how many to send."""
    durations, caps, setups_ns = models.durations, models.caps, models.setups_ns
    candidates = np.empty((deadlines.size, 3), np.int64)
    count = 0
    for model in range(caps.size):
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
                candidates[count, 0], candidates[count, 1], candidates[count, 2] = model, head, size
                count += 1
            if size == full:
                break
    return candidates[:count]


@jit
def _draw(
    now_ns: int, horizon_ns: int, deadlines: _Array, offsets: _Array, gaps_ns: _Floats, limits_ns: _Array
) -> tuple[_Array, _Array, _Array]:
    """Return deadlines, releases and number of the queued and expected requests of each sample and model."""
    models = limits_ns.size
    most_queued = (offsets[1:] - offsets[:-1]).max()
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
                gap = _GAPS[(257 * sample + 61 * model + expected) % _GAPS.size]
                passed_ns += gaps_ns[model, sample % gaps_ns.shape[1]] * gap
                if passed_ns > horizon_ns:
                    break
                releases[sample, model, count] = now_ns + int(passed_ns)
                latest_ns = max(latest_ns, now_ns + int(passed_ns) + limits_ns[model])
                ends[sample, model, count] = latest_ns
                count += 1
            counts[sample, model] = count
    return ends, releases, counts


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
    """Return the model whose batch is next, and that batch.

    Args:
        now_ns: the present instant.
        deadlines: shape (n,): model after model, ascending within each; for a model with a fixed batch, of that batch.
        offsets: shape (models + 1,): where each model begins in ``deadlines``.
        fixed: shape (models,): size of the only batch that a model may send; 0: the kernel chooses; -1: none now.
        durations: shape (models, largest cap + 1), nanoseconds of a batch by its size, nondecreasing.
        caps: shape (models,): the largest batch of each.
        gaps_ns: shape (models, k): expected nanoseconds between arrivals, estimated from many arrivals first, then from
            fewer; infinite: none are expected.
        limits_ns: shape (models,): time limit of expected arrivals, in nanoseconds.
        weights: shape (models,): value of a request on time.
        free: bytes of the device's memory that no model occupies.
        sizes: shape (models,): bytes of each model; 0: it is always in memory.
        setups_ns: shape (models,): nanoseconds to load a model that is not in memory, at least 1; 0: it is in memory.
        loads_ns: shape (models,): nanoseconds to load each model, at least 1.

    Returns:
        The model, how many of its requests to pass over and how many to send after them; (-1, 0, 0) if no batch would
        be on time.
    """
    models = _Models(durations, caps, weights, sizes, setups_ns, loads_ns)
    batches = _first_batches(now_ns, deadlines, offsets, fixed, models)
    if len(batches) == 0:
        return -1, 0, 0
    if len(batches) == 1:
        return batches[0, 0], batches[0, 1], batches[0, 2]
    horizon_ns = int(limits_ns.max())
    best_rate, offered_rate, backlog = 0.0, 0.0, 0.0
    for model in range(caps.size):
        horizon_ns = int(min(float(horizon_ns), gaps_ns[model, 0] * _MOST_EXPECTED))
        best_rate = max(best_rate, weights[model] * caps[model] / durations[model, caps[model]])
    for model in range(caps.size):
        queued = offsets[model + 1] - offsets[model]
        backlog += queued * durations[model, caps[model]] / caps[model] / max(limits_ns[model], 1)
        offered_rate += weights[model] * (queued / max(horizon_ns, 1) + 1.0 / max(gaps_ns[model, 0], 1.0))
    price = _PRICE * min(best_rate, offered_rate) * min(backlog, 1.0)
    ends, releases, counts = _draw(now_ns, horizon_ns, deadlines, offsets, gaps_ns, limits_ns)
    values = np.zeros((len(batches), 2))  # by candidate and rule
    is_candidate = np.ones(len(batches), np.bool_)
    for since, until in ((0, _FIRST_SAMPLES), (_FIRST_SAMPLES, _SAMPLES)):
        for at in range(len(batches)):
            for rule in range(2 if is_candidate[at] else 0):
                for number in range(since, until):
                    sample = ends[number], releases[number], counts[number]
                    values[at, rule] += _play(now_ns, batches[at], sample, models, free, price, rule)
        _select_best(values, is_candidate, _FINALISTS if until < _SAMPLES else 1)
    chosen = np.argmax(is_candidate)
    return batches[chosen, 0], batches[chosen, 1], batches[chosen, 2]


@jit
def _select_best(values: _Floats, is_candidate: NDArray[np.bool_], count: int) -> None:
    """Select the ``count`` candidates with the highest value by their better rule; among equal ones, the first."""
    remaining = is_candidate.copy()
    is_candidate[:] = False
    for _ in range(count):
        best = -1
        for at in range(remaining.size):
            if remaining[at] and (best < 0 or values[at].max() > values[best].max()):
                best = at
        if best < 0:
            return
        remaining[best], is_candidate[best] = False, True


_READ = "Array(int64, 1, 'C', readonly=True)"
_READ_2D = "Array(int64, 2, 'C', readonly=True)"
_READ_FLOATS = "Array(float64, 1, 'C', readonly=True)"
_READ_FLOATS_2D = "Array(float64, 2, 'C', readonly=True)"

_SIGNATURE = (
    f"int64, {_READ}, {_READ}, {_READ}, {_READ_2D}, {_READ}, {_READ_FLOATS_2D}, {_READ}, {_READ_FLOATS}, "
    f"int64, {_READ}, {_READ}, {_READ}"
)

EXPORTS = {"choose_turn": (choose_turn, f"UniTuple(int64, 3)({_SIGNATURE})")}
"""The kernel, as in :data:`streaminfer.batching.planner.kernels.EXPORTS`."""
