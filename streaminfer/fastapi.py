"""Stacks in a FastAPI application: start and stop, deadlines, errors, and clients that disconnect.

::

    app = FastAPI()
    add_stacks(app, faces)


    @app.post("/faces")
    async def find(pixels: list[float], faces: Annotated[BoundService, Depends(bind(faces))]) -> list[float]:
        return (await faces(np.array(pixels))).tolist()

A deadline counts from the arrival of the request's head, before its body is read and validated.
"""

import contextlib
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, Unpack

from streaminfer._internal.loading.extras import require
from streaminfer._internal.validation import check_duration, check_instance, expected
from streaminfer.errors import StreamInferError
from streaminfer.request import CallSettings, MapSettings, Request, Response, deadline_after, time_left_s
from streaminfer.serving._exchanges_cy import CLIENT_CLOSED_REQUEST, ClientGone, Exchange, ExchangeWatch
from streaminfer.serving.deadlines import read_timeout_s
from streaminfer.serving.errors import logged_failure
from streaminfer.stack import Stack

if TYPE_CHECKING:
    import fastapi
else:
    fastapi = require("fastapi", extra="fastapi", purpose="streaminfer.fastapi")

from starlette.requests import ClientDisconnect, HTTPConnection  # installed with FastAPI
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["BoundService", "add_stacks", "bind"]

T = TypeVar("T")

_SCOPE_KEY = "streaminfer"


def add_stacks(app: "fastapi.FastAPI", *stacks: Stack, health: str | None = "/health") -> None:
    """Make an application serve stacks: start and stop them with it, and turn their errors into responses.

    * The stacks start before the application's own lifespan begins, and stop after it has ended, so code in the
      lifespan can use them. A stack that is already running is neither started nor stopped.
    * ``GET /health/live`` returns 200. ``GET /health/ready`` returns 200 while all stacks are ready, otherwise 503.
    * A `StreamInferError` that leaves a handler becomes a response with its status and ``Retry-After``, which caches
      must not store; the message of a model's failure goes to the log ``streaminfer``. Your own handler for a class of
      errors takes precedence.

    Call it once, before the application starts, for the outermost application, whose lifespan the server runs. A
    mounted application handles errors and disconnects after ``add_stacks(inner, health=None)``.

    Args:
        app: the application.
        *stacks: in the order in which they start.
        health: path below which the two probes are, starting with ``/``; ``None``: no probes.

    Raises:
        RuntimeError: it was called for this application before.
        TypeError, ValueError: an argument is wrong.
    """
    check_instance("app", app, fastapi.FastAPI, "a FastAPI application")
    for stack in stacks:
        check_instance("stacks", stack, Stack, "a Stack")
    check_instance("health", health, str | None, "a path, or None")
    if health is not None and not health.startswith("/"):  # no request has such a path
        raise ValueError(expected("health", "a path that begins with '/'", health))
    if any(isinstance(it.cls, type) and issubclass(it.cls, _ExchangeMiddleware) for it in app.user_middleware):
        raise RuntimeError("add_stacks was called for this application before: give it all stacks at once")
    inner = app.router.lifespan_context

    @contextlib.asynccontextmanager
    async def lifespan(started: Any) -> AsyncIterator[Any]:
        async with contextlib.AsyncExitStack() as running:
            for stack in stacks:
                if stack.stack_state not in {"starting", "running"}:
                    await running.enter_async_context(stack)
            async with inner(started) as state:
                yield state

    app.router.lifespan_context = lifespan
    app.add_middleware(_ExchangeMiddleware)
    handlers: dict[Any, Any] = {StreamInferError: _respond, ClientDisconnect: _close, ExceptionGroup: _respond_to_group}
    app.exception_handlers = handlers | app.exception_handlers  # handlers of the application take precedence
    if health is not None:
        health = health.rstrip("/")

        async def ready() -> fastapi.Response:
            return _status(200 if all(stack.ready for stack in stacks) else 503)

        async def live() -> fastapi.Response:
            return _status(200)

        app.add_api_route(f"{health}/ready", ready, include_in_schema=False)
        app.add_api_route(f"{health}/live", live, include_in_schema=False)


