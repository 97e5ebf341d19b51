"""HTTP edge: cost of the helpers per request, and repeats per second that nginx serves instead of the application.

    python benchmarks/run.py http_edge

The floor is code written by hand for one fixed policy: a dict with two f-strings, and one comparison of a tag, without
dates, limits, tenants or lists. The client sends repeats over one connection, one after another, in alternation to
nginx and to the application (examples/cdn_edge.py, in a separate process). The client is written in Python and takes
part of the time, so the benchmark also measures the server's CPU per repeat, which is the limit with many connections
(Linux only). The baseline is a repeat as a POST, without the response's URL; its model is one division, so a real model
costs even more.
"""

import asyncio
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from _lib.figures import Figure
from _lib.guarded_calls import least_ns
from cdn_edge import Edge, normalize, serve
from cdn_nginx import nginx

import streaminfer as si
from streaminfer.http_edge import EdgePolicy, answer_conditional, content_path, edge_headers, entity_tag

NOW_S = 1.7e9
HEADERS = Figure("a call of `edge_headers`", form="{:,.0f} ns", at_most=3000)
UNCONDITIONAL = Figure("a call of `answer_conditional` without a condition", form="{:,.0f} ns", at_most=3000)
NOT_MODIFIED = Figure("a call of `answer_conditional` that finds a 304", form="{:,.0f} ns")
TAG = Figure("a call of `entity_tag`", form="{:,.0f} ns")
PATH = Figure("a call of `content_path`", form="{:,.0f} ns")
RATE = Figure("responses per second over one connection", form="{:,.0f}")
CPU = Figure("CPU of the server for a response over one connection", form="{:.0f} µs")
SAVED = Figure(
    "CPU of a `POST` to the application", over="a `GET` of its response that nginx stored", form="{:.1f}×", at_least=3
)
POST, STORED, NGINX = (
    "`POST` to the application",
    "`GET` of a stored response, the application",
    "`GET` of a stored response, nginx",
)
CALLS = 1_000
ROUNDS = 200
REPEATS = 900
"""Requests on one connection, which nginx closes after a thousand."""
BROWSER = {
    "host": "cache.site",
    "user-agent": "a browser, 1.0",
    "accept": "application/json",
    "accept-encoding": "gzip, br",
    "accept-language": "en",
    "cache-control": "max-age=0",
    "connection": "keep-alive",
    "cookie": "a=b",
    "referer": "/x",
    "sec-fetch-mode": "cors",
}


def by_hand(etag: str, age_s: float) -> dict[str, str]:
    return {"cache-control": f"max-age={int(60 - age_s)}", "etag": etag, "vary": "authorization", "age": f"{age_s:.0f}"}


def compared_by_hand(headers: dict[str, str], etag: str) -> int:
    return 304 if headers.get("if-none-match") == etag else 200


def times(call: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        for _ in range(CALLS):
            call()

    return run


def helpers() -> None:
    policy = EdgePolicy(fresh_s=60, lifetime_s=3600, stale_while_revalidate_s=30, stale_if_error_s=600)
    request, response = si.Request("x"), si.Response([1.0])
    kilobyte, many = bytes(1024), bytes(102_400)
    etag = entity_tag(kilobyte)
    headers = edge_headers(policy, request, response, now_s=NOW_S, computed_s=NOW_S - 5, etag=etag)
    asking = BROWSER | {"if-none-match": f'"other", {etag}'}
    best = least_ns(
        {
            "floor: headers by hand": times(lambda: by_hand(etag, 5.0)),
            "edge_headers": times(
                lambda: edge_headers(policy, request, response, now_s=NOW_S, computed_s=NOW_S - 5, etag=etag)
            ),
            "floor: comparison by hand": times(lambda: compared_by_hand(BROWSER, etag)),
            "answer_conditional": times(lambda: answer_conditional("GET", BROWSER, headers, kilobyte)),
            "answer_conditional, a 304": times(lambda: answer_conditional("GET", asking, headers, kilobyte)),
            "entity_tag, 1 KB": times(lambda: entity_tag(kilobyte)),
            "entity_tag, 100 KB": times(lambda: entity_tag(many)),
            "content_path, 1 KB": times(lambda: content_path(kilobyte, version="1")),
        },
        ROUNDS,
    )
    print("ns a call, with ten request headers")
    print(f"  {'comparison by hand':28} {best['floor: comparison by hand']:10,.0f}")
    HEADERS.report(
        best["edge_headers"], note=f"by hand, without limits and dates, {best['floor: headers by hand']:,.0f} ns"
    )
    UNCONDITIONAL.report(best["answer_conditional"])
    NOT_MODIFIED.report(best["answer_conditional, a 304"])
    TAG.report(best["entity_tag, 1 KB"], case="1 KB")
    TAG.report(best["entity_tag, 100 KB"], case="100 KB")
    PATH.report(best["content_path, 1 KB"], case="1 KB")


async def origin() -> None:
    """Run the application until its standard input ends; print its port."""
    policy = EdgePolicy(fresh_s=3600)
    stack = si.Stack(si.AdaptiveBatcher(max_batch_size=4), si.CpuBackend(normalize, executor="inline"))
    async with stack as service, serve(Edge(service, si.EdgeCache(maxsize=100), policy)) as port:
        print(port, flush=True)
        await asyncio.to_thread(sys.stdin.read)


class Client:
    """Connection that waits for each response before it sends the next request."""

    def __init__(self, port: int) -> None:
        self.connection = socket.create_connection(("127.0.0.1", port), timeout=30.0)
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, message: bytes) -> bytes:
        self.connection.sendall(message)
        got = self.more(b"")
        while b"\r\n\r\n" not in got:
            got = self.more(got)
        head, _, body = got.partition(b"\r\n\r\n")
        _, _, length = head.lower().partition(b"\r\ncontent-length: ")
        size = int(length.partition(b"\r\n")[0] or b"0")
        while len(body) < size:
            body = self.more(body)
        return head

    def more(self, got: bytes) -> bytes:
        read = self.connection.recv(65_536)
        assert read, "the connection was closed"
        return got + read


