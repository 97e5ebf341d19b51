"""State that the app shares between requests, and responses of several rows or events."""

import asyncio
import json

import numpy as np
import pytest
from served_models import INFER, binary

import streaminfer as si
from streaminfer.backends.signature import TensorSpec
from streaminfer.protocols import ModelTensors
from streaminfer.serving import Limits
from streaminfer.testing import HANG
from streaminfer.testing import run as run_virtually

pytestmark = pytest.mark.uncompiled

X = np.arange(12, dtype=np.float32).reshape(3, 4)


def test_generate_takes_fields_and_streams_one_event(affine_stack, ask_app):
    app = si.serving.asgi_app({"m": affine_stack})
    body = json.dumps({"x": [1] * 8, "id": "a"}).encode()

    async def scenario():
        async with app:
            plain = await ask_app(app, "POST", "/v2/models/m/generate", body)
            return plain, await ask_app(app, "POST", "/v2/models/m/generate_stream", body)

    plain, streamed = asyncio.run(scenario())

    assert plain.json["z"] == [2.0] * 8
    assert streamed.headers["content-type"] == "text/event-stream"
    assert streamed.body == b"data: " + plain.body + b"\n\n"


@pytest.mark.parametrize(
    ("sizes", "value", "shape"),
    [(("n",), [], (0,)), ((2, "n"), [[], []], (2, 0)), (("n", 2), [[1, 2]], (1, 2)), ((2, 2), [1, 2, 3, 4], (2, 2))],
)
def test_generate_takes_the_shape_of_the_lists(sizes, value, shape, ask_app):
    """An axis of variable size can be empty, and a flat list gets the shape of the model's input."""

    class Model:
        async def call(self, request):
            return si.Response({"shape": np.array(request.inputs.shape)})

        def model_tensors(self):
            return ModelTensors((TensorSpec("x", np.dtype(np.float32), (None, *sizes)),))

    async def scenario():
        async with si.serving.asgi_app({"m": si.Stack(Model())}) as app:
            return await ask_app(app, "POST", "/v2/models/m/generate", json.dumps({"x": value}).encode())

    reply = asyncio.run(scenario())

    assert np.array_equal(np.ravel(reply.json.get("shape")), shape), reply.body


@pytest.mark.parametrize(
    ("fields", "status", "found"),
    [
        ({"x": [1], "stream": False, "temperature": 0.5, "stop": "."}, 200, 0),
        ({"x": [1], "priority": 7}, 200, 7),
        ({"x": [1], "priority": 7, "parameters": {"priority": 3}}, 200, 3),
        ({"x": [1], "options": {"top_k": 1}}, 400, "'options': expected an input ('x'), or a parameter: a number"),
        ({"x": [1], "classification": 5}, 501, "classification"),
        ({"X": 1}, 400, "inputs: expected 'x', got none of them"),
    ],
    ids=["parameters", "priority", "explicit", "object", "not offered", "no input"],
)
def test_other_fields_of_generate_are_parameters(fields, status, found, ask_app):
    """Other fields of `generate` are parameters, as many clients expect from Triton; `parameters` has priority."""

    class Model:
        async def call(self, request):
            return si.Response({"priority": np.array([request.priority])})

        def model_tensors(self):
            return ModelTensors((TensorSpec("x", np.dtype(np.float32), (None, "n")),))

    async def scenario():
        async with si.serving.asgi_app({"m": si.Stack(Model())}) as app:
            return await ask_app(app, "POST", "/v2/models/m/generate", json.dumps(fields).encode())

    reply = asyncio.run(scenario())

    assert reply.status == status, reply.body
    if status == 200:
        assert np.ravel(reply.json["priority"]) == [found]
    else:
        assert found in reply.json["error"]


@pytest.mark.parametrize("rows", [1, len(X)])
def test_requests_with_one_head_have_own_contents(rows, scripted, ask_app):
    """The app reads a head once for all requests that share it, but contents, deadlines and responses are their own."""
    _, _, app = scripted()

    async def scenario():
        async with app:
            replies = [await ask_app(app, "POST", INFER, *binary(X[:rows] + number)) for number in range(3)]
            body, headers = binary(X[:rows])
            late = await ask_app(app, "POST", INFER, body, headers | {"x-streaminfer-timeout-s": "0"})
            short = await ask_app(app, "POST", INFER, body[:-4], headers)
            long = await ask_app(app, "POST", INFER, body + b"x", headers)
            return replies, [late.status, short.status, long.status]

    replies, statuses = asyncio.run(scenario())

    for number, reply in enumerate(replies):
        length = int(reply.headers["inference-header-content-length"])
        assert np.array_equal(np.frombuffer(reply.body[length:], np.float32), (X[:rows] + number).ravel())
    assert statuses == [504, 400, 400]


