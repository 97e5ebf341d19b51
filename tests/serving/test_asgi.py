import asyncio
import json
import logging
import tracemalloc
from importlib.metadata import PackageNotFoundError

import ml_dtypes
import numpy as np
import pytest
from served_models import INFER, binary, running_total

import streaminfer as si
from streaminfer.serving import Limits, description
from streaminfer.testing import HANG, ScriptedBackend, run

pytestmark = pytest.mark.uncompiled

X = np.arange(12, dtype=np.float32).reshape(3, 4)


async def messages_of(app, scope, messages):
    """Return the messages that an app sends when it receives the given messages."""
    sent = []

    async def receive():
        return messages.pop(0)

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    return sent


def test_rows_are_requests_of_their_own(scripted, ask_app, body_of):
    backend, _, app = scripted()

    async def scenario():
        async with app:
            return await ask_app(app, "POST", INFER, body_of(X, id="7"))

    reply = asyncio.run(scenario())

    assert reply.status == 200
    assert reply.json == {
        "model_name": "m", "model_version": "1", "id": "7",
        "outputs": [{"name": "output", "shape": [3, 4], "datatype": "FP32", "data": X.ravel().tolist()}],
    }  # fmt: skip
    assert sum(len(batch.rows) for batch in backend.batches) == 3


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2", 200),
        ("GET", "/v2/models/m", 200),
        ("GET", "/v2/models/m/config", 200),
        ("GET", "/v2/models/m/stats", 200),
        ("GET", "/v2/models/stats", 200),
        ("GET", "/v2/models/m/ready", 200),
        ("GET", "/v2/models/other", 404),
        ("DELETE", "/v2", 405),
        ("POST", INFER, 400),
    ],
)
def test_changing_or_failed_responses_are_not_cached(scripted, ask_app, method, path, status):
    """Each response has `no-store`: a cache may store a 200, 404 or 405 without it for any time (RFC 9110 §15.1)."""
    _, _, app = scripted()

    async def scenario():
        async with app:
            return await ask_app(app, method, path, b"x" if method == "POST" else b"")

    reply = asyncio.run(scenario())

    assert (reply.status, reply.headers["cache-control"]) == (status, "no-store")


@pytest.mark.parametrize("cut", [None, 7, 100])
def test_binary_tensors_pass_both_ways_in_any_pieces(scripted, ask_app, cut):
    _, _, app = scripted()
    body, headers = binary(X)
    pieces = [body] if cut is None else [body[:cut], body[cut:], b""]

    async def scenario():
        async with app:
            return await ask_app(app, "POST", INFER, headers=headers, chunks=pieces)

    reply = asyncio.run(scenario())

    length = int(reply.headers["inference-header-content-length"])
    assert json.loads(reply.body[:length])["outputs"][0]["parameters"] == {"binary_data_size": X.nbytes}
    assert reply.body[length:] == X.tobytes()


def test_several_inputs_and_outputs_have_names(scripted, ask_app):
    _, _, app = scripted()
    tensors = [{"name": name, "datatype": "INT32", "shape": [1, 1], "data": [n]} for n, name in enumerate("ab")]
    body = json.dumps({"inputs": tensors, "outputs": [{"name": "b"}]}).encode()

    async def scenario():
        async with app:
            other = body.replace(b'"outputs": [{"name": "b"}]', b'"outputs": [{"name": "c"}]')
            return await ask_app(app, "POST", INFER, body), await ask_app(app, "POST", INFER, other)

    reply, missing = asyncio.run(scenario())

    assert [(one["name"], one["data"]) for one in reply.json["outputs"]] == [("b", [1])]
    assert missing.status == 400


def test_the_row_that_fails_fails_the_request(scripted, ask_app, body_of):
    def then(batch):
        return [ValueError("secret of the model") if row[0] == 4 else row for row in batch.inputs]

    _, _stack, app = scripted(then=then)

    async def scenario():
        async with app:
            reply = await ask_app(app, "POST", INFER, body_of(X))
            return reply, (await ask_app(app, "GET", "/v2/models/m/stats")).json

    reply, statistics = asyncio.run(scenario())

    assert reply.status == 500
    assert "secret" not in reply.body.decode()
    assert statistics["model_stats"][0]["inference_stats"]["fail"]["count"] == 1


