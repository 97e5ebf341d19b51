"""Eviction over traces of real accesses: the share of the gap between LRU and the optimum that a cache closes.

``STREAMINFER_TRACES`` names the folder of the traces; without it, seeded synthetic traces replace them: Zipf, Zipf with
scans, and loops. The share is (hits - LRU's hits) / (Belady's hits - LRU's hits) in percent, for caches of 5 % and 10 %
of the distinct keys. If the optimum's hits exceed LRU's by at most 0.1 % of the requests, there is no gap at that size,
and the size is left out.
"""

import gzip
import heapq
import lzma
import os
import random
import statistics
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SIZES = (0.05, 0.10)
LEAST_GAP = 0.001
NEVER = 2**60
NOT_THERE = (None, False)  # theine returns this for a missing key


def source_of_traces() -> str:
    """Return the source of the traces, in the words of a table row."""
    return "real traces" if "STREAMINFER_TRACES" in os.environ else "synthetic traces"


def traces() -> dict[str, list[int]]:
    """Return the traces by name, with keys numbered from 0."""
    folder = os.environ.get("STREAMINFER_TRACES")
    if folder is None:
        return {name: numbered(keys) for name, keys in synthetic()}
    return {path.name.split(".")[0]: numbered(keys_of(path)) for path in sorted(Path(folder).glob("*.[gx]z"))}


def keys_of(path: Path) -> Iterator[int]:
    raw = (gzip if path.suffix == ".gz" else lzma).open(path).read()
    if path.name.endswith(".lirs.gz"):
        yield from (int(line) for line in raw.split() if b"*" not in line)
    elif path.name.startswith("adapt_size"):
        yield from (int(line.split()[1]) for line in raw.splitlines() if line.strip())
    else:
        words = array("q" if path.name.startswith("corda") else "i", raw)
        words.byteswap()
        yield from words


def numbered(keys: Iterator[int]) -> list[int]:
    numbers: dict[int, int] = {}
    return [numbers.setdefault(key, len(numbers)) for key in keys]


def synthetic() -> Iterator[tuple[str, Iterator[int]]]:
    def zipf(seed: int, scan: float) -> Iterator[int]:
        rng = random.Random(seed)
        weights = [1 / (rank + 1) ** 0.9 for rank in range(20_000)]
        scanned = 20_000
        for key in rng.choices(range(20_000), weights, k=100_000):
            if rng.random() < scan:
                yield from range(scanned, scanned + 2_000)
                scanned += 2_000
            yield key

    yield "zipf", zipf(1, 0.0)
    yield "zipf and scans", zipf(2, 0.0003)
    yield "loop", (number % 5_000 for number in range(100_000))


def lru_hits(trace: list[int], maxsize: int) -> int:
    held: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for key in trace:
        if key in held:
            hits += 1
            held.move_to_end(key)
            continue
        if len(held) == maxsize:
            held.popitem(last=False)
        held[key] = None
    return hits


def belady_hits(trace: list[int], maxsize: int) -> int:
    """Return the hits of an optimal cache, which evicts the key with the furthest next use.

    It stores every requested key, as caches do.
    """
    next_use = [NEVER] * len(trace)
    last: dict[int, int] = {}
    for place in range(len(trace) - 1, -1, -1):
        next_use[place] = last.get(trace[place], NEVER)
        last[trace[place]] = place
    held: dict[int, int] = {}
    furthest: list[tuple[int, int]] = []
    hits = 0
    for place, key in enumerate(trace):
        if key in held:
            hits += 1
        elif len(held) == maxsize:
            while True:
                negative, other = heapq.heappop(furthest)
                if held.get(other) == -negative:
                    del held[other]
                    break
        held[key] = next_use[place]
        heapq.heappush(furthest, (-next_use[place], key))
    return hits


def hits_of(contender: Any, trace: list[int]) -> int:
    """Look up each key, store it if it is missing, and return the number of hits."""
    get, store = contender.get, contender.store
    hits = 0
    for key in trace:
        if get(key) in (None, NOT_THERE):
            store((key,), 1)
        else:
            hits += 1
    return hits


def compare(contenders: dict[str, Callable[[int], Any]]) -> dict[str, tuple[float, float]]:
    """Print the shares of each contender, and return their mean and minimum in percent, by contender."""
    all_traces = traces()
    print("\neviction: % of the gap between LRU and the optimum closed, at 5 % / 10 % of the keys; ", end="")
    print(f"{source_of_traces()} (STREAMINFER_TRACES)")
    shares: dict[str, list[float]] = {name: [] for name in contenders}
    rows: dict[str, list[str]] = {name: [] for name in contenders}
    shown = []
    for title, trace in all_traces.items():
        keys = max(trace) + 1
        sizes = [max(1, int(keys * part)) for part in SIZES]
        bounds = [(lru_hits(trace, size), belady_hits(trace, size)) for size in sizes]
        gaps = [optimum - lru > LEAST_GAP * len(trace) for lru, optimum in bounds]
        if not any(gaps):
            print(f"  {title}: no gap, LRU is optimal")
            continue
        shown.append(title)
        for name, make in contenders.items():
            cell = []
            for size, (lru, optimum), gap in zip(sizes, bounds, gaps, strict=True):
                if gap:
                    shares[name].append(100 * (hits_of(make(size), trace) - lru) / (optimum - lru))
                    cell.append(f"{shares[name][-1]:.0f}")
                else:
                    cell.append("–")
            rows[name].append("/".join(cell))
    print(f"  {'':20}{''.join(f'{title[:10]:>11}' for title in shown)}{'mean':>7}{'worst':>7}")
    found = {name: (statistics.mean(of), min(of)) for name, of in shares.items()}
    for name, (mean, worst) in found.items():
        print(f"  {name:20}{''.join(f'{cell:>11}' for cell in rows[name])}{mean:7.1f}{worst:7.1f}", flush=True)
    return found
