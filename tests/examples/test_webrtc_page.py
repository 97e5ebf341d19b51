"""Page with the browser's microphone and camera, in headless Chromium, over WebRTC and over WebSockets."""

import asyncio

import pytest
from aiohttp import web
from browser import FAKE_MEDIA, Browser
from waiting import until


@pytest.fixture(scope="module")
def browser():
    with Browser(*FAKE_MEDIA) as opened:
        yield opened


@pytest.mark.needs("chromium")
@pytest.mark.parametrize("query", ["", "?socket"], ids=["webrtc", "websocket"])
def test_browser_gets_results_of_microphone_and_camera(query, demo, browser):
    """The page shows the results of both sources, and no task is left after the page and the server close."""

    async def main():
        page = demo("webrtc_page").Page()
        runner = web.AppRunner(page.app)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            port = site._server.sockets[0].getsockname()[1]
            await asyncio.to_thread(browser.open, f"http://127.0.0.1:{port}/{query}")
            shown = "return /speech/.test(document.body.textContent) && /faces/.test(document.body.textContent)"
            await asyncio.to_thread(browser.until, shown)
            await until(lambda: page.results["speech"] >= 30 and page.results["faces"] >= 5)
            await asyncio.to_thread(browser.open, "about:blank")
        finally:
            await runner.cleanup()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