def test_the_cause_of_a_failure_is_logged(scripted, ask_app, body_of, caplog):
    _, _, app = scripted(ValueError("secret"), batcher=si.AdaptiveBatcher(max_batch_size=1))

    async def scenario():
        async with app:
            await ask_app(app, "POST", INFER, body_of(X[:1]))

    with caplog.at_level(logging.ERROR, "streaminfer"):
        asyncio.run(scenario())

    assert "secret" in caplog.text


def test_edge_deadline_ends_request_in_its_batch(ask_app, body_of):
    """A deadline that the edge sets ends the request in its batch."""
    backend = ScriptedBackend(HANG)

    async def scenario(loop):
        stack = si.Stack(si.AdaptiveBatcher(max_batch_size=8), backend, clock=loop.clock)
        async with si.serving.asgi_app({"m": stack}) as app:
            headers = {"x-envoy-expected-rq-timeout-ms": "20"}
            late = await ask_app(app, "POST", INFER, body_of(X[:1]), headers)
            hung = len(backend.batches)
            return late, hung, await ask_app(app, "POST", INFER, body_of(X[:1]), {"grpc-timeout": "9S"})

    late, hung, timely = run(scenario)

    assert late.status == 504
    assert "error" in late.json
    assert hung == 1
    assert 0 < float(timely.headers["x-streaminfer-time-left-s"]) <= 9


def test_time_left_of_the_objective_is_a_header(scripted, ask_app, body_of):
    _, _, app = scripted(batcher=si.AdaptiveBatcher(max_batch_size=8, slo_s=30.0))

    async def scenario():
        async with app:
            return await ask_app(app, "POST", INFER, body_of(X))

    assert 0 < float(asyncio.run(scenario()).headers["x-streaminfer-time-left-s"]) < 30


@pytest.mark.parametrize(("slo_s", "timeout_s"), [(1.0, 15.0), (15.0, 1.0)], ids=["loose client", "tight client"])
def test_the_tightest_of_objective_and_client_wins(ask_app, body_of, slo_s, timeout_s):
    """The tighter of objective and client timeout is the deadline; a proxy's timeout does not replace the objective."""
    batcher = si.AdaptiveBatcher(max_batch_size=8, slo_s=slo_s)

    async def scenario(loop):
        stack = si.Stack(batcher, ScriptedBackend(), clock=loop.clock)
        async with si.serving.asgi_app({"m": stack}) as app:
            headers = {"x-envoy-expected-rq-timeout-ms": str(timeout_s * 1e3)}
            return await ask_app(app, "POST", INFER, body_of(X), headers)

    assert float(run(scenario).headers["x-streaminfer-time-left-s"]) == 1.0


def test_a_client_that_goes_away_cancels_its_request(scripted, ask_app, body_of):
    backend, _, app = scripted(HANG)

    async def scenario():
        async with app:
            gone = asyncio.Event()
            asked = asyncio.ensure_future(ask_app(app, "POST", INFER, body_of(X[:1]), gone=gone))
            while not backend.running:
                await asyncio.sleep(0)
            gone.set()
            assert (await asked).status == 499  # only layers around the app read it
            while backend.running:
                await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_client_that_leaves_within_body_gets_499(scripted, ask_app):
    """A request whose client goes away within the body ends with status 499.

    The layers of a framework around the app, such as Starlette's ``BaseHTTPMiddleware``, wait for a response even then.
    """
    _, _, app = scripted()

    async def scenario():
        async with app:
            messages = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]
            return await messages_of(app, {"type": "http", "method": "POST", "path": INFER, "headers": []}, messages)

    start, end = asyncio.run(scenario())
    assert (start["status"], end["body"]) == (499, b"")


def test_a_body_in_pieces_is_read_up_to_its_limit(scripted):
    _, _, app = scripted(limits=Limits(max_body_bytes=1000))
    messages = [{"type": "http.request", "body": b" " * 500, "more_body": number < 9} for number in range(10)]

    async def scenario():
        async with app:
            return await messages_of(app, {"type": "http", "method": "POST", "path": INFER, "headers": []}, messages)

    sent = asyncio.run(scenario())

    assert sent[0]["status"] == 413
    assert (b"connection", b"close") in sent[0]["headers"]
    assert len(messages) == 7


