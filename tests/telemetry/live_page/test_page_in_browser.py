"""The live page in a real headless browser: its panels, widths, accessibility, and recovery."""

import time

import pytest
from browser import Browser
from web_server import WebServer

import streaminfer as si
from streaminfer.telemetry.live_page.app import Dashboard
from streaminfer.telemetry.live_page.feed import Feed
from streaminfer.testing import ScriptedBackend

pytestmark = pytest.mark.needs("chromium")

UPDATES = "return +(document.body.dataset.updates ?? 0) >= arguments[0]"


def make_app(*names, stream_s=30.0):
    """Return the page of services that respond to a request before each update."""
    telemetries = [si.Telemetry(name, slo=si.SLO("fast", threshold_s=0.05)) for name in names]
    answers = [telemetry.wrap(lambda: None) for telemetry in telemetries]
    stacks = [
        si.Stack(it, si.EdgeCache(), si.AdaptiveBatcher(max_batch_size=4), ScriptedBackend()) for it in telemetries
    ]

    def clock():
        for answer in answers:
            answer()
        return time.monotonic_ns()

    return Dashboard(Feed(stacks, 0.05, clock), stream_s=stream_s)


@pytest.fixture(scope="module")
def browser():
    with Browser() as opened:
        yield opened


@pytest.fixture
def page(browser):
    """Return a function that opens the page of an app and returns the browser and the server; stop the servers."""
    servers = []

    def open_page(app, path="/", root_path="", **shown):
        server = WebServer(app, root_path)
        server.start()
        servers.append(server)
        browser.show(**({"width": 1280} | shown))
        browser.open(server.url + path)
        browser.until(UPDATES, 3)
        return browser, server

    browser.errors()  # discard the errors of the test before
    yield open_page
    browser.open("about:blank")
    for server in servers:
        server.stop()


def rows(browser, selector):
    return browser.run(
        "return [...document.querySelectorAll(arguments[0])].map(row => [...row.cells].map(cell => cell.textContent))",
        selector,
    )


def test_page_shows_each_service_and_its_panels(page):
    browser, _ = page(make_app("faces", "words <b>"))
    # a rate needs a second of updates
    browser.until("return /[1-9]/.test(document.querySelector('#services tbody td').textContent)")
    names = [row[0] for row in rows(browser, "#services tbody tr")]
    assert names == ["faces", "words <b>"]
    titles = browser.run("return [...document.querySelectorAll('.panel h3, .panel summary')].map(it => it.textContent)")
    assert {"Latency, last 10 s", "Requests by outcome", "Error budget left", "Cache lookups"} <= set(titles)
    assert "Share of the traffic by route" not in titles
    (ok,) = rows(browser, "#panel-requests tbody tr")
    assert ok[0] == "ok"
    assert browser.errors() == []


def test_session_and_its_stack_are_one_service(page):
    stack = si.Stack(si.Telemetry("cameras"), si.AdaptiveBatcher(max_batch_size=4), ScriptedBackend())
    browser, _ = page(Dashboard(Feed([stack, si.streams.StreamSession(stack)], 0.05)))
    assert [row[0] for row in rows(browser, "#services tbody tr")] == ["cameras"]
    assert [row[0] for row in rows(browser, "#panel-streams tbody tr")] == [
        "open",
        "frames waiting",
        "frames in flight",
    ]
    assert [row[0] for row in rows(browser, "#panel-frames tbody tr")] == ["delivered", "failed"]


def test_overspent_budget_is_described_in_words(page):
    """The tables show an overspent budget in words, and not as a percentage below zero; here ten budgets are used."""
    slo = si.SLO("fast", threshold_s=0.05, objective=0.9)
    slo.record(RuntimeError("a bad event, and no other"))
    stack = si.Stack(si.Telemetry("faces", slo=slo), si.AdaptiveBatcher(max_batch_size=4), ScriptedBackend())
    browser, _ = page(Dashboard(Feed([stack], 0.05)))
    assert rows(browser, "#services tbody tr")[0][-1] == "overspent 9×"
    assert rows(browser, "#panel-budget tbody tr")[0][1:] == ["overspent 9×"] * 3