def spent_s(pid: int) -> float:
    """Return the CPU seconds of nginx's workers (the main threads of the children), or of a childless process."""
    workers = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    asked = workers or [str(pid)]
    return sum(int(Path(f"/proc/{each}/schedstat").read_text().split()[0]) for each in asked) / 1e9


def repeat(port: int, pid: int, message: bytes, expected: bytes) -> tuple[float, float]:
    """Return the repeats per second, and the server's CPU seconds per repeat."""
    client = Client(port)
    with client.connection:
        for _ in range(20):
            head = client.ask(message)
            assert expected in head or b": MISS" in head, head
        spent, begun = spent_s(pid), time.perf_counter()
        for _ in range(REPEATS):
            client.ask(message)
        took, spent = time.perf_counter() - begun, spent_s(pid) - spent
        assert expected in client.ask(message)
    return REPEATS / took, spent / REPEATS


def repeats() -> None:
    body = b"[" + b", ".join(b"0.5" for _ in range(64)) + b"]"
    path = content_path(body, version="1").encode()
    post = b"POST /v1/infer/1 HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
    get = b"GET %s HTTP/1.1\r\nhost: x\r\n\r\n" % path
    command = [sys.executable, __file__, "--origin"]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child,
    ):
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            direct = int(child.stdout.readline())
            with nginx(Path(folder), direct) as front:
                first = Client(direct)
                with first.connection:
                    assert b" 200 " in first.ask(post)
                    etag = next(line for line in first.ask(get).split(b"\r\n") if line.startswith(b"etag: "))
                again = get[:-2] + b"if-none-match: " + etag[6:] + b"\r\n\r\n"
                cases = {
                    STORED: (direct, child.pid, get, b" 200 "),
                    "the application, a 304": (direct, child.pid, again, b" 304 "),
                    POST: (direct, child.pid, post, b" 200 "),
                    NGINX: (front.port, front.pid, get, b"X-Cache: HIT"),
                    "nginx, a 304": (front.port, front.pid, again, b" 304 "),
                }
                runs: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
                for _ in range(7):
                    for name, case in cases.items():
                        runs[name].append(repeat(*case))
        finally:
            child.stdin.close()
    print("over one connection: answers a second, processor time of the server for each")
    for name, seen in runs.items():
        rates, costs = zip(*seen, strict=True)
        print(f"  {name:44} {statistics.median(rates):10,.0f} {statistics.median(costs) * 1e6:8.1f} us")
    for name in (POST, STORED, NGINX):
        RATE.report([rate for rate, _ in runs[name]], case=name)
        CPU.report([cost * 1e6 for _, cost in runs[name]], case=name)
    SAVED.report([post / stored for (_, post), (_, stored) in zip(runs[POST], runs[NGINX], strict=True)])


if __name__ == "__main__":
    if sys.argv[1:] == ["--origin"]:
        asyncio.run(origin())
    else:
        helpers()
        repeats()
