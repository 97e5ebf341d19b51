"""Server of an ASGI app, uvicorn in a thread, which can be stopped and started again on its port."""

import socket
import threading

import uvicorn


class WebServer:
    """Context manager that serves an app while it is open.

    Args:
        app: the ASGI app.
        root_path: the prefix under which a proxy would publish it.
    """

    def __init__(self, app, root_path=""):
        self.app, self.root_path = app, root_path
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()

    def start(self):
        config = uvicorn.Config(
            self.app, port=self.port, root_path=self.root_path, log_level="critical", timeout_graceful_shutdown=0,
            loop="asyncio", ws="none",
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._started = threading.Event()
        startup = self._server.startup

        async def started(sockets=None):
            await startup(sockets)
            self._started.set()

        self._server.startup = started
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        assert self._started.wait(30), "the server did not start"

    def stop(self):
        self._server.should_exit = True
        self._thread.join(30)
        assert not self._thread.is_alive()
