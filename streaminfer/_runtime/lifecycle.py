"""Start of several services that one owner needs together."""

from collections.abc import Iterable
from typing import Any

from streaminfer._runtime.owners import start_owned
from streaminfer._runtime.stopping import stop_all

__all__ = ["start_all"]


async def start_all(owner: object, parts: Iterable[Any]) -> None:
    """Start each part once, in order; if one fails, those that started are stopped again.

    Raises:
        BaseException: what a part's start raised.
    """
    started: list[Any] = []
    try:
        for part in {id(part): part for part in parts}.values():
            await start_owned(owner, part)
            started.append(part)
    except BaseException:
        await stop_all(owner, started[::-1], drain=False)
        raise
