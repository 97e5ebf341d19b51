"""The face pipeline inside a worker that consumes a Valkey stream: ``python examples/valkey_worker.py redis://…``.

Start as many workers as you like: they form one consumer group, and each message goes to one of them.

* The step that writes a response also acknowledges the message, so a message has one response, or none yet.
* The deadline of a message follows from its age: a response to an old picture is worthless, so it costs no inference.
* If a worker crashes or its model fails, the message stays pending, and another worker claims it after a while.
* Claimed messages run one at a time. So a message that kills its worker delays few others, and after three deliveries
  it goes to the stream of dead letters.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from typing import Any

import attrs
import redis.asyncio
import redis.exceptions
from face_pipeline import make_faces, read_picture

import streaminfer as si

LOG = logging.getLogger("valkey_worker")
BLOCK_MS = 250
"""Longest time of a read, so that the worker notices a stop."""
ANSWER = """
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 1 then
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', 10000, '*', 'id', ARGV[2], unpack(ARGV, 3))
  redis.call('XDEL', KEYS[1], ARGV[2])
end
"""


@attrs.frozen(kw_only=True)
class Settings:
    """Names and limits of a worker.

    Attributes:
        stream: stream of messages with the field ``picture``; completed messages are deleted.
        answers: stream of responses: ``id`` of the message, and ``faces`` or ``error``.
        dead: stream of abandoned messages.
        group: consumer group, which is made if missing.
        max_age_s: an older message gets an error.
        attempt_s: most seconds of one attempt.
        claim_after_s: a message that has been pending for longer is claimed; must be longer than an attempt.
        max_deliveries: most deliveries of one message.
        max_in_flight: messages that one worker has at the same time.
    """

    stream: str = "pictures"
    answers: str = "faces"
    dead: str = "pictures.dead"
    group: str = "detectors"
    max_age_s: float = 30.0
    attempt_s: float = 2.0
    claim_after_s: float = 5.0
    max_deliveries: int = 3
    max_in_flight: int = 32


class Worker:
    """One consumer of the group.

    Args:
        client: client of the Valkey server.
        service: a running stack.
        settings: names and limits.
    """

    def __init__(self, client: Any, service: si.Stack, settings: Settings) -> None:
        self._client = client
        self._service = service
        self._settings = settings
        self._name = f"{socket.gethostname()}-{os.getpid()}"
        self._answer = client.register_script(ANSWER)
        self._ahead_s = 0.0  # clock of the server, as in the ids of messages, less the monotonic clock

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set, then complete the messages in flight.

        Raises:
            ExceptionGroup: the server cannot be reached; messages in flight stay pending.
        """
        try:
            await self._client.xgroup_create(self._settings.stream, self._settings.group, id="0", mkstream=True)
        except redis.exceptions.ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise
        await self._read_clock()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._claim(stop))
            await self._consume(stop, tasks)

    async def _consume(self, stop: asyncio.Event, tasks: asyncio.TaskGroup) -> None:
        settings = self._settings
        running: set[asyncio.Task[None]] = set()
        while not stop.is_set():
            if len(running) >= settings.max_in_flight:
                await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            count = max(settings.max_in_flight - len(running), 1)
            read = await self._client.xreadgroup(
                settings.group, self._name, {settings.stream: ">"}, count=count, block=BLOCK_MS
            )
            for _, messages in read:
                for identity, fields in messages:
                    task = tasks.create_task(self._serve(identity, fields))
                    running.add(task)
                    task.add_done_callback(running.discard)

    async def _claim(self, stop: asyncio.Event) -> None:
        """Claim messages that have been pending for too long, and serve them one after the other."""
        settings = self._settings
        idle_ms = round(settings.claim_after_s * 1e3)
        while not stop.is_set():
            await self._read_clock()
            for entry in await self._client.xpending_range(
                settings.stream, settings.group, "-", "+", count=16, idle=idle_ms
            ):
                if stop.is_set():
                    return
                claimed = await self._client.xclaim(
                    settings.stream, settings.group, self._name, idle_ms, [entry["message_id"]]
                )
                for identity, fields in claimed:  # none: another worker was faster
                    if entry["times_delivered"] < settings.max_deliveries:
                        await self._serve(identity, fields)
                    else:
                        LOG.error("message %s was delivered %d times", identity, entry["times_delivered"])
                        await self._client.xadd(settings.dead, {"id": identity, **fields}, maxlen=10_000)
                        await self._send(identity, "error", "abandoned")
            try:
                await asyncio.wait_for(stop.wait(), settings.claim_after_s / 4)
            except TimeoutError:
                continue

    async def _serve(self, identity: bytes, fields: dict[bytes, bytes]) -> None:
        """Respond to a message, or leave it pending."""
        left_s = self._settings.max_age_s - self._age_s(identity)
        try:
            picture = read_picture(fields.get(b"picture", b""))
            timeout_s = max(min(left_s, self._settings.attempt_s), 0.0)
            faces = await self._service(picture, timeout_s=timeout_s, wait=True)
        except si.InvalidInput as error:
            await self._send(identity, "error", str(error))
        except Exception as error:  # noqa: BLE001 - a row of the model can be of any class
            if self._age_s(identity) >= self._settings.max_age_s:
                await self._send(identity, "error", f"too old: {error}")
            else:
                LOG.warning("message %s stays pending: %s", identity, error)
        else:
            await self._send(identity, "faces", faces.tobytes())

    async def _send(self, identity: bytes, field: str, value: str | bytes) -> None:
        settings = self._settings
        await self._answer([settings.stream, settings.answers], [settings.group, identity, field, value])

    async def _read_clock(self) -> None:
        seconds, microseconds = await self._client.time()
        self._ahead_s = seconds + microseconds / 1e6 - time.monotonic()

    def _age_s(self, identity: bytes) -> float:
        return time.monotonic() + self._ahead_s - int(identity.partition(b"-")[0]) / 1e3


async def main(url: str) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with redis.asyncio.from_url(url) as client, make_faces(slo_s=Settings().attempt_s) as faces:
        print("ready", flush=True)
        await Worker(client, faces, Settings()).run(stop)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "redis://127.0.0.1:6379"))
