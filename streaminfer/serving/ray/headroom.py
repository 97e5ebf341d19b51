"""Which replica of a Ray Serve deployment gets the next request: the state machine of `HeadroomRouter`.

*Design.* A replica reports what an additional request costs it (``per_request_s``), how long a request takes in an
empty replica (``service_s``), and how many requests it has. The router itself knows at any moment how many of them are
its own. A request that is sent now is predicted to finish after ``service_s + per_request_s × requests in flight``, so
a replica that is four times slower gets a quarter of the requests, and one that becomes slow loses them at the next
report. The headroom of a replica is the time to the deadline less that prediction. A request brings one deadline to all
replicas, so the greatest headroom is the earliest predicted finish, and no deadline needs to be read here. To leave
fast replicas to tight deadlines, by sending requests with much time to slow ones, was simulated: 0.9 % more on time
at 0.95 of capacity, 0.6 to 1.7 % fewer at 0.8, so it is not done.

*Stale reports.* Reports are a fraction of a second old, and other routers send requests meanwhile. Own requests are
counted exactly, those of others are what the latest report, or the latest reply of the replica, says beyond the own
ones at that time; no clock of another machine is compared. Ray chooses replicas for a whole burst before it sends the
first request of it, so a choice counts like a request until that is sent, or until the next report. Many routers with
equal reports would all run to the same replica. So each ranks a random sample only, as a power of ``sample`` choices
(Mitzenmacher 1996).

*Failures.* A replica that fails at once has no queue, and would seem to be the best of all. A request that fails has
to be sent again, so what is predicted is the time to a response: that of a request, divided by the share of the
replica's latest requests that did not fail. A replica that has not responded yet is taken for a mean one.

*Silence.* Ray needs several seconds to notice that a node is gone. A replica whose report has not changed for a second,
while those of others have, gets nothing until it reports again; so does one that Ray calls unavailable. Where all are
silent it is the controller that is, and all stay.

*Streams* stay with the replica of the greatest rendezvous hash (Thaler and Ravishankar 1998) as long as it is there: a
replica that goes or comes moves only its own streams.

*Complexity.* A ranking costs the sample, whatever the number of replicas; an update one step per replica; the home of a
stream one hash per replica, and is remembered until the set of replicas changes.

*Invariants.* Own requests are those sent and not completed; a candidate is a known replica; the same seed and the same
calls give the same ranking. Not thread-safe; it knows no clock. A ranking runs once a request in Ray's Python router,
whose own work is a hundred times as long, so it is not compiled.
"""

import functools
import hashlib
import random
from collections.abc import Hashable, Mapping
from typing import Generic, NamedTuple, TypeVar

import attrs

__all__ = ["SAMPLE", "HeadroomRanking", "LoadReport", "ReplicaLoad"]

SAMPLE = 4
"""Replicas that are compared for a request; more of them would make routers with old reports run to the same one."""
SILENT_NS = 1_000_000_000
"""Five reports are missing."""
_LEAST_SUCCESS = 0.02
"""Share of requests that is taken not to fail, whatever a replica reports."""
_MAX_HOMES = 1 << 16

K = TypeVar("K", bound=Hashable)


class LoadReport(NamedTuple):
    """What a replica says of itself.

    Attributes:
        number: of the report: a later one differs.
        service_s: seconds that a request takes in an empty replica.
        per_request_s: seconds by which each request in flight delays the next one.
        in_flight: requests of all routers.
        success: share of its latest requests that did not fail, 0 to 1.
    """

    number: int
    service_s: float
    per_request_s: float
    in_flight: int
    success: float = 1.0

    @property
    def is_learned(self) -> bool:
        """Whether a request has had a response, so that the durations are measured."""
        return self.service_s > 0.0


@attrs.define
class ReplicaLoad:
    """What is known of a replica.

    Attributes:
        heard_ns: instant of the latest report, or of its appearance.
        report: the latest one; ``None``: there was none.
        chosen: requests for which this router has chosen it, and which it has not sent yet.
        own: requests of this router in flight.
        others: requests of other routers in flight, as far as is known.
    """

    heard_ns: int = 0
    report: LoadReport | None = None
    chosen: int = 0
    own: int = 0
    others: int = 0

    @property
    def in_flight(self) -> int:
        """Requests in flight, or about to be."""
        return self.chosen + self.own + self.others


