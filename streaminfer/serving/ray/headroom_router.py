"""`HeadroomRouter`: Ray Serve's request router that sends each request where it is predicted to finish first.

The router API of Ray is alpha, so all that touches it is in this file; `ray_deployment` keeps Serve's default router
where this module cannot be imported.
"""

import time
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from streaminfer.serving.ray.headroom import SAMPLE, HeadroomRanking, LoadReport

__all__ = ["HeadroomRouter"]


class HeadroomRouter(RequestRouter):  # type: ignore[misc] # Ray is not installed where types are checked
    """Ranks replicas by predicted finish, and keeps the requests of a stream on one replica.

    The stream is the session of the request (the header ``x-session-id``, ``handle.options(session_id=...)``), or the
    argument ``stream_id`` of a call of a handle.
    """

    def initialize_state(self, *, sample: int = SAMPLE) -> None:
        """Take the settings of ``request_router_kwargs``.

        Args:
            sample: replicas that are compared for a request.
        """
        self._ranking: HeadroomRanking[Any] = HeadroomRanking(sample)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return replicas in the order in which they are to be tried."""
        replicas = self.curr_replicas
        stream_id = None if pending_request is None else _stream_of(pending_request)
        ranked = self._ranking.rank() if stream_id is None else [self._ranking.home(stream_id)]
        # one in each rank: a full replica is passed over for the next one
        found = [[replicas[name]] for name in ranked if name in replicas]
        return found or [candidate_replicas]

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Take over the set of replicas and what they report."""
        reports = {one.replica_id: LoadReport(**one.routing_stats) if one.routing_stats else None for one in replicas}
        self._ranking.update(reports, time.monotonic_ns())
        super().update_replicas(replicas)

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """Send nothing more to a replica that is gone."""
        super().on_replica_actor_died(replica_id)
        self._ranking.remove(replica_id)

    def on_replica_actor_unavailable(self, replica_id: ReplicaID) -> None:
        """Send nothing more to a replica until it reports again."""
        super().on_replica_actor_unavailable(replica_id)
        self._ranking.remove(replica_id)

    def on_send_request(self, replica_id: ReplicaID) -> None:
        """Count a request that was sent."""
        super().on_send_request(replica_id)
        self._ranking.send(replica_id)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Count a request that completed, or that the replica rejected."""
        super().on_request_completed(replica_id, internal_request_id)
        self._ranking.complete(replica_id)

    def on_new_queue_len_info(self, replica_id: ReplicaID, num_ongoing_requests: int) -> None:
        """Take over how many requests a replica says it has."""
        super().on_new_queue_len_info(replica_id, num_ongoing_requests)
        self._ranking.observe(replica_id, num_ongoing_requests)


def _stream_of(pending: PendingRequest) -> str | None:
    stream_id = pending.metadata.session_id or pending.kwargs.get("stream_id")
    return None if stream_id is None else str(stream_id)