def bind(stack: Stack, *, timeout_s: float | None = None) -> Callable[[HTTPConnection], Awaitable["BoundService"]]:
    """Return a dependency that gives a handler a stack, bound to the deadline and the client of its request.

    Args:
        stack: a running stack: passed to :func:`add_stacks`, or started by the application's own lifespan.
        timeout_s: most seconds that a request may take from its arrival; ``None``: only the stack's objective and the
            request's headers set the deadline.

    Example:
        ``Annotated[BoundService, Depends(bind(faces))]`` as the annotation of a handler's parameter.

    Raises:
        TypeError, ValueError: an argument is wrong.
    """
    check_instance("stack", stack, Stack, "a Stack")
    if timeout_s is not None:
        timeout_s = check_duration("timeout_s", timeout_s, positive=True)

    # FastAPI would call a plain function in a thread
    async def bound(connection: HTTPConnection) -> BoundService:
        if not isinstance(connection, fastapi.Request):
            raise TypeError(expected("bind", "an HTTP request: a WebSocket handler calls the stack itself", connection))
        return BoundService(connection, stack, timeout_s=timeout_s)

    return bound


class BoundService:
    """A stack bound to one HTTP request, for its handler; made by the dependency of :func:`bind`.

    Each call ends at the request's deadline, the tightest of ``timeout_s``, the stack's objective (``slo_s``) and the
    headers that :func:`~streaminfer.serving.asgi_app` reads: ``x-envoy-expected-rq-timeout-ms``, ``grpc-timeout``,
    ``x-request-timeout-seconds`` and ``x-streaminfer-timeout-s``. When the client disconnects, calls in flight are
    cancelled, also inside their batches, and raise ``starlette.requests.ClientDisconnect``.

    Args:
        request: a request of an application for which :func:`add_stacks` was called.
        stack: the stack to call.
        timeout_s: most seconds that the request may take; ``None``: no such limit.

    Attributes:
        stack: the stack to call.

    Raises:
        InvalidInput: a header with a deadline is malformed.
        RuntimeError: :func:`add_stacks` was not called.
    """

    def __init__(self, request: "fastapi.Request", stack: Stack, *, timeout_s: float | None = None) -> None:
        client = request.scope.get(_SCOPE_KEY)
        if client is None:
            raise RuntimeError("streaminfer.fastapi: call add_stacks(app, ...) before the application starts")
        self.stack = stack
        self._client: _Client = client
        limits_s = [limit for limit in (timeout_s, read_timeout_s(request.headers)) if limit is not None]
        self._deadline_ns = deadline_after(client.arrived_ns, min(limits_s)) if limits_s else None

    async def __call__(self, inputs: Any, **settings: Unpack[CallSettings]) -> Any:
        """Send one request; keywords, result and errors as calling the `Stack`.

        A ``timeout_s`` given here replaces the objective; the request's deadline still applies.

        Raises:
            ClientDisconnect: the client has disconnected.
        """
        settings["timeout_s"] = self._tightest(settings.get("timeout_s"))
        return await self._client.guard(self.stack(inputs, **settings))

    async def rows(self, inputs: Any, **settings: Unpack[MapSettings]) -> Any:
        """Send a request of several rows, all or none, as :meth:`Stack.rows`.

        Raises:
            ClientDisconnect: the client has disconnected.
        """
        settings["timeout_s"] = self._tightest(settings.get("timeout_s"))
        return await self._client.guard(self.stack.rows(inputs, **settings))

    async def call(self, request: Request, *, timeout_s: float | None = None) -> Response:
        """Send one request and return the whole response, as :meth:`Stack.call`.

        Raises:
            ClientDisconnect: the client has disconnected.
        """
        if timeout_s is None and request.deadline_ns is not None:
            left_s = time_left_s(request.deadline_ns, self.stack.clock())
            timeout_s = math.inf if left_s is None else max(left_s, 0.0)
        return await self._client.guard(self.stack.call(request, timeout_s=self._tightest(timeout_s)))

    @property
    def time_left_s(self) -> float | None:
        """Seconds until the request's own deadline, negative after it; ``None``: it has no deadline."""
        return time_left_s(self._deadline_ns, time.monotonic_ns())

    def _tightest(self, timeout_s: float | None) -> float | None:
        if timeout_s is not None:
            deadline_after(0, timeout_s)  # raises if it is wrong
        left_s = self.time_left_s
        if left_s is None:
            return timeout_s
        if timeout_s is None:
            objective = self.stack._offered.slo  # read at start, because joining capabilities takes longer than a call
            slo_ns = None if objective is None else objective.slo_ns
            timeout_s = math.inf if slo_ns is None else slo_ns / 1e9
        return min(timeout_s, max(left_s, 0.0))

    def __repr__(self) -> str:
        return f"BoundService({self.stack!r})"


