"""A cache of face boxes whose keeper can show what is kept, for how long, and that what was erased is gone.

    python examples/compliant_cache.py [FOLDER]

One policy says how long each class of data may be kept and where. The disk is encrypted with keys for each person;
what goes is recorded in a log that shows every change. Then one person asks to be forgotten. The report is
written to FOLDER/report.html; without a folder a temporary one is used and removed.
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
from streaminfer.caching.tiers import DiskTier
from streaminfer.caching.tiers.encryption import StoredKeys

MASTER = b"32 bytes, from where secrets are"  # in earnest: from a vault, never from a source file
LOG_SECRET = hmac.digest(MASTER, b"retention log", hashlib.sha256)
KEY_SECRET = hmac.digest(MASTER, b"cache keys", hashlib.sha256)
PEOPLE = ("Anna Ångström", "Ben Bernoulli", "Carla Curie")


def find_faces(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """A model for the example: where the image is brightest, as a box.

    Args:
        images: shape (batch, height, width), float32.

    Returns:
        Shape (batch, 4), float32.
    """
    at = images.reshape(len(images), -1).argmax(axis=1)
    rows, columns = np.divmod(at, images.shape[2])
    return np.stack([columns - 2, rows - 2, columns + 2, rows + 2], axis=1).astype(np.float32)


def make_cache(folder: Path, keys: StoredKeys, log: RetentionLog) -> si.EdgeCache:
    """Answers about faces for a minute, all others for an hour; what is on the disk is encrypted."""
    policy = si.Retention(3600.0, encrypt=True, classes={"face": si.Retention(60.0, encrypt=True)}, log=log)
    tiers = [DiskTier(folder / "cache", max_bytes=2**24, keys=keys)]
    return si.EdgeCache(maxsize=10_000, retention=policy, tiers=tiers, secret=KEY_SECRET)


def make_stack(cache: si.EdgeCache) -> si.Stack:
    """The service."""
    model = si.CpuBackend(find_faces, version="1")  # another process finds what this one kept by its name and version
    return si.Stack(cache, si.AdaptiveBatcher(max_batch_size=8), model)


async def serve(stack: si.Stack) -> None:
    """A request about each of the people."""
    images = np.random.default_rng(0).random((len(PEOPLE), 16, 16), np.float32)
    await asyncio.gather(
        *(stack(image, subject=name, tags=["face"]) for image, name in zip(images, PEOPLE, strict=True))
    )


async def demonstrate(folder: Path) -> list[str]:
    """Serves, erases one person, reports, and audits.

    Args:
        folder: for the cache, its keys, the log and the page.

    Returns:
        What to show.
    """
    keys = StoredKeys(folder / "keys.db", master=MASTER)
    log = RetentionLog(folder / "retention.jsonl", secret=LOG_SECRET)
    cache = make_cache(folder, keys, log)
    shown = []
    async with make_stack(cache) as stack:
        await serve(stack)
    async with make_stack(cache) as stack:  # stopping wrote what waited for the disk
        await serve(stack)
        erased = await cache.erase_everywhere(subject=PEOPLE[0])
        shown.append(f"erased of one person: {dict(erased.counts)}, complete: {erased.complete}")
        report = await cache.retention_report()
        report.to_html(folder / "report.html")
        shown += ["", str(report), "", str(si.audit(stack))]
        cache.clear()  # what expired later would be recorded in a folder that is gone
    keys.close()
    return shown


def check_files(folder: Path) -> list[str]:
    """Whether the log is whole, and whether any file names a person."""
    found = verify_file(folder / "retention.jsonl", secret=LOG_SECRET)
    named = [path.name for path in folder.rglob("*") if path.is_file() and mentions(path, PEOPLE)]
    return ["", f"the log: {found}", f"files in which a person is named: {named or 'none'}"]


def mentions(path: Path, names: tuple[str, ...]) -> bool:
    """Whether a file has one of these names in it, as it is or as JSON writes it."""
    data = path.read_bytes()
    return any(name.encode() in data or json.dumps(name)[1:-1].encode() in data for name in names)


def main(folder: str | None = None) -> None:
    """Shows it all."""
    with tempfile.TemporaryDirectory() as temporary:
        where = Path(folder or temporary)
        print("\n".join(asyncio.run(demonstrate(where)) + check_files(where)))


if __name__ == "__main__":
    main(*sys.argv[1:2])