def test_head_request_and_allowed_methods(scripted, ask_app):
    """`HEAD` gets only the head of a response, and a wrong method gets the allowed methods of the path."""
    _, _, app = scripted()

    async def scenario():
        whole, head = await ask_app(app, "GET", "/v2"), await ask_app(app, "HEAD", "/v2")
        allowed = [await ask_app(app, method, path) for method, path in (("GET", INFER), ("POST", "/v2"))]
        return whole, head, [reply.headers["allow"] for reply in allowed]

    whole, head, allowed = asyncio.run(scenario())

    assert (head.status, head.headers, head.body) == (200, whole.headers, b"")
    assert allowed == ["POST", "GET, HEAD"]


def test_a_cancelled_server_cancels_the_request(scripted, ask_app, body_of):
    backend, _, app = scripted(HANG)

    async def scenario():
        async with app:
            asked = asyncio.ensure_future(ask_app(app, "POST", INFER, body_of(X[:1])))
            while not backend.running:
                await asyncio.sleep(0)
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_overload_says_when_to_come_again(scripted, ask_app, body_of):
    batcher = si.AdaptiveBatcher(max_batch_size=1, max_queue_size=1)
    _, _, app = scripted(HANG, batcher=batcher)

    async def scenario():
        async with app:
            gone = asyncio.Event()
            waiting = [asyncio.ensure_future(ask_app(app, "POST", INFER, body_of(X[:1]), gone=gone)) for _ in range(4)]
            refused = await next(asyncio.as_completed(waiting))
            gone.set()
            await asyncio.gather(*waiting)
            return refused

    refused = asyncio.run(scenario())

    assert refused.status == 429
    assert int(refused.headers["retry-after"]) >= 1


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "status"),
    [
        ("GET", "/", {}, b"", 404),
        ("GET", "/v2/models/other", {}, b"", 404),
        ("GET", "/v2/models/m/versions/2", {}, b"", 404),
        ("GET", "/v2/models/m/nothing", {}, b"", 404),
        ("GET", INFER, {}, b"", 405),
        ("POST", "/v2/models/m", {}, b"", 405),
        ("POST", INFER, {"content-encoding": "gzip"}, b"", 415),
        ("POST", INFER, {"content-type": "text/plain; charset=utf-8"}, b"", 415),
        ("POST", INFER, {"content-length": "1001"}, b"", 413),
        ("POST", INFER, {"content-length": "9" * 400}, b"", 413),
        ("POST", INFER, {}, b"x" * 1001, 413),
        ("POST", INFER, {}, b" " * 501, 413),
        ("POST", INFER, {}, b"", 400),
        ("POST", INFER, {}, b"[" * 499, 400),
        ("POST", INFER, {}, b'{"inputs": [], "id": ' + b"9" * 470 + b"}", 400),
        ("POST", INFER, {}, b'{"inputs": 5}', 400),
        ("POST", INFER, {}, b'{"inputs": [{}]}', 400),
        ("POST", INFER, {}, b"\xff\xfe", 400),
        ("POST", INFER, {"inference-header-content-length": "-1"}, b"{}", 400),
        ("POST", INFER, {"inference-header-content-length": "3"}, b"{}", 400),
        ("POST", "/v2/models/m/generate", {}, b'{"x": 1}', 400),
    ],
)
def test_every_mistake_has_its_status(scripted, ask_app, method, path, headers, body, status):
    backend, _, app = scripted(limits=Limits(max_body_bytes=1000, max_head_bytes=500))

    async def scenario():
        async with app:
            return await ask_app(app, method, path, body, headers)

    reply = asyncio.run(scenario())

    assert reply.status == status
    assert reply.json.keys() == {"error"}
    assert backend.batches == []


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"parameters": {"shared_memory_region": "r"}}, 501),
        ({"parameters": {"binary_data_size": 10**30}}, 400),
        ({"parameters": {"binary_data_size": 8}}, 400),
        ({"parameters": []}, 400),
        ({"name": ""}, 400),
        ({"shape": [1, 5]}, 400),
        ({"shape": [9]}, 413),
        ({"datatype": "PICKLE"}, 400),
    ],
)
def test_every_mistake_of_an_input_has_its_status(scripted, ask_app, change, status):
    _, _, app = scripted(limits=Limits(max_rows=8))
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4], **change}

    async def scenario():
        async with app:
            return await ask_app(app, "POST", INFER, json.dumps({"inputs": [tensor]}).encode())

    assert asyncio.run(scenario()).status == status


