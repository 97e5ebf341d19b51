"""The disk tier: time of a get and a put, a restart with a gigabyte, and 200 kills during a write storm.

    python benchmarks/run.py disk_tier [--kills 200] [--gigabytes 1.0]

Part 1: microseconds per operation for a 4 KB and a 600 KB array, plain and encrypted, in the tier's own thread and for
its callers; operations run one after another. Part 2: time from the constructor of a `DiskTier` to its first hit, with
a full file, in a new process after a kill. Part 3: the parent kills a child that writes and erases, at a random moment,
and checks all readable data.
"""

import argparse
import asyncio
import os
import random
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _lib.figures import Figure

from streaminfer.caching.tiers import DiskTier, Entry
from streaminfer.caching.tiers.encryption import StoredKeys

MIB = 2**20
KEYS = 40
SIZES = (1, 300, 5000, 40_000)
PUT = Figure("putting an array into the disk tier", form="{:,.0f} µs")
GET = Figure("getting an array from the disk tier", form="{:,.0f} µs")
START = Figure("start of the disk tier after a kill, its file full", form="{:.0f} ms")
DAMAGED = Figure("entries wrong, torn or unreadable after kills of a process that writes", form="{:.0f}", at_most=0)


def entry(value: Any, **more: Any) -> Entry:
    return Entry(value=value, stored_ns=time.time_ns(), ttl_s=3600.0, **more)


def median_us(operation: Callable[[int], object], rounds: int) -> float:
    spent = []
    for number in range(rounds):
        begun = time.perf_counter_ns()
        operation(number)
        spent.append(time.perf_counter_ns() - begun)
    return statistics.median(spent) / 1e3


async def awaited_us(operation: Callable[[int], Any], rounds: int) -> float:
    spent = []
    for number in range(rounds):
        begun = time.perf_counter_ns()
        await operation(number)
        spent.append(time.perf_counter_ns() - begun)
    return statistics.median(spent) / 1e3


async def operations(folder: Path) -> None:
    print("1. medians")
    for name, size, rounds in (("4 KB", 1024, 400), ("600 KB", 150_528, 60)):
        for encrypted in (False, True):
            keys = StoredKeys(folder / "keys.db", master=bytes(32)) if encrypted else None
            made = [entry(np.full(size, number, np.float32), tags=["model"]) for number in range(rounds)]
            async with DiskTier(folder / f"{size}{encrypted}", max_bytes=256 * MIB, keys=keys) as tier:
                store = tier._store
                put = await tier._run(median_us, lambda at: store.put(f"k{at}", made[at]), rounds)  # noqa: B023
                put_awaited = await awaited_us(lambda at: tier.put(f"a{at}", made[at]), rounds)  # noqa: B023
                get = await tier._run(median_us, lambda at: store.get(f"k{at}"), rounds)  # noqa: B023
                get_awaited = await awaited_us(lambda at: tier.get(f"k{at}"), rounds)
                miss = await tier._run(median_us, lambda at: store.get(f"no{at}"), rounds)  # noqa: B023
            kind = "encrypted" if encrypted else "plain"
            case = f"{name}, {kind}"
            PUT.report(put, case=f"{case}, in the tier's thread")
            PUT.report(put_awaited, case=f"{case}, awaited")
            GET.report(get, case=f"{case}, in the tier's thread")
            GET.report(get_awaited, case=f"{case}, awaited")
            print(f"  a key that is not there, {case}: {miss:.0f} µs")
            if keys is not None:
                keys.close()


async def fill(folder: str, gigabytes: float) -> None:
    """Write until the process is killed; once the file is full, print the newest key's number every 8,192 keys."""
    limit = int(gigabytes * 2**30)
    async with DiskTier(folder, max_bytes=limit) as tier:
        number = 0
        while True:
            value = np.full(1024, number, np.int32)
            await asyncio.gather(*(tier.put(f"k{number + one}", entry(value)) for one in range(64)))
            number += 64
            if tier.statistics().evicted and number % 8192 == 0:
                print(number - 1, flush=True)


async def first_hit(folder: str, gigabytes: float, newest: int) -> None:
    begun = time.perf_counter()
    async with DiskTier(folder, max_bytes=int(gigabytes * 2**30)) as tier:
        started = time.perf_counter()
        got = await tier.get(f"k{newest}")
        ended = time.perf_counter()
        assert got is not None
        assert tier.statistics().rebuilds == 0
        print(
            f"   {(tier.statistics().size_bytes or 0) / 2**30:.2f} GB, first hit after {(ended - begun) * 1e3:.1f} ms"
        )
        START.report((started - begun) * 1e3, case=f"{gigabytes:g} GB", note=f"{tier.statistics().entries:,} entries")


def restart(folder: Path, gigabytes: float) -> None:
    print("2. restart after a kill")
    arguments = [sys.executable, __file__, "--folder", str(folder), "--gigabytes", str(gigabytes)]
    with subprocess.Popen([*arguments, "--fill"], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        newest = int(child.stdout.readline())
        child.kill()
    subprocess.run([*arguments, "--first-hit", str(newest)], check=True)


async def storm(folder: Path, seed: int) -> None:
    draw = random.Random(seed)
    async with DiskTier(folder, max_bytes=2 * MIB) as tier:
        while True:
            key, stamp = draw.randrange(KEYS), draw.randrange(2**31)
            value = np.full(draw.choice(SIZES), stamp * 64 + key, np.int64)
            await tier.put(f"{key}", entry(value, subject=f"{key % 4}"))
            if draw.random() < 0.02:
                await tier.erase(subject=f"{key % 4}")


async def check(folder: Path) -> tuple[int, int]:
    """Return the number of entries read, and the number of wrong, torn or unreadable ones, errors and rebuilds."""
    read = wrong = 0
    async with DiskTier(folder, max_bytes=2 * MIB) as tier:
        for key in range(KEYS):
            got = await tier.get(f"{key}")
            if got is not None:
                value = got.value
                read += 1
                wrong += not (len(value) in SIZES and (value == value[0]).all() and value[0] % 64 == key)
        seen = tier.statistics()
    return read, wrong + seen.unreadable + seen.errors + seen.rebuilds


def kills(folder: Path, count: int) -> None:
    draw = random.Random(secrets.randbits(32))
    read = wrong = 0
    for number in range(count):
        child = os.fork()
        if child == 0:
            try:
                asyncio.run(storm(folder, number))
            finally:
                os._exit(1)
        time.sleep(draw.uniform(0.002, 0.06))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status)
        checked = asyncio.run(check(folder))
        read += checked[0]
        wrong += checked[1]
    print("3. kills during a write storm")
    DAMAGED.report(wrong, note=f"{count} kills, {read:,} entries read afterwards")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--folder")
    parser.add_argument("--fill", action="store_true")
    parser.add_argument("--first-hit", type=int)
    chosen = parser.parse_args()
    if chosen.fill:
        asyncio.run(fill(chosen.folder, chosen.gigabytes))
    elif chosen.first_hit is not None:
        asyncio.run(first_hit(chosen.folder, chosen.gigabytes, chosen.first_hit))
    else:
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(operations(Path(folder)))
            restart(Path(folder) / "full", chosen.gigabytes)
            kills(Path(folder) / "storm", chosen.kills)


if __name__ == "__main__":
    main()