def test_charts_are_drawn(page):
    """Each chart has pixels in the color of a line, except that of batch sizes, because no batch has run."""
    browser, _ = page(make_app("faces"))
    browser.until(UPDATES, 80)
    drawn = browser.run("""
        const lines = ["0,90,158", "180,95,6", "0,112,74", "160,58,120", "91,75,196", "180,35,24"];
        return Object.fromEntries([...document.querySelectorAll(".panel:has(canvas)")].map((panel) => {
            const canvas = panel.querySelector("canvas");
            const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            let pixels = 0;
            for (let at = 0; at < data.length; at += 4) pixels += lines.includes(data.slice(at, at + 3).join());
            return [panel.id, pixels];
        }))""")
    assert len(drawn) >= 6
    assert {panel for panel, pixels in drawn.items() if pixels < 100} == {"panel-batch_size"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_page_fits_and_has_contrast(page, width, scheme):
    """Nothing is wider than the window, buttons can be touched, and text has a contrast of at least 4.5 to 1."""
    browser, _ = page(make_app("faces", "a service with a rather long name"), width=width, scheme=scheme)
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
    assert browser.run("return Math.min(...[...document.querySelectorAll('button')].map(it => it.offsetHeight))") >= 36
    worst = browser.run("""
        const channel = (c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
        const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
        const read = (text) => text.match(/[\\d.]+/g).map(Number);
        const behind = (node) => {
            const color = read(getComputedStyle(node).backgroundColor);
            return color[3] === 0 ? behind(node.parentElement) : color;
        };
        return Math.min(...[...document.querySelectorAll("h1,h2,h3,p,th,td,button,a:not(.skip),summary")]
            .filter((node) => node.offsetParent && node.textContent.trim())
            .map((node) => {
                const pair = [light(read(getComputedStyle(node).color)), light(behind(node))].sort((a, b) => b - a);
                return (pair[0] + 0.05) / (pair[1] + 0.05);
            }));""")
    assert worst >= 4.5
    lines = browser.run("""
        const style = getComputedStyle(document.documentElement);
        return ["--card", "--c0", "--c1", "--c2", "--c3", "--c4", "--c5"].map((it) => style.getPropertyValue(it).trim())""")
    background, *colors = (tuple(int(line[at : at + 2], 16) for at in (1, 3, 5)) for line in lines)
    assert min(contrast(background, color) for color in colors) >= 3.0  # the minimum of WCAG for graphics


def contrast(*colors):
    def light(color):
        parts = [c / 255 / 12.92 if c / 255 <= 0.03928 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    low, high = sorted(map(light, colors))
    return (high + 0.05) / (low + 0.05)


def test_keyboard_reaches_and_operates_everything(page):
    """Tab goes from the skip link through pause and services; space and enter operate them."""
    browser, _ = page(make_app("faces", "words"))
    focused = "const it = document.activeElement; return it.id || it.dataset.service || it.className || it.tagName"
    order = []
    for _ in range(5):
        browser.press("Tab")
        order.append(browser.run(focused))
    assert order == ["skip", "pause", "scroll", "faces", "words"]
    assert browser.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    browser.press("Enter")
    browser.until("return document.getElementById('charts-title').textContent === 'Charts of words'")
    assert browser.run("return document.activeElement.getAttribute('aria-pressed')") == "true"
    browser.run("document.getElementById('pause').focus()")
    browser.press(" ")
    browser.until("return document.getElementById('status').textContent === 'Paused.'")


def test_screen_readers_get_names_and_tables(page):
    """Every region, table and button has a name; charts are hidden, and tables with the same figures are not."""
    browser, _ = page(make_app("faces"))
    nodes = browser.cdp("Accessibility.getFullAXTree")["nodes"]
    named = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]]
    assert ("status", "") in named or any(role == "status" for role, _ in named)
    for role, name in named:
        if role in {"region", "table", "button", "heading", "link"}:
            assert name, f"a {role} has no name"
    assert not any(role in {"Canvas", "canvas"} for role, _ in named)
    assert ("table", "Latency, last 10 s") in named
    assert ("rowheader", "p99") in named
    assert browser.run("return document.querySelectorAll('.chart:not([aria-hidden=true])').length") == 0
    assert browser.run("return document.querySelector('#status').getAttribute('role')") == "status"


