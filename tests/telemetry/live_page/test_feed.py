"""The feed: one update per interval for all clients, no update missed within its ring, a new schema for new labels."""

import json

import attrs
import numpy as np
import pytest

import streaminfer as si
from streaminfer.sync_layer import SyncLayer
from streaminfer.telemetry.live_page.feed import Feed
from streaminfer.testing import FakeClock, ScriptedBackend


def stack(name="faces"):
    return si.Stack(si.Telemetry(name), si.AdaptiveBatcher(max_batch_size=4), ScriptedBackend())


@pytest.fixture
def clock():
    return FakeClock(7 * 10**9)


@pytest.fixture
def feed(clock):
    return Feed([stack()], 0.5, clock)


def events(sent):
    """Return the name, the id and the data of each event."""
    found = []
    for block in sent.decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        if fields:
            found.append(
                (fields.get("event", "message"), fields["id"], json.loads(fields["data"], parse_constant=pytest.fail))
            )
    return found


def test_new_client_gets_schema_and_latest_update(feed, clock):
    """A new client gets the schema and the latest update."""
    assert feed.refresh() == pytest.approx(0.5)
    sent, last = feed.after("")
    (kind, _, schema), (other, number, update) = events(sent)
    assert (kind, other) == ("schema", "message")
    assert [service["name"] for service in schema["services"]] == ["faces"]
    labels = [label for panel in schema["services"][0]["panels"] for label in panel["labels"]]
    assert len(update[1][0]) == len(labels)
    assert number == last


def test_nan_and_infinity_become_null(clock):
    """NaN and infinity in the statistics of a user's layer, for example NumPy's mean of no values, become null."""

    @attrs.frozen
    class Scores:
        mean: float
        highest: float
        half: float

    class Scorer(SyncLayer):
        def statistics(self):
            return Scores(np.float64("nan"), np.float64("inf"), np.float64(0.5))

    feed = Feed([si.Stack(Scorer(), ScriptedBackend())], 0.5, clock)
    feed.refresh()

    (_, _, schema), (_, _, (_, (numbers,), _)) = events(feed.after("")[0])

    labels = [label for panel in schema["services"][0]["panels"] for label in panel["labels"]]
    shown = {label: number for label, number in zip(labels, numbers, strict=True) if label.startswith("Scorer")}
    assert shown == {"Scorer: mean": None, "Scorer: highest": None, "Scorer: half": 0.5}


def test_updates_come_once_per_interval(feed, clock):
    feed.refresh()
    _, last = feed.after("")
    assert feed.refresh() == pytest.approx(0.5)
    assert feed.after(last) == (b"", last)
    clock.advance(0.6)
    assert feed.refresh() == pytest.approx(0.4)
    sent, newer = feed.after(last)
    assert [kind for kind, _, _ in events(sent)] == ["message"]
    assert newer.endswith("-2")


def test_updates_say_when_counters_were_read(clock):
    """Counters are read twice a second, however late updates come; each update has the instant of their read."""
    feed = Feed([stack()], 0.25, clock)
    ages_ms = []
    for late_s in (0.02, 0.0, 0.03, 0.01, 0.0, 0.02):
        clock.advance(late_s)
        due_s = feed.refresh()
        *_, (_, _, (time_ms, _, (read_ms,))) = events(feed.after("")[0])
        ages_ms.append(time_ms - read_ms)
        clock.advance(due_s)
    assert ages_ms == [0, 230, 0, 230, 0, 270]


def test_an_interval_below_a_nanosecond_is_one(clock):
    feed = Feed([stack()], 1e-10, clock)
    assert feed.refresh() == pytest.approx(1e-9)


def test_returning_client_gets_the_missed_updates(feed, clock):
    feed.refresh()
    _, last = feed.after("")
    for _ in range(20):
        clock.advance(0.5)
        feed.refresh()
    sent, newest = feed.after(last)
    assert [number.partition("-")[2] for _, number, _ in events(sent)] == [str(number) for number in range(2, 22)]
    assert feed.after(newest)[0] == b""


@pytest.mark.parametrize("last", ["", "x", "other-3", "-", "{}-99", "{}-x", "{}--1", "{}-" + "9" * 30])
def test_unknown_event_id_gets_schema_and_values(feed, last):
    feed.refresh()
    _, own = feed.after("")
    sent, _ = feed.after(last.format(own.partition("-")[0]))
    assert [kind for kind, _, _ in events(sent)] == ["schema", "message"]


def test_client_away_too_long_gets_a_full_update(feed, clock):
    """A client that was away too long gets the schema and the latest update, and not the updates that it missed."""
    feed.refresh()
    _, last = feed.after("")
    for _ in range(150):
        clock.advance(0.5)
        feed.refresh()
    assert [kind for kind, _, _ in events(feed.after(last)[0])] == ["schema", "message"]


def test_a_new_label_makes_a_new_schema(clock):
    telemetry = si.Telemetry("t", clock=clock)
    feed = Feed([si.Stack(telemetry, si.AdaptiveBatcher(max_batch_size=4), ScriptedBackend())], 0.5, clock)
    feed.refresh()
    _, last = feed.after("")
    telemetry.fail(ZeroDivisionError())
    clock.advance(0.5)
    feed.refresh()
    (kind, _, schema), (other, _, update) = events(feed.after(last)[0])
    assert (kind, other) == ("schema", "message")
    requests = next(panel for panel in schema["services"][0]["panels"] if panel["id"] == "requests")
    assert requests["labels"] == ["ZeroDivisionError"]
    assert 1 in update[1][0]
