"""Stacks in FastAPI applications, in virtual time without a network, and under uvicorn."""

import asyncio
import contextlib
import gc
import json
import logging
import socket
import threading
import time
import weakref
from types import SimpleNamespace
from typing import Annotated

import anyio.from_thread
import fastapi
import httpx
import numpy as np
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, WebSocket
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from web_server import WebServer

import streaminfer as si
from streaminfer.fastapi import BoundService, _ExchangeMiddleware, add_stacks, bind
from streaminfer.request import NEVER_NS
from streaminfer.testing import HANG, FakeClock, ScriptedBackend, VirtualLoop


@pytest.fixture(autouse=True)
def _requests_age_in_virtual_time(monkeypatch):
    def now_ns():
        loop = asyncio.get_running_loop()
        return loop.clock() if isinstance(loop, VirtualLoop) else time.monotonic_ns()

    monkeypatch.setattr("streaminfer.fastapi.time", SimpleNamespace(monotonic_ns=now_ns))


@contextlib.asynccontextmanager
async def client_of(app):
    """Yield a client of a running app, without a network."""
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client,
    ):
        yield client


def serve(stack, **options):
    """Return an app that sends ``x`` of ``{"x": 1.5}`` to the stack, and a list of the errors that its handler gets."""
    app = FastAPI()
    add_stacks(app, stack)
    seen = []

    @app.post("/")
    async def answer(body: dict[str, float], service: Annotated[BoundService, Depends(bind(stack, **options))]):
        try:
            return float(await service(body["x"]))
        except BaseException as error:
            seen.append(error)
            raise

    return app, seen


def make_stack(loop, *steps, slo_s=None, **options):
    backend = ScriptedBackend(*steps, **options)
    clock = None if loop is None else loop.clock
    return backend, si.Stack(si.AdaptiveBatcher(max_batch_size=8, slo_s=slo_s), backend, clock=clock)


class Raises:
    """Service that raises an error."""

    def __init__(self, error):
        self.error = error

    async def call(self, request):
        raise self.error


# -- start and stop -----------------------------------------------------------------------------------------------


async def test_stacks_run_around_the_lifespan_of_the_app(loop):
    _, stack = make_stack(loop)
    seen = []

    @contextlib.asynccontextmanager
    async def lifespan(_app):
        seen.append(await stack(1.0))
        yield {"name": "own"}
        seen.append(await stack(2.0))

    app = FastAPI(lifespan=lifespan)
    add_stacks(app, stack)

    async with app.router.lifespan_context(app) as state:
        assert state == {"name": "own"}
        assert stack.ready

    assert seen == [1.0, 2.0]
    assert stack.stack_state == "stopped"


async def test_a_stack_that_cannot_start_stops_the_others(loop):
    class Broken:
        async def start(self):
            raise OSError("no device")

        async def infer(self, batch):
            raise AssertionError

    _, good = make_stack(loop)
    app = FastAPI()
    add_stacks(app, good, si.Stack(Broken(), clock=loop.clock))

    with pytest.raises(OSError, match="no device"):
        async with app.router.lifespan_context(app):
            raise AssertionError
    assert good.stack_state == "stopped"


async def test_lifespan_leaves_a_running_stack_running(loop):
    _, stack = make_stack(loop)
    app = FastAPI()
    add_stacks(app, stack)

    async with stack:
        async with app.router.lifespan_context(app):
            pass
        assert stack.ready


async def test_stack_started_by_lifespan_of_app_is_bound(loop):
    """A stack that the app's own lifespan starts can be bound to a handler."""
    _, stack = make_stack(loop)

    @contextlib.asynccontextmanager
    async def lifespan(_app):
        async with stack:
            yield

    app = FastAPI(lifespan=lifespan)
    add_stacks(app)

    @app.post("/")
    async def answer(body: dict[str, float], service: Annotated[BoundService, Depends(bind(stack))]):
        return float(await service(body["x"]))

    async with client_of(app) as client:
        assert (await client.post("/", json={"x": 1.5})).json() == 1.5
        late = await client.post("/", json={"x": 1.5}, headers={"x-streaminfer-timeout-s": "0"})
        assert late.status_code == 504


def test_stack_of_a_closed_loop_is_started_again():
    _, stack = make_stack(None)
    asyncio.run(stack.start())
    app = FastAPI()
    add_stacks(app, stack)

    async def main():
        async with client_of(app) as client:
            return (await client.get("/health/ready")).status_code

    assert asyncio.run(main()) == 200


