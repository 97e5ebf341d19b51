"""Words of any length in real time: ours beside razors-edge-batching-scheduler and a minimal batcher.

    python benchmarks/run.py ragged

The model reads words letter by letter, so that a batch takes as long as its longest word. Lengths are the peer's own
mix: uniform from the shortest to the longest. Callers are an open loop of Poisson arrivals at shares of the
closed-loop throughput of the minimal batcher; the SLO is 50 ms from the instant at which a request was due.

*ours* is an `AdaptiveBatcher` with four bucket lengths and the SLO; all other settings are defaults. *razors-edge* runs
the model in a separate process, which it calibrates at its start; it takes no deadlines and rejects no request, and its
`async_limit` is so high that it never holds a request back. *minimal* pads the queued words to the longest.
"""

import argparse
import asyncio
import gc
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from _lib.floor import MinimalGreedy
from batching_executor.process_manager import ComputeExecutor
from razors_edge_task import LONGEST, MAX_BATCH_SIZE, MODEL, TASKS, pad, session

import streaminfer as si
from streaminfer.simulation import arrivals

SLO_S = 0.05
LOADS = (0.3, 0.6, 0.8, 1.1)
LENGTHS = (8, 16, 24, LONGEST)
LETTERS = 29
PATIENCE_S = 5.0
WARM_UP_S = 2.0


def words(count, seed):
    """Return words of random letters, of uniformly distributed lengths, each with an end mark."""
    random = np.random.default_rng(seed)
    return [
        np.append(random.integers(3, LETTERS, length - 1), 2).astype(np.int64)
        for length in random.integers(2, LONGEST + 1, count)
    ]


async def open_loop(call, inputs, trace):
    """Return the share on time; a rejected request, or one without a response at the end of the run, is not on time."""
    on_time = 0
    clock = time.monotonic
    origin = clock() + 0.02
    waiting = set()
    failures = []

    async def one(number, due):
        nonlocal on_time
        try:
            await call(inputs[number % len(inputs)], due + SLO_S)
        except si.StreamInferError:
            return
        on_time += clock() <= due + SLO_S

    def done(task):
        waiting.discard(task)
        if not task.cancelled() and task.exception() is not None:
            failures.append(task.exception())

    for number, due in enumerate((trace + origin).tolist()):
        if due > clock():
            await asyncio.sleep(due - clock())
        task = asyncio.create_task(one(number, due))
        waiting.add(task)
        task.add_done_callback(done)
    while waiting and not failures and clock() < origin + trace[-1] + PATIENCE_S + 60:
        await asyncio.wait(waiting, timeout=PATIENCE_S)
    if failures:
        raise failures[0]
    return on_time / len(trace)


async def closed_loop(call, inputs, callers, seconds):
    """Return responses per second."""
    answered = 0
    ends = time.monotonic() + seconds

    async def caller(number):
        nonlocal answered
        while time.monotonic() < ends:
            await call(inputs[number % len(inputs)], time.monotonic() + 60.0)
            number += callers
            answered += 1

    started = time.monotonic()
    await asyncio.gather(*map(caller, range(callers)))
    return answered / (time.monotonic() - started)


async def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    inputs = words(512, 0)
    loop = asyncio.get_running_loop()
    model, worker = session(), ThreadPoolExecutor(1)

    async def infer(rows):
        return list((await loop.run_in_executor(worker, model.run, None, pad(rows)))[0])

    greedy = MinimalGreedy(infer, MAX_BATCH_SIZE)
    print("razors-edge calibrates ...", flush=True)
    started = time.monotonic()
    executor = ComputeExecutor(list(TASKS.values()), async_limit=10**6, model_thread_limit=1)
    print(f"razors-edge started in {time.monotonic() - started:.1f} s")
    batcher = si.AdaptiveBatcher(
        max_batch_size=MAX_BATCH_SIZE, slo_s=SLO_S, buckets=si.batching.Buckets(LENGTHS, mask="attention_mask")
    )
    stack = si.Stack(batcher, si.OnnxBackend(MODEL))
    si.warmup()
    await stack.start()

    async def ours(row, deadline):
        return await stack.call(si.Request({"letters": row}, deadline_ns=round(deadline * 1e9)))

    async def minimal(row, _deadline):
        return await greedy(row)

    async def razors_edge(task, row, _deadline):
        return await executor.async_compute_fn(task, row)

    calls = {"ours": ours, "minimal": minimal}
    calls |= {f"razors-edge, {name}": partial(razors_edge, task) for name, task in TASKS.items()}
    throughput = {name: [] for name in calls}
    found = {name: {load: [] for load in LOADS} for name in calls}
    for call in calls.values():  # some ways compile or learn at first use
        await closed_loop(call, inputs, 2 * MAX_BATCH_SIZE, WARM_UP_S)
    for number in range(options.rounds):
        names = [*list(calls)[number % len(calls) :], *list(calls)[: number % len(calls)]]
        for name in names:
            throughput[name].append(await closed_loop(calls[name], inputs, 2 * MAX_BATCH_SIZE, options.seconds / 2))
        capacity = throughput["minimal"][-1]
        for load in LOADS:
            trace = arrivals.poisson(load * capacity, int(load * capacity * options.seconds), number)
            for name in names:
                gc.collect()
                found[name][load].append(await open_loop(calls[name], inputs, trace))
    await stack.stop()
    rate = statistics.median(throughput["minimal"])
    print(
        f"minimal answers {rate:,.0f}/s in a closed loop; SLO {1e3 * SLO_S:.0f} ms; medians of {options.rounds} rounds"
    )
    print(f"{'':34}{'closed loop':>14}" + "".join(f"{f'on time at {load}×':>26}" for load in LOADS))
    for name in calls:
        ratio = statistics.median(
            own / floor for own, floor in zip(throughput[name], throughput["minimal"], strict=True)
        )
        cells = "".join(
            f"{statistics.median(values):12.3f} ({min(values):.3f}–{max(values):.3f})".rjust(26)
            for values in found[name].values()
        )
        print(f"{name:34}{ratio:13.2f}×{cells}", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
