"""`ray_deployment`: a deployment of Ray Serve with one stack per replica."""

import functools
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

from streaminfer._internal.error_log import Log
from streaminfer._internal.forking import new_lock
from streaminfer._internal.loading.extras import require
from streaminfer._internal.validation import check_duration, check_instance, expected
from streaminfer._runtime.lifecycle import STOP_LIMIT_S
from streaminfer.serving.limits import Limits, checked_limits
from streaminfer.serving.ray.autoscaling import Autoscaling, QueueDelayPolicy
from streaminfer.serving.ray.headroom_router import make_headroom_router
from streaminfer.serving.ray.replica import StackReplica
from streaminfer.stack import Stack

__all__ = ["ray_deployment"]

ROUTING_STATS_S = 0.2
AUTOSCALING_S = 0.5
_MAX_ONGOING_REQUESTS = 1024
_STOP_MARGIN_S = 5.0
_ROUTER_PATH = "streaminfer.serving.ray.headroom_router.HeadroomRouter"
_LOG = Log("streaminfer")
_making_router_config = new_lock()


def ray_deployment(
    stack_factory: Callable[[], Stack | Awaitable[Stack]],
    *,
    model: str = "model",
    num_replicas: int = 1,
    autoscaling: Autoscaling | None = None,
    limits: Limits | None = None,
    headroom_router: bool = True,
    stop_timeout_s: float | None = STOP_LIMIT_S,
    **options: Any,
) -> Any:
    """Return a deployment of Ray Serve that runs a stack in each replica.

    A replica is ready when its stack has started, and completes the requests in flight before it stops. It serves the
    Open Inference Protocol over HTTP, like `asgi_app`, and calls through handles: ``await handle.infer.remote(inputs,
    timeout_s=0.1, stream_id="caller-7")``. The batcher of the stack forms the batches; Serve only limits the requests
    per replica, to 1,024 unless ``max_ongoing_requests`` is given.

    Args:
        stack_factory: returns the stack; called once in each replica. May be a coroutine function.
        model: name of the model in addresses: ``/v2/models/NAME/infer``.
        num_replicas: number of replicas, unless ``autoscaling`` or Ray's own ``autoscaling_config`` is given.
        autoscaling: adds and removes replicas by queue delay and burn rate.
        limits: limits of one request over HTTP; ``None``: the defaults.
        headroom_router: send each request to the replica that is predicted to finish it first, and all requests of a
            stream to one replica. If false, or if this version of Ray lacks the API, Serve's default router is used.
        stop_timeout_s: seconds that the stop of a replica waits for the requests in flight; ``None``: no limit from
            this package.
        **options: options of ``ray.serve.deployment``, such as ``name``, ``ray_actor_options`` and
            ``max_ongoing_requests``.

    Raises:
        MissingExtra: Ray Serve is not installed (``pip install 'streaminfer[ray]'``).
        TypeError, ValueError: an argument is wrong.

    Example:
        ``serve.run(si.serving.ray_deployment(make_stack, num_replicas=2).bind())``.
    """
    serve = require("ray.serve", extra="ray", purpose="ray_deployment")
    # a Stack is callable too, but cannot be shared by processes
    check_instance(
        "stack_factory",
        stack_factory,
        lambda it: callable(it) and not isinstance(it, Stack),
        "a function that returns a Stack",
    )
    check_instance("headroom_router", headroom_router, bool, "True or False")
    check_instance("autoscaling", autoscaling, Autoscaling | None, "Autoscaling or None")
    check_instance("model", model, str, "a name")
    if not model or "/" in model:
        raise ValueError(expected("model", "a name without '/', not empty", model))
    if stop_timeout_s is not None:
        stop_timeout_s = check_duration("stop_timeout_s", stop_timeout_s)
    limits = checked_limits(limits)
    settings: dict[str, Any] = {"name": model, "max_ongoing_requests": _MAX_ONGOING_REQUESTS}
    if stop_timeout_s is not None:
        settings["graceful_shutdown_timeout_s"] = stop_timeout_s + _STOP_MARGIN_S
    if autoscaling is not None:
        settings["autoscaling_config"] = _autoscaling_config(autoscaling)
    elif "autoscaling_config" not in options:
        settings["num_replicas"] = num_replicas
    if headroom_router and (config := _router_config()) is not None:
        settings["request_router_config"] = config

    class Replica(StackReplica):
        async def __init__(self) -> None:  # type: ignore[misc] # Ray awaits it
            await super().__init__(stack_factory, model, limits, stop_timeout_s)

    return serve.deployment(**settings | options)(serve.ingress()(Replica))


def _autoscaling_config(autoscaling: Autoscaling) -> Any:
    config = require("ray.serve.config", extra="ray", purpose="ray_deployment")
    policy = config.AutoscalingPolicy(
        policy_function=QueueDelayPolicy,
        policy_kwargs={"queue_delay_s": autoscaling.queue_delay_s, "burn_limit": autoscaling.burn_rate},
    )
    with warnings.catch_warnings():
        # Ray 2.60 does not read the environment variable that is to replace this argument
        warnings.simplefilter("ignore", DeprecationWarning)
        return config.AutoscalingConfig(
            min_replicas=autoscaling.min_replicas,
            max_replicas=autoscaling.max_replicas,
            upscale_delay_s=autoscaling.upscale_delay_s,
            downscale_delay_s=autoscaling.downscale_delay_s,
            metrics_interval_s=AUTOSCALING_S,
            policy=policy,
        )


def _router_config() -> Any:
    """Return the settings of the router, made once per process; ``None`` if this version of Ray lacks the API.

    Ray pickles the router's class when settings are made and when they are read, and registers the class's module while
    it does. Two threads that do so at once fail, such as one that deploys and one that calls ``serve.status``.
    """
    with _making_router_config:
        return _make_router_config()


@functools.cache
def _make_router_config() -> Any:
    try:
        make_headroom_router()  # as Ray does when it resolves the path
        config = require("ray.serve.config", extra="ray", purpose="ray_deployment")
        return config.RequestRouterConfig(
            request_router_class=_ROUTER_PATH, request_routing_stats_period_s=ROUTING_STATS_S
        )
    except (ImportError, AttributeError, TypeError) as error:
        _LOG.warning("Ray Serve routes as by default, because its router API is another one: %s", error)
        return None