async def test_probes_follow_the_stacks(loop):
    _, stack = make_stack(loop)
    app = FastAPI()
    add_stacks(app, stack)
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app")

    async def probe():
        return [(await client.get(f"/health/{kind}")).status_code for kind in ("live", "ready")]

    async with client:
        assert await probe() == [200, 503]
        async with app.router.lifespan_context(app):
            assert await probe() == [200, 200]
        assert (await client.get("/openapi.json")).json()["paths"] == {}


@pytest.mark.parametrize(
    ("health", "path"), [("/", "/live"), ("/probes/", "/probes/live"), ("/probes", "/probes/live")]
)
async def test_probes_are_below_their_path(loop, health, path):
    app = FastAPI()
    add_stacks(app, health=health)

    async with client_of(app) as client:
        assert (await client.get(path)).status_code == 200


async def test_probes_can_be_left_out(loop):
    _, stack = make_stack(loop)
    app = FastAPI()
    add_stacks(app, stack, health=None)

    async with client_of(app) as client:
        assert (await client.get("/health/live")).status_code == 404


# -- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (si.InvalidInput("x: too long"), 400, None),
        (si.Overloaded("full"), 429, "1"),
        (si.Overloaded("full", retry_after_s=0.2), 429, "1"),
        (si.CircuitOpen("open", retry_after_s=4.2), 503, "5"),
        (si.Closed("stopped"), 503, "1"),
        (si.DeadlineExceeded("late"), 504, None),
        (si.ErasureHeld(("a legal hold",)), 409, None),
    ],
)
async def test_errors_become_responses(loop, error, status, retry_after):
    app, _ = serve(si.Stack(Raises(error), clock=loop.clock))

    async with client_of(app) as client:
        reply = await client.post("/", json={"x": 1})

    assert (reply.status_code, reply.headers.get("retry-after")) == (status, retry_after)
    assert reply.headers["cache-control"] == "no-store"
    assert reply.json() == {"detail": str(error)}


async def test_model_failure_is_logged_and_not_disclosed(loop, caplog):
    _, stack = make_stack(loop, OSError("secret"))
    app, _ = serve(stack)

    with caplog.at_level(logging.ERROR, "streaminfer"):
        async with client_of(app) as client:
            reply = await client.post("/", json={"x": 1})

    assert reply.status_code == 500
    assert "secret" not in reply.text
    assert "secret" in caplog.text


async def test_a_handler_of_the_app_comes_first(loop):
    app, _ = serve(si.Stack(Raises(si.Overloaded("full")), clock=loop.clock))

    @app.exception_handler(si.Overloaded)
    async def own(_request, _error):
        return fastapi.Response(status_code=418)

    async with client_of(app) as client:
        assert (await client.post("/", json={"x": 1})).status_code == 418


async def test_earlier_handler_of_the_app_comes_first(loop):
    """A handler that the application was made with comes first, even one for all errors of this library."""

    async def own(_request, _error):
        return fastapi.Response(status_code=418)

    stack = si.Stack(Raises(si.Overloaded("full")), clock=loop.clock)
    app = FastAPI(exception_handlers={si.StreamInferError: own})
    add_stacks(app, stack)

    @app.get("/")
    async def answer(service: Annotated[BoundService, Depends(bind(stack))]):
        return await service(1.0)

    async with client_of(app) as client:
        assert (await client.get("/")).status_code == 418


# -- deadlines ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "timeout_s", "slo_s", "ends_s"),
    [
        ({"x-envoy-expected-rq-timeout-ms": "40"}, None, None, 0.04),
        ({"grpc-timeout": "40m"}, None, None, 0.04),
        ({"x-request-timeout-seconds": "0.04"}, 3.0, 2.0, 0.04),
        ({"x-streaminfer-timeout-s": "0.04", "x-envoy-expected-rq-timeout-ms": "15000"}, None, None, 0.04),
        ({"x-envoy-expected-rq-timeout-ms": "15000"}, None, 0.04, 0.04),
        ({"x-envoy-expected-rq-timeout-ms": "15000"}, 0.04, 2.0, 0.04),
        ({}, 0.04, 2.0, 0.04),
        ({}, None, 0.04, 0.04),
    ],
)
async def test_tightest_deadline_ends_request_in_its_batch(loop, headers, timeout_s, slo_s, ends_s):
    """The tightest of header, handler timeout and objective ends the request in its running batch."""
    backend, stack = make_stack(loop, HANG, slo_s=slo_s)
    app, seen = serve(stack, timeout_s=timeout_s)

    async with client_of(app) as client:
        begun_s = loop.time()
        reply = await client.post("/", json={"x": 1}, headers=headers)
        took_s = loop.time() - begun_s

    assert reply.status_code == 504
    assert len(backend.batches) == 1
    assert isinstance(seen[0], si.DeadlineExceeded)
    assert "its batch was running" in str(seen[0])
    assert took_s == pytest.approx(ends_s)


