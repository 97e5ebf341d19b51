"""Malformed and hostile inference requests from the grammar of the protocol, for HTTP and for gRPC.

`rest_request` and `grpc_message` draw a request from a random number generator. Most are valid requests with one to
three mutations; the others are valid or garbage.
"""

import copy
import json
import random
from collections.abc import Callable, Mapping
from typing import Any

from tritonclient.grpc import service_pb2 as pb

__all__ = ["ALLOWED_GRPC", "ALLOWED_REST", "grpc_message", "rest_request"]

ALLOWED_REST = {200, 400, 404, 405, 413, 415, 501, 504}
"""Statuses that a request of the grammar may get; never 500."""
ALLOWED_GRPC = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED", "DEADLINE_EXCEEDED"}

DATATYPES = ["BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "FP16", "FP32", "FP64",
             "BF16", "BYTES"]  # fmt: skip
SIZES = {"BOOL": 1, "INT8": 1, "UINT8": 1, "INT16": 2, "UINT16": 2, "FP16": 2, "BF16": 2, "INT32": 4, "UINT32": 4,
         "FP32": 4, "INT64": 8, "UINT64": 8, "FP64": 8}  # fmt: skip
ODD: list[Any] = [None, True, False, -1, 0, 1, 2**31, 2**63, 2**64, 10**40, 1.5, -0.0, 1e308, "", "x", "\x00", "\ud800",
                  "FP32", "object", "cos\nsystem\n(S'id'\ntR.", [], [[]], [[[[[[[[[[]]]]]]]]]], {}, {"a": 1}, [None],
                  [1, [2]], "x" * 5000, list(range(300))]  # fmt: skip
KEYS = ("parameters", "data", "shape", "timeout", "priority", "sequence_id", "sequence_start", "binary_data_size",
        "shared_memory_region", "classification")  # fmt: skip
HEADERS = {
    "content-type": ["application/json", "application/octet-stream", "text/plain", "a" * 300, "multipart/form-data; x"],
    "content-encoding": ["gzip", "identity", "deflate"],
    "content-length": ["0", "-1", "999999999999", "1e3", "x"],
    "inference-header-content-length": ["0", "-1", "1", "99999999", "x", "9" * 50, "٣"],
    "grpc-timeout": ["1n", "1S", "x", "99999999H", "-1S"],
    "x-envoy-expected-rq-timeout-ms": ["0", "1", "x", "1e9"],
    "x-request-timeout-seconds": ["0", "nan", "inf", "5"],
    "x-streaminfer-timeout-s": ["0", "-1", "3"],
    "x-streaminfer-priority": ["0", "x", "-7", "99999999999"],
    "x-streaminfer-tenant": ["t", "t" * 999],
    "x-streaminfer-stream-id": ["s", "s" * 999],
}
PATHS = ["/v2/models/m/infer", "/v2/models/m/generate", "/v2/models/m/generate_stream", "/v2/models/m/versions/1/infer",
         "/v2/models/m/versions/9/infer", "/v2/models/x/infer", "/v2/models//infer", "/v2//infer", "/../etc/passwd",
         "/v2/models/m/infer/", "/v2/models/m", "/v2/models/m/config"]  # fmt: skip


def rest_request(rng: random.Random) -> tuple[str, str, Mapping[str, str], bytes]:
    """Return the method, path, headers and body of one request."""
    head, contents = _valid(rng)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        _mutate(rng, head)
    text = json.dumps(head).encode()
    headers: dict[str, str] = {}
    if contents or rng.random() < 0.05:
        headers["inference-header-content-length"] = str(len(text))
    body = text + b"".join(contents)
    if rng.random() < 0.2:
        body = rng.choice(BYTE_MUTATIONS)(rng, body)
    for name in rng.sample(sorted(HEADERS), rng.choice((0, 0, 0, 1, 2))):
        headers[name] = rng.choice(HEADERS[name])
    path = PATHS[0] if rng.random() < 0.8 else rng.choice(PATHS)
    return rng.choice(("POST",) * 19 + ("GET",)), path, headers, body


