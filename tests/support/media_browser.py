"""Headless Chromium with a camera and a microphone that it makes up itself."""

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile

OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
)


@contextlib.asynccontextmanager
async def chromium(url):
    """A page in a browser of its own, which ends with the block."""
    folder = tempfile.mkdtemp(prefix="chromium-")
    browser = await asyncio.create_subprocess_exec(
        shutil.which("chromium"), *OPTIONS, f"--user-data-dir={folder}", url,
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        yield browser
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(browser.pid, signal.SIGKILL)
        await browser.wait()
        shutil.rmtree(folder, ignore_errors=True)
