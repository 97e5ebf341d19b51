"""Events as records of `logging`, and their JSON lines."""

import asyncio
import io
import json
import logging

import attrs
import pytest

import streaminfer as si
from streaminfer.streams import SourceStatistics
from streaminfer.telemetry import EventLog, JsonLines
from streaminfer.testing import ScriptedBackend, run

PRIVATE = "private-part-of-a-request"


@pytest.fixture
def lines():
    """Return a function that returns the lines that streaminfer has logged, read from JSON."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("streaminfer")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    logger.removeHandler(handler)
    logger.setLevel(before)


def test_breaker_transitions_are_events(lines):
    """The opening of a breaker is logged as a warning, and its closing as information."""
    breaker = si.CircuitBreaker(name="model")
    log = EventLog(breaker)

    breaker.force_open()
    log.look()
    breaker.reset()
    log.look()
    log.look()

    states = [(line["event"], line["state"], line["level"]) for line in lines() if line["event"] == "breaker.state"]
    assert states == [("breaker.state", "open", "WARNING"), ("breaker.state", "closed", "INFO")]
    assert {line["service"] for line in lines()} == {"model"}
    assert all(line["logger"] == "streaminfer.events" and line["time"].endswith("+00:00") for line in lines())


def test_text_of_an_event_has_its_labels_and_values(caplog):
    """The message of an event has its labels and values, for formatters that do not know events."""
    breaker = si.CircuitBreaker(name="model")
    log = EventLog(breaker)

    breaker.force_open()
    log.look()

    messages = [record.getMessage() for record in caplog.records]
    assert "breaker.state service=model layer=CircuitBreaker state=open" in messages


def test_alerts_begin_and_end(lines):
    """An alert is logged as a warning when it fires, and as information when it ends."""
    now = [0]
    slo = si.SLO("faces", threshold_s=0.05, clock=lambda: now[0], minimum_events=10)
    log = EventLog(si.Telemetry("faces", slo=slo))
    now[0] += 400 * 10**9
    for _ in range(100):
        slo.record(1.0)
    log.look()
    now[0] += 40 * 86_400 * 10**9
    log.look()

    found = [(line["severity"], line["level"], line["value"] > 0) for line in lines() if line["event"] == "slo.alerts"]
    assert ("page", "WARNING", True) in found
    assert ("page", "INFO", False) in found


def test_lost_source_or_route_traffic_is_a_warning(lines):
    """A loss of a source's connection or of a route's traffic is logged as a warning, its return as information."""

    @attrs.define
    class Part:
        found: object

        def statistics(self):
            return self.found

    connected = SourceStatistics(0, 0, 0, 0, 0, 0, 0.0, True, None)
    offered = si.FallbackRouter(si.Route("full", ScriptedBackend())).statistics()
    (route,) = offered.routes
    source, router = Part(connected), Part(offered)
    log = EventLog(source, router)

    source.found = attrs.evolve(connected, connected=False)
    router.found = attrs.evolve(offered, routes=(attrs.evolve(route, share=0.25),))
    log.look()
    source.found, router.found = connected, offered
    log.look()

    found = [(line["event"], line["level"], line["value"]) for line in lines()]
    assert found == [
        ("source.connected", "WARNING", 0),
        ("route.share", "WARNING", 0.25),
        ("source.connected", "INFO", 1),
        ("route.share", "INFO", 1.0),
    ]


def test_log_lines_hold_no_request_data(lines):
    """Inputs, outputs, keys, subjects, tenants and texts of errors stay out of every record."""

    def refuse(batch):
        raise ValueError(PRIVATE)

    async def main(loop):
        slo = si.SLO("faces", threshold_s=0.001, minimum_events=1, signal=si.telemetry.BurnSignal(minimum_events=1))
        breaker = si.CircuitBreaker(minimum_calls=1, window=2)
        batcher = si.AdaptiveBatcher(max_batch_size=1, max_queue_size=1)
        router = si.FallbackRouter(
            si.Route("full", si.Stack(batcher, breaker, ScriptedBackend(then=refuse, duration_s=0.01))), default=0.0
        )
        async with si.Stack(si.Telemetry("faces", slo=slo), si.EdgeCache(maxsize=4), router, clock=loop.clock) as stack:
            log = EventLog(stack)
            watching = loop.create_task(log.watch(0.5))
            for number in range(20):
                await asyncio.gather(
                    *(
                        stack(
                            f"{PRIVATE} {number} {each}",
                            key=PRIVATE.encode(),
                            subject=PRIVATE,
                            tenant=PRIVATE,
                            tags=(PRIVATE,),
                        )
                        for each in range(3)
                    ),
                    return_exceptions=True,
                )
            await asyncio.sleep(1.0)
            watching.cancel()

    run(main)

    events = {line["event"] for line in lines() if "event" in line}
    assert {"breaker.state", "breaker.trips"} <= events
    assert PRIVATE not in json.dumps(lines())


def test_other_records_log_their_template_only(lines):
    """A record that is no event is logged without its arguments and the text of its error."""
    logging.getLogger("streaminfer").error("could not %s", PRIVATE, exc_info=ValueError(PRIVATE))

    [line] = lines()
    assert (line["message"], line["error"], line["level"]) == ("could not %s", "ValueError", "ERROR")
    assert PRIVATE not in json.dumps(line)


async def test_period_of_the_watch_must_be_positive(loop):
    """The period of a watch must be positive, because a watch without a pause would block the event loop."""
    with pytest.raises(ValueError, match="every_s"):
        await EventLog(si.Stack(ScriptedBackend())).watch(0.0)


def test_other_loggers_leak_no_request_content(lines):
    """A record of another logger cannot bring the content of a request into the lines.

    The line has no extra fields of the record, and the class of an error that is the message.
    """
    logger = logging.getLogger("streaminfer.of-a-user")

    logger.warning(ValueError(PRIVATE))
    logger.warning("sent to %s", PRIVATE, extra={"event": {"body": PRIVATE, "array": object()}})

    assert [line["message"] for line in lines()] == ["ValueError", "sent to %s"]
    assert PRIVATE not in str(lines())
