"""`LateFrames` finds the frames that have no time for the next batch, and chooses those that give way."""

from types import SimpleNamespace

import pytest

from streaminfer.protocols import Capabilities
from streaminfer.streams import Block
from streaminfer.streams._live_stream_cy import Stream
from streaminfer.streams._outlet_cy import Outlet, WakeUps
from streaminfer.streams.stream_settings import StreamSettings
from streaminfer.streams.totals import SessionTotals
from streaminfer.streams.turns._fair_order_cy import FairOrder
from streaminfer.streams.turns._late_frames_cy import LateFrames

pytestmark = pytest.mark.uncompiled

SETTINGS = {"deadline_ns": None, "resets_after_gap": False, "priority": 0, "tenant": None}


def takes_ns(rows):
    """Return the duration of a batch: 30 for its set-up, and 2 per row."""
    return 30 + 2 * rows


class Streams:
    """Streams with frames of the given ages, oldest first, at the instant 1,000."""

    def __init__(self, loop, *ages, max_age_ns=200, max_in_flight=1, workers=1, batch_ns=takes_ns, states=None):
        self.settings = StreamSettings(policy=Block(8), max_in_flight=max_in_flight, max_age_ns=max_age_ns, **SETTINGS)
        sender = SimpleNamespace(states=states, clock=loop.clock, leave=lambda stream: None)
        outlet = Outlet(loop.clock, WakeUps(loop, None, lambda: None))
        self.order = FairOrder()
        self.late_frames = LateFrames(self.settings)
        self.late_frames.update(Capabilities(slow_batch_ns=batch_ns, expected_batch_ns=batch_ns, max_in_flight=workers))
        self.streams = []
        for number, frames in enumerate(ages):
            stream = Stream(number, [], self.settings, 1.0, sender, outlet, SessionTotals())
            for age in frames:
                stream.state.offer(None, 1000 - age, None, False, 1000)
            self.order.push(stream.turn)
            self.streams.append(stream)

    def look(self, room=16, starts_ns=1000, free=1, lead_ns=0):
        """Return for each stream if its next frame is late, and the dropped frames by reason."""
        self.room = self.late_frames.estimate(self.order.queued, room, 1000, starts_ns, lead_ns, free)
        late = [self.late_frames.is_late(stream) for stream in self.streams]
        return late, [stream.state.dropped for stream in self.streams]


async def test_expected_batch_has_one_row_per_stream(loop):
    """Of three streams a batch has three rows, which take 36 and not 62 like sixteen; a frame with 40 left has time."""
    assert Streams(loop, [160], [160], [160]).look() == ([False] * 3, [{}] * 3)
    assert Streams(loop, [165], [160], [160]).look() == ([True, False, False], [{}] * 3)


async def test_late_frame_yields_to_younger_one_in_backlog(loop):
    """A frame that would be late gives way to a younger frame of its stream's backlog."""
    assert Streams(loop, [170, 20], [50, 10], [40, 20]).look() == ([False] * 3, [{"infeasible": 1}, {}, {}])


async def test_no_frame_yields_if_next_batch_takes_all(loop):
    """No frame gives way if the next batch takes all the frames that wait."""
    assert Streams(loop, [170, 20], [50], [40]).look() == ([True, False, False], [{}] * 3)


async def test_old_frame_gives_way_in_a_full_batch(loop):
    """If other streams fill the batch, a frame that would be too old is dropped as infeasible."""
    assert Streams(loop, [170, 20], [50], [40]).look(room=2) == ([False] * 3, [{"infeasible": 1}, {}, {}])


async def test_frame_past_its_limit_is_deadline_exceeded(loop):
    assert Streams(loop, [210, 20, 10]).look() == ([False], [{"deadline_exceeded": 1}])


