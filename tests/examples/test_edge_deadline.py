"""A deadline set at the edge proxy ends a request inside the batch: a real nginx, uvicorn, FastAPI, and the batcher."""

import queue
import socket
import threading
from types import SimpleNamespace
from typing import Annotated

import httpx
import pytest
from fastapi import Depends, FastAPI
from starlette.requests import ClientDisconnect
from web_server import WebServer

import streaminfer as si
from streaminfer.fastapi import BoundService, add_stacks, bind
from streaminfer.testing import HANG, ScriptedBackend

EDGE = """
pid nginx.pid;
events {}
http {
  access_log off;
  server {
    listen 127.0.0.1:8000;
    location /patient/ { proxy_pass http://127.0.0.1:8001/; }
    location / {
      proxy_pass http://127.0.0.1:8001;
      proxy_set_header x-request-timeout-seconds 0.3;
    }
  }
}
"""


class HangingModel(ScriptedBackend):
    """Model whose batches run until they are cancelled, with events for the start and the end of a batch."""

    def __init__(self):
        super().__init__(HANG, HANG)
        self.started, self.ended = threading.Event(), threading.Event()

    async def infer(self, batch):
        self.started.set()
        try:
            return await super().infer(batch)
        finally:
            self.ended.set()


@pytest.fixture
def edge(demo, tmp_path, clock, monkeypatch):
    """Yield the URL of nginx, the model that it serves, and the errors that the handler got.

    Only the timer makes a deadline pass, because the clock stands still: by then the request is in a batch.
    """
    monkeypatch.setattr("streaminfer.fastapi.time", SimpleNamespace(monotonic_ns=clock))
    model, errors = HangingModel(), queue.SimpleQueue()
    stack = si.Stack(si.AdaptiveBatcher(max_batch_size=8), model, clock=clock)
    app = FastAPI()
    add_stacks(app, stack)

    @app.post("/")
    async def answer(row: list[float], service: Annotated[BoundService, Depends(bind(stack))]):
        try:
            await service(row[0])
        except BaseException as error:
            errors.put(error)
            raise

    with WebServer(app) as server, demo("cdn_nginx").nginx(tmp_path, server.port, configuration=EDGE) as nginx:
        yield f"http://127.0.0.1:{nginx.port}", model, errors


def test_nginx_deadline_ends_the_request_in_its_batch(edge):
    """A deadline that nginx sets ends the request in its running batch."""
    url, model, errors = edge

    reply = httpx.post(url, json=[1.0], timeout=60.0)

    assert reply.status_code == 504
    assert model.started.is_set()
    assert model.ended.wait(30)
    error = errors.get(timeout=30)
    assert isinstance(error, si.DeadlineExceeded)
    assert "its batch was running" in str(error)
    assert reply.json() == {"detail": str(error)}


def test_client_that_leaves_nginx_cancels_its_request(edge):
    """A client that disconnects from nginx cancels its request in the running batch."""
    url, model, errors = edge

    with socket.create_connection(url.removeprefix("http://").split(":")) as connection:
        head = "POST /patient/ HTTP/1.1\r\nhost: app\r\ncontent-type: application/json\r\ncontent-length: 5\r\n\r\n"
        connection.sendall(head.encode() + b"[1.0]")
        assert model.started.wait(30)
    assert model.ended.wait(30)

    assert isinstance(errors.get(timeout=30), ClientDisconnect)
