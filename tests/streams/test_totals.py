"""Totals of a session: all counters of a snapshot are of one moment."""

import functools
import sys
import threading
from types import SimpleNamespace

from streaminfer.streams.statistics import StreamStatistics
from streaminfer.streams.totals import SessionTotals


def test_stream_ending_during_scrape_counts_once():
    """A stream that ends while another thread takes a snapshot counts once.

    A sum that falls would look like a restart of the server.
    """
    totals = SessionTotals()
    ended = threading.Event()
    seen = []

    def scrape():
        while not ended.is_set():
            seen.append(totals.snapshot())

    def read():
        return StreamStatistics(100, 90, 0, {"stale": 10}, 0, 0)

    scraper = threading.Thread(target=scrape)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        scraper.start()
        for number in range(3000):
            stream = SimpleNamespace(stream_id=number, statistics=read)
            totals.open[number] = stream
            totals.settle(stream)
    finally:
        sys.setswitchinterval(interval)
        ended.set()
        scraper.join()
    for counts in ([one.received for one in seen], [one.open_streams + one.ended_streams for one in seen]):
        assert counts == sorted(counts)
    assert all(one.received == 100 * (one.open_streams + one.ended_streams) for one in seen)
    assert totals.snapshot().dropped == {"stale": 30_000}


def test_ids_of_equal_text_keep_names_as_drops_change():
    """Streams whose ids have the same text keep their names while their drops change.

    So the counters of a name are always those of the same stream and never fall.
    """
    totals = SessionTotals()
    counts = {1: StreamStatistics(100, 99, 0, {"stale": 1}, 0, 0), "1": StreamStatistics(0, 0, 0, {}, 0, 0)}
    for stream_id in tuple(counts):
        totals.open[stream_id] = SimpleNamespace(statistics=functools.partial(counts.__getitem__, stream_id))
    assert {name: one.received for name, one in totals.snapshot().streams.items()} == {"1": 100, "1#2": 0}
    counts["1"] = StreamStatistics(9, 4, 0, {"stale": 5}, 0, 0)
    assert list(totals.snapshot().streams.items()) == [("1#2", counts["1"]), ("1", counts[1])]
