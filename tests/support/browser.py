"""A small WebDriver client for Debian's chromium and chromium-driver: what the browser tests need, and no more."""

import base64
import json
import re
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-extensions",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--no-proxy-server", "--enable-precise-memory-info", "--js-flags=--expose-gc",
)  # fmt: skip
TIMEOUT_S = 30.0


class Browser:
    """One headless browser; a context manager that ends it and its driver.

    A condition is waited for with `until`, which looks again every 50 ms; nothing else waits.
    """

    def __enter__(self):
        self._folder = tempfile.TemporaryDirectory()
        self._driver = subprocess.Popen(
            [DRIVER, "--port=0", "--allowed-ips=", f"--log-path={self._folder.name}/driver.log"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        port = next(
            match[1] for line in self._driver.stdout if (match := re.search(r"successfully on port (\d+)", line))
        )
        self._url = f"http://127.0.0.1:{port}"
        options = {"binary": str(CHROMIUM), "args": [*FLAGS, f"--user-data-dir={self._folder.name}/profile"]}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        try:
            made = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        except BaseException:
            self._end()
            raise
        self._url += f"/session/{made['sessionId']}"
        return self

    def __exit__(self, *_):
        try:
            self._ask("DELETE", "")
        finally:
            self._end()

    def _end(self):
        self._driver.terminate()
        self._driver.wait(TIMEOUT_S)
        self._driver.stdout.close()
        self._folder.cleanup()

    def _ask(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        url = self._url + path
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)  # noqa: S310 - the driver
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=TIMEOUT_S) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(json.load(error)["value"]["message"]) from None

    def open(self, url):
        self._ask("POST", "/url", {"url": url})

    def run(self, script, *arguments):
        """What a function body returns."""
        return self._ask("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def cdp(self, command, **parameters):
        return self._ask("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def show(self, width, height=900, scheme="light"):
        self.cdp(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def press(self, key):
        """Press and let go one key, by its WebDriver code or letter."""
        actions = [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]
        self._ask("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def picture(self, path, *, whole=True):
        taken = self.cdp("Page.captureScreenshot", captureBeyondViewport=whole)
        Path(path).write_bytes(base64.b64decode(taken["data"]))

    def errors(self):
        """Messages of the console that are errors: exceptions, refused loads, breaches of the page's policy."""
        entries = self._ask("POST", "/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]

    def until(self, script, *arguments, timeout_s=TIMEOUT_S):
        """Wait until a function body returns something true, and return it."""
        ends = time.monotonic() + timeout_s
        while not (value := self.run(script, *arguments)):
            assert time.monotonic() < ends, f"still false after {timeout_s:g} s: {script}\n{self.errors()}"
            time.sleep(0.05)
        return value