def test_no_update_is_missed_over_many_streams(page):
    """Short streams are continued by the next ones without a missed update."""
    browser, _ = page(make_app("faces", stream_s=0.3))
    browser.until(UPDATES, 30)
    assert browser.run("return document.body.dataset.missed") == "0"
    assert browser.run("return document.body.dataset.restarts") == "0"


def test_page_recovers_after_a_restart(page):
    browser, server = page(make_app("faces"))
    server.stop()
    browser.until("return fetch('events').then(() => false, () => true)")
    server.app = make_app("faces", "new")
    server.start()
    browser.until("return document.querySelectorAll('#services tbody tr').length === 2")
    browser.until("return document.body.dataset.restarts === '1'")
    seen = browser.run("return +document.body.dataset.updates")
    browser.until(UPDATES, seen + 5)


def test_history_is_bounded(page):
    """During ten thousand updates, each line of the history has at most 720 points: the newest ones."""
    browser, _ = page(make_app("faces"))
    grown = browser.run("""
        return import("./charts.js").then(({History}) => {
            const service = {name: "x", panels: [{id: "a", kind: "counter", labels: ["b"]}, {id: "c", kind: "gauge", labels: ["d"]}]};
            const history = new History(service);
            let most = 0;
            for (let at = 0; at < 10000; at += 1) {
                history.add(at * 100, [at * 3, at % 7], at * 100);
                most = Math.max(most, history.times.length);
            }
            const {times, columns, rates} = history;
            return [most, times, columns[0][0], columns[1][0], rates[0][0], rates[1][0]];
        })""")
    most, times, counts, gauges, rates, no_rates = grown
    newest = range(10_000 - len(times), 10_000)
    assert 600 <= len(times) <= most <= 720
    assert times == pytest.approx([at / 10 for at in newest])
    assert (counts, gauges) == ([at * 3 for at in newest], [at % 7 for at in newest])
    assert rates == pytest.approx([30.0] * len(times))
    assert no_rates == [None] * len(times)


def test_rates_count_from_read_to_read(page):
    """A steady counter has a steady rate after a second, also where an update repeats the figures of an earlier one."""
    browser, _ = page(make_app("faces"))
    rates = browser.run("""
        return import("./charts.js").then(({History}) => {
            const history = new History({name: "x", panels: [{id: "a", kind: "counter", labels: ["b"]}]});
            for (const [time, read] of [[0, 0], [310, 0], [620, 620], [900, 620], [1210, 1210], [1500, 1210], [1800, 1800]])
                history.add(time, [read / 10], read);
            return history.rates[0][0];
        })""")
    assert rates == [*[None] * 4, *[pytest.approx(100.0)] * 3]


def test_page_works_below_a_prefix(page):
    """If a framework mounts the app at /live, the address without the slash leads to the page too."""
    app = make_app("faces")

    async def framework(scope, receive, send):
        if scope["type"] == "http" and not scope["path"].startswith("/live"):
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b""})
        else:
            await app({**scope, "root_path": "/live"}, receive, send)

    browser, _ = page(framework, "/live")
    assert browser.run("return location.pathname") == "/live/"
    assert browser.errors() == []


def test_policy_stops_inline_scripts(page):
    """The browser blocks inline scripts, scripts in data URLs and text as code."""
    browser, _ = page(make_app("faces"))
    browser.run("""
        const script = document.createElement("script");
        script.textContent = "window.ran = true";
        document.body.append(script, Object.assign(document.createElement("script"), {src: "data:text/javascript,ran = 1"}));
        setTimeout("window.ran = true", 0);""")
    seen = browser.run("return +document.body.dataset.updates")
    browser.until(UPDATES, seen + 2)
    assert browser.run("return window.ran === undefined")
    assert sum("Content Security Policy" in message for message in browser.errors()) >= 3
