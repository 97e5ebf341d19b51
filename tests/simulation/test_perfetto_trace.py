"""The Perfetto trace of a decision log, read by Perfetto's own protobuf classes."""

import asyncio
from collections import defaultdict

import numpy as np
import pytest
from google.protobuf.unknown_fields import UnknownFieldSet
from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as protos

import streaminfer as si
from streaminfer.batching.queue._event_ring_cy import EventRing
from streaminfer.simulation.decision_log import DecisionLog
from streaminfer.telemetry import SLO
from streaminfer.testing import FakeClock, ScriptedBackend, run

MS = 10**6
START = 10**9 * 86400 * 365
EVENT = protos.TrackEvent


class Read:
    """Perfetto trace with its names resolved."""

    def __init__(self, path):
        trace = protos.Trace.FromString(path.read_bytes())
        assert not any(len(UnknownFieldSet(packet)) for packet in trace.packet)
        assert not any(len(UnknownFieldSet(packet.track_event)) for packet in trace.packet)
        assert trace.packet[0].sequence_flags == protos.TracePacket.SEQ_INCREMENTAL_STATE_CLEARED
        assert {packet.trusted_packet_sequence_id for packet in trace.packet} == {1}
        interned = trace.packet[0].interned_data
        self.names = {entry.iid: entry.name for entry in interned.event_names}
        labels = {entry.iid: entry.name for entry in interned.debug_annotation_names}
        self.tracks = {}
        self.events = defaultdict(list)
        for packet in trace.packet:
            if packet.HasField("track_descriptor"):
                self.tracks[packet.track_descriptor.uuid] = packet.track_descriptor
            if packet.HasField("track_event"):
                assert packet.sequence_flags == protos.TracePacket.SEQ_NEEDS_INCREMENTAL_STATE
                event = packet.track_event
                notes = {
                    labels[note.name_iid]: getattr(note, note.WhichOneof("value")) for note in event.debug_annotations
                }
                track = self.tracks[event.track_uuid].name
                self.events[track].append((packet.timestamp, event, notes))


@pytest.fixture
def log():
    """Return the log of two workers: four requests, three batches (one failed, one runs), and drops of two reasons."""
    events = EventRing()
    for at_ms in (0, 1, 4, 30):
        events.arrived(START + at_ms * MS, 0, 0)
    first = events.released(START, 1, "exploration", 0)
    first.expected_ns = 7 * MS
    second = events.released(START + 4 * MS, 2, "planned", 3)
    events.joined(0, first)
    events.joined(1, second)
    events.joined(2, second)
    events.dropped(START + 5 * MS, "infeasible", 2)
    events.dropped(START + 6 * MS, "mine<b>")
    events.finished(first, START + 10 * MS, True)
    events.finished(second, START + 24 * MS, False)
    events.released(START + 30 * MS, 1, "idle_worker", 0)
    return DecisionLog.of(events)


def test_a_slice_per_batch_on_the_track_of_its_worker(log, tmp_path):
    log.to_perfetto(tmp_path / "trace")

    read = Read(tmp_path / "trace")

    begun = [
        (at, read.names[event.name_iid], notes)
        for at, event, notes in read.events["worker 0"]
        if event.type == EVENT.TYPE_SLICE_BEGIN
    ]
    assert begun == [
        (
            START,
            "exploration",
            {"rows": 1, "left queued": 0, "expected ms": 7.0, "took ms": 10.0, "succeeded": True},
        ),
        (START + 30 * MS, "idle_worker", {"rows": 1, "left queued": 0}),
    ]
    ends = [at for at, event, _ in read.events["worker 0"] if event.type == EVENT.TYPE_SLICE_END]
    assert ends == [START + 10 * MS]
    ((_, _, notes),) = [each for each in read.events["worker 1"] if each[1].type == EVENT.TYPE_SLICE_BEGIN]
    assert notes == {"rows": 2, "left queued": 3, "took ms": 20.0, "succeeded": False}
    assert all(track.parent_uuid == 1 for uuid, track in read.tracks.items() if uuid != 1)


@pytest.mark.parametrize("duration_s", [0.01, 0.0])
def test_back_to_back_batches_are_not_nested(duration_s, tmp_path):
    """A batch that begins as another ends is beside it in the trace, not inside it."""
    batcher = si.AdaptiveBatcher(max_batch_size=4, max_in_flight=2)

    async def main(loop):
        async with si.Stack(batcher, ScriptedBackend(duration_s=duration_s), clock=loop.clock) as stack:
            await asyncio.gather(*(stack(float(row)) for row in range(40)))

    run(main)
    batcher.decision_log().to_perfetto(tmp_path / "trace")

    durations = set()
    for track, events in Read(tmp_path / "trace").events.items():
        begun = []
        for at, event, _ in sorted(events, key=lambda each: each[0]):  # as the reader does: equal instants in order
            if event.type == EVENT.TYPE_SLICE_BEGIN:
                assert not begun, track
                begun.append(at)
            elif event.type == EVENT.TYPE_SLICE_END:
                durations.add(at - begun.pop())
    assert durations == {round(duration_s * 1e9)}