class _ExchangeMiddleware:
    """ASGI middleware that notes when a request arrived, whether its body was read and its response was sent."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._watch = ExchangeWatch(None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            exchange = Exchange(self._watch, scope, receive)
            scope[_SCOPE_KEY] = _Client(time.monotonic_ns(), exchange)
            receive = exchange.receive
            send = partial(_send, exchange, send)
        try:
            await self.app(scope, receive, send)
        except RuntimeError as error:  # from Starlette, if the client disconnected during a response
            if not _is_disconnect(error.__cause__):
                raise


def _is_disconnect(error: BaseException | None) -> bool:
    if isinstance(error, BaseExceptionGroup):  # of Starlette before 0.42
        return error.split(ClientDisconnect)[1] is None
    return isinstance(error, ClientDisconnect)


async def _send(exchange: Exchange, send: Send, message: Message) -> None:
    if message["type"] == "http.response.body" and not message.get("more_body", False):
        exchange.is_answered = True
    await send(message)


class _Client(NamedTuple):
    """The client of one request.

    Attributes:
        arrived_ns: instant of the request's head.
        exchange: ends the calls in flight when the client disconnects.
    """

    arrived_ns: int
    exchange: Exchange

    async def guard(self, call: Coroutine[Any, Any, T]) -> T:
        """Await a call; cancel it when the client disconnects."""
        if self.exchange.is_over:
            call.close()
            raise ClientDisconnect
        try:
            with self.exchange:
                return await call
        except ClientGone:
            raise ClientDisconnect from None


def _status(code: int) -> "fastapi.Response":
    return fastapi.Response(status_code=code, headers={"cache-control": "no-store"})


async def _respond(_request: "fastapi.Request", error: Exception) -> "fastapi.Response":
    failure = logged_failure(error)
    headers = {"cache-control": "no-store"}
    if failure.retry_after_s is not None:
        headers["retry-after"] = str(failure.retry_after_s)
    return JSONResponse({"detail": failure.text}, failure.status, headers)


async def _respond_to_group(request: "fastapi.Request", error: Exception) -> "fastapi.Response":
    """Return the response to the first error of an ``asyncio.TaskGroup``, if all its errors are ours."""
    assert isinstance(error, ExceptionGroup)  # noqa: S101 - what it is registered for
    if error.split((StreamInferError, ClientDisconnect))[1] is not None:
        raise error
    first: Exception = error
    while isinstance(first, ExceptionGroup):
        first = first.exceptions[0]
    return await (_close if isinstance(first, ClientDisconnect) else _respond)(request, first)


async def _close(_request: "fastapi.Request", _error: Exception) -> "fastapi.Response":
    return _status(CLIENT_CLOSED_REQUEST)
