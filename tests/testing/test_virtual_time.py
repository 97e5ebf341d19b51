"""The test tools: virtual time, and a scripted backend."""

import asyncio
import math

import numpy as np
import pytest

import streaminfer as si
from streaminfer.testing import HANG, FakeClock, ScriptedBackend, VirtualLoop, run


def test_fake_clock_moves_only_when_advanced():
    clock = FakeClock(100)
    assert clock() == clock() == 100
    clock.advance(0.25)
    assert clock() == 250_000_100
    assert repr(clock) == "FakeClock(250000100)"
    with pytest.raises(ValueError, match="seconds"):
        clock.advance(-1)


def test_fake_clock_takes_any_duration():
    """A step of more than 31 years counts as 31 years, like every duration of the library."""
    clock = FakeClock()
    clock.advance(1e300)

    assert clock() == 10**18


def test_virtual_time_jumps_to_the_next_timer_exactly():
    async def main(loop):
        seen = []

        async def sleeper(seconds):
            await asyncio.sleep(seconds)
            seen.append((seconds, loop.now_ns))

        await asyncio.gather(*map(sleeper, [3600.0, 0.001, 0.05, 1e-9, 86400 * 365.0]))
        return seen

    seen = run(main)
    assert [seconds for seconds, _ in seen] == [1e-9, 0.001, 0.05, 3600.0, 86400 * 365.0]
    for seconds, now_ns in seen:
        assert abs(now_ns - seconds * 1e9) <= 1 + seconds  # the resolution of seconds as a float


def test_a_lost_wakeup_is_an_error_and_not_a_hang():
    async def main(loop):
        await loop.create_future()

    with pytest.raises(RuntimeError, match="lost wake-up"):
        run(main)


def test_an_endless_sleep_is_no_timer():
    """An endless sleep sets no timer: asyncio cuts each wait at a day, so virtual time would advance for ever."""

    async def main(loop):
        with pytest.raises(TimeoutError):  # an endless timer beside another one
            async with asyncio.timeout(5.0):
                await asyncio.sleep(math.inf)
        assert loop.now_ns == 5_000_000_000
        await asyncio.sleep(math.inf)

    with pytest.raises(RuntimeError, match="lost wake-up, or for what takes real time, such as a socket"):
        run(main)


@pytest.mark.parametrize("make", [FakeClock, VirtualLoop, lambda now_ns: run(asyncio.sleep, now_ns=now_ns)])
def test_first_instant_is_validated(make):
    with pytest.raises(ValueError, match=r"now_ns: expected a whole number ≥ 0, got -1"):
        make(-1)
    with pytest.raises(TypeError, match=r"now_ns: expected a whole number ≥ 0, got 1\.5"):
        make(1.5)


def test_executors_are_an_error():
    async def main(loop):
        await loop.run_in_executor(None, print)

    with pytest.raises(RuntimeError, match="no executors"):
        run(main)


def test_run_starts_at_now_and_cancels_what_is_left():
    """`run` starts at the given instant and cancels the tasks that are left."""
    ended = []

    async def main(loop):
        async def background():
            try:
                await asyncio.sleep(100)
            finally:
                ended.append(loop.now_ns)

        loop.create_task(background())
        await asyncio.sleep(1)
        return loop.clock()

    assert run(main, now_ns=5) == 1_000_000_005
    assert ended == [1_000_000_005]


def batch_of(*values):
    return si.Batch(np.array(values), [si.Request(value) for value in values])


def test_a_scripted_backend_follows_its_script():
    async def main(loop):
        backend = ScriptedBackend(
            ["first"], ValueError("second"), lambda batch: [len(batch)], HANG, duration_s=lambda size: size / 10
        )
        assert await backend.infer(batch_of(1.0)) == ["first"]
        assert loop.now_ns == 100_000_000
        with pytest.raises(ValueError, match="second"):
            await backend.infer(batch_of(1.0, 2.0))
        assert loop.now_ns == 300_000_000
        assert await backend.infer(batch_of(1.0)) == [1]
        hanging = asyncio.ensure_future(backend.infer(batch_of(1.0)))
        await asyncio.sleep(1000)
        assert backend.running == 1
        hanging.cancel()
        await asyncio.wait([hanging])
        assert backend.running == 0
        assert await backend.infer(batch_of(4.0, 5.0)) == [4.0, 5.0]
        assert backend.batch_sizes == [1, 2, 1, 1, 2]
        assert repr(backend) == "<ScriptedBackend: 5 batches seen>"

    run(main)


def test_a_scripted_backend_checks_its_arguments():
    with pytest.raises(ValueError, match="duration_s"):
        ScriptedBackend(duration_s=-1.0)
    with pytest.raises(TypeError, match="then"):
        ScriptedBackend(then=3)
    with pytest.raises(TypeError, match="batch_axes: expected a mapping or None, got 3"):
        ScriptedBackend(batch_axes=3)


def test_scripted_backend_checks_function_results():
    """A scripted backend checks the duration that a function returns."""

    async def main(loop):
        backend = ScriptedBackend(duration_s=lambda size: -size)
        with pytest.raises(ValueError, match=r"duration_s\(size\): expected a finite number of seconds ≥ 0, got -2"):
            await backend.infer(batch_of(1.0, 2.0))
        assert backend.running == 0

    run(main)


def test_mappings_are_echoed_row_by_row():
    async def main(loop):
        async with si.Stack(si.AdaptiveBatcher(max_batch_size=4), ScriptedBackend(batch_axes={"b": 1})) as stack:
            return await asyncio.gather(*(stack({"a": np.full(2, i), "b": np.zeros((3, 2))}) for i in range(3)))

    answers = run(main)
    assert [answer["a"].tolist() for answer in answers] == [[0, 0], [1, 1], [2, 2]]


def test_virtual_loop_runs_without_a_test_runner():
    loop = VirtualLoop()
    assert loop.run_until_complete(asyncio.sleep(2.5, "done")) == "done"
    assert loop.time() == 2.5
    loop.close()
