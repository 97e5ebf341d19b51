"""`HeadroomRouter`: router for Ray Serve that sends each request to the replica with the earliest predicted finish.

Ray's router API is alpha, so only this file uses it; if the class cannot be created, `ray_deployment` keeps Serve's
default router. The class is created at first use, because its base class is Ray's.
"""

import time
from typing import TYPE_CHECKING, Any

from streaminfer._internal.loading.extras import require
from streaminfer.serving.ray.headroom import HeadroomRanking, LoadReport

__all__ = ["make_headroom_router"]


def make_headroom_router() -> Any:
    """Return the router class, which ranks replicas by predicted finish, and keeps a stream on one replica.

    The stream of a request is its session (the header ``x-session-id``, ``handle.options(session_id=...)``), or the
    argument ``stream_id`` of a handle's call.

    Raises:
        MissingExtra: this version of Ray lacks the API.
    """
    api = require("ray.serve.request_router", extra="ray", purpose="HeadroomRouter")

    class HeadroomRouter(api.RequestRouter):  # type: ignore[misc, name-defined] # Ray is not installed for type checks
        """Router that ranks replicas by predicted finish, and keeps a stream on one replica."""

        def initialize_state(self) -> None:
            """Create the ranking; Ray calls this once."""
            self._ranking: HeadroomRanking[Any] = HeadroomRanking()

        async def choose_replicas(self, candidate_replicas: list[Any], pending_request: Any = None) -> list[list[Any]]:
            """Return the replicas to try, in order."""
            replicas = self.curr_replicas
            stream_id = None if pending_request is None else _stream_of(pending_request)
            ranked = self._ranking.rank() if stream_id is None else [self._ranking.home(stream_id)]
            # one replica per rank, so that Ray tries the next one if a replica is full
            names = [name for name in ranked if name in replicas]
            if not names:
                return [candidate_replicas]
            self._ranking.choose(names[0])
            return [[replicas[name]] for name in names]

        def update_replicas(self, replicas: list[Any]) -> None:
            """Set the replicas and their latest reports."""
            stats = {one.replica_id: one.routing_stats for one in replicas}
            reports = {name: LoadReport(**fields) if fields else None for name, fields in stats.items()}
            self._ranking.update(reports, time.monotonic_ns())
            super().update_replicas(replicas)

        def on_replica_actor_died(self, replica_id: Any) -> None:
            """Send no more requests to a replica that is gone."""
            super().on_replica_actor_died(replica_id)
            self._ranking.remove(replica_id)

        def on_replica_actor_unavailable(self, replica_id: Any) -> None:
            """Send no more requests to a replica until it reports again."""
            super().on_replica_actor_unavailable(replica_id)
            self._ranking.remove(replica_id)

        def on_send_request(self, replica_id: Any) -> None:
            """Count a request that was sent."""
            super().on_send_request(replica_id)
            self._ranking.send(replica_id)

        def on_request_completed(self, replica_id: Any, internal_request_id: str) -> None:
            """Count a request that completed, or that the replica rejected."""
            super().on_request_completed(replica_id, internal_request_id)
            self._ranking.complete(replica_id)

        def on_new_queue_len_info(self, replica_id: Any, num_ongoing_requests: int) -> None:
            """Set the number of requests that a replica reports in a reply."""
            super().on_new_queue_len_info(replica_id, num_ongoing_requests)
            self._ranking.observe(replica_id, num_ongoing_requests)

    HeadroomRouter.__qualname__ = HeadroomRouter.__name__  # Ray looks the class up in the module
    return HeadroomRouter


def _stream_of(pending: Any) -> str | None:
    stream_id = pending.metadata.session_id or pending.kwargs.get("stream_id")
    return None if stream_id is None else str(stream_id)


if not TYPE_CHECKING:  # with `__getattr__`, type checkers would accept any name

    def __getattr__(name: str) -> Any:
        if name == "HeadroomRouter":
            made = globals()[name] = make_headroom_router()
            return made
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
