"""Start of services that one owner needs."""

from collections.abc import Iterable
from typing import Any

from streaminfer._runtime.owners import own, parts_of
from streaminfer._runtime.stopping import stop_all

__all__ = ["start_all", "start_owned"]


async def start_all(owner: object, parts: Iterable[Any]) -> None:
    """Start each part once, in order, after what it leaves to its owner; if one fails, those that started are stopped.

    Raises:
        BaseException: what a part's start raised.
    """
    started: list[Any] = []
    try:
        for each in {id(each): each for part in parts for each in parts_of(part)}.values():
            await own(owner, each)
            started.append(each)
    except BaseException:
        await stop_all(owner, started[::-1], drain=False)
        raise


async def start_owned(owner: object, part: Any) -> None:
    """Start one part, as :func:`start_all`."""
    await start_all(owner, [part])
