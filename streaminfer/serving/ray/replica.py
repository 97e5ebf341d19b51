"""`StackReplica`: one replica of a deployment, with its stack, its HTTP app and its reports to Ray Serve."""

import asyncio
import contextlib
import inspect
from collections.abc import Callable, Hashable
from typing import Any, Unpack

from streaminfer._internal.error_log import Log
from streaminfer._internal.loading.extras import require
from streaminfer._internal.validation import expected
from streaminfer._runtime.lifecycle import end_tasks, keep_running
from streaminfer.protocols import adapt
from streaminfer.request import CallSettings
from streaminfer.serving.asgi import ServingApp, asgi_app
from streaminfer.serving.limits import Limits
from streaminfer.serving.ray.moving_streams import MovingStreams
from streaminfer.serving.ray.ray_metrics import RayMetrics
from streaminfer.serving.ray.replica_meter import ReplicaMeter, burn_rate
from streaminfer.serving.ray.stream_store import store_actor
from streaminfer.stack import Stack

__all__ = ["StackReplica"]

METRICS_S = 5.0
"""Seconds between two publications of the statistics; Ray's agents export every ten seconds by default."""
_LOG = Log("streaminfer")


class StackReplica:
    """One replica. Ray Serve creates it, calls its methods, and awaits its ``__del__`` when the replica stops.

    Args:
        stack_factory: returns the stack, or is a coroutine function that does; called in the replica.
        model: name of the model in addresses.
        limits: limits of requests over HTTP.
        stop_timeout_s: seconds that a stop waits for the requests in flight.
    """

    async def __init__(  # type: ignore[misc] # Ray awaits it
        self, stack_factory: Callable[[], Any], model: str, limits: Limits | None, stop_timeout_s: float | None
    ) -> None:
        self._exits = contextlib.AsyncExitStack()  # first, because Ray awaits `__del__` even if the factory fails
        made = stack_factory()
        stack = await made if inspect.isawaitable(made) else made
        if not isinstance(stack, Stack):
            raise TypeError(expected("stack_factory", "a function that returns a Stack", stack))
        self.stack = stack
        self._model = model
        self._limits = limits
        self._meter = ReplicaMeter()
        self._service = Stack(self._meter, _with_moves(stack))
        await self._service.start()
        self._exits.push_async_callback(self._service.stop, timeout_s=stop_timeout_s)
        self._meter.workers = adapt(stack).capabilities().max_in_flight or 1
        self._exits.push_async_callback(end_tasks, [keep_running(self._publish, "the export of metrics", _LOG.name)])

    def __serve_build_asgi_app__(self) -> ServingApp:
        """Return the app of the Open Inference Protocol; Ray Serve calls it."""
        return asgi_app({self._model: self._service}, limits=self._limits)

    async def infer(self, inputs: Any, **settings: Unpack[CallSettings]) -> Any:
        """Serve a request of a handle, like a call of a `Stack`: ``await handle.infer.remote(inputs, timeout_s=0.1)``.

        Raises:
            StreamInferError: the request failed; the class says why.
        """
        return await self._service(inputs, **settings)

    async def end_stream(self, stream_id: Hashable) -> None:
        """Forget the state of a stream, whichever replica has it: ``handle.end_stream.remote("caller-7")``."""
        states = adapt(self._service).capabilities().stream_states
        if states is not None:
            states.end_stream(stream_id)
        if isinstance(states, MovingStreams):
            await states.settle(stream_id)

    async def statistics(self) -> dict[str, Any]:
        """Return the statistics of this replica's stack."""
        return self.stack.statistics().to_dict()

    # -- what Ray Serve calls -----------------------------------------------------------------------------------

    async def record_routing_stats(self) -> dict[str, float]:
        """Return the load of the replica, for the routers."""
        return self._meter.report(self._service.clock())._asdict()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Return queue delay, burn rate and utilization of the replica, for the autoscaler."""
        return self._meter.state(self._service.clock(), burn_rate(self.stack))._asdict()

    async def check_health(self) -> None:
        """Check that the replica works; Ray replaces it otherwise.

        Raises:
            RuntimeError: the stack does not run.
        """
        if not self._service.ready:
            raise RuntimeError(f"the stack is {self._service.stack_state}")

    async def __del__(self) -> None:
        """Complete the requests in flight, give the streams to the store and stop; Ray Serve awaits this."""
        await self._exits.aclose()

    async def _publish(self) -> None:
        metrics = RayMetrics(self.stack)
        while True:
            try:
                metrics.publish()
            except Exception:  # noqa: BLE001 - an error in metrics must not stop serving
                _LOG.exception("the statistics were not published")
            await asyncio.sleep(METRICS_S)


def _with_moves(stack: Stack) -> Any:
    """Return the stack, wrapped in `MovingStreams` if it stores the state of streams in a deployment."""
    states = adapt(stack).capabilities().stream_states
    if states is None:
        return stack
    ray = require("ray", extra="ray", purpose="ray_deployment")
    serve = require("ray.serve", extra="ray", purpose="ray_deployment")
    try:
        replica = serve.get_replica_context()
    except serve.exceptions.RayServeException:
        return stack  # Ray's local testing mode has no other replicas
    store = store_actor(ray, f"{replica.app_name}#{replica.deployment}")
    return MovingStreams(stack, states, store, replica.replica_tag)
