"""A file played in real time, and a rate that no stream exceeds."""

from hypothesis import given
from hypothesis import strategies as st

from streaminfer.streams.sources.pacing import MAX_LAG_NS, Pacer, RateLimiter

MS = 1_000_000


@given(st.lists(st.tuples(st.integers(0, 500 * MS), st.integers(0, 400 * MS)), min_size=1))
def test_items_are_due_as_far_apart_as_they_are_in_the_medium(steps):
    """Nothing is due early, and only what is more than 0.2 s late moves the rest."""
    pacer = Pacer()
    media_ns, now_ns, before = 0, 1_000, None
    for step_ns, work_ns in steps:
        media_ns += step_ns
        now_ns += work_ns
        due_ns = pacer.due_ns(media_ns, now_ns)
        assert now_ns - due_ns <= MAX_LAG_NS
        if before is not None:
            assert due_ns - before == step_ns or due_ns == now_ns > before + step_ns + MAX_LAG_NS
        before, now_ns = due_ns, max(now_ns, due_ns)


def test_reader_that_pauses_pauses_the_file():
    pacer = Pacer()
    assert pacer.due_ns(0, 1_000 * MS) == 1_000 * MS
    assert pacer.due_ns(40 * MS, 9_000 * MS) == 9_000 * MS
    assert pacer.due_ns(80 * MS, 9_001 * MS) == 9_040 * MS


@given(st.floats(0.1, 60.0), st.lists(st.integers(0, 300 * MS), min_size=1, max_size=300))
def test_rate_is_never_exceeded(rate, steps):
    """Any stretch of the medium has at most its length times the rate, and one, of frames."""
    limiter = RateLimiter(rate)
    media_ns, taken = 0, []
    for step_ns in steps:
        media_ns += step_ns
        if limiter.admits(media_ns):
            taken.append(media_ns)
    assert len(taken) <= (taken[-1] - taken[0] + MS) * rate / 1e9 + 1.001


def test_rate_below_that_of_the_stream_is_reached():
    """10 of 25 frames per second come at 10 per second, although no frame is due at their instants."""
    limiter = RateLimiter(10)
    assert sum(limiter.admits(40 * MS * n) for n in range(250)) == 100


def test_rate_above_that_of_the_stream_takes_all():
    limiter = RateLimiter(30)
    assert all(limiter.admits(40 * MS * n) for n in range(250))


def test_first_frame_after_a_reconnect_is_taken():
    """A frame that starts anew is due in any case."""
    limiter = RateLimiter(1)
    assert limiter.admits(0)
    assert not limiter.admits(10 * MS)
    assert limiter.admits(20 * MS, due=True)
    assert not limiter.admits(900 * MS)
    assert limiter.admits(1_020 * MS)
