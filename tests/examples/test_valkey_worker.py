"""Worker of the Valkey example, on a real server: responses, deadlines, crashes, messages that kill their worker."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import redis.asyncio
from held_time import run_held, until
from redis_server import server as server  # noqa: PLC0414 - a fixture

import streaminfer as si
from streaminfer.testing import HANG, ScriptedBackend

ROOT = Path(__file__).parents[2]
PIXELS = 192 * 192 * 3
NAMES = {"stream": "in", "answers": "out", "dead": "dead", "group": "group"}
PATIENT = {"attempt_s": 20.0, "claim_after_s": 40.0, "max_age_s": 600.0}


@pytest.fixture
def example(demo):
    return demo("valkey_worker")


@pytest.fixture
def database(server):
    """Return the server with an empty database."""
    with server.client() as client:
        client.flushall()
    return server


async def work_beside(database, example, backend, scenario, *, clock=None, **settings):
    """Run a worker; ``scenario(client)`` runs beside it."""
    stop = asyncio.Event()
    stack = si.Stack(si.AdaptiveBatcher(max_batch_size=8, max_queue_size=8), backend, clock=clock)
    settings_ = example.Settings(**NAMES, **{**PATIENT, **settings})
    async with redis.asyncio.from_url(database.url, socket_timeout=600.0) as client, stack:
        working = asyncio.ensure_future(example.Worker(client, stack, settings_).run(stop))
        try:
            async with asyncio.timeout(60.0):
                return await scenario(client)
        finally:
            stop.set()
            await working


def serve_while(database, example, backend, scenario, **settings):
    return asyncio.run(work_beside(database, example, backend, scenario, **settings))


async def answers_of(client, count):
    """Wait for ``count`` responses; return them by the id of their message."""
    found, last = {}, b"0"
    while len(found) < count:
        for _, entries in await client.xread({"out": last}, block=60_000):
            found |= {fields.pop(b"id"): fields for _, fields in entries}
            last = entries[-1][0]
    return found


def left_over(database):
    """Return the number of messages that are still in the stream, and of those that are pending."""
    with database.client() as client:
        pending = client.xpending("in", "group")["pending"] if client.exists("in") else 0
        return client.xlen("in"), pending


def test_messages_share_batches_and_are_acknowledged(database, example):
    """Messages share batches and are acknowledged together with their response."""
    backend = ScriptedBackend(then=lambda batch: [row[0, 0] for row in batch.inputs])

    async def scenario(client):
        ids = [await client.xadd("in", {"picture": bytes([number]) * PIXELS}) for number in (0, 255)]
        wrong = await client.xadd("in", {"picture": b"short"})
        found = await answers_of(client, 3)
        return [found[one] for one in ids], found[wrong]

    (first, second), wrong = serve_while(database, example, backend, scenario)

    assert (len(first[b"faces"]), first[b"faces"] != second[b"faces"]) == (12, True)
    assert b"expected 110592 bytes" in wrong[b"error"]
    assert left_over(database) == (0, 0)


def test_old_message_is_rejected_without_inference(database, example):
    backend = ScriptedBackend()

    async def scenario(client):
        old = await client.xadd("in", {"picture": bytes(PIXELS)}, id="1-1")
        return (await answers_of(client, 1))[old]

    answer = serve_while(database, example, backend, scenario)

    assert b"too old" in answer[b"error"]
    assert backend.batches == []
    assert left_over(database) == (0, 0)


def test_message_that_gets_too_old_ends_in_its_batch(database, example, monkeypatch):
    backend = ScriptedBackend(HANG)

    async def main(loop):
        async def scenario(client):
            aging = await client.xadd("in", {"picture": bytes(PIXELS)})
            await until(lambda: backend.running)
            await loop.stall(15.0)
            return (await answers_of(client, 1))[aging]

        monkeypatch.setattr(example, "time", SimpleNamespace(monotonic=loop.time))
        return await work_beside(
            database, example, backend, scenario, clock=loop.clock, max_age_s=10.0, claim_after_s=240.0
        )

    answer = run_held(main)

    assert b"too old" in answer[b"error"]
    assert len(backend.batches) == 1
    assert backend.running == 0


def test_message_is_abandoned_after_three_failures(database, example):
    """A message whose inference fails three times gets an error and goes to the dead-letter stream."""
    backend = ScriptedBackend(*[OSError("no device")] * 3)

    async def scenario(client):
        failing = await client.xadd("in", {"picture": bytes(PIXELS)})
        return (await answers_of(client, 1))[failing], await client.xrange("dead")

    answer, dead = serve_while(database, example, backend, scenario, claim_after_s=0.05)

    assert answer == {b"error": b"abandoned"}
    assert len(backend.batches) == 3
    assert len(dead[0][1][b"picture"]) == PIXELS
    assert left_over(database) == (0, 0)


def test_failing_row_is_retried_and_ends_no_worker(database, example):
    """A message whose row is an exception, of any class, stays pending and is retried, and the worker continues."""
    backend = ScriptedBackend([ValueError("this row")], then=lambda batch: [row[0, 0] for row in batch.inputs])

    async def scenario(client):
        failing = await client.xadd("in", {"picture": bytes(PIXELS)})
        return (await answers_of(client, 1))[failing]

    answer = serve_while(database, example, backend, scenario, claim_after_s=0.05)

    assert len(answer[b"faces"]) == 12
    assert len(backend.batches) == 2
    assert left_over(database) == (0, 0)


def test_message_of_two_workers_gets_one_response(database, example):
    """Two workers that have the same message write one response.

    A worker that was only slow finds that its message was claimed and completed.
    """

    async def main():
        async with redis.asyncio.from_url(database.url) as client:
            stack = si.Stack(ScriptedBackend())
            worker = example.Worker(client, stack, example.Settings(**NAMES))
            await client.xgroup_create("in", "group", mkstream=True)
            identity = await client.xadd("in", {"picture": b""})
            await client.xreadgroup("group", "slow", {"in": ">"})
            await worker._send(identity, "faces", b"one")
            await worker._send(identity, "faces", b"two")
            return [fields[b"faces"] for _, fields in await client.xrange("out")]

    assert asyncio.run(main()) == [b"one"]


def test_lost_server_ends_the_worker(database, example):
    async def scenario(_client):
        database.stop()

    try:
        with pytest.raises((redis.exceptions.ConnectionError, ExceptionGroup)):
            serve_while(database, example, ScriptedBackend(), scenario)
    finally:
        database.start()


DEADLY = """
import asyncio, os, sys
import redis.asyncio
import streaminfer as si
from streaminfer.testing import ScriptedBackend
from valkey_worker import Settings, Worker

