"""`Turns` on a device: the rules against a simple reference, and the kernel in every compiled form."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_kernels import load_plain

from streaminfer import _compiled_kernels
from streaminfer.batching.device.turns import Bid, Turns
from streaminfer.batching.planner import turn_kernels
from streaminfer.batching.planner.outlook import Outlook
from streaminfer.batching.queue._queue_cy import RequestQueue

VARIANTS = [_compiled_kernels.load_variant(name) for name in _compiled_kernels.variants()]
FAR = float("inf")


@pytest.fixture(scope="module")
def plain_kernels():
    return load_plain(turn_kernels)


def bid(key, deadlines, durations=None, *, size=None, gaps_ns=(FAR, FAR), limit_ns=100, **options):
    """Return a bid of the whole queue, or of its first ``size`` requests; with durations it has an outlook."""
    queue = RequestQueue(len(deadlines))
    tickets = [queue.admit(None, None, None, 0, deadline, 0) for deadline in deadlines]
    outlook = None
    if durations is not None:
        table = np.array([0, *durations], np.int64)
        outlook = Outlook(tickets, np.array(deadlines, np.int64), table, gaps_ns, limit_ns, size is None)
    return Bid(key, tickets[:size], outlook, **options)


def deadlines_of(choice):
    at, batch = choice
    return at, [ticket.deadline_ns for ticket in batch]


class TestRules:
    def test_one_bid_is_granted(self):
        assert deadlines_of(Turns(100).choose([bid("a", [5, 6])], 0)) == (0, [5, 6])

    def test_the_model_whose_batch_can_wait_waits(self):
        bids = [bid("a", [30], [10]), bid("b", [19], [10])]

        assert deadlines_of(Turns(100).choose(bids, 0)) == (1, [19])

    def test_most_requests_go_first_if_one_model_is_late(self):
        """If only one model can be on time, the one with the most requests goes first."""
        bids = [bid("a", [12], [10]), bid("b", [12, 12, 12], [8, 9, 10])]

        assert Turns(100).choose(bids, 0)[0] == 1

    def test_a_higher_weight_wins_the_turn(self):
        bids = [bid("a", [12], [10], weight=5.0), bid("b", [12, 12, 12], [8, 9, 10])]

        assert Turns(100).choose(bids, 0)[0] == 0

    def test_late_requests_are_left_out_of_a_granted_batch(self):
        bids = [bid("a", [5, 40], [10, 11]), bid("b", [90], [10])]

        assert deadlines_of(Turns(100).choose(bids, 0)) == (0, [40])

    def test_a_batch_that_is_fixed_is_not_changed(self):
        bids = [bid("a", [11, 40, 40], [5, 10, 30], size=2), bid("b", [90], [10])]

        assert deadlines_of(Turns(100).choose(bids, 0)) == (0, [11, 40])

    def test_slowdown_counts_in_choosing_requests(self):
        bids = [bid("a", [30, 40], [20, 20], slowdown=2.0), bid("b", [60], [10])]

        assert deadlines_of(Turns(100).choose(bids, 0))[1] in ([40], [60])

    def test_slowdown_never_overflows_a_duration(self):
        """No slowdown makes a duration too long to be represented as an instant.

        If durations are close to zero, any wait looks like a slowdown of millions.
        """
        bids = [bid("a", [30], [10**13], slowdown=1e7), bid("b", [60], [50])]

        assert deadlines_of(Turns(100).choose(bids, 0)) == (1, [60])

    def test_long_batch_waits_if_arrivals_show_a_burst(self):
        """A long batch waits if the last few arrivals of another model show a burst.

        According to its many earlier arrivals, the other model expects no more requests.
        """
        long = bid("a", [80, 80], [30, 30])
        quiet, burst = (bid("b", [45], [8], gaps_ns=(1000.0, gap), limit_ns=24) for gap in (1000.0, 10.0))

        assert deadlines_of(Turns(100).choose([long, quiet], 0)) == (0, [80, 80])
        assert deadlines_of(Turns(100).choose([long, burst], 0)) == (1, [45])

    def test_a_costly_request_gets_its_turn(self):
        """A batch that costs as much time as many requests of another model is sent while the queues are short.

        With long queues, its time is worth more to the other model.
        """
        rare = bid("a", [30], [25], limit_ns=60)
        short, long = (
            bid("b", [200] * queued, [10 + size // 10 for size in range(50)], gaps_ns=(20.0, 20.0), limit_ns=200)
            for queued in (1, 400)
        )

        assert deadlines_of(Turns(10_000).choose([rare, short], 0)) == (0, [30])
        assert Turns(10_000).choose([rare, long], 0)[0] == 1

    def test_earliest_deadline_goes_first_without_outlook(self):
        """Without an outlook the model with the earliest deadline goes first."""
        bids = [bid("a", [30]), bid("b", [20], [5]), bid("c", [25, 19])]

        assert Turns(100).choose(bids, 0)[0] == 2

    def test_load_time_counts_in_the_next_batch(self):
        bids = [bid("a", [35], [10], needs=5, load_ns=20, is_loaded=False), bid("b", [39], [10], needs=5, load_ns=1)]

        assert Turns(100).choose(bids, 0)[0] == 1
        assert Turns(100).choose([bids[0]._replace(is_loaded=True), bids[1]._replace(is_loaded=False)], 0)[0] == 0

    def test_loaded_model_goes_first_without_outlook(self):
        """Without an outlook a model that is in memory goes before one that has to be loaded."""
        bids = [bid("a", [5], needs=5, load_ns=1, is_loaded=False), bid("b", [9], needs=5)]

        assert Turns(100).choose(bids, 0)[0] == 1

    def test_a_model_without_a_batch_is_not_granted(self):
        """A model without a batch to send gets no turn, for example if its batch runs and more requests are queued."""
        bids = [bid("a", [9], [20]), bid("b", [8], [20])]
        running = bid("c", [1000, 1000, 1000], [10, 11, 12], needs=5, load_ns=1)._replace(batch=())

        assert deadlines_of(Turns(100).choose(bids, 0, [running], 5)) == (1, [8])

    def test_earliest_deadline_wins_if_all_are_late(self):
        bids = [bid("a", [9], [20]), bid("b", [8], [20])]

        assert Turns(100).choose(bids, 0)[0] == 1


class TestStarvation:
    def test_model_is_passed_over_no_longer_than_max_wait(self):
        """A model is passed over for no longer than the maximum wait."""
        turns = Turns(100)
        granted = [
            turns.choose([bid("a", [now + 1000], [10]), bid("b", [now + 11], [10])], now)[0]
            for now in range(0, 500, 10)
        ]

        assert granted.index(0) == 10
        assert granted.count(0) == 4

    def test_model_with_expiring_requests_still_waits(self):
        """A model counts as waiting even if its requests pass their deadlines meanwhile."""
        turns = Turns(100)
        first, urgent = bid("a", [10**6], [10]), bid("b", [11], [10])
        assert turns.choose([first, urgent], 0)[0] == 1
        assert turns.choose([urgent], 90)[0] == 0

        urgent = bid("b", [131], [10])
        assert turns.choose([first, urgent], 120)[0] == 0
        assert turns.choose([first, urgent], 120)[0] == 1

    def test_a_load_is_no_turn(self):
        """A model that was passed over for too long is overdue until it sends a batch, even after a load of it."""
        turns = Turns(100)
        first, urgent = bid("a", [10**6], [10], needs=5, load_ns=1, is_loaded=False), bid("b", [11], [10], needs=5)
        turns.is_overdue("a", 0)
        assert turns.choose([first, urgent], 100)[0] == 0

        assert turns.is_overdue("a", 101)
        assert turns.choose([first._replace(is_loaded=True), urgent], 101)[0] == 0
        assert not turns.is_overdue("a", 102)

    def test_load_time_does_not_count_as_waiting(self):
        """A model that was passed over for 50 of 100 ns before a load is overdue 50 ns after the load."""
        turns = Turns(100)
        first = bid("a", [10**6], [10])
        assert turns.choose([first, bid("b", [11], [10])], 0)[0] == 1

        turns.leave_out(1000, 1050)

        assert not turns.is_overdue("a", 1099)
        assert turns.is_overdue("a", 1100)

    def test_wait_begun_during_a_load_counts_from_its_end(self):
        """A wait that began during a load counts from the end of the load, and never from a later instant."""
        turns = Turns(100)
        turns.is_overdue("a", 500)

        turns.leave_out(1000, 1050)

        assert not turns.is_overdue("a", 1149)
        assert turns.is_overdue("a", 1150)

    def test_waiting_time_restarts_after_a_stop(self):
        turns = Turns(100)
        first = bid("a", [10**6], [10])
        assert turns.choose([first, bid("b", [11], [10])], 0)[0] == 1

        turns.forget("a")

        urgent = bid("b", [131], [10])
        assert turns.choose([first, urgent], 120)[0] == 1

    @given(data=st.data())
    @settings(max_examples=60, deadline=None)
    def test_the_rules_hold_for_any_sequence(self, data):
        """Turns of bids without an outlook agree with a simple reference of the rules."""
        turns, since = Turns(30), {}
        now = 0
        for _ in range(12):
            now += data.draw(st.integers(0, 20))
            keys = data.draw(st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True))
            bids = [bid(key, data.draw(st.lists(st.integers(0, 99), min_size=1, max_size=3))) for key in keys]

            at, batch = turns.choose(bids, now)

            assert list(batch) == list(bids[at].batch)
            waited = {key: now - since.get(key, now) for key in keys}
            urgent = {one.key: min(ticket.deadline_ns for ticket in one.batch) for one in bids}
            if len(keys) > 1 and max(waited.values()) >= 30:
                assert waited[keys[at]] == max(waited.values())
            else:
                assert urgent[keys[at]] == min(urgent.values())
            since |= {key: since.get(key, now) for key in keys}
            del since[keys[at]]


@st.composite
def places(draw, models):
    """Draw the free memory and, for each model, its size, its load time or 0 if it is loaded, and its load time."""
    sizes = np.array([draw(st.integers(0, 5)) for _ in range(models)])
    loads_ns = np.array([draw(st.integers(1, 30)) for _ in range(models)])
    is_loaded = np.array([size == 0 or draw(st.booleans()) for size in sizes])
    free = draw(st.integers(max(0, sizes.max() - sizes[is_loaded].sum()), 9))
    return free, sizes, np.where(is_loaded, 0, loads_ns), loads_ns


@st.composite
def problems(draw):
    models = draw(st.integers(1, 3))
    durations = np.ones((models, 5), np.int64)
    caps = np.array([draw(st.integers(1, 4)) for _ in range(models)])
    for row, cap in zip(durations, caps, strict=True):
        row[: cap + 1] = np.cumsum([0, draw(st.integers(1, 20)), *(draw(st.integers(0, 9)) for _ in range(cap - 1))])
    queues = [sorted(draw(st.lists(st.integers(0, 90), min_size=1, max_size=6))) for _ in range(models)]
    fixed = [draw(st.integers(0, min(len(queue), cap))) for queue, cap in zip(queues, caps, strict=True)]
    return (
        0,
        np.concatenate([np.array(queue, np.int64) for queue in queues]),
        np.cumsum([0, *map(len, queues)]),
        np.array(fixed, np.int64),
        durations,
        caps,
        np.array([[draw(st.sampled_from([2.0, 30.0, FAR])) for _ in range(2)] for _ in range(models)]),
        np.array([draw(st.integers(5, 90)) for _ in range(models)]),
        np.array([draw(st.sampled_from([0.5, 1.0, 3.0])) for _ in range(models)]),
        *draw(places(models)),
    )


@pytest.mark.parametrize(
    ("values", "most", "kept"),
    [
        ([(1, 5), (4, 2), (3, 3)], 1, [0]),  # by the larger of the two values
        ([(1, 2), (4, 2), (3, 4), (0, 3)], 2, [1, 2]),
        ([(2, 2), (2, 1), (2, 2)], 2, [0, 1]),  # of equal candidates, the first ones
        ([(-3, -1), (-9, -2)], 3, [0, 1]),
    ],
)
def test_the_best_candidates_stay(plain_kernels, values, most, kept):
    is_in = np.ones(len(values), np.bool_)

    plain_kernels._select_best(np.array(values, np.float64), is_in, most)

    assert np.flatnonzero(is_in).tolist() == kept


def test_an_excluded_candidate_stays_excluded(plain_kernels):
    is_in = np.array([False, True])

    plain_kernels._select_best(np.array([[9.0, 9.0], [1.0, 1.0]]), is_in, 1)

    assert is_in.tolist() == [False, True]


@given(problem=problems())
@settings(max_examples=40, deadline=None)
def test_turn_kernels_agree_and_choose_batch_on_time(problem, plain_kernels):
    """All forms of the kernel choose the same turn, and a batch that is on time unless it is fixed."""
    _, deadlines, offsets, fixed, durations, caps, *_, setups_ns, _ = problem
    answers = {variant.checked("choose_turn")(*problem) for variant in VARIANTS}

    assert answers == {plain_kernels.choose_turn(*problem)}
    ((model, head, size),) = answers
    if model < 0:
        late = [
            setups_ns[at] + durations[at, 1] > deadlines[offsets[at + 1] - 1]
            for at in range(len(caps))
            if not fixed[at]
        ]
        assert all(late) and not fixed.any()  # noqa: PT018 - one fact
    elif fixed[model]:
        assert (head, size) == (0, fixed[model])
    else:
        assert 0 < size <= min(caps[model], offsets[model + 1] - offsets[model] - head)
        assert setups_ns[model] + durations[model, size] <= deadlines[offsets[model] + head]
