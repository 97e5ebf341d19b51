"""A cache of face boxes with proof of what it stores, for how long, and that erased data is gone.

    python examples/compliant_cache.py [FOLDER]

One policy says where and how long each class of data may be stored. The disk is encrypted with keys for each person,
and a tamper-evident log records every removal. Then one person asks for erasure. The example writes its report to
FOLDER/report.html; without FOLDER it uses a temporary folder and removes it.
"""

import asyncio
import hashlib
import hmac
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import streaminfer as si
from streaminfer.caching import RetentionLog, verify_file
from streaminfer.caching.tiers import DiskTier, StoredKeys

MASTER = b"32 bytes, from where secrets are"  # in production: from a vault, never from a source file
LOG_SECRET = hmac.digest(MASTER, b"retention log", hashlib.sha256)
KEY_SECRET = hmac.digest(MASTER, b"cache keys", hashlib.sha256)
PEOPLE = ("Anna Ångström", "Ben Bernoulli", "Carla Curie")


def find_faces(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a box around the brightest place of each image, as a model for the example.

    Args:
        images: shape (batch, height, width), float32.

    Returns:
        Shape (batch, 4), float32.
    """
    at = images.reshape(len(images), -1).argmax(axis=1)
    rows, columns = np.divmod(at, images.shape[2])
    return np.stack([columns - 2, rows - 2, columns + 2, rows + 2], axis=1).astype(np.float32)


def make_cache(folder: Path, keys: StoredKeys, log: RetentionLog) -> si.EdgeCache:
    """Return a cache that stores responses about faces for a minute and others for an hour, encrypted on disk."""
    policy = si.Retention(3600.0, encrypt=True, classes={"face": si.Retention(60.0, encrypt=True)}, log=log)
    tiers = [DiskTier(folder / "cache", max_bytes=2**24, keys=keys)]
    return si.EdgeCache(maxsize=10_000, retention=policy, tiers=tiers, secret=KEY_SECRET)


def make_stack(cache: si.EdgeCache) -> si.Stack:
    """Return the service."""
    model = si.CpuBackend(find_faces, version="1")  # name and version let another process find these entries
    return si.Stack(cache, si.AdaptiveBatcher(max_batch_size=8), model)


async def serve(stack: si.Stack) -> None:
    """Send one request about each person."""
    images = np.random.default_rng(0).random((len(PEOPLE), 16, 16), np.float32)
    await asyncio.gather(
        *(stack(image, subject=name, tags=["face"]) for image, name in zip(images, PEOPLE, strict=True))
    )


async def demonstrate(folder: Path) -> list[str]:
    """Serve requests, erase one person, report, and audit.

    Args:
        folder: for the cache, its keys, the log and the page.

    Returns:
        Lines to print.
    """
    keys = StoredKeys(folder / "keys.db", master=MASTER)
    log = RetentionLog(folder / "retention.jsonl", secret=LOG_SECRET)
    cache = make_cache(folder, keys, log)
    shown = []
    async with make_stack(cache) as stack:
        await serve(stack)
    async with make_stack(cache) as stack:  # the previous stop wrote the queued entries to the disk
        await serve(stack)
        erased = await cache.erase_everywhere(subject=PEOPLE[0])
        shown.append(f"erased of one person: {dict(erased.counts)}, complete: {erased.complete}")
        report = await cache.retention_report()
        report.to_html(folder / "report.html")
        shown += ["", str(report), "", str(si.audit(stack))]
        cache.clear()  # later expiries would be logged in a folder that no longer exists
    keys.close()
    return shown


def check_files(folder: Path) -> list[str]:
    """Report whether the log is intact, and whether any file names a person."""
    found = verify_file(folder / "retention.jsonl", secret=LOG_SECRET)
    named = [path.name for path in folder.rglob("*") if path.is_file() and mentions(path, PEOPLE)]
    return ["", f"the log: {found}", f"files in which a person is named: {named or 'none'}"]


def mentions(path: Path, names: tuple[str, ...]) -> bool:
    """Return whether a file contains one of these names, literally or as JSON writes it."""
    data = path.read_bytes()
    return any(name.encode() in data or json.dumps(name)[1:-1].encode() in data for name in names)


def main(folder: str | None = None) -> None:
    """Run the example and print its results."""
    with tempfile.TemporaryDirectory() as temporary:
        where = Path(folder or temporary)
        print("\n".join(asyncio.run(demonstrate(where)) + check_files(where)))


if __name__ == "__main__":
    main(*sys.argv[1:2])