def infer(batch):
    if any(row[0, 0, 0] > 0.99 for row in batch.inputs):
        os._exit(9)  # as a crash in native code does
    return [row[0, 0] for row in batch.inputs]

async def main():
    stack = si.Stack(si.AdaptiveBatcher(max_batch_size=8), ScriptedBackend(then=infer))
    async with redis.asyncio.from_url(sys.argv[1]) as client, stack:
        names = dict(stream="in", answers="out", dead="dead", group="group")
        stop = asyncio.Event()
        async def until_done():
            while await client.xlen("out") < 5:
                await asyncio.sleep(0.05)
            stop.set()
        done = asyncio.ensure_future(until_done())
        settings = Settings(**names, attempt_s=20.0, claim_after_s=0.3, max_age_s=600.0)
        await Worker(client, stack, settings).run(stop)
        await done

asyncio.run(main())
"""


def _environment():
    return {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'examples'}"}


def test_message_that_kills_its_worker_is_abandoned(database):
    """A message that kills three workers is abandoned; restarted workers respond to all other messages."""
    with database.client() as client:
        deadly = client.xadd("in", {"picture": b"\xff" * PIXELS})
        harmless = [client.xadd("in", {"picture": bytes([number]) * PIXELS}) for number in range(4)]
        codes = []
        while not codes or codes[-1] == 9:
            command = [sys.executable, "-c", DEADLY, database.url]
            codes.append(subprocess.run(command, env=_environment(), timeout=120, check=False).returncode)
        found = {fields[b"id"]: fields for _, fields in client.xrange("out")}
        dead = [fields[b"id"] for _, fields in client.xrange("dead")]

    assert codes == [9, 9, 9, 0]
    assert dead == [deadly]
    assert found[deadly][b"error"] == b"abandoned"
    assert all(b"faces" in found[one] for one in harmless)
    assert left_over(database) == (0, 0)


def test_worker_command_answers_and_stops_on_sigterm(database):
    """The command serves a picture with the real pipeline, and exits with 0 on SIGTERM."""
    command = [sys.executable, ROOT / "examples" / "valkey_worker.py", database.url]
    with (
        database.client() as client,
        subprocess.Popen(command, env=_environment(), stdout=subprocess.PIPE, text=True) as worker,
    ):
        try:
            assert worker.stdout.readline() == "ready\n"
            client.xadd("pictures", {"picture": bytes(PIXELS)})
            _, fields = client.xread({"faces": "0"}, block=60_000)[0][1][0]
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(60) == 0
        finally:
            worker.kill()

    assert fields[b"faces"] == b""  # no face in a black picture
