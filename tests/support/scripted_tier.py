"""Tier in memory whose delays and errors a test sets, a model with a delay, and a cache of both."""

import asyncio

import numpy as np

import streaminfer as si
from streaminfer.caching.tiers import Tier, TierStatistics

__all__ = ["EPOCH", "Model", "ScriptedTier", "cache_of"]

EPOCH = 1_700_000_000 * 10**9


class ScriptedTier(Tier):
    """Tier in memory, as slow and as faulty as the test sets it. A put takes effect at its end."""

    purge_bound_s = None
    keys = None

    def __init__(self, clock, name="disk", *, shared=False, on_disk=True, encrypted=True):
        self.clock = clock
        self.name = name
        self.shared, self.on_disk, self.encrypted = shared, on_disk, encrypted
        self.held = {}
        self.get_s = self.put_s = self.erase_s = 0.0
        self.erase_error = None
        self.started = self.stopped = self.gets = 0
        self.running = False

    def wall_clock(self):
        return EPOCH + self.clock()

    async def start(self):
        if self.running:
            raise RuntimeError("it runs already")
        self.running = True
        self.started += 1

    async def stop(self):
        self.running = False
        self.stopped += 1

    async def get(self, key):
        self.gets += 1
        entry = self.held.get(key)
        await asyncio.sleep(self.get_s)
        return None if entry is None or entry.is_expired(self.wall_clock()) else entry

    async def put(self, key, entry):
        await asyncio.sleep(self.put_s)
        self.held[key] = entry
        return True

    async def delete(self, key):
        await asyncio.sleep(self.erase_s)
        if self.erase_error is not None:
            return False
        self.held.pop(key, None)
        return True

    async def erase(self, *, subject=None, tag=None):
        await asyncio.sleep(self.erase_s)
        if self.erase_error is not None:
            raise self.erase_error
        gone = [k for k, it in self.held.items() if (it.subject == subject if tag is None else tag in it.tags)]
        for key in gone:
            del self.held[key]
        return len(gone)

    async def purge(self, now_ns=None):
        return 0

    def scan(self):
        return ()

    async def inventory(self, classes=()):
        return None

    def statistics(self):
        return NO_STATISTICS


NO_STATISTICS = TierStatistics(
    name="scripted",
    last_error="",
    entries=None,
    size_bytes=None,
    **dict.fromkeys(
        [
            "hits",
            "misses",
            "stored",
            "rejected",
            "skipped",
            "errors",
            "unreadable",
            "evicted",
            "erased",
            "purged",
            "rebuilds",
        ],
        0,
    ),
)


class Model:
    fingerprint = "model 1"
    enforces_deadline = False

    def __init__(self, after_s=0.01):
        self.after_s = after_s
        self.asked = 0
        self.error = None

    async def call(self, request):
        self.asked += 1
        await asyncio.sleep(self.after_s)
        if self.error is not None:
            raise self.error
        return si.Response(np.asarray(request.inputs) * 2, False, "model")


def cache_of(loop, *tiers, **settings):
    settings.setdefault("ttl_s", 10.0)
    return si.EdgeCache(clock=loop.clock, tiers=tiers, **settings)