def test_json_that_is_too_deep_is_rejected(scripted, ask_app):
    _, _, app = scripted()

    async def scenario():
        async with app:
            return await ask_app(app, "POST", INFER, b"[" * 200_000)

    assert asyncio.run(scenario()).status == 400


def test_a_head_is_read_again_when_the_model_changes(ask_app):
    """The app reads a stored head again when a reload changes the model, because its meaning depends on the model."""
    now_ns = 10**12

    class Reloaded:
        takes_one_array = True
        seen = ()

        def model_tensors(self):
            tensor = TensorSpec("x", np.dtype(np.float32), (None, 4))
            return si.protocols.ModelTensors((tensor,), takes_one_array=self.takes_one_array)

        async def call(self, request):
            self.seen += (type(request.inputs),)
            return si.Response(np.zeros(1))

    service = Reloaded()
    app = si.serving.asgi_app({"m": si.Stack(service, clock=lambda: now_ns)})

    async def scenario():
        nonlocal now_ns
        async with app:
            await ask_app(app, "POST", INFER, *binary(X[:1]))
            service.takes_one_array = False
            now_ns += 2 * 10**9
            await ask_app(app, "POST", INFER, *binary(X[:1]))

    asyncio.run(scenario())

    assert service.seen == (np.ndarray, dict)


@pytest.mark.parametrize(
    ("more", "kept"),
    [
        ({}, 1),
        ({"subject": "Ada"}, 0),
        ({"subjects": ["Ada"]}, 0),
        ({"subject": {"name": "Ada"}}, 0),
        ({"id": "Ada"}, 0),
    ],
)
def test_heads_with_personal_data_are_not_stored(scripted, ask_app, more, kept):
    """A request head with an id or other parameters that can name a person is not stored."""
    _, _, app = scripted()
    body, headers = binary(X)
    head = json.loads(body[: int(headers["Inference-Header-Content-Length"])])
    head = head | more if "id" in more else {**head, "parameters": head["parameters"] | more}
    text = json.dumps(head).encode()
    headers = {"Inference-Header-Content-Length": str(len(text))}

    async def scenario():
        async with app:
            return (await ask_app(app, "POST", INFER, text + X.tobytes(), headers)).status

    assert asyncio.run(scenario()) == 200
    assert len(app._models["m"].heads) == kept


def test_stored_heads_are_limited(scripted, ask_app):
    _, _, app = scripted()

    async def scenario():
        async with app:
            for number in range(200):
                body, headers = binary(X, f"x{number}")
                assert (await ask_app(app, "POST", INFER, body, headers)).status == 200

    asyncio.run(scenario())

    assert 0 < len(app._models["m"].heads) <= 64


def test_an_answer_without_a_body_ends(scripted, ask_app):
    """A response without a body has a last message; without it, servers close the connection and log each probe."""
    _, _, app = scripted()
    sent = []

    async def send(message):
        sent.append(message)

    async def scenario():
        await app({"type": "http", "method": "GET", "path": "/v2/health/live", "headers": []}, None, send)

    asyncio.run(scenario())

    assert sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


def test_more_rows_than_places_are_answered(scripted, ask_app, body_of):
    _, _, app = scripted(batcher=si.AdaptiveBatcher(max_batch_size=2, max_queue_size=2))

    async def scenario():
        async with app:
            return await ask_app(app, "POST", INFER, body_of(np.zeros((20, 4), np.float32)))

    reply = asyncio.run(scenario())

    assert reply.status == 200
    assert reply.json["outputs"][0]["shape"] == [20, 4]


