"""Choice of the replica of a Ray Serve deployment for the next request: the state machine of `HeadroomRouter`.

*Design.* A replica reports the cost of an additional request (``per_request_s``), the duration of a request in an empty
replica (``service_s``), and its number of requests. The router knows at any moment how many of them it has sent. A
request that is sent now is predicted to finish after ``service_s + per_request_s × requests in flight``. A replica that
is four times slower therefore gets a quarter of the requests, and one that becomes slow loses requests at the next
report. The headroom of a replica is the time to the deadline minus that prediction. The deadline of a request is the
same for all replicas, so the greatest headroom is the earliest predicted finish, and the router need not read the
deadline. Sending requests with much time to slow replicas, to leave fast ones to tight deadlines, was simulated: 0.9 %
more on time at 0.95 of capacity, but 0.6 to 1.7 % fewer at 0.8, so the router does not do it.

*Stale reports.* Reports are a fraction of a second old, and other routers send requests meanwhile. The router counts
its own requests exactly. The number of others' requests is the number in the latest report, or in the replica's latest
reply, minus the router's own at that time; clocks of different machines are never compared. For a burst, Ray chooses
all replicas before it sends the first request. A choice therefore counts like a request until the request is sent, or
until the next report. Many routers with equal reports would all choose the same replica. Each router therefore ranks
only a random sample: a power of ``sample`` choices (Mitzenmacher 1996).

*Failures.* A replica that fails at once has no queue, and would seem the best of all. A failed request has to be sent
again, so the router predicts the time to a successful response: the prediction is divided by the share of the replica's
latest requests that succeeded. For a replica that has not responded yet, the router assumes mean durations.

*Silence.* Ray needs several seconds to notice that a node is gone. If the report of a replica has not changed for a
second, while others' reports have, the replica gets no requests until it reports again. The same holds if Ray calls a
replica unavailable. If all replicas are silent, the controller is the cause, and all stay candidates.

*Streams* go to the replica with the greatest rendezvous hash (Thaler and Ravishankar 1998) while it is a candidate: a
replica that leaves or joins moves only its own streams.

*Complexity.* A ranking costs the sample, whatever the number of replicas. An update costs one step per replica. The
replica of a stream costs one hash per replica, and is stored until the set of replicas changes.

*Invariants.* The router's own requests are those sent and not completed. A candidate is a known replica. The same seed
and the same calls give the same ranking. Not thread-safe; reads no clock. A ranking runs once per request in Ray's
Python router, whose other work takes a hundred times as long, so it is not compiled.
"""

import functools
import hashlib
import random
from collections.abc import Hashable, Mapping
from typing import Generic, NamedTuple, TypeVar

import attrs

__all__ = ["SAMPLE", "HeadroomRanking", "LoadReport", "ReplicaLoad"]

SAMPLE = 4
"""Number of replicas to compare; with more, routers with old reports would tend to choose the same replica."""
SILENT_NS = 1_000_000_000
"""Time without a new report after which a replica is silent: five reports are missing."""
_LEAST_SUCCESS = 0.02
"""Least share of requests that is assumed to succeed, whatever a replica reports."""
_MAX_HOMES = 1 << 16

K = TypeVar("K", bound=Hashable)


class LoadReport(NamedTuple):
    """Report of a replica on its load.

    Attributes:
        number: the number of the report; each new report has another.
        service_s: seconds that a request takes in an empty replica; 0: it has not responded yet, nothing is measured.
        per_request_s: seconds by which each request in flight delays the next one.
        in_flight: requests in flight of all routers.
        success: share of the latest requests that succeeded, 0 to 1.
    """

    number: int
    service_s: float
    per_request_s: float
    in_flight: int
    success: float = 1.0


@attrs.define
class ReplicaLoad:
    """Load of a replica, as far as the router knows it.

    Attributes:
        reported_ns: instant of the latest report; before the first, the instant at which the replica appeared.
        report: the latest report; ``None``: there was none.
        chosen: requests for which this router has chosen the replica, but which are not sent yet.
        own: requests of this router in flight.
        others: estimate of the requests of other routers in flight.
    """

    reported_ns: int = 0
    report: LoadReport | None = None
    chosen: int = 0
    own: int = 0
    others: int = 0

    @property
    def in_flight(self) -> int:
        """Requests in flight, or chosen and about to be sent."""
        return self.chosen + self.own + self.others


