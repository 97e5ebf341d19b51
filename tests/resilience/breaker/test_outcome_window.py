"""The windows of the breaker, compared with lists of the recorded outcomes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaminfer.resilience.breaker._outcome_window_cy import OutcomeWindow

pytestmark = pytest.mark.uncompiled

outcomes = st.lists(
    st.tuples(st.booleans(), st.booleans(), st.sampled_from([0, 0, 1, 3, 10, 11, 29, 100, 10**6])), max_size=60
)


def sums(kept):
    return len(kept), sum(failed for failed, *_ in kept), sum(slow for _, slow, *_ in kept)


def seen(window):
    return window.calls, window.failures, window.slow


@given(outcomes, st.integers(1, 9), st.integers(0, 60))
def test_window_of_calls(recorded, size, clear_at):
    """The window contains the last `size` outcomes, however old they are."""
    window = OutcomeWindow(size, 0)
    kept = []
    for position, (failed, slow, _) in enumerate(recorded):
        if position == clear_at:
            window.clear()
            kept = []
        window.add(failed, slow, 0)
        kept = [*kept, (failed, slow)][-size:]
        assert seen(window) == sums(kept)
    window.advance(10**15)
    assert seen(window) == sums(kept)


@given(outcomes, st.integers(1, 9), st.integers(1, 12), st.integers(0, 60))
def test_window_of_time_slices(recorded, size, slice_ns, clear_at):
    """The slices of an empty window begin at the next outcome; the window keeps `size` slices with the present one."""
    window = OutcomeWindow(size, slice_ns)
    now, end, kept = 0, 0, []
    for position, (failed, slow, pause) in enumerate(recorded):
        now += pause
        if position == clear_at:
            window.clear()
            kept = []
        if now >= end:
            steps = (now - end) // slice_ns + 1
            end = now + slice_ns if steps >= size else end + steps * slice_ns
        window.add(failed, slow, now)
        kept.append((failed, slow, now))
        kept = [outcome for outcome in kept if outcome[2] >= end - size * slice_ns]
        assert seen(window) == sums(kept)


def test_old_outcomes_expire_on_advance():
    window = OutcomeWindow(10, 100)
    window.add(True, True, 5)
    window.add(False, False, 950)
    window.advance(1099)
    assert seen(window) == (1, 0, 0)
    window.advance(3000)
    assert seen(window) == (0, 0, 0)


def test_backward_clock_step_counts_in_current_slice():
    """An outcome from before the current slice counts in the current slice."""
    window = OutcomeWindow(3, 10)
    window.add(True, False, 100)
    window.add(True, False, 4)
    assert seen(window) == (2, 2, 0)
