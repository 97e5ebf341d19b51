"""Worker processes killed at random under load: lost and wrong responses, with and without a `RetryBudget`.

python benchmarks/run.py worker_kills
"""

import argparse
import asyncio
import multiprocessing
import os
import random
import signal
import time
from collections import Counter

import numpy as np
from _lib.figures import Figure
from numpy.typing import NDArray

import streaminfer as si

CLIENTS = 16
MODEL_S = 0.002
LONGEST_PAUSE_S = 0.6
LOST = Figure("responses lost while worker processes are killed, with RetryBudget", form="{:.0f}", at_most=0)
WRONG = Figure("wrong responses while worker processes are killed", form="{:.0f}", at_most=0)


def square(inputs: NDArray[np.float64]) -> NDArray[np.float64]:
    time.sleep(MODEL_S)
    return inputs**2


async def ask(
    service: si.Stack, seed: int, kills_done: asyncio.Event, counts: Counter[str], errors: Counter[str]
) -> None:
    generator = np.random.default_rng(seed)
    while not kills_done.is_set():
        inputs = generator.random(64)
        try:
            answer = await service(inputs)
        except si.BackendError as error:
            counts["lost"] += 1
            errors[str(error)] += 1
        else:
            counts["answered" if np.array_equal(answer, inputs**2) else "wrong"] += 1


async def kill(kills: int, seed: int, kills_done: asyncio.Event) -> None:
    """Kill a random worker process after each pause; no process is killed twice."""
    choose = random.Random(seed)
    killed: set[int] = set()
    while len(killed) < kills:
        await asyncio.sleep(choose.uniform(0.0, LONGEST_PAUSE_S))
        alive = [child.pid for child in multiprocessing.active_children() if child.pid not in killed]
        if alive and (pid := choose.choice(alive)) is not None:
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
    kills_done.set()


async def drill(kills: int, seed: int, *, retries: bool) -> tuple[Counter[str], Counter[str]]:
    """Kill workers under load; return the counts of the outcomes, and the errors of the lost requests."""
    counts: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    kills_done = asyncio.Event()
    layers = [si.RetryBudget(max_attempts=4, ratio=1.0)] if retries else []
    backend = si.CpuBackend(square, executor="process", workers=2)
    batcher = si.AdaptiveBatcher(max_batch_size=4, max_in_flight=2)
    async with si.Stack(*layers, batcher, backend) as service:
        clients = [ask(service, seed * CLIENTS + number, kills_done, counts, errors) for number in range(CLIENTS)]
        await asyncio.gather(kill(kills, seed, kills_done), *clients)
        counts["failed batches"] = backend.statistics().errors
    return counts, errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(f"{'':16}{'answered':>10}{'lost':>6}{'wrong':>7}   batches that failed, begun by a process that was killed")
    found: dict[bool, Counter[str]] = {}
    for name, retries in (("no retries", False), ("RetryBudget", True)):
        counts, errors = asyncio.run(drill(arguments.kills, arguments.seed, retries=retries))
        found[retries] = counts
        print(f"{name:16}{counts['answered']:10}{counts['lost']:6}{counts['wrong']:7}   {counts['failed batches']}")
        for error, count in errors.most_common(3):
            print(f"  {count} × {error}")
    LOST.report(found[True]["lost"], note=f"{arguments.kills} kills; {found[False]['lost']} without RetryBudget")
    total = sum(counts["answered"] + counts["wrong"] for counts in found.values())
    WRONG.report(sum(counts["wrong"] for counts in found.values()), of=total)


if __name__ == "__main__":
    main()
