"""The face pipeline inside FastAPI and inside a gRPC server."""

import asyncio
import functools
import json
import os
import subprocess
import sys

import grpc
import httpx
import numpy as np
import pytest
from waiting import until
from web_server import WebServer

import streaminfer as si

PATH = os.pathsep.join(sys.path)


@functools.cache
def _load(load_frames, path):
    return load_frames(path, 192)


@pytest.fixture
def picture(demo, examples):
    """Return the pixels of a picture of one face, 192 × 192."""
    frames = _load(demo("demo.video").load_frames, examples / "assets" / "astronaut_pan.mp4")
    return frames.pixels[len(frames) // 2].tobytes()


@pytest.fixture
def make_faces(demo):
    """Return a function that makes the pipeline, with a deadline that even a busy machine meets."""
    return functools.partial(demo("face_pipeline").make_faces, slo_s=60.0)


def test_pipeline_imports_no_video_or_server_package(examples):
    """The pipeline imports neither FFmpeg nor the demo's page, because a server needs neither."""
    code = "import sys; sys.modules |= {'av': None, 'uvicorn': None}; import face_pipeline"
    subprocess.run([sys.executable, "-c", code], cwd=examples, env=os.environ | {"PYTHONPATH": PATH}, check=True)


def test_pipeline_finds_the_same_face_on_both_routes(demo, make_faces, picture):
    """The smaller model finds the same face in pixels of the whole picture, and its responses are not cached."""

    async def main():
        faces = make_faces()
        _, cache, router = faces.layers
        read = demo("face_pipeline").read_picture(picture)
        async with faces:
            best = await faces.call(si.Request(read))
            again = await faces.call(si.Request(read))
            cache.clear()
            full = router.routes[0].service
            for layer in full.layers:
                if isinstance(layer, si.CircuitBreaker):
                    layer.force_open()
            smaller = await faces.call(si.Request(read))
            return best, again, smaller, len(cache)

    best, again, smaller, entries = asyncio.run(main())

    assert (best.source, best.degraded) == ("full", False)
    assert np.array_equal(best.outputs, again.outputs)
    assert (smaller.source, smaller.degraded) == ("front (full: circuit_open)", True)
    assert len(best.outputs) == len(smaller.outputs) == 1
    assert np.abs(best.outputs[0, :4] - smaller.outputs[0, :4]).max() < 16
    assert entries == 0


def test_fastapi_example_finds_a_face(demo, make_faces, monkeypatch, picture):
    monkeypatch.setattr(demo("face_pipeline"), "make_faces", make_faces)
    app = demo("fastapi_faces").app

    with WebServer(app) as server, httpx.Client(base_url=server.url, timeout=60.0, follow_redirects=True) as client:
        found = client.post("/faces", content=picture)
        wrong = client.post("/faces", content=b"short")
        late = client.post("/faces", content=bytes(len(picture)), headers={"x-streaminfer-timeout-s": "0"})
        ready = client.get("/health/ready")
        metrics = client.get("/metrics")

    assert len(found.json()["faces"]) == 1
    assert (found.json()["source"], found.json()["degraded"]) == ("full", False)
    assert (wrong.status_code, late.status_code, ready.status_code) == (400, 504, 200)
    assert 'streaminfer_requests_total{service="faces",layer="Telemetry",outcome="ok"} 1' in metrics.text


async def printed_port(capsys):
    """Return the port that a server prints when it starts."""
    printed = []

    def has_port():
        printed.append(capsys.readouterr().out)
        return "port" in "".join(printed)

    await until(has_port)
    return "".join(printed).split()[-1]


def test_grpc_example_finds_a_face_by_its_deadline(demo, make_faces, picture, capsys):
    example = demo("grpc_faces")

    async def main():
        stop = asyncio.Event()
        serving = asyncio.ensure_future(example.serve("127.0.0.1:0", make_faces(), stop))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{await printed_port(capsys)}") as channel:
            find = channel.unary_unary("/faces.Faces/Find")
            found = json.loads(await find(picture, timeout=60.0))
            with pytest.raises(grpc.aio.AioRpcError) as wrong:
                await find(b"short")
            health = await channel.unary_unary("/grpc.health.v1.Health/Check")(b"")
        stop.set()
        await serving
        return found, wrong.value.code(), health

    found, code, health = asyncio.run(main())

    assert len(found["faces"]) == 1
    assert found["source"] == "full"
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert health == b"\x08\x01"


def test_grpc_example_hides_the_error_of_a_row(demo, capsys, caplog):
    """The text of an exception that the model returned as a row is in the log, and not at the client."""
    backend = si.testing.ScriptedBackend([ValueError("what a request brought")])
    stack = si.Stack(si.AdaptiveBatcher(max_batch_size=2), backend)
    example = demo("grpc_faces")

    async def main():
        stop = asyncio.Event()
        serving = asyncio.ensure_future(example.serve("127.0.0.1:0", stack, stop))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{await printed_port(capsys)}") as channel:
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await channel.unary_unary("/faces.Faces/Find")(bytes(192 * 192 * 3), timeout=60.0)
        stop.set()
        await serving
        return failed.value

    error = asyncio.run(main())

    assert (error.code(), error.details()) == (
        grpc.StatusCode.INTERNAL,
        "the model failed; the server's log says why",
    )
    assert "what a request brought" in caplog.text


def test_grpc_example_ends_a_running_request(demo, capsys):
    """The deadline of the call, and a client that cancels, end the request that runs."""
    backend = si.testing.ScriptedBackend(si.testing.HANG, si.testing.HANG)
    stack = si.Stack(si.AdaptiveBatcher(max_batch_size=2), backend)
    example = demo("grpc_faces")

    async def main():
        stop = asyncio.Event()
        serving = asyncio.ensure_future(example.serve("127.0.0.1:0", stack, stop))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{await printed_port(capsys)}") as channel:
            find = channel.unary_unary("/faces.Faces/Find")
            with pytest.raises(grpc.aio.AioRpcError) as late:
                await find(bytes(192 * 192 * 3), timeout=0.2)
            await until(lambda: not backend.running)
            call = find(bytes(192 * 192 * 3))
            await until(lambda: backend.running)
            call.cancel()
            await until(lambda: not backend.running)
        stop.set()
        await serving
        return late.value.code()

    assert asyncio.run(main()) == grpc.StatusCode.DEADLINE_EXCEEDED
    assert len(backend.batches) == 2