def test_arrows_lead_from_requests_to_their_batch(log, tmp_path):
    log.to_perfetto(tmp_path / "trace")

    read = Read(tmp_path / "trace")

    sent = {flow: at for at, event, _ in read.events["requests"] for flow in event.flow_ids}
    assert len(read.events["requests"]) == 4
    got = {
        at: sorted(sent[flow] for flow in event.flow_ids)
        for worker in ("worker 0", "worker 1")
        for at, event, _ in read.events[worker]
        if event.flow_ids
    }
    assert got == {START: [START], START + 4 * MS: [START + MS, START + 4 * MS]}


def test_counters_and_drops(log, tmp_path):
    clock = FakeClock()
    slo = SLO("s", threshold_s=0.1, objective=0.9, clock=clock)
    for latency_s in (0.05, 0.05, 0.5, 0.05):
        slo.record(latency_s)
    clock.advance(3600.0)
    slo.record(0.5)
    log.to_perfetto(tmp_path / "trace", slo=slo)

    read = Read(tmp_path / "trace")

    queue = [(at, event.counter_value) for at, event, _ in read.events["queued requests"]]
    assert queue == [
        (START, 1),
        (START, 0),
        (START + 4 * MS, 5),
        (START + 4 * MS, 3),
        (START + 30 * MS, 1),
        (START + 30 * MS, 0),
    ]
    dropped = [(at, read.names[event.name_iid]) for at, event, _ in read.events["dropped"]]
    assert dropped == [(START + 5 * MS, "infeasible"), (START + 6 * MS, "mine<b>")]
    burn = [event.double_counter_value for _, event, _ in read.events["burn rate"]]
    assert burn[0] == pytest.approx(2.5)
    assert burn[-1] == pytest.approx(10.0)
    assert read.events["burn rate"][-1][0] <= clock()


def test_without_an_objective_deadlines_burn(tmp_path):
    """A request on time is good; a request that is dropped, fails or is late is bad, and counts once."""
    events = EventRing()
    for at_ms, size, ok in ((0, 4, True), (100, 2, False), (200, 2, True)):
        for _ in range(size):
            events.arrived(START + at_ms * MS, 50 * MS, 0)
        record = events.released(START + at_ms * MS, size, "full", 0)
        for arrival in range(size):
            events.joined({0: 0, 100: 4, 200: 6}[at_ms] + arrival, record)
        events.finished(record, START + (at_ms + (60 if at_ms == 200 else 10)) * MS, ok)
    events.dropped(START + 250 * MS, "deadline_exceeded_running", 2)
    DecisionLog.of(events).to_perfetto(tmp_path / "trace")

    points = Read(tmp_path / "trace").events["burn rate of deadlines at 99%"]

    rates = [round(event.double_counter_value) for _, event, _ in points]
    assert [rates[0], *filter(None, rates)] == [0, 100, 100]
    bad_at_ms = [(at - START) / MS for at, event, _ in points if event.double_counter_value]
    assert bad_at_ms == [pytest.approx(110, abs=3), pytest.approx(250, abs=3)]


def test_an_empty_log_is_a_trace(tmp_path):
    DecisionLog.of(EventRing()).to_perfetto(tmp_path / "trace", slo=SLO("s", threshold_s=0.1))
    assert {track.name for track in Read(tmp_path / "trace").tracks.values()} == {
        "", "requests", "dropped", "queued requests", "burn rate",
    }  # fmt: skip
    DecisionLog.of(EventRing()).to_perfetto(tmp_path / "trace")
    assert "burn rate of deadlines at 99%" in {track.name for track in Read(tmp_path / "trace").tracks.values()}


def test_every_live_request_is_in_its_batch(tmp_path):
    """The log of a live batcher has every request in its batch."""
    batcher = si.AdaptiveBatcher(max_batch_size=4, slo_s=5.0)
    predict = batcher.wrap(lambda x: x * 2)

    async def main():
        for _ in range(20):
            await asyncio.gather(*(predict(float(row)) for row in range(7)))

    asyncio.run(main())
    log = batcher.decision_log()
    counts = np.bincount(log.arrival_batches, minlength=len(log.reasons))
    assert counts.tolist() == log.batch_sizes.tolist()
    assert (log.batch_expected_ns > 0).sum() > len(log.reasons) // 2
    log.to_perfetto(tmp_path / "trace")
    assert len(Read(tmp_path / "trace").events["requests"]) == 140


def test_ring_forgets_batches_before_requests():
    """The event ring forgets batches before their requests."""
    events = EventRing(8, 2)
    for number in range(4):
        events.arrived(number, 0, 0)
        record = events.released(number, 1, "full", 0)
        events.joined(number, record)
    assert DecisionLog.of(events).arrival_batches.tolist() == [-1, -1, 0, 1]
    events.joined(-9, record)  # forgotten long ago
