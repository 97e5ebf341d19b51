"""`HeadroomRouter`: Ray Serve's request router that sends each request where it is predicted to finish first.

The router API of Ray is alpha, so all that touches it is in this file; `ray_deployment` keeps Serve's default router
where the class cannot be made. It is made at its first use, because its base is Ray's.
"""

import time
from typing import TYPE_CHECKING, Any

from streaminfer._internal.loading.extras import require
from streaminfer.serving.ray.headroom import HeadroomRanking, LoadReport

__all__ = ["make_headroom_router"]


def make_headroom_router() -> Any:
    """Return the class, which ranks replicas by predicted finish, and keeps a stream on one replica.

    The stream is the session of the request (the header ``x-session-id``, ``handle.options(session_id=...)``), or the
    argument ``stream_id`` of a call of a handle.

    Raises:
        MissingExtra: this Ray has no such API.
    """
    api = require("ray.serve.request_router", extra="ray", purpose="HeadroomRouter")

    class HeadroomRouter(api.RequestRouter):  # type: ignore[misc, name-defined] # Ray is not installed for type checks
        """Ranks replicas by predicted finish, and keeps a stream on one replica."""

        def initialize_state(self) -> None:
            """Make the ranking; Ray calls it once."""
            self._ranking: HeadroomRanking[Any] = HeadroomRanking()

        async def choose_replicas(self, candidate_replicas: list[Any], pending_request: Any = None) -> list[list[Any]]:
            """Return replicas in the order in which they are to be tried."""
            replicas = self.curr_replicas
            stream_id = None if pending_request is None else _stream_of(pending_request)
            ranked = self._ranking.rank() if stream_id is None else [self._ranking.home(stream_id)]
            # one in each rank: a full replica is passed over for the next one
            names = [name for name in ranked if name in replicas]
            if not names:
                return [candidate_replicas]
            self._ranking.choose(names[0])
            return [[replicas[name]] for name in names]

        def update_replicas(self, replicas: list[Any]) -> None:
            """Take over the set of replicas and what they report."""
            stats = {one.replica_id: one.routing_stats for one in replicas}
            reports = {name: LoadReport(**said) if said else None for name, said in stats.items()}
            self._ranking.update(reports, time.monotonic_ns())
            super().update_replicas(replicas)

        def on_replica_actor_died(self, replica_id: Any) -> None:
            """Send nothing more to a replica that is gone."""
            super().on_replica_actor_died(replica_id)
            self._ranking.remove(replica_id)

        def on_replica_actor_unavailable(self, replica_id: Any) -> None:
            """Send nothing more to a replica until it reports again."""
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
            """Take over how many requests a replica says it has."""
            super().on_new_queue_len_info(replica_id, num_ongoing_requests)
            self._ranking.observe(replica_id, num_ongoing_requests)

    HeadroomRouter.__qualname__ = HeadroomRouter.__name__  # Ray looks it up in the module
    return HeadroomRouter


def _stream_of(pending: Any) -> str | None:
    stream_id = pending.metadata.session_id or pending.kwargs.get("stream_id")
    return None if stream_id is None else str(stream_id)


if not TYPE_CHECKING:  # type checkers refuse other names

    def __getattr__(name: str) -> Any:
        if name == "HeadroomRouter":
            made = globals()[name] = make_headroom_router()
            return made
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