def grpc_message(rng: random.Random) -> bytes:
    """Return the bytes of one ``ModelInferRequest``, or of something like it."""
    call = pb.ModelInferRequest(model_name=rng.choice(("m",) * 9 + ("x", "")), model_version=rng.choice(("", "1", "9")))
    for number in range(rng.choice((0, 1, 1, 1, 2, 70))):
        datatype, shape = rng.choice((*DATATYPES, "object", "")), _shape(rng)
        call.inputs.add(name=rng.choice((f"x{number}", "x", "")), datatype=datatype, shape=shape)
        if rng.random() < 0.7:
            call.raw_input_contents.append(_content(rng, datatype, shape))
        else:
            call.inputs[-1].contents.fp32_contents.extend([1.5] * rng.randrange(9))
            call.inputs[-1].contents.bytes_contents.extend([b"\xff"] * rng.randrange(3))
    for name in rng.sample(("timeout", "priority", "sequence_id", "sequence_start", "x"), rng.randrange(3)):
        call.parameters[name].int64_param = rng.choice((0, 1, -1, 2**62))
    if rng.random() < 0.1:
        call.outputs.add(name=rng.choice(("output", "other", ""))).parameters["classification"].int64_param = 3
    message: bytes = call.SerializeToString()
    return rng.choice(BYTE_MUTATIONS)(rng, message) if rng.random() < 0.4 else message


def _shape(rng: random.Random) -> list[int]:
    if rng.random() < 0.2:
        return rng.choice(([], [0], [-1], [2**31, 2**31], [2**62] * 3, [1] * 40, [300, 1], [1, 2**40]))
    return [rng.randrange(1, 4) for _ in range(rng.randrange(1, 4))]


def _content(rng: random.Random, datatype: str, shape: list[int]) -> bytes:
    count = 1
    for size in shape:
        count *= max(size, 0)
    count = min(count, 64)
    if datatype == "BYTES":
        content = b"".join(len(one).to_bytes(4, "little") + one for one in [b"ab"] * count)
    else:
        content = bytes(rng.randrange(2) for _ in range(count * SIZES.get(datatype, 1)))
    return content if rng.random() < 0.8 else rng.choice(BYTE_MUTATIONS)(rng, content)


def _valid(rng: random.Random) -> tuple[dict[str, Any], list[bytes]]:
    inputs: list[dict[str, Any]] = []
    contents: list[bytes] = []
    rows = rng.randrange(1, 4)
    for number in range(rng.choice((1, 1, 1, 2, 70))):
        datatype = rng.choice(DATATYPES)
        shape = [rows, rng.randrange(1, 5)]
        tensor: dict[str, Any] = {"name": f"x{number}", "datatype": datatype, "shape": shape}
        if rng.random() < 0.5:
            content = _content(rng, datatype, shape)
            tensor["parameters"] = {"binary_data_size": len(content)}
            contents.append(content)
        else:
            element: Any = {"BOOL": True, "BYTES": "é"}.get(datatype, 1)
            tensor["data"] = [element] * (shape[0] * shape[1])
        inputs.append(tensor)
    head: dict[str, Any] = {"id": "1", "inputs": inputs, "parameters": {"binary_data_output": rng.random() < 0.5}}
    if rng.random() < 0.2:
        head["outputs"] = [{"name": rng.choice(("output", "x0", "other")), "parameters": {"binary_data": True}}]
    return head, contents


def _mutate(rng: random.Random, head: dict[str, Any]) -> None:
    """Replace, remove or add a value at a random place of a request."""
    node: Any = head
    while True:
        keys: list[Any] = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(node[key], (dict, list)) and rng.random() < 0.75:
            node = node[key]
            continue
        match rng.randrange(4):
            case 0 if isinstance(node, dict):
                del node[key]
            case 1 if isinstance(node, dict):
                node[rng.choice(KEYS)] = copy.deepcopy(rng.choice(ODD))
            case 2 if isinstance(node, list):
                node.extend(node * rng.choice((1, 3, 100)) if len(node) < 50 else [])
            case _:
                node[key] = copy.deepcopy(rng.choice(ODD))
        return


def _cut(rng: random.Random, body: bytes) -> bytes:
    return body[: rng.randrange(len(body) + 1)]


def _flip(rng: random.Random, body: bytes) -> bytes:
    changed = bytearray(body)
    for _ in range(min(len(body), rng.randrange(1, 5))):
        changed[rng.randrange(len(body))] = rng.randrange(256)
    return bytes(changed)


def _lengthen(rng: random.Random, body: bytes) -> bytes:
    return body + rng.choice((b"\0", b"x" * 100, b"\xff" * 9, b"\x3a\x00" * 20_000))


def _replace(rng: random.Random, body: bytes) -> bytes:
    del body
    return rng.choice((b"", b"[" * 100_000, b'{"a":' * 50_000, b"9" * 10_000, b"\xff\xfe{}", b"null", rng.randbytes(64),
                       b"\x80\x04\x95\x0b\x00", b"x" * 200_000, b"[" + b"0," * 60_000 + b"0]"))  # fmt: skip


BYTE_MUTATIONS: list[Callable[[random.Random, bytes], bytes]] = [_cut, _flip, _lengthen, _replace]
