"""Requests to a model: the call of its stack and the response of the app."""

import asyncio
import gc
import json

import numpy as np
import pytest
from served_models import INFER, running_total

import streaminfer as si
from streaminfer.backends.triton.dtypes import encode_text
from streaminfer.sync_layer import SyncLayer
from streaminfer.testing import HANG, ScriptedBackend
from streaminfer.testing import run as run_virtually

pytestmark = pytest.mark.uncompiled

X = np.arange(4, dtype=np.float32).reshape(1, 4)
TENSOR = {"name": "x", "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": 16}}
HEAD = json.dumps({"inputs": [TENSOR], "parameters": {"binary_data_output": True}}).encode()
HEADERS = {"Inference-Header-Content-Length": str(len(HEAD))}


class Rescue(SyncLayer):
    """Layer that replaces a backend error with a response, or every outcome with an error."""

    def __init__(self, made):
        self.made = made

    def exit(self, request, token, outcome, now_ns):
        return self.made if isinstance(outcome, si.BackendError) or isinstance(self.made, Exception) else None


async def counts(app, ask_app):
    (statistics,) = (await ask_app(app, "GET", "/v2/models/m/stats")).json["model_stats"]
    return {name: statistics["inference_stats"][name]["count"] for name in ("success", "fail")}


@pytest.mark.parametrize("rows", [1, 3])
def test_a_layer_makes_a_response_of_an_error(ask_app, body_of, rows):
    """If a layer replaces the error of a model with a response, the client gets that response."""
    batcher = si.AdaptiveBatcher(max_batch_size=4)
    stack = si.Stack(Rescue(si.Response(X[0])), batcher, ScriptedBackend(*[OSError("x")] * 8))
    app = si.serving.asgi_app({"m": stack})

    async def scenario():
        async with app:
            reply = await ask_app(app, "POST", INFER, body_of(np.repeat(X, rows, axis=0)))
            return reply, await counts(app, ask_app)

    reply, counted = asyncio.run(scenario())

    assert reply.json["outputs"][0]["data"] == X.ravel().tolist() * rows
    assert counted == {"success": 1, "fail": 0}


@pytest.mark.parametrize("steps", [(), (OSError("x"),)], ids=["response", "error"])
def test_a_layer_makes_an_error_of_an_outcome(ask_app, body_of, steps):
    """A layer that raises fails the request, which is counted once, whether the model succeeded or failed."""
    stack = si.Stack(Rescue(si.CircuitOpen("open")), si.AdaptiveBatcher(max_batch_size=4), ScriptedBackend(*steps))
    app = si.serving.asgi_app({"m": stack})

    async def scenario():
        async with app:
            reply = await ask_app(app, "POST", INFER, body_of(X))
            return reply.status, await counts(app, ask_app)

    assert asyncio.run(scenario()) == (503, {"success": 0, "fail": 1})


def test_a_client_that_goes_away_is_counted(scripted, ask_app, body_of):
    backend, _, app = scripted(HANG)

    async def scenario():
        async with app:
            gone = asyncio.Event()
            asked = asyncio.ensure_future(ask_app(app, "POST", INFER, body_of(X), gone=gone))
            while not backend.running:
                await asyncio.sleep(0)
            gone.set()
            await asked
            return await counts(app, ask_app)

    assert asyncio.run(asyncio.wait_for(scenario(), 30)) == {"success": 0, "fail": 1}


def test_rows_of_a_sequence_are_counted_as_failed(ask_app):
    """A request with several rows in a sequence is rejected and, like all rejected requests, counted as failed."""
    app = si.serving.asgi_app({"m": running_total()})
    tensor = {"name": "x", "datatype": "FP32", "shape": [2, 1], "data": [1, 2]}
    body = json.dumps({"inputs": [tensor], "parameters": {"sequence_id": 1}}).encode()

    async def scenario():
        async with app:
            return (await ask_app(app, "POST", INFER, body)).status, await counts(app, ask_app)

    assert asyncio.run(scenario()) == (400, {"success": 0, "fail": 1})


