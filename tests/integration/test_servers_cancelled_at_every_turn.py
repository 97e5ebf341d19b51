"""Servers, moving streams and shared tiers whose clients, calls and stops end early, at each turn of the event loop.

As in ``test_cancelled_at_every_turn``, all calls end, the others get their responses, and the service still serves.
"""

import asyncio
import json

import numpy as np
import pytest
from moving_fleet import Fleet
from recurrent import Reference
from scripted_tier import ScriptedTier
from turns import PATIENCE_S, at_every_turn, cancel, cancel_twice

import streaminfer as si
from streaminfer.backends.signature import TensorSpec
from streaminfer.protocols import ModelTensors
from streaminfer.serving.ray.stream_store import StreamStore
from streaminfer.testing import ScriptedBackend

pytestmark = pytest.mark.uncompiled


class Client:
    """An HTTP client whose body comes in two pieces."""

    def __init__(self, app, path, fields):
        body = json.dumps(fields).encode()
        headers = [(b"content-length", b"%d" % len(body))]
        self.scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "http_version": "1.1"}
        self.pieces = [{"type": "http.request", "body": body[:9], "more_body": True}]
        self.pieces += [{"type": "http.request", "body": body[9:], "more_body": False}]
        self.app, self.sent, self.gone, self.cannot_send, self.listening = app, [], asyncio.Event(), False, 0

    async def receive(self):
        await asyncio.sleep(0.001)
        if self.pieces and not self.gone.is_set():
            return self.pieces.pop(0)
        self.listening += 1
        try:
            await self.gone.wait()
        finally:
            self.listening -= 1
        return {"type": "http.disconnect"}

    async def send(self, message):
        await asyncio.sleep(0.001)
        if self.cannot_send:
            raise OSError("the connection is broken")
        self.sent.append(message)

    async def ask(self):
        await self.app(self.scope, self.receive, self.send)
        return b"".join(part["body"] for part in self.sent[1:])


class Words:
    """Model with three responses to each request."""

    many_answers = True

    def __init__(self):
        self.running = 0

    def model_tensors(self):
        return ModelTensors((TensorSpec("x", np.dtype(np.float32), (None,)),))

    async def infer(self, batch):
        return [self.answers(row.inputs) for row in batch.rows]

    async def answers(self, x):
        self.running += 1
        try:
            for number in range(3):
                await asyncio.sleep(0.025)
                yield x + number
        finally:
            self.running -= 1


def tensor(*values):
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": [len(values), 1], "data": list(values)}]}


def numbers(body):
    return json.loads(body)["outputs"][0]["data"]


def events(body):
    return [json.loads(line[6:])["output"] for line in body.decode().split("\n\n") if line]


REQUESTS = {
    "row": ("infer", tensor(2.0), numbers, [2.0]),
    "rows": ("infer", tensor(2.0, 3.0, 4.0), numbers, [2.0, 3.0, 4.0]),
    "events": ("generate_stream", {"x": 2.0}, events, [2.0, 3.0, 4.0]),
}


def goes(serving, client):
    client.gone.set()


def goes_while_cancelled(serving, client):
    client.gone.set()
    serving.cancel()


def cannot_be_sent_to(serving, client):
    client.cannot_send = True


def is_cancelled(serving, client):
    serving.cancel()