@pytest.mark.parametrize("timeout_s", [0.01, 0.07])
def test_a_slow_body_ends(scripted, timeout_s):
    _, _, app = scripted(limits=Limits(body_timeout_s=timeout_s))

    async def scenario():
        sent = []

        async def receive():
            await asyncio.Event().wait()

        async def send(message):
            sent.append(message)

        async with app:
            await app({"type": "http", "method": "POST", "path": INFER, "headers": []}, receive, send)
        return sent[0]["status"]

    assert asyncio.run(asyncio.wait_for(scenario(), 30)) == 408


def test_health_follows_the_stack(scripted, ask_app):
    _, stack, app = scripted()

    async def scenario():
        paths = ("/v2/health/live", "/v2/health/ready", "/v2/models/m/ready")
        before = [(await ask_app(app, "GET", path)).status for path in paths]
        async with app:
            during = [(await ask_app(app, "HEAD", path)).status for path in paths]
        return before, during, stack.stack_state

    assert asyncio.run(scenario()) == ([200, 503, 503], [200, 200, 200], "stopped")


def test_a_stopped_stack_is_unavailable(scripted, ask_app, body_of):
    _, _, app = scripted()

    reply = asyncio.run(ask_app(app, "POST", INFER, body_of(X)))

    assert (reply.status, reply.headers["retry-after"]) == (503, "1")


def test_a_mounted_app_leaves_the_prefix_out(scripted, ask_app):
    _, _, app = scripted()

    async def scenario():
        places = [("/api", "/api/v2/health/live"), ("/api", "/v2/health/live"), ("/api/", "/api/v2/health/live")]
        places += [("/v", "/v/v2/health/live"), ("/v", "/v2/health/live")]  # a prefix of whole segments only
        return [(await ask_app(app, "GET", path, root_path=root)).status for root, path in places]

    assert asyncio.run(scenario()) == [200] * 5


def lifespan(app):
    async def scenario():
        messages = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
        sent = await messages_of(app, {"type": "lifespan"}, messages)
        return [message["type"] for message in sent]

    return asyncio.run(scenario())


def test_a_server_starts_and_stops_the_stacks(scripted):
    _, stack, app = scripted()

    assert lifespan(app) == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert stack.stack_state == "stopped"


def test_an_interrupted_server_stops_the_stacks(scripted):
    """The stacks stop if the lifespan is cancelled: a second Ctrl-C ends uvicorn's loop without a shutdown event."""
    _, stack, app = scripted()

    async def scenario():
        started = asyncio.Event()
        messages = [{"type": "lifespan.startup"}]

        async def receive():
            return messages.pop() if messages else await asyncio.Event().wait()

        async def send(message):
            started.set()

        serving = asyncio.ensure_future(app({"type": "lifespan"}, receive, send))
        await started.wait()
        serving.cancel()
        await asyncio.wait({serving})
        return stack.stack_state

    assert asyncio.run(scenario()) == "stopped"


def test_a_stack_that_cannot_start_ends_the_server(doubling_stack):
    class Broken:
        async def start(self):
            raise OSError("no device")

        async def infer(self, batch):
            raise AssertionError

    app = si.serving.asgi_app({"good": doubling_stack, "bad": si.Stack(Broken())})

    assert lifespan(app) == ["lifespan.startup.failed"]
    assert doubling_stack.stack_state == "stopped"


def test_a_stack_that_runs_already_is_left_running(scripted):
    _, stack, app = scripted()

    async def scenario():
        async with stack:
            async with app:
                pass
            return stack.ready

    assert asyncio.run(scenario())


def test_stopping_stack_is_error_at_server_start(scripted):
    """A server cannot start with a stack that is stopping: it would never be ready, and would not say why."""

    async def scenario():
        _, stack, app = scripted(HANG)
        await stack.start()
        asking = asyncio.create_task(stack(1.0))
        await asyncio.sleep(0)
        stopping = asyncio.create_task(stack.stop(timeout_s=None))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="stopping"):
            async with app:
                raise AssertionError
        asking.cancel()
        await stopping

    asyncio.run(scenario())


def test_a_model_is_described_as_its_backend_says(affine_stack, ask_app):
    app = si.serving.asgi_app({"affine": affine_stack})

    async def scenario():
        async with app:
            metadata = await ask_app(app, "GET", "/v2/models/affine/versions/1")
            config = await ask_app(app, "GET", "/v2/models/affine/config")
            return metadata.json, config.json

    metadata, config = asyncio.run(scenario())

    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 8]}]
    assert metadata["outputs"] == [
        {"name": "y", "datatype": "FP32", "shape": [-1, 3]},
        {"name": "z", "datatype": "FP32", "shape": [-1, 8]},
    ]
    assert config["max_batch_size"] == 256
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [8], "optional": False}]