async def test_handler_timeout_replaces_only_the_objective(loop):
    """A timeout that the handler gives replaces the objective, but not the deadline of the client."""
    _, stack = make_stack(loop, HANG, HANG, slo_s=0.01)
    app = FastAPI()
    add_stacks(app, stack)

    @app.get("/")
    async def answer(service: Annotated[BoundService, Depends(bind(stack))]):
        await service(1.0, timeout_s=0.5)

    async with client_of(app) as client:
        times = []
        for headers in ({}, {"x-request-timeout-seconds": "0.1"}):
            begun_s = loop.time()
            await client.get("/", headers=headers)
            times.append(loop.time() - begun_s)

    assert times == pytest.approx([0.5, 0.1])


@pytest.mark.parametrize("headers", [{}, {"x-request-timeout-seconds": "15"}], ids=["none", "deadline"])
async def test_request_without_a_deadline_gets_none(loop, headers):
    """The objective does not limit a request with an explicit "no deadline", even if the client sends a deadline.

    A header of the client can only tighten a limit.
    """
    _, stack = make_stack(loop, slo_s=0.01, duration_s=1.0)
    app = FastAPI()
    add_stacks(app, stack)

    @app.get("/")
    async def answer(service: Annotated[BoundService, Depends(bind(stack))]):
        return float((await service.call(si.Request(2.0, deadline_ns=NEVER_NS))).outputs)

    async with client_of(app) as client:
        assert (await client.get("/", headers=headers)).text == "2.0"


@pytest.mark.parametrize("headers", [{}, {"x-request-timeout-seconds": "0.1"}], ids=["none", "deadline"])
@pytest.mark.parametrize("timeout_s", [-1.0, float("nan"), "soon"])
async def test_wrong_timeout_is_named_with_any_deadline(loop, headers, timeout_s):
    """A wrong timeout is named in the error, whether or not the client sends a deadline."""
    _, stack = make_stack(loop)
    app = FastAPI()
    add_stacks(app, stack)

    @app.get("/")
    async def answer(service: Annotated[BoundService, Depends(bind(stack))]):
        await service(1.0, timeout_s=timeout_s)

    async with client_of(app) as client:
        reply = await client.get("/", headers=headers)

    assert reply.status_code == 400
    assert reply.json()["detail"].startswith("timeout_s: expected a finite number of seconds")


async def test_deadline_counts_from_arrival_of_request_head(loop, monkeypatch):
    """A deadline counts from the arrival of the request's head, not of its body."""
    _, stack = make_stack(loop)
    clock = FakeClock()
    monkeypatch.setattr("streaminfer.fastapi.time", SimpleNamespace(monotonic_ns=clock))
    app = FastAPI()
    add_stacks(app, stack)

    @app.post("/")
    async def answer(body: dict[str, float], service: Annotated[BoundService, Depends(bind(stack))]):
        clock.advance(0.25)
        return service.time_left_s

    async def body():
        clock.advance(1.0)
        yield b'{"x": 1}'

    async with client_of(app) as client:
        headers = {"x-request-timeout-seconds": "2", "content-type": "application/json"}
        reply = await client.post("/", content=body(), headers=headers)
        late = await client.post("/", content=b'{"x": 1}', headers={"content-type": "application/json"})

    assert reply.json() == pytest.approx(0.75)
    assert late.json() is None


@pytest.mark.parametrize("slo_s", [None, 0.5])
async def test_a_deadline_that_has_passed_ends_the_call(loop, slo_s):
    """A deadline that has passed ends the call before any batch, even if it passed while the handler did other work."""
    backend, stack = make_stack(loop, slo_s=slo_s)
    app, _ = serve(stack)

    @app.post("/slow")
    async def answer(service: Annotated[BoundService, Depends(bind(stack))]):
        await asyncio.sleep(0.25)
        return await service(1.0)

    async with client_of(app) as client:
        at_once = await client.post("/", json={"x": 1}, headers={"x-streaminfer-timeout-s": "0"})
        later = await client.post("/slow", headers={"x-streaminfer-timeout-s": "0.1"})

    assert (at_once.status_code, later.status_code) == (504, 504)
    assert backend.batches == []