async def left(loop, kind, turns, place, leave):
    """Let one of several clients leave; return whether its request ended before the turn to leave came."""
    path, fields, read, expected = REQUESTS[kind]
    backend = Words() if kind == "events" else ScriptedBackend(duration_s=0.05)
    stack = si.Stack(si.Telemetry("t"), si.RetryBudget(), si.AdaptiveBatcher(max_batch_size=2), backend)
    async with asyncio.timeout(PATIENCE_S), si.serving.asgi_app({"m": stack}) as app:
        clients = [Client(app, f"/v2/models/m/{path}", fields) for _ in range(4)]
        serving = [asyncio.ensure_future(client.ask()) for client in clients[:3]]
        loop.act_in(turns, place, lambda: leave(serving[0], clients[0]))
        await asyncio.wait({serving[0]})
        is_over = await loop.acted_too_late()
        assert serving[0].cancelled() or not serving[0].exception() or clients[0].cannot_send
        assert [read(await it) for it in serving[1:]] == [expected, expected]
        await asyncio.sleep(1.0)
        assert (backend.running, [it.listening for it in clients]) == (0, [0] * 4)
        assert read(await clients[3].ask()) == expected
    await asyncio.sleep(1.0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    return is_over


@pytest.mark.parametrize("leave", [goes, goes_while_cancelled, cannot_be_sent_to, is_cancelled])
@pytest.mark.parametrize("kind", REQUESTS)
def test_asgi_clients_leave_at_every_turn(kind, leave):
    at_every_turn(left, kind, leave)


class SlowStore(StreamStore):
    async def claim(self, *arguments):
        await asyncio.sleep(0.003)
        return await super().claim(*arguments)

    async def pass_on(self, *arguments):
        await asyncio.sleep(0.003)
        await super().pass_on(*arguments)


async def moved(loop, act, turns, place):
    """Cancel a step, or stop its replica, while its stream moves; another stream continues, and the first is served."""
    fleet, reference = Fleet(loop, store=SlowStore, duration_s=0.01), Reference()
    async with asyncio.timeout(PATIENCE_S), fleet:
        await fleet.step("a", 1)
        moving = asyncio.ensure_future(fleet.step("b", 2))
        other = asyncio.ensure_future(fleet.step("a", 3, "other"))
        if act == "cancel":
            loop.act_in(turns, place, moving.cancel)
            await asyncio.wait({moving})
            assert await other == reference(3)
        else:
            stopping = asyncio.ensure_future(fleet.stacks["b"].stop(drain=act == "drain"))
            loop.act_in(turns, place, stopping.cancel)
            await asyncio.wait({stopping, moving, other})
            await fleet.stacks["b"].stop()
            await fleet.stacks["b"].start()
        is_over = await loop.acted_too_late()
        for name in "bab":
            await fleet.step(name, 4)
    assert not fleet.store._releases
    assert not fleet.store._wake_ups
    return is_over


@pytest.mark.parametrize("act", ["cancel", "drain", "stop"])
def test_stream_moves_cancelled_at_every_turn(act):
    at_every_turn(moved, act)


class LeasingTier(ScriptedTier):
    """Tier that several caches share, in which one cache at a time has the lease to compute a value."""

    lease_s = 0.05

    def __init__(self, loop, held, leases):
        super().__init__(loop.clock, "shared", shared=True)
        self.held, self.leases, self.loop = held, leases, loop
        self.get_s = self.put_s = 0.002

    async def take_lease(self, key, token):
        await asyncio.sleep(self.get_s)
        holder, ends_at = self.leases.get(key, (token, 0.0))
        if holder != token and ends_at > self.loop.time():
            return False
        self.leases[key] = token, self.loop.time() + self.lease_s
        return True

    async def open_lease(self, key, token):
        await asyncio.sleep(self.get_s)
        if self.leases.get(key, (None,))[0] == token:
            del self.leases[key]

    async def put(self, key, entry):
        self.leases.pop(key, None)
        return await super().put(key, entry)


async def shared(loop, cut, turns, place):
    """Cancel a call whose computation callers of two caches await; return whether it ended before its turn came."""
    held, leases, stacks = {}, {}, []
    for _ in range(2):
        backend = ScriptedBackend(duration_s=0.01)
        backend.fingerprint = "model"
        cache = si.EdgeCache(ttl_s=9.0, maxsize=9, tiers=[LeasingTier(loop, held, leases)])
        stacks.append(si.Stack(cache, backend, clock=loop.clock))
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(*(stack.start() for stack in stacks))
        victim = asyncio.ensure_future(stacks[0](1.0))
        bystanders = [asyncio.ensure_future(stacks[number % 2](1.0)) for number in range(3)]
        calls, kept = [victim, *bystanders], asyncio.current_task()
        loop.act_in(turns, place, lambda: cut(victim, bystanders, kept))
        await asyncio.wait(calls)
        is_over = await loop.acted_too_late()
        assert [await it for it in bystanders] == [1.0] * len(bystanders)
        began_s = loop.time()
        assert [await stack(1.0) for stack in stacks] == [1.0, 1.0]
        assert loop.time() - began_s < 0.1
        await asyncio.gather(*(stack.stop() for stack in stacks))
    assert asyncio.all_tasks() == {kept}
    return is_over


@pytest.mark.parametrize("cut", [cancel, cancel_twice])
def test_leases_cancelled_at_every_turn(cut):
    at_every_turn(shared, cut)