class HeadroomRanking(Generic[K]):
    """Ranks replicas for each request.

    Args:
        sample: replicas that are compared for a request, at least 1.
        seed: of the samples.

    Attributes:
        loads: what is known, by replica.
        candidates: the replicas that may get requests.
    """

    def __init__(self, sample: int = SAMPLE, seed: int | None = None) -> None:
        self.loads: dict[K, ReplicaLoad] = {}
        self.candidates: list[K] = []
        self._sample = sample
        self._random = random.Random(seed)  # noqa: S311 - no secret
        self._home_of = functools.lru_cache(_MAX_HOMES)(self._find_home)  # until the candidates change
        self._mean = LoadReport(0, 0.0, 0.0, 0)

    # -- what happens -------------------------------------------------------------------------------------------

    def update(self, reports: Mapping[K, LoadReport | None], now_ns: int) -> None:
        """Take over the set of replicas and the latest report of each; those that are not in it are gone."""
        self.loads = {replica: self.loads.get(replica) or ReplicaLoad(now_ns) for replica in reports}
        for replica, report in reports.items():
            load = self.loads[replica]
            load.chosen = 0  # a request may have gone elsewhere, or been cancelled, and nothing tells
            if report is not None and report != load.report:
                load.report, load.heard_ns = report, now_ns
                load.others = max(report.in_flight - load.own, 0)
        known = [load.report for load in self.loads.values() if load.report is not None and load.report.is_learned]
        if known:  # for replicas that have not responded yet: they get requests, and not all of them
            service_s = sum(report.service_s for report in known) / len(known)
            self._mean = LoadReport(0, service_s, sum(report.per_request_s for report in known) / len(known), 0)
        latest_ns = max((load.heard_ns for load in self.loads.values()), default=now_ns)
        self._choose_from([name for name, load in self.loads.items() if latest_ns - load.heard_ns < SILENT_NS])

    def remove(self, replica: K) -> None:
        """Send nothing more to a replica, until an update in which it has reported again."""
        load = self.loads.get(replica)
        if load is not None:
            load.heard_ns = -SILENT_NS
            self._choose_from([name for name in self.candidates if name != replica])

    def observe(self, replica: K, in_flight: int) -> None:
        """Take over how many requests a replica said it has, in reply to one of them."""
        load = self._load_of(replica)
        load.others = max(in_flight - load.own, 0)

    def choose(self, replica: K) -> None:
        """Count a request that is about to be sent to a replica: of a burst, Ray sends none until all have one."""
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
        """Return after how many seconds a request that is sent now would have a response."""
        load = self.loads[replica]
        said = load.report or self._mean
        costs = said if said.is_learned else self._mean
        return (costs.service_s + costs.per_request_s * load.in_flight) / max(said.success, _LEAST_SUCCESS)

    def rank(self) -> list[K]:
        """Return some of the replicas, the best first; empty: there is none."""
        names = self.candidates
        return sorted(names if len(names) <= self._sample else self._random.sample(names, self._sample), key=self._key)

    def home(self, stream_id: str) -> K | None:
        """Return the replica of a stream; ``None``: there is no replica."""
        return self._home_of(stream_id)

    def _load_of(self, replica: K) -> ReplicaLoad:
        """Return what is known of a replica; of one that is gone, a record that nothing reads."""
        return self.loads.get(replica) or ReplicaLoad()

    def _find_home(self, stream_id: str) -> K | None:
        return max(self.candidates, key=lambda replica: _hash(stream_id, replica), default=None)

    def _choose_from(self, candidates: list[K]) -> None:
        if candidates != self.candidates:
            self.candidates = candidates
            self._home_of.cache_clear()

    def _key(self, replica: K) -> tuple[float, int, float]:
        return self.predicted_s(replica), self.loads[replica].in_flight, self._random.random()


def _hash(stream_id: str, replica: Hashable) -> bytes:
    # surrogates too: an error in the router leaves requests waiting for ever
    return hashlib.blake2b(f"{stream_id}\0{replica}".encode(errors="surrogatepass"), digest_size=8).digest()