async def test_invalid_deadline_header_gets_status_400(loop):
    _, stack = make_stack(loop)
    app, _ = serve(stack)

    async with client_of(app) as client:
        reply = await client.post("/", json={"x": 1}, headers={"grpc-timeout": "soon"})

    assert reply.status_code == 400
    assert "grpc-timeout" in reply.json()["detail"]


async def test_bound_timeout_may_be_any_number(loop):
    """A bound timeout that is longer than any clock runs is no limit."""
    _, stack = make_stack(loop)
    app = FastAPI()
    add_stacks(app, stack)

    @app.get("/")
    async def answer(service: Annotated[BoundService, Depends(bind(stack, timeout_s=1e300))]):
        return await service(1.0)

    async with client_of(app) as client:
        reply = await client.get("/")

    assert reply.status_code == 200


async def test_bound_service_limits_rows_and_calls(loop):
    _, stack = make_stack(loop, slo_s=1.0)
    app = FastAPI()
    add_stacks(app, stack)

    @app.get("/")
    async def answer(service: Annotated[BoundService, Depends(bind(stack, timeout_s=0.5))]):
        rows = await service.rows(np.array([1.0, 2.0]))
        one = await service.call(si.Request(3.0))
        with pytest.raises(si.DeadlineExceeded):
            await service.call(si.Request(3.0, deadline_ns=stack.clock() - 1))
        return [*rows, one.outputs]

    async with client_of(app) as client:
        assert (await client.get("/")).json() == [1.0, 2.0, 3.0]


async def test_app_without_stacks_is_an_error(loop):
    _, stack = make_stack(loop)
    app = FastAPI()
    asked = []

    @app.get("/")
    async def answer(request: fastapi.Request):
        try:
            BoundService(request, stack)
        except RuntimeError as error:
            asked.append(str(error))

    async with client_of(app) as client:
        await client.get("/")

    assert "call add_stacks(app, ...)" in asked[0]


def test_stacks_are_added_at_once():
    _, stack = make_stack(None)
    app = FastAPI()
    add_stacks(app)

    with pytest.raises(RuntimeError, match="give it all stacks at once"):
        add_stacks(app, stack)


async def test_mounted_app_maps_errors_and_sees_disconnects(loop):
    """A mounted application turns errors into responses and notices clients that disconnect."""
    backend, stack = make_stack(loop, HANG, HANG)
    inner, seen = FastAPI(), []
    add_stacks(inner, health=None)
    outer = FastAPI()
    add_stacks(outer, stack)
    outer.mount("/inner", inner)

    @inner.post("/")
    async def answer(body: dict[str, float], service: Annotated[BoundService, Depends(bind(stack))]):
        try:
            await service(body["x"])
        except BaseException as error:
            seen.append(error)
            raise

    async with client_of(outer) as client:
        late = await client.post("/inner/", json={"x": 1}, headers={"x-request-timeout-seconds": "0.1"})
        talk = Conversation(outer, path="/inner/")
        running = asyncio.ensure_future(talk.run())
        await until(lambda: len(backend.batches) == 2)
        talk.leave()
        await running

    assert (late.status_code, talk.status) == (504, 499)
    assert [type(error) for error in seen] == [si.DeadlineExceeded, ClientDisconnect]


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (add_stacks, "app"),
        (lambda stack: add_stacks(FastAPI(), {"name": stack}), "stacks"),
        (lambda stack: add_stacks(FastAPI(), stack, health=5), "health"),
        (lambda stack: add_stacks(FastAPI(), stack, health="health"), "health"),
        (lambda stack: bind("name"), "stack"),
        (lambda stack: bind(stack, timeout_s=0), "timeout_s"),
    ],
)
def test_wrong_arguments_are_named(make, argument):
    _, stack = make_stack(None)

    with pytest.raises((TypeError, ValueError), match=f"^{argument}: expected"):
        make(stack)


# -- clients that go away -------------------------------------------------------------------------------------------


class Conversation:
    """One request of a client that sends given messages and can go away."""

    def __init__(self, app, method="POST", messages=(b'{"x": 1}',), headers=(), path="/"):
        self.app = app
        if method == "POST" and b"content-length" not in dict(headers):
            headers = (*headers, (b"transfer-encoding", b"chunked"))
        self.scope = {
            "type": "http", "method": method, "path": path, "query_string": b"", "http_version": "1.1",
            "headers": [(b"content-type", b"application/json"), *headers],
        }  # fmt: skip
        self.incoming = asyncio.Queue()
        for number, body in enumerate(messages):
            self.incoming.put_nowait(
                {"type": "http.request", "body": body, "more_body": number < len(messages) - 1},
            )
        self.sent = []

    def leave(self):
        self.incoming.put_nowait({"type": "http.disconnect"})

    async def run(self):
        async def send(message):
            self.sent.append(message)

        await self.app(self.scope, self.incoming.get, send)

    @property
    def status(self):
        return self.sent[0]["status"]

    @property
    def body(self):
        return json.loads(b"".join(message.get("body", b"") for message in self.sent))


