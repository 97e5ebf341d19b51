"""`asgi_app`: an ASGI app, to mount or to run, that serves stacks as models of the Open Inference Protocol."""

import json
from collections.abc import Mapping
from typing import Any, Self

from streaminfer._internal.error_log import Log
from streaminfer._internal.validation import check_duration
from streaminfer._runtime.lifecycle import STOP_LIMIT_S, stop_together
from streaminfer.serving import description
from streaminfer.serving._exchanges_cy import CLIENT_CLOSED_REQUEST, ClientGone, has_no_body
from streaminfer.serving._http_inference_cy import HttpInference
from streaminfer.serving._http_replies_cy import NO_STORE, describe_error, reply, without_body
from streaminfer.serving.errors import RequestRejected
from streaminfer.serving.limits import Limits, checked_limits
from streaminfer.serving.requests._model_requests_cy import ModelRequests
from streaminfer.serving.requests.infer_response import JSON_TYPE, VERSION
from streaminfer.stack import Stack
from streaminfer.telemetry.asgi_app import Message, Receive, Send

__all__ = ["ServingApp", "asgi_app"]

_LOG = Log("streaminfer")
_READ_METHODS, _INFER_METHODS = ("GET", "HEAD"), ("POST",)
_BODY_UNREAD_STATUSES = (404, 405)
"""Statuses of responses that are sent before the body of the request, if any, is read."""


def asgi_app(
    stacks: Mapping[str, Stack], *, limits: Limits | None = None, stop_timeout_s: float | None = STOP_LIMIT_S
) -> "ServingApp":
    """Return an ASGI app that serves stacks over the Open Inference Protocol (KServe v2, Triton's HTTP).

    Run it under an ASGI server, or mount it in FastAPI or Starlette. Under a server, the app starts the stacks that are
    not running; at shutdown it completes their requests and stops these stacks. A mounted app gets no lifespan events:
    enter the app, or the stacks, in the lifespan of the outer app.

    The app has no authentication and no encryption: put it behind a proxy that has both.

    Args:
        stacks: stacks by model name.
        limits: limits of one request; ``None``: the defaults.
        stop_timeout_s: seconds that a stop waits for the requests in flight; ``None``: no limit.

    Raises:
        TypeError, ValueError: an argument is wrong.

    Example:
        ``app.mount("/inference", si.serving.asgi_app({"faces": stack}))``.
    """
    if stop_timeout_s is not None:
        stop_timeout_s = check_duration("stop_timeout_s", stop_timeout_s)
    limits = checked_limits(limits)
    return ServingApp(description.served_models(stacks), limits, stop_timeout_s)


class ServingApp:
    """The ASGI app of `asgi_app`; ``async with app`` starts the stacks that are not running, and then stops them.

    Args:
        models: models by name.
        limits: limits of one request.
        stop_timeout_s: seconds that a stop waits for the requests in flight.
    """

    def __init__(self, models: Mapping[str, ModelRequests], limits: Limits, stop_timeout_s: float | None) -> None:
        self._models = models
        self._limits = limits
        self._stop_timeout_s = stop_timeout_s
        self._started: list[Stack] = []
        self._inference = HttpInference(limits)
        self._addresses = {
            f"/v2/models/{name}{version}/{kind}": (model, kind)
            for name, model in models.items()
            for version in ("", f"/versions/{VERSION}")
            for kind in ("infer", "generate", "generate_stream")
        }

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Respond to one request of the server."""
        if scope["type"] == "lifespan":
            await self._serve_lifespan(receive, send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
            return
        path, method = scope["path"], scope["method"]
        # depending on its version, a framework leaves the prefix of a mount in the path or removes it
        if (root := scope.get("root_path", "").rstrip("/")) and path.startswith(f"{root}/"):
            path = path.removeprefix(root)
        try:
            target = self._addresses.get(path) or self._addresses.get(path.rstrip("/"))
            if target is None:
                messages = self._describe(path)
                _check_method(method, _READ_METHODS)
            else:
                _check_method(method, _INFER_METHODS)
                messages = await self._inference.answer(scope, receive, send, *target)
        except ClientGone as gone:  # a framework's layers around the app still expect a response
            messages = [] if gone.has_begun else reply([], (NO_STORE,), CLIENT_CLOSED_REQUEST)
        except RequestRejected as error:
            error.closes_connection |= error.status in _BODY_UNREAD_STATUSES and not has_no_body(scope)
            messages = describe_error(error)
        except Exception as error:  # noqa: BLE001 - each becomes a status; cancellations are not caught
            messages = describe_error(error)
        if method == "HEAD":
            messages = without_body(messages)
        for message in messages:
            await send(message)

    async def __aenter__(self) -> Self:
        try:
            for model in self._models.values():
                if model.stack.stack_state not in {"starting", "running"}:
                    await model.stack.start()
                    self._started.append(model.stack)
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()

    async def _stop(self) -> None:
        started, self._started = self._started, []
        await stop_together(stack.stop(timeout_s=self._stop_timeout_s) for stack in started)

    async def _serve_lifespan(self, receive: Receive, send: Send) -> None:
        try:
            for step, change in (("startup", self.__aenter__), ("shutdown", self._stop)):
                await receive()
                try:
                    await change()
                except Exception as error:  # noqa: BLE001 - reported to the server, which then ends
                    _LOG.exception("%s failed", step)
                    await send({"type": f"lifespan.{step}.failed", "message": str(error)})
                    return
                await send({"type": f"lifespan.{step}.complete"})
        finally:
            await self._stop()  # an interrupted server cancels this coroutine without a shutdown event

    # -- requests -----------------------------------------------------------------------------------------------

    def _describe(self, path: str) -> list[Message]:
        models = self._models
        match path.strip("/").split("/"):
            case ["v2"]:
                return _json(description.server())
            case ["v2", "health", "live"]:
                return _health(True)
            case ["v2", "health", "ready"]:
                return _health(description.is_ready(models))
            case ["v2", "models", "stats"] if "stats" not in models:
                return _json(description.statistics(models.values()))
            case ["v2", "models", name, "versions", version, *rest]:
                return self._describe_model(description.find_model(models, name, version), rest)
            case ["v2", "models", name, *rest]:
                return self._describe_model(description.find_model(models, name, ""), rest)
            case _:
                raise RequestRejected(404, "no such address")

    def _describe_model(self, model: ModelRequests, rest: list[str]) -> list[Message]:
        match rest:
            case []:
                return _json(description.metadata(model))
            case ["ready"]:
                return _health(model.stack.ready)
            case ["config"]:
                return _json(description.config(model, self._limits))
            case ["stats"]:
                return _json(description.statistics([model]))
            case _:
                raise RequestRejected(404, "no such address")

    def __repr__(self) -> str:
        return f"ServingApp({', '.join(self._models)})"


def _check_method(method: str, methods: tuple[str, ...]) -> None:
    if method not in methods:
        allowed = ", ".join(methods)
        raise RequestRejected(405, f"only {allowed} here", allow=allowed)


def _json(content: Any) -> list[Message]:
    return reply([json.dumps(content).encode()], (JSON_TYPE, NO_STORE))


def _health(ready: bool) -> list[Message]:
    return reply([], (NO_STORE,), 200 if ready else 503)
