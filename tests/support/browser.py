"""Headless Chromium, driven over its debugging pipe, with only the features that the browser tests need.

Commands and events of the Chrome DevTools Protocol pass through the file descriptors 3 and 4 of the browser, as JSON,
each followed by a zero byte.
"""

import base64
import contextlib
import itertools
import json
import os
import select
import signal
import subprocess
import tempfile
import time
from pathlib import Path

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-extensions",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--no-proxy-server", "--remote-debugging-pipe",
)  # fmt: skip
FAKE_MEDIA = (
    "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
)  # fmt: skip
"""Options for a fake camera and a fake microphone."""
TIMEOUT_S = 60.0  # for a busy machine
KEYS = {"Tab": (9, ""), "Enter": (13, "\r"), " ": (32, " ")}


class Browser:
    """Context manager that runs one browser with one page.

    Only `until` waits for conditions; it checks them every 50 ms.

    Args:
        flags: options of Chromium in addition to `FLAGS`.
    """

    def __init__(self, *flags):
        self._flags = flags

    def __enter__(self):
        self._numbers = itertools.count(1)
        self._unread, self._errors = b"", []
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)  # helpers may still write
        command_out, self._commands = os.pipe()
        self._replies, reply_in = os.pipe()
        # the shell moves both ends to the descriptors that the browser expects
        line = f'exec "$@" 3<&{command_out} 4>&{reply_in}'
        arguments = [
            "bash",
            "-c",
            line,
            "bash",
            "chromium",
            *FLAGS,
            *self._flags,
            f"--user-data-dir={self._folder.name}",
            "about:blank",
        ]
        self._process = subprocess.Popen(
            arguments, pass_fds=(command_out, reply_in), stderr=subprocess.DEVNULL, start_new_session=True
        )
        os.close(command_out)
        os.close(reply_in)
        self._session = None
        try:
            target = self.cdp("Target.createTarget", url="about:blank")["targetId"]
            self._session = self.cdp("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Accessibility"):
                self.cdp(f"{domain}.enable")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        with contextlib.suppress(ProcessLookupError):  # the browser has ended
            os.killpg(self._process.pid, signal.SIGKILL)  # with its helpers, which are in its group
        self._process.wait(TIMEOUT_S)
        os.close(self._commands)
        os.close(self._replies)
        self._folder.cleanup()

    def cdp(self, method, **params):
        """Send a command; return its result."""
        number = next(self._numbers)
        command = {"id": number, "method": method, "params": params}
        if self._session is not None:
            command["sessionId"] = self._session
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        while (message := self._read()).get("id") != number:
            self._note(message)
        assert "error" not in message, f"{method}: {message['error']}"
        return message["result"]

    def _read(self):
        while b"\0" not in self._unread:
            readable, _, _ = select.select([self._replies], [], [], TIMEOUT_S)
            assert readable, "the browser does not answer"
            read = os.read(self._replies, 1 << 20)
            assert read, "the browser ended"
            self._unread += read
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)

    def _note(self, event):
        params = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self._errors.append(str(params["exceptionDetails"]))
        elif event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self._errors.append(params["entry"]["text"])

    def open(self, url):
        self.cdp("Page.navigate", url=url)
        self.until("return document.readyState === 'complete'")

    def run(self, script, *arguments):
        """Run a function body; return its result, or the value of its promise."""
        expression = f"(function() {{ {script} }}).apply(null, {json.dumps(arguments)})"
        done = self.cdp("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def show(self, width, height=900, scheme="light"):
        self.cdp(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def press(self, key):
        """Press and release one key of `KEYS`."""
        code, text = KEYS[key]
        event = {"key": key, "code": key.strip() or "Space", "windowsVirtualKeyCode": code}
        self.cdp("Input.dispatchKeyEvent", type="keyDown", text=text, **event)
        self.cdp("Input.dispatchKeyEvent", type="keyUp", **event)

    def picture(self, path):
        taken = self.cdp("Page.captureScreenshot", captureBeyondViewport=True)
        Path(path).write_bytes(base64.b64decode(taken["data"]))

    def errors(self):
        """Return exceptions, failed loads and violations of the page's policy since the last call."""
        self.run("")  # reads the events before its response, too
        errors, self._errors = self._errors, []
        return errors

    def until(self, script, *arguments, timeout_s=TIMEOUT_S):
        """Wait until a function body returns something true, and return it."""
        ends = time.monotonic() + timeout_s
        while not (value := self.run(script, *arguments)):
            assert time.monotonic() < ends, f"still false after {timeout_s:g} s: {script}\n{self.errors()}"
            time.sleep(0.05)
        return value
