"""Tasks that run until they are cancelled."""

import asyncio
import contextlib

import pytest

from streaminfer._runtime.background import RESTART_S, keep_running


class Odd(BaseException):
    """An exception that ``except Exception`` does not catch, such as that of ``pytest.fail``."""


@pytest.mark.parametrize("error", [Odd, ValueError])
async def test_work_that_fails_begins_again_and_is_logged_once(loop, error, caplog):
    began_s = []

    async def work():
        began_s.append(loop.time())
        raise error("no more")

    task = keep_running(work, "the work", "streaminfer")
    await asyncio.sleep(2.5 * RESTART_S)
    task.cancel()

    assert [at_s - began_s[0] for at_s in began_s] == pytest.approx([0.0, RESTART_S, 2 * RESTART_S])
    assert ["the work failed: " in record.getMessage() for record in caplog.records] == [True]


async def test_work_that_is_done_is_not_begun_again(loop):
    began = []

    async def work():
        began.append(loop.time())

    await keep_running(work, "the work", "streaminfer")

    assert len(began) == 1


async def test_work_that_fails_where_it_is_cancelled_ends(loop):
    async def work():
        try:
            await asyncio.sleep(1.0)
        finally:
            raise Odd

    task = keep_running(work, "the work", "streaminfer")
    await asyncio.sleep(0.5)
    task.cancel()
    with contextlib.suppress(Odd):
        await task

    assert loop.time() == pytest.approx(0.5)