async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)


async def test_disconnect_cancels_request_in_its_batch(loop):
    """A client that disconnects cancels its request in the running batch."""
    backend, stack = make_stack(loop, HANG)
    app, seen = serve(stack)

    async with app.router.lifespan_context(app):
        talk = Conversation(app)
        running = asyncio.ensure_future(talk.run())
        await until(lambda: backend.running)
        talk.leave()
        await running
        await until(lambda: not backend.running)

    assert talk.status == 499
    assert isinstance(seen[0], ClientDisconnect)


@pytest.mark.parametrize("leaves_early", [True, False])
async def test_mounted_protocol_disconnect_is_no_failure(loop, leaves_early):
    """A client that leaves a mounted protocol causes no failure in a middleware around it.

    Starlette's middleware raises if the app inside it ends without a response.
    """
    backend, stack = make_stack(loop, HANG)
    app = FastAPI()
    app.mount("/inference", si.serving.asgi_app({"faces": stack}))

    @app.middleware("http")
    async def passes(request, call_next):
        return await call_next(request)

    async with stack:
        tensor = {"name": "x", "datatype": "FP32", "shape": [1], "data": [4.0]}
        body = json.dumps({"inputs": [tensor]}).encode()
        talk = Conversation(app, messages=() if leaves_early else (body,), path="/inference/v2/models/faces/infer")
        running = asyncio.ensure_future(talk.run())
        await until(lambda: leaves_early or backend.running)
        talk.leave()
        await running
        await until(lambda: not backend.running)

    assert talk.status == 499


def serve_pairs(stack):
    """Return an app whose handler calls the stack twice at the same time."""
    app = FastAPI()
    add_stacks(app, stack)

    @app.post("/")
    async def answer(service: Annotated[BoundService, Depends(bind(stack))], also_fails: bool = False):
        async with asyncio.TaskGroup() as group:
            calls = [group.create_task(service(float(number))) for number in range(2)]
            if also_fails:
                raise LookupError("a bug of the handler")
        return [float(call.result()) for call in calls]

    return app


async def test_disconnect_during_task_group_is_no_failure(loop):
    """A client that disconnects during a task group of the handler causes no failure.

    The response to the exception group that a task group raises is that of its first error.
    """
    backend, stack = make_stack(loop, HANG)
    app = serve_pairs(stack)

    async with app.router.lifespan_context(app):
        talk = Conversation(app, "POST", [b""], headers=[(b"content-length", b"0")])
        running = asyncio.ensure_future(talk.run())
        await until(lambda: backend.running)
        talk.leave()
        await running
        await until(lambda: not backend.running)

    assert talk.status == 499


async def test_errors_of_a_task_group_have_their_status(loop):
    app = serve_pairs(si.Stack(Raises(si.Overloaded("full", retry_after_s=4.2)), clock=loop.clock))

    async with client_of(app) as client:
        reply = await client.post("/")

    assert (reply.status_code, reply.headers["retry-after"]) == (429, "5")


async def test_exception_group_with_a_handler_bug_is_raised(loop):
    _, stack = make_stack(loop, HANG)
    app = serve_pairs(stack)

    async with client_of(app) as client:
        with pytest.raises(ExceptionGroup) as caught:
            await client.post("/?also_fails=1")

    assert caught.group_contains(LookupError)


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_disconnect_is_noticed_if_no_body_is_read(loop, method):
    """The bound service notices a disconnect even if the request has no body that the handler reads."""
    backend, stack = make_stack(loop, HANG)
    app = FastAPI()
    add_stacks(app, stack)

    @app.api_route("/", methods=["GET", "POST"])
    async def answer(service: Annotated[BoundService, Depends(bind(stack))]):
        return float(await service(1.0))

    async with app.router.lifespan_context(app):
        talk = Conversation(app, method, [b""], headers=[(b"content-length", b"0")])
        running = asyncio.ensure_future(talk.run())
        await until(lambda: backend.running)
        talk.leave()
        await running
        await until(lambda: not backend.running)

    assert talk.status == 499