def test_rows_do_not_wait_where_none_is_accepted(scripted, ask_app, body_of):
    _, _, app = scripted(HANG, batcher=si.AdaptiveBatcher(max_batch_size=1, max_queue_size=1))

    async def scenario():
        async with app:
            gone = asyncio.Event()
            waiting = [asyncio.ensure_future(ask_app(app, "POST", INFER, body_of(X[:1]), gone=gone)) for _ in range(3)]
            await next(asyncio.as_completed(waiting))
            refused = await ask_app(app, "POST", INFER, body_of(X))
            gone.set()
            await asyncio.gather(*waiting)
            return refused.status

    assert asyncio.run(asyncio.wait_for(scenario(), 30)) == 429


def test_statistics_of_all_models(scripted, ask_app, body_of):
    _, _, app = scripted()

    async def scenario():
        async with app:
            await ask_app(app, "POST", INFER, body_of(X))
            return (await ask_app(app, "GET", "/v2/models/stats")).json

    (model,) = asyncio.run(scenario())["model_stats"]
    assert (model["name"], model["inference_count"], model["execution_count"]) == ("m", 3, 1)
    assert {name: part["count"] for name, part in model["inference_stats"].items() if part["count"]} == {
        "success": 1, "queue": 1, "compute_input": 1, "compute_infer": 1, "compute_output": 1,
    }  # fmt: skip
    times_ns = {name: part["ns"] for name, part in model["inference_stats"].items()}
    assert times_ns["compute_output"] > 0
    assert sum(times_ns.values()) <= 2 * times_ns["success"]


@pytest.mark.parametrize(
    ("method", "path", "headers", "body"),
    [
        ("POST", INFER, {"content-encoding": "gzip"}, b"{}"),
        ("POST", INFER, {"content-length": "99"}, b"{"),
        ("POST", INFER, {}, b"x" * 99),
        ("POST", INFER, {"inference-header-content-length": "many"}, b"{}"),
        ("POST", "/v2/models/other/infer", {"content-length": "2"}, b"{}"),
        ("POST", "/v2/nowhere", {"transfer-encoding": "chunked"}, b"{}"),
        ("POST", "/v2", {"content-length": "2"}, b"{}"),
        ("PUT", INFER, {"content-length": "2"}, b"{}"),
    ],
)
def test_a_body_that_is_not_read_ends_its_connection(scripted, ask_app, method, path, headers, body):
    _, _, app = scripted(limits=Limits(max_body_bytes=50))

    async def scenario():
        async with app:
            return await ask_app(app, method, path, body, headers)

    assert asyncio.run(scenario()).headers["connection"] == "close"


@pytest.mark.parametrize(
    ("method", "path", "body"), [("GET", "/v2/nowhere", b""), ("GET", INFER, b""), ("POST", INFER, b"{")]
)
def test_rejection_without_body_left_keeps_connection(scripted, ask_app, method, path, body):
    """A rejected request with no unread body left keeps its connection."""
    _, _, app = scripted()

    async def scenario():
        async with app:
            return await ask_app(app, method, path, body)

    reply = asyncio.run(scenario())
    assert reply.status in {400, 404, 405}
    assert "connection" not in reply.headers


def events_of(reply):
    return [json.loads(event.removeprefix(b"data: ")) for event in reply.body.split(b"\n\n")[:-1]]


@pytest.mark.parametrize(
    ("options", "events"),
    [
        ({}, [0, 1, 2]),
        ({"fails_at": 2}, [0, 1, "error"]),
        ({"hangs_at": 1}, [0, "error"]),
        ({"cancelled_at": 1}, [0, "error"]),
    ],
    ids=["all", "failure", "deadline", "cancelled by the service"],
)
def test_answers_are_sent_as_they_come(counting, ask_app, options, events):
    service = counting(**options)

    async def scenario(loop):
        async with si.serving.asgi_app({"m": si.Stack(service, clock=loop.clock)}) as app:
            body, headers = json.dumps({"x": [3]}).encode(), {"x-streaminfer-timeout-s": "0.2"}
            reply = await ask_app(app, "POST", "/v2/models/m/generate_stream", body, headers)
            return reply, (await ask_app(app, "GET", "/v2/models/m/stats")).json["model_stats"][0]["inference_stats"]

    reply, counts = run_virtually(scenario)

    assert reply.status == 200
    assert [event.get("n", "error") for event in events_of(reply)] == events
    assert b"secret" not in reply.body
    assert service.closed == 1
    assert (counts["success"]["count"], counts["fail"]["count"]) == ((0, 1) if "error" in events else (1, 0))