def test_the_headers_of_a_response_are_its_own(scripted):
    """If middleware adds headers in place, they are in this response and in no later one."""
    _, _, app = scripted()
    scope = {"type": "http", "method": "POST", "path": INFER}
    scope["headers"] = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
    seen = []

    async def receive():
        return {"type": "http.request", "body": HEAD + X.tobytes()}

    async def send(message):
        if message["type"] == "http.response.start":
            seen.append(len(message["headers"]))
            message["headers"].append((b"x-added", b"1"))

    async def scenario():
        async with app:
            for _ in range(4):
                await app(scope, receive, send)

    asyncio.run(scenario())

    assert seen == [3, 3, 3, 3]


@pytest.mark.parametrize(("numbers", "is_view"), [(4, False), (1000, True)], ids=["small", "large"])
def test_large_inputs_are_views_of_the_body(ask_app, numbers, is_view):
    """A large input is a view of the body, and a small one a copy, wherever it lies; both are aligned and read-only."""
    seen = []

    class Service:
        async def call(self, request):
            seen.append(request.inputs)
            return si.Response(request.inputs)

    app = si.serving.asgi_app({"m": si.Stack(Service())})
    array = np.arange(numbers, dtype=np.float32).reshape(1, -1)
    tensor = TENSOR | {"shape": [1, numbers], "parameters": {"binary_data_size": array.nbytes}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    head += b" " * (-len(head) % 16)
    body = head + array.tobytes()

    async def scenario():
        async with app:
            headers = {"Inference-Header-Content-Length": str(len(head))}
            for _ in range(2):
                assert (await ask_app(app, "POST", INFER, body, headers)).status == 200

    asyncio.run(scenario())

    for row in seen:
        assert np.array_equal(row, array[0])
        assert row.flags.aligned
        assert not row.flags.writeable
        assert (row.base is body) == is_view


def test_a_failed_request_is_freed_at_once(scripted, ask_app, body_of):
    """A failed request is freed when it ends, without the garbage collector."""
    _, _, app = scripted(*[si.CircuitOpen("open")] * 3)

    def calls():
        return [one for one in gc.get_objects() if type(one).__name__ == "ModelCall"]

    async def scenario():
        async with app:
            gc.collect()
            others = calls()  # errors among the parameters of other tests may refer to them
            gc.disable()
            try:
                for _ in range(3):
                    assert (await ask_app(app, "POST", INFER, body_of(X))).status == 503
                await asyncio.sleep(0)
                return [one for one in calls() if one not in others]
            finally:
                gc.enable()

    assert asyncio.run(scenario()) == []


def test_outputs_of_the_other_byte_order_are_converted(scripted, ask_app):
    """The app converts big-endian outputs in each response, although it stores the head of a one-row response."""
    answer = np.arange(4, dtype=">f4")
    _, _, app = scripted(then=lambda batch: [answer for _ in batch.rows])

    async def scenario():
        async with app:
            return [await ask_app(app, "POST", INFER, HEAD + X.tobytes(), HEADERS) for _ in range(3)]

    for reply in asyncio.run(scenario()):
        assert reply.status == 200
        assert reply.body[-16:] == np.arange(4, dtype="<f4").tobytes()


@pytest.mark.parametrize("rows", [[b"pcm\0\0"], ["text\0"], [[b"a\0", b"bc"]]], ids=["bytes", "text", "list"])
def test_outputs_keep_zeros_at_their_end(scripted, ask_app, rows):
    """Bytes may end with zeros, such as a recording that ends with silence; NumPy's own types would drop them."""
    _, _, app = scripted(then=lambda _batch: rows)

    async def scenario():
        async with app:
            return await ask_app(app, "POST", INFER, HEAD + X.tobytes(), HEADERS)

    texts = rows[0] if isinstance(rows[0], list) else rows
    assert asyncio.run(scenario()).body.endswith(encode_text(np.array(texts, object)))


def test_numbers_beside_texts_are_sent_as_texts(scripted, ask_app):
    _, _, app = scripted(then=lambda _batch: [[["cat", 0.9], ["dog", 0.1]]])

    async def scenario():
        async with app:
            return await ask_app(app, "POST", INFER, HEAD + X.tobytes(), HEADERS)

    assert asyncio.run(scenario()).body.endswith(encode_text(np.array(["cat", "0.9", "dog", "0.1"], object)))


def test_request_counts_as_failed_if_stream_end_fails(ask_app, caplog):
    """A request whose stream cannot be ended is counted as failed."""

    class Keeper(ScriptedBackend):
        def __init__(self):
            super().__init__()
            self.stream_states = self
            self.ended = 0

        def end_stream(self, stream_id):
            self.ended += 1
            raise LookupError("no such row")

    model = Keeper()
    app = si.serving.asgi_app({"m": si.Stack(si.AdaptiveBatcher(max_batch_size=4), model)})
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1]}
    body = json.dumps({"inputs": [tensor], "parameters": {"sequence_id": 7, "sequence_end": True}}).encode()

    async def scenario():
        async with app:
            return (await ask_app(app, "POST", INFER, body)).status, await counts(app, ask_app)

    assert asyncio.run(scenario()) == (500, {"success": 0, "fail": 1})
    assert model.ended == 1
    assert "no such row" in caplog.text