async def test_rows_are_spread_over_the_free_workers(loop):
    """Rows are spread over the free workers: four rows take 38 in one batch, and 34 on each of two workers."""
    ages = [163, 20, 10, 5], [50, 40, 30, 20]
    assert Streams(loop, *ages, max_in_flight=2).look() == ([False] * 2, [{"infeasible": 1}, {}])
    assert Streams(loop, *ages, max_in_flight=2, workers=2).look(free=2) == ([False] * 2, [{}] * 2)
    assert Streams(loop, *ages, max_in_flight=2, workers=2).look(free=1) == ([False] * 2, [{"infeasible": 1}, {}])


@pytest.mark.parametrize(("workers", "free", "room"), [(1, 1, 16), (2, 1, 2), (2, 2, 16)])
async def test_a_free_worker_gets_what_is_in_time_together(loop, workers, free, room):
    """A free worker gets the rows that are in time together.

    Three rows would take 36, longer than two of the frames have left; another worker is soon free for the third row.
    """
    streams = Streams(loop, [165], [165], [50], workers=workers)
    streams.look(free=free)
    assert streams.room == room


async def test_all_are_sent_where_none_is_in_time(loop):
    streams = Streams(loop, [180], [190], workers=2)
    streams.look()
    assert streams.room == 16


async def test_younger_frames_of_backlogs_count(loop):
    """If the younger frames of backlogs are in time, the batch has room for all of them, and the older are dropped."""
    streams = Streams(loop, [180, 20], [180, 20], [180, 20], workers=2)
    assert streams.look() == ([False] * 3, [{"infeasible": 1}] * 3)
    assert streams.room == 16


def linear_ns(rows):
    """Return the duration of a batch: 10 per row."""
    return 10 * rows


@pytest.mark.parametrize(
    ("free", "room", "share"),
    [
        (1, 16, 16),
        (2, 16, 3),
        (3, 16, 2),
        (4, 16, 2),
        (5, 16, 1),
        (8, 16, 1),
        (2, 2, 2),
        (4, 1, 1),
        (2, 0, 0),
        (4, -3, -3),
        (0, 16, 16),
    ],
)
async def test_free_workers_share_the_rows(loop, free, room, share):
    """Free workers share the rows: of five streams, each of two free workers gets at most three rows."""
    streams = Streams(loop, *[[10]] * 5, workers=8, batch_ns=linear_ns)
    assert streams.late_frames.share_of_worker(streams.order.queued, room, free) == share


async def test_share_counts_all_rows_of_a_stream(loop):
    """Two streams with three rows each are six rows, of which each of two workers gets three."""
    streams = Streams(loop, [30, 20, 10, 5], [30, 20, 10], max_in_flight=3, workers=2, batch_ns=linear_ns)
    assert streams.late_frames.share_of_worker(streams.order.queued, 16, 2) == 3


@pytest.mark.parametrize(
    "batch_ns",
    [None, lambda _rows: 0, lambda _rows: 50, lambda rows: 1000 + 10 * rows, lambda rows: 40 + 2 * rows],
    ids=range(5),
)
async def test_one_batch_where_sharing_gains_little(loop, batch_ns):
    """Rows stay together if a share is not known to be 5 % shorter, or takes over 1.5 times as long per row."""
    streams = Streams(loop, *[[10]] * 5, workers=2, batch_ns=batch_ns)
    assert streams.late_frames.share_of_worker(streams.order.queued, 16, 2) == 16


@pytest.mark.parametrize(("age", "denied"), [(169, [True, False, True]), (168, [False] * 3)])
async def test_every_other_frame_late_alone_is_dropped(loop, age, denied):
    """Every second frame that would be late even alone is dropped; a batch of one is expected to take 32."""
    streams = Streams(loop, [age])
    stream = streams.streams[0]
    result = stream.state.next(1000)
    found = []
    for stream.turn.denied in range(3):
        found.append(streams.late_frames.is_denied(stream, result, 1000))
    assert found == denied


async def test_the_batch_begins_when_a_worker_is_free(loop):
    assert Streams(loop, [160]).look(starts_ns=1020) == ([True], [{}])
    assert Streams(loop, [160]).look(starts_ns=900) == ([False], [{}])