async def test_disconnect_during_stream_is_no_error(loop):
    """A client that disconnects during a streamed response causes no error."""
    backend, stack = make_stack(loop, HANG)
    app = FastAPI()
    add_stacks(app, stack)

    @app.get("/")
    async def answer(service: Annotated[BoundService, Depends(bind(stack))]):
        async def numbers():
            yield b"0"
            yield str(await service(1.0))

        return StreamingResponse(numbers())

    async with app.router.lifespan_context(app):
        talk = Conversation(app, "GET", [b""])
        talk.scope["asgi"] = {"spec_version": "2.4"}  # Starlette leaves listening to the application
        running = asyncio.ensure_future(talk.run())
        await until(lambda: backend.running)
        talk.leave()
        await running  # a server would log an error
        await until(lambda: not backend.running)

    assert talk.status == 200


@pytest.mark.parametrize(
    ("cause", "raised"),
    [
        (ClientDisconnect(), False),
        (ExceptionGroup("of Starlette before 0.42", [ClientDisconnect()]), False),
        (ExceptionGroup("another", [ClientDisconnect(), ValueError()]), True),
        (None, True),
    ],
    ids=["disconnect", "group", "other group", "no cause"],
)
async def test_only_errors_after_a_disconnect_are_ignored(loop, cause, raised):
    async def app(scope, receive, send):
        raise RuntimeError("Caught handled exception, but response already started.") from cause

    with pytest.raises(RuntimeError) if raised else contextlib.nullcontext():
        await _ExchangeMiddleware(app)({"type": "lifespan"}, None, None)


async def test_all_calls_of_a_disconnected_client_end(loop):
    backend, stack = make_stack(loop, HANG, HANG)
    app = FastAPI()
    add_stacks(app, stack)
    ended = []

    @app.get("/")
    async def answer(service: Annotated[BoundService, Depends(bind(stack))]):
        ended.extend(await asyncio.gather(service(1.0), service(2.0), return_exceptions=True))
        with pytest.raises(ClientDisconnect):
            await service(3.0)

    async with app.router.lifespan_context(app):
        talk = Conversation(app, "GET", [b""])
        running = asyncio.ensure_future(talk.run())
        await until(lambda: backend.running)
        talk.leave()
        await running
        await until(lambda: not backend.running)

    assert [type(error) for error in ended] == [ClientDisconnect, ClientDisconnect]


async def test_disconnect_frees_the_inputs(loop):
    """The inputs of a client that disconnects are in no cycle with the error: reference counts alone free them."""
    backend, stack = make_stack(loop, HANG)
    app = FastAPI()
    add_stacks(app, stack)
    left = []

    @app.get("/")
    async def answer(service: Annotated[BoundService, Depends(bind(stack))]):
        inputs = np.ones(1)
        left.append(weakref.ref(inputs))
        await service(inputs)

    async with app.router.lifespan_context(app):
        talk = Conversation(app, "GET", [b""])
        gc.disable()
        try:
            running = asyncio.ensure_future(talk.run())
            await until(lambda: backend.running)
            talk.leave()
            await running
            del running, talk
            backend.batches.clear()
            await asyncio.sleep(1.0)
            alive = left[0]()
        finally:
            gc.enable()

    assert alive is None


@pytest.mark.parametrize("messages", [[b""], [b"ab"], [b"a", b"b"]], ids=["none", "one", "two"])
async def test_a_body_that_is_read_after_the_call_is_whole(loop, messages):
    """A call that listens for a disconnect takes no message of the body away from the application."""
    _, stack = make_stack(loop, duration_s=1.0)
    app = FastAPI()
    add_stacks(app, stack)

    @app.get("/")
    async def answer(request: fastapi.Request, service: Annotated[BoundService, Depends(bind(stack))]):
        await service(1.0)
        await service(2.0)
        return (await request.body()).decode()

    async with app.router.lifespan_context(app):
        talk = Conversation(app, "GET", messages)
        await talk.run()

    assert talk.body == b"".join(messages).decode()


async def test_a_body_that_is_read_between_calls_is_whole(loop):
    _, stack = make_stack(loop, duration_s=1.0)
    app = FastAPI()
    add_stacks(app, stack)

    @app.post("/")
    async def answer(request: fastapi.Request, service: Annotated[BoundService, Depends(bind(stack))]):
        return [float(await service(float(chunk))) async for chunk in request.stream() if chunk]

    async with app.router.lifespan_context(app):
        talk = Conversation(app, "POST", [b"1", b"2", b"3", b""])
        await talk.run()

    assert talk.body == [1.0, 2.0, 3.0]