def test_text_passes_both_ways(ask_app):
    def greet(rows):
        return np.array([[f"hello {row[0]}"] for row in rows], object)

    stack = si.Stack(si.CpuBackend(greet, example=np.array(["name"]), executor="inline"))
    app = si.serving.asgi_app({"m": stack})
    tensor = {"name": "inputs", "datatype": "BYTES", "shape": [2, 1], "data": ["Ada", "Zoë"]}

    async def scenario():
        async with app:
            return await ask_app(app, "POST", INFER, json.dumps({"inputs": [tensor]}).encode())

    assert asyncio.run(scenario()).json["outputs"][0]["data"] == ["hello Ada", "hello Zoë"]


def test_a_sequence_keeps_its_state_and_ends(ask_app):
    app = si.serving.asgi_app({"m": running_total()})

    def step(sequence, **more):
        tensors = [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1]}]
        return json.dumps({"inputs": tensors, "parameters": {"sequence_id": sequence, **more}}).encode()

    async def scenario():
        async with app:
            steps = [step(1, sequence_start=True), step(1), step(2), step(1, sequence_end=True), step(1)]
            replies = [await ask_app(app, "POST", INFER, one) for one in steps]
            config = (await ask_app(app, "GET", "/v2/models/m/config")).json
            return [reply.json["outputs"][0]["data"] for reply in replies], config

    totals, config = asyncio.run(scenario())

    assert totals == [[1.0], [2.0], [1.0], [3.0], [1.0]]
    (control,) = config["sequence_batching"]["control_input"]
    assert control["control"][0]["kind"] == "CONTROL_SEQUENCE_CORRID"


def test_recurrent_model_reads_inputs_by_name(ask_app):
    """A recurrent model without a description reads its inputs by name."""

    class Sum:
        async def infer(self, batch):
            total = batch.inputs["state"] + batch.inputs["x"]
            return {"y": total, "state_out": total}

    states = si.streams.StatefulBackend(Sum(), state={"state": "state_out"}, initial={"state": np.zeros(1, np.float32)})
    app = si.serving.asgi_app({"m": si.Stack(si.AdaptiveBatcher(max_batch_size=4), states)})
    tensors = [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1]}]
    body = json.dumps({"inputs": tensors, "parameters": {"sequence_id": 1}}).encode()

    async def scenario():
        async with app:
            first, second = [await ask_app(app, "POST", INFER, body) for _ in range(2)]
            return first.json, second.json, await ask_app(app, "POST", "/v2/models/m/generate", b'{"x": 1}')

    first, second, generated = asyncio.run(scenario())

    assert (first["outputs"][0]["data"], second["outputs"][0]["data"]) == ([1.0], [2.0])
    assert "use infer" in generated.json["error"]


class Noting:
    """Service that records its input arrays, and the peak of allocated memory at each call."""

    def __init__(self):
        self.arrays, self.peaks = [], []

    async def call(self, request):
        self.peaks.append(tracemalloc.get_traced_memory()[1])
        self.arrays.append(request.inputs)
        return si.Response(request.inputs)