class HeadroomRanking(Generic[K]):
    """Ranks replicas for each request.

    Args:
        sample: number of replicas that are compared for a request, at least 1.
        seed: seed of the samples.

    Attributes:
        loads: the load of each replica.
        candidates: the replicas that may get requests.
        home: returns the replica of a stream; ``None`` if there are no candidates.
    """

    def __init__(self, sample: int = SAMPLE, seed: int | None = None) -> None:
        self.loads: dict[K, ReplicaLoad] = {}
        self.candidates: list[K] = []
        self._sample = sample
        self._random = random.Random(seed)  # noqa: S311 - not used for security
        self.home = functools.lru_cache(_MAX_HOMES)(self._find_home)  # cleared when the candidates change
        self._mean = LoadReport(0, 0.0, 0.0, 0)

    # -- what happens -------------------------------------------------------------------------------------------

    def update(self, reports: Mapping[K, LoadReport | None], now_ns: int) -> None:
        """Set the replicas and the latest report of each; replicas that are not in ``reports`` are removed."""
        self.loads = {replica: self.loads.get(replica) or ReplicaLoad(now_ns) for replica in reports}
        for replica, report in reports.items():
            load = self.loads[replica]
            load.chosen = 0  # the request may have gone elsewhere or been cancelled, and no callback tells
            if report is not None and report != load.report:
                load.report, load.reported_ns = report, now_ns
                load.others = max(report.in_flight - load.own, 0)
        learned = [load.report for load in self.loads.values() if load.report is not None and load.report.service_s]
        if learned:  # the mean is used for replicas that have not responded yet, so that they get some requests
            service_s = sum(report.service_s for report in learned) / len(learned)
            self._mean = LoadReport(0, service_s, sum(report.per_request_s for report in learned) / len(learned), 0)
        latest_ns = max((load.reported_ns for load in self.loads.values()), default=now_ns)
        self._choose_from([name for name, load in self.loads.items() if latest_ns - load.reported_ns < SILENT_NS])

    def remove(self, replica: K) -> None:
        """Send no more requests to a replica until it has reported again, as seen by :meth:`update`."""
        load = self.loads.get(replica)
        if load is not None:
            load.reported_ns = -SILENT_NS
            self._choose_from([name for name in self.candidates if name != replica])

    def observe(self, replica: K, in_flight: int) -> None:
        """Set the number of requests in flight that a replica named in a reply."""
        load = self._load_of(replica)
        load.others = max(in_flight - load.own, 0)

    def choose(self, replica: K) -> None:
        """Count a request that is about to be sent: in a burst, Ray chooses all replicas before it sends a request."""
        self._load_of(replica).chosen += 1

    def send(self, replica: K) -> None:
        """Count a request that was sent to a replica."""
        load = self._load_of(replica)
        load.own += 1
        load.chosen = max(load.chosen - 1, 0)

    def complete(self, replica: K) -> None:
        """Count a request that a replica completed."""
        load = self._load_of(replica)
        load.own = max(load.own - 1, 0)

    # -- decisions ----------------------------------------------------------------------------------------------

    def predicted_s(self, replica: K) -> float:
        """Return the seconds after which a request that is sent now is predicted to have a response."""
        load = self.loads[replica]
        report = load.report or self._mean
        costs = report if report.service_s else self._mean
        return (costs.service_s + costs.per_request_s * load.in_flight) / max(report.success, _LEAST_SUCCESS)

    def rank(self) -> list[K]:
        """Return a sample of the replicas, the best first; empty if there are no candidates."""
        names = self.candidates
        return sorted(names if len(names) <= self._sample else self._random.sample(names, self._sample), key=self._key)

    def _load_of(self, replica: K) -> ReplicaLoad:
        """Return the load of a replica; for an unknown replica, a new record that is not stored."""
        return self.loads.get(replica) or ReplicaLoad()

    def _find_home(self, stream_id: str) -> K | None:
        return max(self.candidates, key=lambda replica: _hash(stream_id, replica), default=None)

    def _choose_from(self, candidates: list[K]) -> None:
        if candidates != self.candidates:
            self.candidates = candidates
            self.home.cache_clear()

    def _key(self, replica: K) -> tuple[float, int, float]:
        return self.predicted_s(replica), self.loads[replica].in_flight, self._random.random()


def _hash(stream_id: str, replica: Hashable) -> bytes:
    # encodes surrogates too: after an error in the router, requests would wait for ever
    return hashlib.blake2b(f"{stream_id}\0{replica}".encode(errors="surrogatepass"), digest_size=8).digest()
