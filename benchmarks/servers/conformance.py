"""Checks of the Open Inference Protocol and its extensions, by standard clients, against any server.

Each check is a function of a `Target` that raises unless the server follows the protocol. `verdicts` runs all checks.
"""

import http.client
import json
import re
import subprocess
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import grpc
import numpy as np
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client
from tritonclient.grpc import service_pb2, service_pb2_grpc

from servers.environments import ENVIRONMENTS
from servers.mlp import mlp_answers

__all__ = ["CHECKS", "Target", "verdicts"]

X = np.random.default_rng(7).random((3, 8), np.float32)
INFER = "/infer"
OK, BAD_REQUEST, NOT_FOUND = 200, 400, 404
CHECKS: dict[str, Callable[["Target"], None]] = {}


@attrs.frozen
class Target:
    """A server with the model ``mlp`` of `servers.mlp`: ``x`` float32[rows, 8] → ``y`` float32[rows, 4].

    Attributes:
        http_url: ``host:port``.
        grpc_url: ``host:port`` for gRPC.
        model: name of the model.
    """

    http_url: str
    grpc_url: str
    model: str = "mlp"

    def post(self, path: str, body: bytes, headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
        """Send a POST request to a path of the model; return the status and the body."""
        connection = http.client.HTTPConnection(self.http_url, timeout=20)
        try:
            connection.request("POST", f"/v2/models/{self.model}{path}", body, headers or {})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def http(self) -> Any:
        """Return a client for HTTP, a context manager."""
        return http_client.InferenceServerClient(self.http_url, network_timeout=20.0)

    def grpc(self) -> Any:
        """Return a client for gRPC, a context manager."""
        return grpc_client.InferenceServerClient(self.grpc_url)


def verdicts(target: Target) -> dict[str, str]:
    """Run all checks; return the error of each, or an empty text if the server passes it."""
    found = {}
    for name, check in CHECKS.items():
        try:
            check(target)
        except Exception as error:
            found[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"
        else:
            found[name] = ""
    return found


def _check(name: str) -> Callable[[Callable[[Target], None]], Callable[[Target], None]]:
    def add(function: Callable[[Target], None]) -> Callable[[Target], None]:
        CHECKS[name] = function
        return function

    return add


def _expect(condition: Any, came: Any) -> None:
    if not condition:
        raise AssertionError(f"got {came}")


def _body(**changes: Any) -> bytes:
    tensor = {"name": "x", "datatype": "FP32", "shape": list(X.shape), "data": X.ravel().tolist(), **changes}
    return json.dumps({"inputs": [tensor]}).encode()


def _input(client: Any, *, binary: bool = True) -> list[Any]:
    tensor = client.InferInput("x", list(X.shape), "FP32")
    if client is http_client:
        tensor.set_data_from_numpy(X, binary_data=binary)
    else:
        tensor.set_data_from_numpy(X)
    return [tensor]


def _check_answer(answer: Any) -> None:
    found = answer.as_numpy("y")
    _expect(found is not None and np.allclose(found.reshape(3, 4), mlp_answers(X), atol=1e-5), found)


@_check("HTTP: health of server and model")
def _http_health(target: Target) -> None:
    with target.http() as client:
        _expect(
            client.is_server_live() and client.is_server_ready() and client.is_model_ready(target.model), "not ready"
        )
        _expect(not client.is_model_ready("no_such_model"), "ready for a model that does not exist")


@_check("HTTP: metadata of server and model")
def _http_metadata(target: Target) -> None:
    with target.http() as client:
        server, model = client.get_server_metadata(), client.get_model_metadata(target.model)
    _expect({"name", "version", "extensions"} <= server.keys(), server)
    (given,) = model["inputs"]
    _expect((given["name"], given["datatype"], list(map(int, given["shape"]))) == ("x", "FP32", [-1, 8]), model)


@_check("HTTP: a named version")
def _http_version(target: Target) -> None:
    status, body = target.post(f"/versions/1{INFER}", _body(), {"content-type": "application/json"})
    _expect(status == OK and "outputs" in json.loads(body), (status, body[:80]))


@_check("HTTP: JSON tensors")
def _http_json(target: Target) -> None:
    with target.http() as client:
        outputs = [http_client.InferRequestedOutput("y", binary_data=False)]
        _check_answer(client.infer(target.model, _input(http_client, binary=False), outputs=outputs))


@_check("HTTP: binary tensors, both ways")
def _http_binary(target: Target) -> None:
    with target.http() as client:
        answer = client.infer(target.model, _input(http_client))
        _check_answer(answer)
        output = answer.get_output("y")
        _expect("binary_data_size" in output.get("parameters", {}), output.keys())


@_check("HTTP: binary tensors in, JSON out")
def _http_mixed(target: Target) -> None:
    with target.http() as client:
        outputs = [http_client.InferRequestedOutput("y", binary_data=False)]
        answer = client.infer(target.model, _input(http_client), outputs=outputs)
        _check_answer(answer)
        _expect("data" in answer.get_output("y"), answer.get_output("y").keys())


@_check("HTTP: the request's id is returned")
def _http_id(target: Target) -> None:
    with target.http() as client:
        outputs = [http_client.InferRequestedOutput("y", binary_data=False)]
        answer = client.infer(target.model, _input(http_client, binary=False), request_id="r-7", outputs=outputs)
    _expect(answer.get_response().get("id") == "r-7", answer.get_response().get("id"))


@_check("HTTP: an unknown output is 400")
def _http_unknown_output(target: Target) -> None:
    body = json.loads(_body()) | {"outputs": [{"name": "no_such_output"}]}
    status, _ = target.post(INFER, json.dumps(body).encode(), {"content-type": "application/json"})
    _expect(status == BAD_REQUEST, status)


@_check("HTTP: a wrong shape, datatype or name is 400")
def _http_wrong_input(target: Target) -> None:
    for change in ({"shape": [3, 9]}, {"datatype": "FP99"}, {"name": "z"}):
        status, _ = target.post(INFER, _body(**change), {"content-type": "application/json"})
        _expect(status == BAD_REQUEST, f"{status} for {change}")


@_check("HTTP: malformed JSON is 400")
def _http_malformed(target: Target) -> None:
    status, _ = target.post(INFER, b'{"inputs": [', {"content-type": "application/json"})
    _expect(status == BAD_REQUEST, status)


@_check("HTTP: an unknown model is 404")
def _http_unknown_model(target: Target) -> None:
    status, _ = attrs.evolve(target, model="no_such_model").post(INFER, _body(), {"content-type": "application/json"})
    _expect(status == NOT_FOUND, status)


@_check("HTTP: an error is JSON with `error`")
def _http_error(target: Target) -> None:
    _, body = target.post(INFER, _body(name="z"), {"content-type": "application/json"})
    _expect("error" in json.loads(body), body[:80])


@_check("HTTP: a deadline that has passed ends the request (`timeout` of 1 µs)")
def _http_timeout(target: Target) -> None:
    body = json.loads(_body()) | {"parameters": {"timeout": 1}}
    status, _ = target.post(INFER, json.dumps(body).encode(), {"content-type": "application/json"})
    _expect(status != OK, status)


@_check("HTTP: configuration")
def _http_config(target: Target) -> None:
    with target.http() as client:
        config = client.get_model_config(target.model)
    _expect({"name", "max_batch_size", "input", "output"} <= config.keys(), config.keys())


@_check("HTTP: statistics, of one model and of all")
def _http_statistics(target: Target) -> None:
    with target.http() as client:
        for name in (target.model, ""):
            one = client.get_inference_statistics(name)["model_stats"][0]
            _expect({"inference_count", "execution_count", "inference_stats"} <= one.keys(), one.keys())


@_check("HTTP: `generate`")
def _http_generate(target: Target) -> None:
    status, body = target.post("/generate", json.dumps({"x": X[0].tolist()}).encode())
    _expect(status == OK and "y" in json.loads(body), (status, body[:80]))


@_check("HTTP: `generate_stream` sends events")
def _http_generate_stream(target: Target) -> None:
    status, body = target.post("/generate_stream", json.dumps({"x": X[0].tolist()}).encode())
    _expect(status == OK and body.startswith(b"data: {"), (status, body[:80]))


@_check("gRPC: health of server and model")
def _grpc_health(target: Target) -> None:
    with target.grpc() as client:
        _expect(
            client.is_server_live() and client.is_server_ready() and client.is_model_ready(target.model), "not ready"
        )


@_check("gRPC: the standard health service")
def _grpc_standard_health(target: Target) -> None:
    with grpc.insecure_channel(target.grpc_url) as channel:
        _expect(channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=10) == b"\x08\x01", "not serving")


@_check("gRPC: metadata of server and model")
def _grpc_metadata(target: Target) -> None:
    with target.grpc() as client:
        server, model = client.get_server_metadata(), client.get_model_metadata(target.model)
    _expect(server.name and (model.inputs[0].name, list(model.inputs[0].shape)) == ("x", [-1, 8]), model)


@_check("gRPC: raw tensors, both ways")
def _grpc_raw(target: Target) -> None:
    with target.grpc() as client:
        answer = client.infer(target.model, _input(grpc_client), request_id="r-7")
    _check_answer(answer)
    _expect(answer.get_response().raw_output_contents, "typed contents")
    _expect(answer.get_response().id == "r-7", answer.get_response().id)


@_check("gRPC: typed contents")
def _grpc_typed(target: Target) -> None:
    call = service_pb2.ModelInferRequest(model_name=target.model)
    call.inputs.add(name="x", datatype="FP32", shape=X.shape).contents.fp32_contents.extend(X.ravel().tolist())
    with grpc.insecure_channel(target.grpc_url) as channel:
        response = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(call, timeout=10)
    _expect(list(response.outputs[0].shape) == [3, 4], response)


def _call(model: str, identity: str, name: str = "x") -> Any:
    call = service_pb2.ModelInferRequest(model_name=model, id=identity, raw_input_contents=[X.tobytes()])
    call.inputs.add(name=name, datatype="FP32", shape=X.shape)
    return call


def _grpc_code(target: Target, model: str, name: str) -> grpc.StatusCode:
    call = _call(model, "", name)
    with grpc.insecure_channel(target.grpc_url) as channel:
        try:
            service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(call, timeout=10)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
    return grpc.StatusCode.OK


@_check("gRPC: an unknown model is NOT_FOUND, a wrong input INVALID_ARGUMENT")
def _grpc_errors(target: Target) -> None:
    codes = _grpc_code(target, "no_such_model", "x").name, _grpc_code(target, target.model, "z").name
    _expect(codes == ("NOT_FOUND", "INVALID_ARGUMENT"), codes)


@_check("gRPC: configuration and statistics")
def _grpc_config(target: Target) -> None:
    with target.grpc() as client:
        config = client.get_model_config(target.model).config
        statistics = client.get_inference_statistics(target.model).model_stats
    _expect(config.name == target.model and statistics[0].inference_stats.success.count >= 1, config.name)


def _stream(target: Target, *models: str) -> list[Any]:
    """Return the responses of one stream, without ``tritonclient``, which can hang if a server has no streams."""
    with grpc.insecure_channel(target.grpc_url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        calls = [_call(model, str(number)) for number, model in enumerate(models)]
        return list(stub.ModelStreamInfer(iter(calls), timeout=10))


@_check("gRPC: ModelStreamInfer answers in order")
def _grpc_stream(target: Target) -> None:
    found = _stream(target, *[target.model] * 5)
    _expect([one.infer_response.id for one in found] == list("01234"), [one.error_message for one in found])


@_check("gRPC: an error of one request leaves the stream open")
def _grpc_stream_error(target: Target) -> None:
    found = _stream(target, "no_such_model", target.model)
    _expect([bool(one.error_message) for one in found] == [True, False], [one.error_message for one in found])


def _perf_analyzer(target: Target, *arguments: str) -> None:
    """Run Triton's load generator until three windows in a row have responses, however unstable the figures are."""
    program = ENVIRONMENTS["perf_analyzer"].make().python.with_name("perf_analyzer")
    measured = ("--measurement-interval", "100", "--max-trials", "30", "--stability-percentage", "999")
    command = [str(program), "-m", target.model, *arguments, *measured, "--concurrency-range", "4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    rate = re.search(r"Throughput: ([0-9.]+) infer/sec", done.stdout)
    _expect(done.returncode == 0 and rate and float(rate[1]) > 0 and not done.stderr, done.stdout[-99:] + done.stderr)


@_check("`perf_analyzer` over HTTP")
def _perf_analyzer_http(target: Target) -> None:
    _perf_analyzer(target, "-i", "http", "-u", target.http_url)


@_check("`perf_analyzer` over gRPC")
def _perf_analyzer_grpc(target: Target) -> None:
    _perf_analyzer(target, "-i", "grpc", "-u", target.grpc_url)


@_check("`perf_analyzer` over one gRPC stream")
def _perf_analyzer_stream(target: Target) -> None:
    _perf_analyzer(target, "-i", "grpc", "-u", target.grpc_url, "--streaming", "--async")


@_check("extensions that are announced work")
def _extensions(target: Target) -> None:
    probes = {
        "binary_tensor_data": "HTTP: binary tensors, both ways",
        "binary_tensor_data_output": "HTTP: binary tensors, both ways",
        "model_configuration": "HTTP: configuration",
        "statistics": "HTTP: statistics, of one model and of all",
        "generate": "HTTP: `generate`",
    }
    with target.http() as client:
        announced = client.get_server_metadata()["extensions"]
    for name in announced:
        if name in probes:
            CHECKS[probes[name]](target)
