"""The ASGI app of the live page: its routes under any prefix, its headers, its streams."""

import asyncio
import re
from importlib.resources import files

import pytest

import streaminfer as si
from streaminfer.telemetry.live_page.app import Dashboard
from streaminfer.telemetry.live_page.feed import Feed
from streaminfer.testing import ScriptedBackend

STATIC = files("streaminfer.telemetry.live_page") / "static"


def stack():
    return si.Stack(si.Telemetry("faces"), si.AdaptiveBatcher(max_batch_size=4), ScriptedBackend())


class Client:
    """One request: the messages that the app sends, and a disconnect that the test triggers."""

    def __init__(self, app, path="/", method="GET", root_path="", query=b"", headers=()):
        scope = {"type": "http", "path": path, "method": method, "root_path": root_path}
        self.scope = {**scope, "query_string": query, "headers": list(headers)}
        self.app = app
        self.gone = asyncio.Event()
        self.sent = []

    async def receive(self):
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        self.sent.append(message)

    async def finish(self):
        await self.app(self.scope, self.receive, self.send)
        return self

    @property
    def status(self):
        return self.sent[0]["status"]

    @property
    def headers(self):
        return dict(self.sent[0]["headers"])

    @property
    def body(self):
        return b"".join(message["body"] for message in self.sent[1:])


@pytest.fixture
def app():
    return si.telemetry.dashboard(stack())


@pytest.mark.parametrize(("path", "root"), [("/", ""), ("/live/", "/live"), ("/", "/live"), ("/a/b/", "/a/b")])
async def test_page_is_served_under_any_prefix(app, loop, path, root):
    page = await Client(app, path, root_path=root).finish()
    assert page.status == 200
    assert page.headers[b"content-type"].startswith(b"text/html")
    assert page.body == (STATIC / "index.html").read_bytes()


@pytest.mark.parametrize(("path", "root"), [("/live", "/live"), ("", "/live"), ("/a/live", "/a/live")])
async def test_prefix_without_slash_redirects(app, loop, path, root):
    answer = await Client(app, path, root_path=root).finish()
    assert (answer.status, answer.headers[b"location"]) == (307, b"live/")


async def test_every_file_that_the_page_names_is_served(app, loop):
    """The app serves every file that the page names, and no script or style is inline."""
    html = (STATIC / "index.html").read_text(encoding="utf-8")
    named = re.findall(r'(?:src|href)="([^"#]+)"', html)
    assert len([name for name in named if name != "data:,"]) == 5
    for name in named:
        if name != "data:,":
            assert (await Client(app, f"/{name}").finish()).status == 200
    assert (await Client(app, "/charts.js").finish()).status == 200
    assert "style=" not in html
    assert not re.search(r"<script[^>]*>[^<]", html)
    assert not re.search(r"\son\w+=", html)


async def test_policy_forbids_everything_else(app, loop):
    for path in ("/", "/page.js", "/events", "/none"):
        answer = Client(app, path, query=b"poll")
        policy = (await answer.finish()).headers[b"content-security-policy"].decode()
        assert policy.startswith("default-src 'none'; script-src 'self';")
        assert "unsafe" not in policy
        assert answer.headers[b"x-content-type-options"] == b"nosniff"


@pytest.mark.parametrize("path", ["/none", "/../app.py", "/vendor/", "//page.js", "/page.js/", "/%2e%2e/app.py"])
async def test_other_paths_are_not_found(app, loop, path):
    assert (await Client(app, path).finish()).status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
async def test_only_get_and_head_are_allowed(app, loop, method):
    answer = await Client(app, "/events", method).finish()
    assert (answer.status, answer.headers[b"allow"]) == (405, b"GET, HEAD")


@pytest.mark.parametrize("path", ["/", "/events"])
async def test_head_has_no_body(app, loop, path):
    answer = await Client(app, path, "HEAD").finish()
    assert (answer.status, answer.body) == (200, b"")


async def test_poll_gets_one_update(app, loop):
    answer = await Client(app, "/events", query=b"poll").finish()
    assert answer.headers[b"content-type"] == b"text/event-stream"
    assert answer.headers[b"cache-control"] == b"no-store"
    assert answer.body.startswith(b"retry: 1000\n\nevent: schema\n")
    assert answer.sent[-1] == {"type": "http.response.body", "body": b""}


async def test_stream_continues_until_the_client_leaves(loop):
    client = Client(Dashboard(Feed([stack()], 0.5, loop.clock)), "/events")
    stream = asyncio.ensure_future(client.finish())
    await asyncio.sleep(2.1)
    assert client.body.count(b"\ndata: [") == 5
    client.gone.set()
    await stream
    await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) == 1


async def test_stream_ends_at_its_time_limit(loop):
    app = Dashboard(Feed([stack()], 0.5, loop.clock), stream_s=3.0)
    client = await Client(app, "/events").finish()
    assert loop.time() <= 3.5
    assert client.sent[-1] == {"type": "http.response.body", "body": b""}
    last = re.findall(rb"id: (\S+)", client.body)[-1]
    again = Client(app, "/events", headers=[(b"last-event-id", last)])
    stream = asyncio.ensure_future(again.finish())
    await asyncio.sleep(0.6)
    assert b"schema" not in again.body
    assert re.findall(rb"id: \w+-(\d+)", again.body)[0] == str(int(last.partition(b"-")[2]) + 1).encode()
    again.gone.set()
    await stream


async def test_stream_with_rare_updates_lasts_as_long(loop):
    """A stream with rare updates lasts 30 s too; otherwise a browser would open a new one four times a second."""
    began_s = loop.time()
    client = await Client(Dashboard(Feed([stack()], 60.0, loop.clock)), "/events").finish()
    assert loop.time() - began_s == pytest.approx(30.0)
    assert client.body.count(b"\ndata: [") == 1


async def test_slow_client_holds_up_no_other(loop):
    """A slow client delays no other client, and gets the backlog when its connection accepts data again."""
    app = Dashboard(Feed([stack()], 0.5, loop.clock))
    slow, quick = Client(app, "/events"), Client(app, "/events")
    free = asyncio.Event()
    send = slow.send

    async def send_slowly(message):
        await send(message)
        if len(slow.sent) == 3:
            await free.wait()

    slow.send = send_slowly
    streams = [asyncio.ensure_future(client.finish()) for client in (slow, quick)]
    await asyncio.sleep(10.2)
    assert slow.body.count(b"\ndata: [") == 2
    assert quick.body.count(b"\ndata: [") == 21
    free.set()
    await asyncio.sleep(0.6)
    assert slow.body.count(b"\ndata: [") == quick.body.count(b"\ndata: [") == 22
    for client in (slow, quick):
        client.gone.set()
    await asyncio.gather(*streams)


async def test_cancelled_stream_leaves_nothing(loop):
    client = Client(Dashboard(Feed([stack()], 0.5, loop.clock)), "/events")
    stream = asyncio.ensure_future(client.finish())
    await asyncio.sleep(1)
    stream.cancel()
    await asyncio.wait([stream])
    assert stream.cancelled()
    await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) == 1


def test_arguments_are_checked():
    with pytest.raises(TypeError, match="stacks: expected at least one Stack"):
        si.telemetry.dashboard()
    with pytest.raises(TypeError, match="stacks: expected Stacks, or objects"):
        si.telemetry.dashboard(3)
    with pytest.raises(ValueError, match="interval_s"):
        si.telemetry.dashboard(stack(), interval_s=0)