def test_response_that_is_no_tensor_ends_the_stream(counting, ask_app):
    """If a response is no tensor, the model's generator is closed at once, not when the garbage collector finds it."""

    class Ragged(counting):
        async def numbers(self, below):
            try:
                yield [[1], [1, below]]
            finally:
                self.closed += 1

    service = Ragged()
    app = si.serving.asgi_app({"m": si.Stack(service)})

    async def scenario():
        async with app:
            reply = await ask_app(app, "POST", "/v2/models/m/generate_stream", json.dumps({"x": [3]}).encode())
            return reply.status, service.closed  # before the loop ends, which closes every generator

    assert asyncio.run(scenario()) == (500, 1)


def test_an_error_before_the_first_answer_is_a_status(counting, ask_app):
    app = si.serving.asgi_app({"m": si.Stack(counting(fails_at=0))})

    async def scenario():
        async with app:
            body = json.dumps({"x": [3]}).encode()
            return [(await ask_app(app, "POST", f"/v2/models/m/{kind}", body)).status for kind in
                    ("generate_stream", "generate")]  # fmt: skip

    assert asyncio.run(scenario()) == [500, 501]


@pytest.mark.parametrize(("hangs_at", "status"), [(0, 499), (1, 200)])
def test_a_client_that_goes_away_ends_its_answers(counting, ask_app, hangs_at, status):
    service = counting(hangs_at=hangs_at)
    app = si.serving.asgi_app({"m": si.Stack(service)})

    async def scenario():
        async with app:
            gone = asyncio.Event()
            body = json.dumps({"x": [3]}).encode()
            asked = asyncio.ensure_future(ask_app(app, "POST", "/v2/models/m/generate_stream", body, gone=gone))
            await asyncio.sleep(0)
            gone.set()
            return await asked

    assert asyncio.run(asyncio.wait_for(scenario(), 30)).status == status
    assert service.closed == 1


@pytest.mark.parametrize(("kind", "status"), [("generate_stream", 200), ("generate", 501)])
def test_an_iterator_that_is_no_generator_is_closed(counting, ask_app, kind, status):
    """The app closes an iterator that has `aclose` but no `asend`, as the responses of other clients do."""

    class Answers:
        closed, given = 0, False

        def __aiter__(self):
            return self

        async def __anext__(self):
            if self.given:
                raise ValueError("secret")
            self.given = True
            return {"n": np.array([1])}

        async def aclose(self):
            self.closed += 1

    class Service(counting):
        def numbers(self, below):
            return Answers()

    service = Service()
    app = si.serving.asgi_app({"m": si.Stack(service)})

    async def scenario():
        async with app:
            return await ask_app(app, "POST", f"/v2/models/m/{kind}", json.dumps({"x": [3]}).encode())

    assert asyncio.run(scenario()).status == status
    assert [made.closed for made in service.made] == [1]


@pytest.mark.parametrize("sends", [0, 2])
def test_a_server_that_cannot_send_ends_the_answers(counting, caplog, sends):
    """After an `OSError` of `send`, the app closes the responses, sends no further message and logs no failure.

    Servers of ASGI 2.4 report in this way that the client has gone.
    """
    service, sent = counting(), []
    app = si.serving.asgi_app({"m": si.Stack(service)})
    messages = [{"type": "http.request", "body": b'{"x": [5]}'}]

    async def receive():
        return messages.pop() if messages else await asyncio.Event().wait()

    async def send(message):
        sent.append(message["type"])
        if len(sent) > sends:
            raise OSError("gone")

    async def scenario():
        async with app:
            scope = {"type": "http", "method": "POST", "path": "/v2/models/m/generate_stream", "headers": []}
            await app(scope, receive, send)

    asyncio.run(scenario())

    assert len(sent) == sends + 1
    assert service.closed == 1
    assert not caplog.records


def test_model_with_many_responses_is_decoupled(counting, ask_app):
    app = si.serving.asgi_app({"m": si.Stack(counting())})

    async def scenario():
        async with app:
            return (await ask_app(app, "GET", "/v2/models/m/config")).json

    assert asyncio.run(scenario())["model_transaction_policy"] == {"decoupled": True}