async def test_body_read_during_calls_stays_in_order(loop):
    """While the body is incomplete, only the application reads it."""
    _, stack = make_stack(loop, duration_s=1.0)
    app = FastAPI()
    add_stacks(app, stack)

    @app.post("/")
    async def answer(request: fastapi.Request, service: Annotated[BoundService, Depends(bind(stack))]):
        calls = [asyncio.ensure_future(service(0.0))]
        await asyncio.sleep(0.1)
        calls += [asyncio.ensure_future(service(float(chunk))) async for chunk in request.stream() if chunk]
        return [float(result) for result in await asyncio.gather(*calls)]

    async with app.router.lifespan_context(app):
        talk = Conversation(app, "POST", [])
        running = asyncio.ensure_future(talk.run())
        await asyncio.sleep(0.2)
        for body in (b"1", b"2", b"3", b""):
            talk.incoming.put_nowait({"type": "http.request", "body": body, "more_body": bool(body)})
            await asyncio.sleep(0.1)
        await running

    assert talk.body == [0.0, 1.0, 2.0, 3.0]


async def test_disconnect_within_body_runs_no_batch(loop):
    """A client that disconnects within its body ends the request before any call."""
    backend, stack = make_stack(loop)
    app, _ = serve(stack)

    async with app.router.lifespan_context(app):
        talk = Conversation(app, "POST", [])
        talk.incoming.put_nowait({"type": "http.request", "body": b"{", "more_body": True})
        talk.leave()
        await talk.run()

    assert talk.status in {400, 499}  # FastAPI's own, or ours
    assert backend.batches == []


async def test_cancelled_handler_cancels_its_call(loop):
    """A server that cancels the handler cancels the handler's call."""
    backend, stack = make_stack(loop, HANG)
    app, seen = serve(stack)

    async with app.router.lifespan_context(app):
        running = asyncio.ensure_future(Conversation(app).run())
        await until(lambda: backend.running)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await until(lambda: not backend.running)

    assert isinstance(seen[0], asyncio.CancelledError)


async def test_cancellation_by_the_server_is_passed_on(loop):
    """A server that cancels the handler as the client goes away gets its cancellation back."""
    backend, stack = make_stack(loop, HANG)
    app, seen = serve(stack)

    async with app.router.lifespan_context(app):
        talk = Conversation(app)
        running = asyncio.ensure_future(talk.run())
        await until(lambda: backend.running)
        await asyncio.sleep(1.0)  # the call listens by then
        talk.leave()
        await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    assert isinstance(seen[0], asyncio.CancelledError)


async def test_disconnect_cancels_request_only_once(loop):
    """A client that disconnects cancels its request once.

    This holds even if the handler itself listens for the client, as streaming responses do.
    """
    backend, stack = make_stack(loop, HANG)
    app = FastAPI()
    add_stacks(app, stack)
    ended = []

    @app.post("/")
    async def answer(request: fastapi.Request, service: Annotated[BoundService, Depends(bind(stack))]):
        await request.body()
        listening = asyncio.create_task(request.receive())
        try:
            await service(1.0)
        except ClientDisconnect as error:
            ended.append(error)
        await listening
        ended.append(asyncio.current_task().cancelling())

    async with app.router.lifespan_context(app):
        talk = Conversation(app)
        running = asyncio.ensure_future(talk.run())
        await until(lambda: backend.running)
        await asyncio.sleep(0.1)  # both listen
        talk.leave()
        talk.leave()
        await asyncio.gather(running, return_exceptions=True)

    assert len(ended) == 2
    assert isinstance(ended[0], ClientDisconnect)
    assert ended[1] == 0


async def test_nothing_listens_after_the_response(loop):
    _, stack = make_stack(loop, duration_s=1.0)
    app, _ = serve(stack)

    async with app.router.lifespan_context(app):
        before = asyncio.all_tasks()
        await Conversation(app).run()
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == before


# -- under uvicorn ------------------------------------------------------------------------------------------------


def test_closed_socket_cancels_request_in_its_batch():
    """A connection that closes cancels its request in the running batch."""
    started, ended = threading.Event(), threading.Event()

    class Watched(ScriptedBackend):
        async def infer(self, batch):
            started.set()
            try:
                return await super().infer(batch)
            finally:
                ended.set()

    app, seen = serve(si.Stack(si.AdaptiveBatcher(max_batch_size=8), Watched(HANG)))

    with WebServer(app) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            head = "POST / HTTP/1.1\r\nhost: app\r\ncontent-type: application/json\r\ncontent-length: 8\r\n\r\n"
            connection.sendall(head.encode() + b'{"x": 1}')
            assert started.wait(30)
        assert ended.wait(30)

    assert isinstance(seen[0], ClientDisconnect)


