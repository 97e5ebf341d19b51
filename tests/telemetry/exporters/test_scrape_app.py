"""The /metrics app: negotiation, methods, compression."""

import gzip

import pytest
from servers.asgi_server import request
from telemetries import telemetry

import streaminfer as si
from streaminfer.telemetry.exporters.prometheus.negotiation import FORMATS, accepts_gzip, choose_format

PROMETHEUS_2_53 = (
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6,"
    "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
TEXT, OPENMETRICS, PROTOBUF = FORMATS


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", TEXT),
        ("*/*", TEXT),
        (PROMETHEUS_2_53, PROTOBUF),
        (PROMETHEUS_3, OPENMETRICS),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", TEXT),
        ("application/openmetrics-text", OPENMETRICS),
        ("application/*", OPENMETRICS),
        ("text/plain;version=1.0.0", None),
        ("application/vnd.google.protobuf;proto=other", None),
        ("application/json", None),
        ("text/plain;q=0, */*;q=0.1", OPENMETRICS),
        ("text/plain;q=nonsense", None),
        (",,", None),
        ('application/vnd.google.protobuf; proto="io.prometheus.client.MetricFamily"', PROTOBUF),
    ],
)
def test_format_is_the_one_preferred(accept, chosen):
    """The highest quality wins, then the more specific range, then text."""
    assert choose_format(accept) is chosen


@pytest.mark.parametrize(
    ("header", "allowed"),
    [("", False), ("gzip", True), ("gzip;q=0", False), ("*", True), ("br, GZIP;q=0.5", True), ("*;q=0", False)],
)
def test_gzip_is_used_where_it_is_accepted(header, allowed):
    """Gzip is used if the client accepts it; an encoding of quality 0 is not accepted."""
    assert accepts_gzip(header) is allowed


async def test_scrape_body_has_the_format_and_is_compressed(loop):
    """The body has the chosen format, and the headers state its length and its encoding."""
    app = si.telemetry.metrics_app(telemetry("faces", [0.01]))

    plain = await request(app)
    status, headers, body = await request(app, headers=[("Accept-Encoding", "gzip"), ("Accept", "*/*")])

    assert status == 200
    assert headers["content-type"] == TEXT.content_type
    assert headers["content-encoding"] == "gzip"
    assert int(headers["content-length"]) == len(body) < len(plain[2])
    assert gzip.decompress(body) == plain[2]
    assert b'streaminfer_request_duration_seconds_count{service="faces",layer="Telemetry"} 1\n' in plain[2]


async def test_protobuf_is_not_compressed(loop):
    """Protobuf is not compressed: it is small already, and compression would take a fifth of the scrape."""
    app = si.telemetry.metrics_app(telemetry("faces", [0.01]))
    protobuf = ("Accept", "application/vnd.google.protobuf")

    _, headers, body = await request(app, headers=[("Accept-Encoding", "gzip"), protobuf])

    assert "content-encoding" not in headers
    assert body == (await request(app, headers=[protobuf]))[2]


async def test_head_has_the_headers_only(loop):
    """HEAD has the headers of GET, including the length, without the body."""
    app = si.telemetry.metrics_app(telemetry("faces", [0.01]))

    got, head = await request(app), await request(app, "HEAD")

    assert head == (200, got[1], b"")


async def test_other_methods_and_types_are_rejected(loop):
    """A method that is not supported gets 405, and a type that is not supported gets 406 with the list of formats."""
    app = si.telemetry.metrics_app(telemetry("faces", [0.01]))

    status, headers, _ = await request(app, "POST")
    assert (status, headers["allow"]) == (405, "GET, HEAD")
    status, _, body = await request(app, headers=[("Accept", "application/json")])
    assert status == 406
    assert body.decode().splitlines() == [offer.content_type for offer in FORMATS]


async def test_scrape_yields_to_other_tasks(loop, monkeypatch):
    """Other tasks run between the collections of two stacks."""
    from streaminfer.telemetry.exporters.prometheus import scrape_app

    monkeypatch.setattr(scrape_app, "_TURN_S", 0.0)
    app = si.telemetry.metrics_app(*(telemetry(str(number), [0.01]) for number in range(5)))
    turns = []

    async def others():
        while True:
            turns.append(1)
            await scrape_app.asyncio.sleep(0)

    task = loop.create_task(others())
    await request(app)
    task.cancel()

    assert len(turns) >= 5


@pytest.mark.parametrize("make", [si.telemetry.metrics_app, si.telemetry.dashboard])
async def test_lifespan_is_answered(loop, make):
    """A server that runs the app or the live page alone can start and stop it; it closes a WebSocket."""
    messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    sent = []

    async def receive():
        return next(messages)

    async def send(message):
        sent.append(message["type"])

    app = make(si.Telemetry("faces"))
    await app({"type": "lifespan"}, receive, send)

    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    await app({"type": "websocket"}, receive, send)
    assert sent[2:] == ["websocket.close"]
