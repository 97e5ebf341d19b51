"""The folder of a disk tier while the tier runs: deleted, replaced, or impossible to make again."""

import asyncio
import shutil
import time

import pytest

import streaminfer as si
from streaminfer.caching.tiers import DiskTier, Entry

MIB = 2**20


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


def tier_in(folder):
    return DiskTier(folder, max_bytes=MIB, purge_every_s=3600.0)


def entry(value, **more):
    return Entry(value=value, stored_ns=time.time_ns(), **more)


def test_tier_makes_a_deleted_folder_again(folder):
    """After its folder was deleted, a tier has no entry of it, and what it stores then reaches a later tier."""

    async def main():
        async with tier_in(folder) as tier:
            await tier.put("old", entry(1))
            shutil.rmtree(folder)
            old = await tier.get("old")
            assert await tier.put("new", entry(2))
            seen = tier.statistics()
        async with tier_in(folder) as later:
            return old, (await later.get("new")).value, seen

    old, new, seen = asyncio.run(main())
    assert (old, new) == (None, 2)
    assert (seen.rebuilds, seen.errors, seen.entries) == (1, 1, 1)
    assert seen.last_error == f"BackendError: {folder / 'cache.db'} was deleted or replaced while it was open"


def test_tiers_share_the_folder_that_one_made_again(folder):
    """A tier whose folder was deleted and made again by another one shares the new file: an erasure reaches both."""

    async def main():
        async with tier_in(folder) as first:
            await first.put("k", entry(1, tags=["a"]))
            shutil.rmtree(folder)
            async with tier_in(folder) as second:
                await second.put("k", entry(2, tags=["a"]))
                got = (await first.get("k")).value
                return got, await first.erase(tag="a"), await second.get("k")

    assert asyncio.run(main()) == (2, 1, None)


@pytest.mark.parametrize("operation", ["erase", "hold", "purge"])
def test_each_operation_uses_the_new_folder(folder, operation):
    """An erasure, a hold or a purge does not end in a deleted file."""

    async def main():
        async with tier_in(folder) as tier:
            shutil.rmtree(folder)
            await {
                "erase": lambda: tier.erase(tag="a"),
                "hold": lambda: tier.hold(subject="anna", on=True),
                "purge": tier.purge,
            }[operation]()
            return tier.statistics().rebuilds

    assert asyncio.run(main()) == 1
    assert (folder / "cache.db").exists()


def test_folder_that_cannot_be_made_again_is_retried(folder):
    """While its folder cannot be made, a tier misses and fails erasures; it serves again once that is possible."""

    async def main():
        async with tier_in(folder) as tier:
            shutil.rmtree(folder)
            folder.write_text("in the way")
            assert await tier.get("k") is None
            assert not await tier.put("k", entry(1))
            with pytest.raises(si.BackendError, match="the disk tier in"):
                await tier.erase(tag="a")
            folder.unlink()
            return await tier.put("k", entry(1)), (await tier.get("k")).value

    assert asyncio.run(main()) == (True, 1)