async def test_end_of_batch_after_the_next_is_known(loop):
    """`next_end_ns` is the predicted end of the batch that follows the next one."""
    streams = Streams(loop, [50, 40], [30])
    assert streams.late_frames.next_end_ns == 0
    streams.look(starts_ns=1005)
    assert streams.late_frames.next_end_ns == 1005 + 34 + 34
    streams.look(room=0)
    assert streams.late_frames.next_end_ns == 1073


async def test_loop_takes_its_time_before_each_batch(loop):
    """The event loop delays each batch: a frame with 33 left has no time for a batch of 32 that begins 2 later."""
    assert Streams(loop, [167]).look(lead_ns=1) == ([False], [{}])
    streams = Streams(loop, [167])
    assert streams.look(lead_ns=2) == ([True], [{}])
    assert streams.late_frames.next_end_ns == 1000 + 2 + 32 + 2 + 32


async def test_end_stays_known_while_no_stream_waits(loop):
    streams = Streams(loop, [50])
    streams.look()
    streams.order.pop()
    streams.look(starts_ns=1500)
    assert streams.late_frames.next_end_ns == 1064


async def test_running_frames_end_before_a_later_batch(loop):
    """If two of at most four frames are in flight, the next batch has two rows, and the batch after it has four."""
    streams = Streams(loop, [50] * 7, max_in_flight=4)
    for _ in range(2):
        streams.streams[0].state.next(1000)
    streams.look()
    assert streams.late_frames.next_end_ns == 1000 + 34 + 38


@pytest.mark.parametrize(("ages", "dropped"), [([170] * 2 + [30] * 6, 2), ([170] * 2 + [30] * 5, 0)])
async def test_late_frames_give_way_if_source_is_behind(loop, ages, dropped):
    """Late frames of a full stream that reads only old frames give way, because its source has younger ones."""
    streams = Streams(loop, ages, max_in_flight=8)
    assert streams.look()[1] == [{"infeasible": dropped} if dropped else {}]


async def test_frames_are_timed_if_service_reports_none(loop):
    """If the service reports no batch durations, the durations of frames are measured.

    The estimate is their mean, raised to the time of a frame that was late (60), times 1.25 for a slow frame.
    """
    streams = Streams(loop, [10], batch_ns=lambda rows: None)
    ends_ns = []
    for took_ns, is_in_time in [(50, True), (40, False), (60, False), (40, True)]:
        streams.look()
        streams.late_frames.learn(took_ns, is_in_time)
        streams.look()
        ends_ns.append(streams.late_frames.next_end_ns)
    assert ends_ns == [1124, 1124, 1150, 1144]


async def test_given_batch_time_replaces_measured_times(loop):
    """If the service reports its batch durations, the session does not learn from measured frames."""
    streams = Streams(loop, [10])
    streams.look()
    streams.late_frames.learn(500, True)
    streams.look()
    assert streams.late_frames.next_end_ns == 1064


async def test_measured_time_is_kept_when_streams_join(loop):
    streams = Streams(loop, [10], batch_ns=None)
    streams.look()
    streams.late_frames.learn(40, True)
    streams.late_frames.update(Capabilities())
    streams.look()
    assert streams.late_frames.next_end_ns == 1100


async def test_a_recurrent_stream_has_one_row_in_a_batch(loop):
    """A recurrent stream has one row per batch for any ``max_in_flight``; three streams fill three rows, in 36."""
    streams = Streams(loop, *[[50, 40, 30, 20]] * 3, max_in_flight=4, states=SimpleNamespace())
    streams.look()
    assert streams.late_frames.next_end_ns == 1000 + 36 + 36


async def test_nothing_is_late_without_an_age_limit_or_room(loop):
    assert Streams(loop, [10**6, 5, 1], max_age_ns=0).look() == ([False], [{}])
    assert Streams(loop, [190, 20]).look(room=0) == ([False], [{}])
