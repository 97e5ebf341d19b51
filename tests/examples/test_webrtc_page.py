"""Page with the browser's microphone and camera, in headless Chromium, over WebRTC and over WebSockets."""

import asyncio
from fractions import Fraction

import av
import numpy as np
import pytest
from aiohttp import ClientSession, web
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


@pytest.fixture
def messages():
    """A message of each socket: a chunk of sound, and a JPEG."""
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = 320, 240, "yuvj444p", Fraction(1, 25)
    picture = av.VideoFrame.from_ndarray(np.zeros((240, 320, 3), np.uint8)).reformat(format="yuvj444p")
    (packet,) = encoder.encode(picture)
    return {"microphone": np.zeros(512, np.float32).tobytes(), "camera": bytes(packet)}


@pytest.mark.parametrize("kind", ["microphone", "camera"])
def test_browser_leaves_before_its_results(kind, demo, messages, caplog):
    """A browser that closes its socket while results are on the way is no failure of the server."""

    async def main():
        runner = web.AppRunner(demo("webrtc_page").Page().app)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            port = site._server.sockets[0].getsockname()[1]
            async with ClientSession() as client, client.ws_connect(f"http://127.0.0.1:{port}/{kind}") as socket:
                for _ in range(8):
                    await socket.send_bytes(messages[kind])
        finally:
            await runner.cleanup()

    asyncio.run(main())
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