@pytest.mark.parametrize(("pieces", "copies"), [(10, 1), (1, 0)])
def test_a_large_body_is_copied_once_at_most(ask_app, pieces, copies):
    service = Noting()
    app = si.serving.asgi_app({"m": si.Stack(service)})
    body, headers = binary(np.zeros((1, 150_000), np.float32), "x" * 3)
    head_length = int(headers["Inference-Header-Content-Length"])
    spaces = b" " * (-head_length % 16)  # so that a body in one piece is aligned
    body, headers = spaces + body, {"Inference-Header-Content-Length": str(head_length + len(spaces))}
    step = -(-len(body) // pieces)
    chunks = [body[start : start + step] for start in range(0, len(body), step)]

    async def scenario():
        async with app:
            await ask_app(app, "POST", INFER, *binary(np.zeros((1, 1), np.float32)))
            tracemalloc.start()
            reply = await ask_app(app, "POST", INFER, headers=headers, chunks=chunks)
            tracemalloc.stop()
            return reply.status

    assert asyncio.run(scenario()) == 200
    assert service.arrays[1].flags.aligned
    assert not service.arrays[1].flags.owndata
    assert service.peaks[1] < (copies + 0.3) * len(body)


@pytest.mark.parametrize(("stop_timeout_s", "status"), [(1.0, 503), (None, 200)])
def test_requests_in_flight_have_time_at_the_end(scripted, ask_app, body_of, stop_timeout_s, status):
    """A stop waits ``stop_timeout_s`` for requests in flight: one of three seconds succeeds only without a timeout."""

    async def scenario(loop):
        backend = ScriptedBackend(duration_s=3.0)
        stack = si.Stack(si.AdaptiveBatcher(max_batch_size=8), backend, clock=loop.clock)
        app = si.serving.asgi_app({"m": stack}, stop_timeout_s=stop_timeout_s)
        async with app:
            asking = asyncio.create_task(ask_app(app, "POST", INFER, body_of(X[:1])))
            while not backend.running:
                await asyncio.sleep(0.01)
            begun_s = loop.time()
        return (await asking).status, loop.time() - begun_s

    answered, took_s = run(scenario)

    assert answered == status
    assert took_s == pytest.approx(3.0 if stop_timeout_s is None else stop_timeout_s, abs=0.6)


def test_all_stacks_stop_if_one_stop_fails(doubling_stack):
    class Broken:
        async def stop(self, *, drain):
            raise OSError("lost device")

        async def infer(self, batch):
            raise AssertionError

    app = si.serving.asgi_app({"bad": si.Stack(Broken()), "good": doubling_stack})

    async def scenario():
        await app.__aenter__()
        with pytest.raises(OSError, match="lost device"):
            await app.__aexit__(None, None, None)
        return doubling_stack.stack_state

    assert asyncio.run(scenario()) == "stopped"


@pytest.mark.parametrize(
    ("stacks", "error"),
    [({}, ValueError), ({"a/b": None}, TypeError), ([], TypeError), ({"a": object()}, TypeError)],
)
def test_wrong_arguments_are_named(stacks, error):
    with pytest.raises(error, match="stacks"):
        si.serving.asgi_app(stacks)


@pytest.mark.parametrize(
    ("stop_timeout_s", "error"), [(-1.0, ValueError), ("1", TypeError), (float("nan"), ValueError)]
)
def test_wrong_stop_timeouts_are_named(doubling_stack, stop_timeout_s, error):
    with pytest.raises(error, match="stop_timeout_s: expected a finite number of seconds"):
        si.serving.asgi_app({"m": doubling_stack}, stop_timeout_s=stop_timeout_s)


def test_wrong_limits_are_named(doubling_stack):
    with pytest.raises(TypeError, match="limits"):
        si.serving.asgi_app({"m": doubling_stack}, limits=5)
    with pytest.raises(ValueError, match="max_rows"):
        Limits(max_rows=0)
    with pytest.raises(ValueError, match="'/'"):
        si.serving.asgi_app({"a/b": doubling_stack})
    with pytest.raises(ValueError, match="none empty"):
        si.serving.asgi_app({"": doubling_stack})


def test_uninstalled_package_has_unknown_version(scripted, ask_app, monkeypatch):
    """A server from a bare checkout has the version "unknown" and no error: clients read it before any request."""
    _, _, app = scripted()

    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(description, "version", missing)

    async def scenario():
        async with app:
            return await ask_app(app, "GET", "/v2")

    reply = asyncio.run(scenario())

    assert reply.status == 200
    assert reply.json["version"] == "unknown"


def test_bfloat16_model_is_described_and_takes_json(ask_app):
    """A bfloat16 model is described as BF16, and JSON has its inputs and outputs as ordinary numbers."""
    example = np.zeros(2, ml_dtypes.bfloat16)
    stack = si.Stack(si.AdaptiveBatcher(max_batch_size=4), si.CpuBackend(lambda x: x + x, example=example))
    app = si.serving.asgi_app({"m": stack})
    tensor = {"name": "inputs", "datatype": "BF16", "shape": [1, 2], "data": [1.5, -2]}

    async def scenario():
        async with app:
            reply = await ask_app(app, "POST", INFER, json.dumps({"inputs": [tensor]}).encode())
            return (await ask_app(app, "GET", "/v2/models/m")).json, reply.json

    said, answer = asyncio.run(scenario())

    assert said["inputs"] == [{"name": "inputs", "datatype": "BF16", "shape": [-1, 2]}]
    assert said["outputs"] == [{"name": "output", "datatype": "BF16", "shape": [-1, 2]}]
    assert answer["outputs"][0]["data"] == [3.0, -4.0]