def test_proxy_deadline_ends_request_in_its_batch(monkeypatch, clock):
    """A deadline in a proxy's header, as from Envoy or a gateway, ends the request while its connection stays open."""
    monkeypatch.setattr("streaminfer.fastapi.time", SimpleNamespace(monotonic_ns=clock))
    backend = ScriptedBackend(HANG)
    # only the timer makes a deadline pass, so the first request is in a batch by then
    app, seen = serve(si.Stack(si.AdaptiveBatcher(max_batch_size=8), backend, clock=clock))

    with WebServer(app) as server, httpx.Client(timeout=60.0) as client:
        late = client.post(server.url, json={"x": 1}, headers={"x-envoy-expected-rq-timeout-ms": "50"})
        timely = client.post(server.url, json={"x": 2}, headers={"x-envoy-expected-rq-timeout-ms": "30000"})

    assert late.status_code == 504
    assert "its batch was running" in str(seen[0])
    assert (timely.status_code, timely.json()) == (200, 2.0)
    assert backend.running == 0


def test_protocol_metrics_and_page_are_mounted():
    stack = si.Stack(si.Telemetry("faces"), si.AdaptiveBatcher(max_batch_size=8), ScriptedBackend())
    app, _ = serve(stack)
    app.mount("/inference", si.serving.asgi_app({"faces": stack}))
    app.mount("/metrics", si.telemetry.metrics_app(stack))
    app.mount("/page", si.telemetry.dashboard(stack))

    with WebServer(app) as server, httpx.Client(timeout=60.0, base_url=server.url, follow_redirects=True) as client:
        tensor = {"name": "x", "datatype": "FP32", "shape": [1], "data": [4.0]}
        inferred = client.post("/inference/v2/models/faces/infer", json={"inputs": [tensor]})
        metrics = client.get("/metrics")
        page = client.get("/page")
        ready = client.get("/inference/v2/health/ready")

    assert inferred.json()["outputs"][0]["data"] == [4.0]
    assert 'streaminfer_requests_total{service="faces",layer="Telemetry",outcome="ok"} 1' in metrics.text
    assert page.text.startswith("<!doctype html>")
    assert ready.status_code == 200


def test_sync_handler_calls_service_from_its_thread():
    """A synchronous handler calls the service from its thread, and a request past the edge's deadline gets no batch."""
    backend, stack = make_stack(None)
    app = FastAPI()
    add_stacks(app, stack)
    threads = []

    @app.post("/")
    def answer(x: float, service: Annotated[BoundService, Depends(bind(stack))]):
        threads.append(threading.current_thread())
        return float(anyio.from_thread.run(service, x))

    async def main():
        async with client_of(app) as client:
            answers = await asyncio.gather(*(client.post("/", params={"x": x}) for x in range(4)))
            late = await client.post("/", params={"x": 1}, headers={"x-streaminfer-timeout-s": "0"})
        return [answer.json() for answer in answers], late.status_code

    assert asyncio.run(main()) == ([0.0, 1.0, 2.0, 3.0], 504)
    assert len(threads) == 5
    assert threading.main_thread() not in threads
    assert sorted(float(x) for batch in backend.batches for x in batch.inputs) == [0.0, 1.0, 2.0, 3.0]


def test_background_task_calls_service_after_response():
    """A background task can call the service after the client has the response: its end ends no call."""
    _, stack = make_stack(None, duration_s=0.1)
    app = FastAPI()
    add_stacks(app, stack)
    results, ended = [], threading.Event()

    @app.post("/")
    async def answer(service: Annotated[BoundService, Depends(bind(stack))], tasks: BackgroundTasks):
        async def later():
            try:
                results.append(float(await service(1.0)))
                results.append(float(await service(2.0)))
            finally:
                ended.set()

        tasks.add_task(later)

    with WebServer(app) as server, httpx.Client(timeout=60.0) as client:
        assert client.post(server.url).status_code == 200
        assert ended.wait(30)

    assert results == [1.0, 2.0]


async def test_websocket_handler_cannot_bind_a_stack(loop):
    _, stack = make_stack(loop)
    app = FastAPI()
    add_stacks(app, stack)

    @app.websocket("/")
    async def answer(websocket: WebSocket, service: Annotated[BoundService, Depends(bind(stack))]):
        await websocket.accept()

    scope = {"type": "websocket", "path": "/", "headers": [], "query_string": b""}
    with pytest.raises(TypeError, match="a WebSocket handler calls the stack itself"):
        await app(scope, None, None)