class Door(SyncLayer):
    """Layer that rejects requests until it is opened."""

    is_open = False

    def enter(self, request, now_ns):
        if not self.is_open:
            raise si.Overloaded("full", retry_after_s=1.0)


@pytest.mark.parametrize("how", ["before the queue", "by the batch"])
def test_rejected_sequence_end_can_be_sent_again(ask_app, how):
    """A client can send a rejected last request again, and gets the response that belongs to the sequence's state."""

    class Sum:
        is_full = False

        async def infer(self, batch):
            if self.is_full:
                raise si.Overloaded("full", retry_after_s=1.0)
            total = batch.inputs["state"] + batch.inputs["x"]
            return {"y": total, "state_out": total}

    door, model = Door(), Sum()
    states = si.streams.StatefulBackend(model, state={"state": "state_out"}, initial={"state": np.zeros(1, np.float32)})
    app = si.serving.asgi_app({"m": si.Stack(door, si.AdaptiveBatcher(max_batch_size=4), states)})
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1]}

    async def ask(full, **more):
        door.is_open, model.is_full = not (full and how == "before the queue"), full and how == "by the batch"
        body = json.dumps({"inputs": [tensor], "parameters": {"sequence_id": 7, **more}}).encode()
        reply = await ask_app(app, "POST", INFER, body)
        return reply.json["outputs"][0]["data"] if reply.status == 200 else reply.status

    async def scenario():
        async with app:
            first, rejected = await ask(False, sequence_start=True), await ask(True, sequence_end=True)
            return first, rejected, await ask(False, sequence_end=True), await ask(False)

    assert asyncio.run(scenario()) == ([1.0], 429, [2.0], [1.0])


@pytest.mark.parametrize(
    ("last", "headers", "status"),
    [("fails", {}, 500), ("hangs", {"x-streaminfer-timeout-s": "0.02"}, 504), ("leaves", {}, 499)],
)
def test_missing_answers_close_those_to_other_rows(counting, ask_app, body_of, last, headers, status):
    """If one row has no responses, the responses to the other rows are closed.

    They are iterators that no code has begun to read, so only their `aclose` frees their resources.
    """

    class Answers:
        def __init__(self, service):
            self.service = service

        def __aiter__(self):
            return self

        async def __anext__(self):
            raise StopAsyncIteration

        async def aclose(self):
            self.service.closed += 1

    class Service(counting):
        async def call(self, request):
            if request.inputs[0] == 3:
                await asyncio.sleep(0)
                if last == "fails":
                    raise ValueError
                gone.set() if last == "leaves" else None
                await asyncio.Event().wait()
            self.made.append(Answers(self))
            return si.Response(self.made[-1])

    service, gone = Service(), asyncio.Event()

    async def scenario(loop):
        async with si.serving.asgi_app({"m": si.Stack(service, clock=loop.clock)}) as app:
            body = body_of(np.arange(1, 4).reshape(3, 1), name="x", datatype="INT64")
            return await ask_app(app, "POST", INFER, body, headers, gone=gone)

    assert run_virtually(scenario).status == status
    assert (len(service.made), service.closed) == (2, 2)
