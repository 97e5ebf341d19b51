"""Perfetto trace of a decision log with 100,000 requests: time, bytes, and a check by Perfetto's own classes.

The baseline is a smaller trace, without annotations and counters, made with Perfetto's generated protobuf classes.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from _lib.figures import Figure
from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as protos

from streaminfer.batching.queue._event_ring_cy import EventRing
from streaminfer.simulation.decision_log import DecisionLog
from streaminfer.telemetry import SLO

REQUESTS = 100_000
ROUNDS = 5
START_NS = 10**15
WRITING = Figure("writing a Perfetto trace of 100,000 requests", form="{:.2f} s", at_most=1)
SIZE = Figure("size of a Perfetto trace of 100,000 requests", form="{:.1f} MB", at_most=20)


def make_log(batch_size: int) -> DecisionLog:
    """Return the log of Poisson arrivals at 2,000 per second, in batches that take 0.38 ms each."""
    events = EventRing(1 << 17, 1 << 17)
    at_ns = START_NS + np.cumsum(np.random.default_rng(1).exponential(500_000, REQUESTS)).astype(np.int64)
    for first in range(0, REQUESTS, batch_size):
        rows = at_ns[first : first + batch_size].tolist()
        for now_ns in rows:
            events.arrived(now_ns, 50_000_000, 0)
        record = events.released(rows[-1], len(rows), "planned" if first % 16 else "idle_worker", 0)
        record.expected_ns = 400_000
        for arrival in range(first, first + len(rows)):
            events.joined(arrival, record)
        events.finished(record, rows[-1] + 380_000, True)
    return DecisionLog.of(events)


def write_with_classes(log: DecisionLog) -> bytes:
    """Return a trace of requests, batches and their arrows; ours also has annotations and counters."""
    trace = protos.Trace()
    for number, at_ns in enumerate(log.arrivals_ns.tolist(), 1):
        packet = trace.packet.add(timestamp=at_ns, trusted_packet_sequence_id=1)
        packet.track_event.type = protos.TrackEvent.TYPE_INSTANT
        packet.track_event.track_uuid = 2
        packet.track_event.flow_ids.append(number)
    flow = 0
    for at_ns, size in zip(log.batch_starts_ns.tolist(), log.batch_sizes.tolist(), strict=True):
        packet = trace.packet.add(timestamp=at_ns, trusted_packet_sequence_id=1)
        packet.track_event.type = protos.TrackEvent.TYPE_SLICE_BEGIN
        packet.track_event.track_uuid = 3
        packet.track_event.flow_ids.extend(range(flow + 1, flow + 1 + size))
        flow += size
    encoded: bytes = trace.SerializeToString()
    return encoded


def seconds(call: object) -> float:
    started = time.perf_counter()
    call()  # type: ignore[operator]
    return time.perf_counter() - started


def main() -> int:
    slo = SLO("faces", threshold_s=0.05)
    is_met = True
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace")
        for batch_size in (8, 1):
            log = make_log(batch_size)
            ours, classes = [], []
            for _ in range(ROUNDS):
                ours.append(seconds(lambda log=log: log.to_perfetto(path, slo=slo)))
                classes.append(seconds(lambda log=log: write_with_classes(log)))
            size = path.stat().st_size
            read = protos.Trace.FromString(path.read_bytes())
            arrows = sum(len(packet.track_event.flow_ids) for packet in read.packet)
            assert arrows == 2 * REQUESTS
            case = f"batches of {batch_size}"
            print(f"{case}: {len(read.packet):,} packets; Perfetto's classes {statistics.median(classes):.3f} s")
            is_met &= WRITING.report(ours, case=case)
            is_met &= SIZE.report(size / 1e6, case=case)
    return not is_met


if __name__ == "__main__":
    sys.exit(main())
