"""Messages, types, responses and errors of the protocol, without a server."""

import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from triton_settings import make_settings
from tritonclient.grpc import service_pb2 as messages
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from streaminfer.backends.signature import guess_inputs
from streaminfer.backends.triton import model as model_module
from streaminfer.backends.triton.decode import decode_rows
from streaminfer.backends.triton.dtypes import dtype_of, encode_text, split_text, strings, texts
from streaminfer.backends.triton.errors import ServerError, from_status, of_http_status
from streaminfer.backends.triton.messages import InferResponse, Tensor
from streaminfer.backends.triton.model import latest, read_model
from streaminfer.backends.triton.request_splitter import RequestSplitter
from streaminfer.backends.triton.server_statistics import CounterReader
from streaminfer.backends.triton.session import CallCounts, Session
from streaminfer.backends.triton.transport import http_transport as http
from streaminfer.backends.triton.transport.wire import append_contents, split_contents, tag_of
from streaminfer.errors import BackendError, DeadlineExceeded, InvalidInput, Overloaded
from streaminfer.request import Request

INPUT = tag_of(messages.ModelInferRequest, "raw_input_contents")
OUTPUT = tag_of(messages.ModelInferResponse, "raw_output_contents")


@given(st.lists(st.binary(max_size=300), max_size=4), st.text(max_size=20))
def test_request_encoding_matches_protobuf(contents, name):
    head = messages.ModelInferRequest(model_name=name)
    head.inputs.add().name = "x"
    written = append_contents(head.SerializeToString(), INPUT, contents)
    head.raw_input_contents.extend(contents)
    assert messages.ModelInferRequest.FromString(written) == head


@given(st.lists(st.binary(max_size=300), max_size=4), st.integers(-(2**63), 2**63 - 1))
def test_response_decoding_matches_protobuf(contents, number):
    response = messages.ModelInferResponse(model_name="m", raw_output_contents=contents)
    response.outputs.add().shape.append(number)
    rest, found = split_contents(response.SerializeToString(), OUTPUT)
    assert [bytes(one) for one in found] == contents
    del response.raw_output_contents[:]
    assert messages.ModelInferResponse.FromString(rest) == response


@given(st.binary(max_size=60), st.data())
def test_garbage_and_truncated_messages_are_errors(garbage, data):
    """Garbage and truncated messages raise ValueError and no other exception."""
    whole = messages.ModelInferResponse(model_name="m", raw_output_contents=[b"12345678"]).SerializeToString()
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    for message in (garbage, cut):
        try:
            _, contents = split_contents(message, OUTPUT)
        except ValueError:
            continue
        assert contents in ([], [b"12345678"]) or message is garbage


def test_fields_of_a_later_protocol_are_passed_over():
    fixed = bytes((15 << 3 | 1, *range(8), 14 << 3 | 5, *range(4), 13 << 3, 200, 1))
    assert split_contents(fixed + bytes((OUTPUT, 1)) + b"x", OUTPUT) == (fixed, [b"x"])


@given(st.lists(st.binary(max_size=9), max_size=6))
def test_text_encoding_matches_tritonclient(elements):
    array = np.empty(len(elements), object)
    array[:] = elements
    encoded = encode_text(array)
    assert encoded == (serialize_byte_tensor(array).item() if elements else b"")
    decoded = split_text(encoded, len(elements))
    assert decoded == list(deserialize_bytes_tensor(encoded)) == elements
    assert texts(decoded, (len(elements),)).tolist() == elements


def test_text_of_every_kind_can_be_sent():
    assert encode_text(np.array(["é", "a"])) == encode_text(np.array(["é".encode(), b"a"], object))
    assert encode_text(np.array([b"ab"])) == b"\2\0\0\0ab"
    with pytest.raises(InvalidInput, match="got int"):
        encode_text(np.array([3], object))
    with pytest.raises(ValueError, match="past the end"):
        split_text(b"\5\0\0\0ab", 1)
    with pytest.raises(ValueError, match="past the end"):
        split_text(b"\0\0", 1)


def config(**more):
    return {"max_batch_size": 4, **more}


def described(inputs=None, outputs=None):
    def tensors(given):
        return [{"name": name, "datatype": datatype, "shape": shape} for name, (datatype, shape) in given.items()]

    inputs = {"x": ("FP32", ["-1", "2"])} if inputs is None else inputs
    outputs = {"y": ("FP32", [-1, 2])} if outputs is None else outputs
    return {"name": "m", "inputs": tensors(inputs), "outputs": tensors(outputs)}


def test_metadata_and_config_become_a_description():
    model = read_model(
        "m",
        "3",
        described(),
        config(
            dynamic_batching={
                "priority_levels": "5",
                "default_priority_level": "2",
                "default_queue_policy": {"allow_timeout_override": True},
            },
            instance_group=[{"count": 2, "gpus": [0, 1]}, {"count": 1}],
            model_transaction_policy={"decoupled": True},
        ),
    )
    assert [str(spec) for spec in (*model.inputs, *model.outputs)] == ["x float32[batch, 2]", "y float32[batch, 2]"]
    assert (model.max_batch_size, model.instances, model.decoupled, model.sequence) == (4, 5, True, False)
    assert (model.priority_levels, model.default_priority, model.takes_timeout) == (5, 2, True)


def test_sequence_config_sets_the_id_type():
    control = {"kind": "CONTROL_SEQUENCE_CORRID", "data_type": "TYPE_STRING"}
    sequence = {"max_sequence_idle_microseconds": "2000000", "control_input": [{"name": "ID", "control": [control]}]}
    model = read_model("m", "1", described(), config(sequence_batching=sequence))
    assert (model.sequence, model.correlation, model.sequence_idle_s) == (True, "TYPE_STRING", 2.0)
    assert read_model("m", "1", described(), config(sequence_batching={})).sequence


def ensemble(*steps):
    return config(ensemble_scheduling={"step": list(steps)})


def describe(configs):
    """Return the description of the model ``m`` of a server with these configurations, by name and version."""

    class Server:
        async def metadata(self, model, version, timeout_s):
            return {**described(), "versions": ["1"]}

        async def config(self, model, version, timeout_s):
            return configs[model, version]

    server = model_module.Server("triton", "2.51.0", frozenset({"model_configuration"}))
    return asyncio.run(model_module.describe_model(Server(), server, make_settings()))


def test_an_ensemble_has_the_sequences_of_its_parts():
    """An ensemble has the sequences of its parts, because the server passes ids and flags of a request on to the parts.

    The server rejects a request to such an ensemble without id and flags.
    """
    nested = ensemble({"model_name": "plain", "model_version": "-1"}, {"model_name": "inner", "model_version": "2"})
    configs = {
        ("m", ""): nested,
        ("plain", ""): config(),
        ("inner", "2"): ensemble({"model_name": "counter"}),
        ("counter", ""): config(sequence_batching={"max_sequence_idle_microseconds": 3000000}),
    }
    model = describe(configs)
    assert (model.ensemble, model.sequence, model.by_row, model.sequence_idle_s) == (True, True, True, 3.0)

    model = describe({**configs, ("counter", ""): config()})
    assert (model.ensemble, model.sequence, model.by_row) == (True, False, False)


@pytest.mark.parametrize("steps", [3, [3], [{}], [{"model_name": "n", "model_version": "x"}]])
def test_ensemble_with_unreadable_parts_is_an_error(steps):
    """An ensemble whose parts cannot be read is a BackendError."""
    with pytest.raises(BackendError, match="model 'm': the parts of the ensemble cannot be read"):
        describe({("m", ""): config(ensemble_scheduling={"step": steps})})


def test_model_without_batch_axis_is_called_row_by_row():
    """A model without a batch axis has a maximum batch size of 0 and is called row by row."""
    model = read_model("m", "1", described({"x": ("FP32", [2])}, {"y": ("FP32", [])}), {"max_batch_size": 0})
    assert [spec.row_shape for spec in (*model.inputs, *model.outputs)] == [(2,), ()]
    assert read_model("m", "1", described(), None).max_batch_size is None
    assert read_model("m", "1", described({"x": ("FP32", [2, 2])}), None).max_batch_size == 0


@pytest.mark.parametrize(
    "metadata",
    [described(inputs={}), described(outputs={}), described({"x": ("STRANGE", [-1])}), described({"x": ("FP32", [])}),
     {"inputs": 3, "outputs": 4}, described({"x": ("FP32", ["many"])})],
)  # fmt: skip
def test_unusable_model_is_rejected_at_start(metadata):
    """A model whose metadata cannot be used is rejected with a BackendError at the start."""
    with pytest.raises(BackendError, match="model 'm'"):
        read_model("m", "1", metadata, config())


def test_the_latest_version_is_the_highest_number():
    assert latest(["2", "10", "9"]) == "10"
    assert latest(["a", "1"]) == "1"
    assert latest([]) == ""


def splitter_of(model, non_finite="allow"):
    """Return the splitter of a session of a model, which validates its requests."""

    async def main():
        settings = make_settings(non_finite=non_finite)
        return RequestSplitter(Session(None, None, model, settings, None, CallCounts()), settings, lambda: None)

    return asyncio.run(main())


def test_requests_are_validated_and_text_by_shape():
    """Requests are validated as for other backends, and text by its shape."""
    model = read_model(
        "m", "1", described({"x": ("FP32", [-1, 2]), "t": ("BYTES", [-1, 1])}), config(input=[{"name": "t", "optional": True}])
    )  # fmt: skip
    assert [spec.is_optional for spec in model.inputs] == [False, True]
    check = splitter_of(model, "reject")
    x = np.zeros(2, np.float32)
    for inputs in (x, {"x": x}, {"x": x, "t": np.array(["long text"])}, {"x": x, "t": np.array([b"t"])},
                   {"x": x, "t": np.array([b"t"], object)}):  # fmt: skip
        check.validate(Request(inputs))
    for inputs, message in [
        ({"x": x, "t": np.array(["a", "b"])}, "input 't': expected str"),
        ({"x": x, "t": "a"}, "input 't'"),
        ({"t": np.array(["a"])}, "input 'x'.*missing"),
        ({"x": x, "u": x}, "no such input"),
        (np.zeros(3, np.float32), "axis 0 has 3 instead of 2"),
        (np.array([np.nan, 0], np.float32), "expected finite"),
    ]:
        with pytest.raises(InvalidInput, match=message):
            check.validate(Request(inputs))


def test_a_request_has_at_least_one_input():
    x = np.zeros(2, np.float32)
    optional = [{"name": name, "optional": True} for name in "xz"]
    inputs = {"x": ("FP32", [-1, 2]), "z": ("FP32", [-1, 2])}
    check = splitter_of(read_model("m", "1", described(inputs), config(input=optional)))
    check.validate(Request({"z": x}))
    with pytest.raises(InvalidInput, match="expected at least one input of model 'm', got none"):
        check.validate(Request({}))

    only = splitter_of(read_model("m", "1", described({"x": inputs["x"]}), config(input=optional[:1])))
    only.validate(Request(x))
    assert only.session.signature.batch_by_name(x, "m") == {"x": x}


def test_a_plain_number_is_the_required_input():
    """A plain number is the value of the required input, even if an optional input comes first."""
    inputs = {"a": ("FP32", [-1]), "x": ("FP32", [-1])}
    splitter = splitter_of(read_model("m", "1", described(inputs), config(input=[{"name": "a", "optional": True}])))
    request = Request(np.float32(2.0))

    splitter.validate(request)

    assert splitter.batch_of_one(request) == {"x": np.array([2.0], np.float32)}


def test_text_keeps_the_zeros_at_its_end():
    """A string of a single request keeps zeros at its end, as in a batch; NumPy's text types would drop them."""
    splitter = splitter_of(read_model("m", "1", described({"t": ("BYTES", [-1])}), config()))
    request = Request("a\0")

    splitter.validate(request)

    assert encode_text(splitter.batch_of_one(request)["t"]) == b"\2\0\0\0a\0"


TWO = described(outputs={"y": ("FP32", [-1, 2]), "t": ("BYTES", [-1])})
GOOD = {
    "y": Tensor("y", "FP32", (2, 2), np.arange(4, dtype=np.float32).tobytes()),
    "t": Tensor("t", "BYTES", (2,), b"\1\0\0\0a\0\0\0\0"),
}


def test_rows_are_read_only_views_even_if_unaligned():
    """Decoded rows are read-only views of one array, even if the received content is not aligned."""
    model = read_model("m", "1", TWO, config())
    for offset in range(4):
        content = memoryview(bytes(offset) + GOOD["y"].content)[offset:]
        rows = decode_rows(model, InferResponse({**GOOD, "y": GOOD["y"]._replace(content=content)}), 2, batched=True)
        assert [(row["y"].tolist(), row["t"]) for row in rows] == [([0, 1], b"a"), ([2, 3], b"")]
        assert all(row["y"].flags.aligned and not row["y"].flags.writeable for row in rows)
        assert rows[0]["y"].base is rows[1]["y"].base


@pytest.mark.parametrize(
    "wrong",
    [{"y": None}, {"y": {"datatype": "FP64"}}, {"y": {"shape": (1, 2)}}, {"y": {"shape": (2, 3)}},
     {"y": {"shape": (4,)}}, {"y": {"shape": (-2, -2)}}, {"y": {"content": b"123"}}, {"y": {"content": b""}},
     {"y": {"content": None}}, {"y": {"content": ["a", "b"]}}, {"t": {"content": b"\1\0\0\0a"}},
     {"t": {"content": b"\x09\0\0\0a"}}, {"y": {"shape": (3, 2), "content": bytes(24)}}, {"y": {"shape": (2**40, 2**40)}}],
)  # fmt: skip
def test_response_unlike_model_is_an_explained_error(wrong):
    """A response that does not match the model is an error that names the output."""
    outputs = dict(GOOD)
    for name, changes in wrong.items():
        if changes is None:
            del outputs[name]
        else:
            outputs[name] = outputs[name]._replace(**changes)
    with pytest.raises(BackendError, match=f"model 'm': (response has no )?output '{next(iter(wrong))}'"):
        decode_rows(read_model("m", "1", TWO, config()), InferResponse(outputs), 2, batched=True)


@pytest.mark.parametrize(
    ("datatype", "elements"), [("INT64", [1, 1.5]), ("BOOL", [True, 5]), ("INT8", [1, 300]), ("FP16", [1.0, 7e4])]
)
def test_listed_element_outside_its_type_is_an_error(datatype, elements):
    """A listed element that the data type cannot represent is an error.

    NumPy would convert 1.5 to 1, 5 to true, and 70,000 to infinity.
    """
    model = read_model("m", "1", described(outputs={"y": (datatype, [-1])}), config())
    response = InferResponse({"y": Tensor("y", datatype, (2,), elements)})
    with pytest.raises(BackendError, match="model 'm': output 'y': expected a content of"):
        decode_rows(model, response, 2, batched=True)


@pytest.mark.parametrize(
    ("datatype", "elements"),
    [("INT64", [1, 2**62]), ("BOOL", [True, False]), ("FP32", [1, 1.5]), ("INT8", [[1], [-2]])],
)
def test_listed_elements_are_rows(datatype, elements):
    model = read_model("m", "1", described(outputs={"y": (datatype, [-1])}), config())
    rows = decode_rows(model, InferResponse({"y": Tensor("y", datatype, (2,), elements)}), 2, batched=True)
    assert np.array_equal(rows, np.ravel(elements))


@pytest.mark.parametrize(
    ("body", "head_length"),
    [(b"", None), (b"[]", None), (b"{}", None), (b'{"outputs": 3}', None), (b'{"outputs": [{}]}', None),
     (b'{"outputs": []}', "99"), (b'{"outputs": []}', "-1"), (b'{"outputs": []}', "x"), (b"\xff", None),
     (b'{"outputs":[{"name":"y","datatype":"FP32","shape":[1],"parameters":{"binary_data_size":4}}]}', "88")],
)  # fmt: skip
def test_unreadable_http_response_is_an_error(body, head_length):
    """An HTTP response that cannot be read is a BackendError."""
    with pytest.raises(BackendError, match="the server's response"):
        http._read(body, head_length)


def test_bfloat16_has_a_type():
    assert dtype_of("BF16").itemsize == 2
    assert dtype_of("STRANGE") is None


def test_bfloat16_is_a_type_of_numbers():
    """Values of type bfloat16 are checked for finiteness, and a batcher's example of them is zeros."""
    model = read_model("m", "1", described({"x": ("BF16", [-1, 2])}), config())
    check = splitter_of(model, "reject")
    finite = np.zeros(2, dtype_of("BF16"))

    check.validate(Request(finite))
    for wrong in (np.nan, np.inf):
        with pytest.raises(InvalidInput, match=r"input 'x': expected finite values .* the first at \(1,\)"):
            check.validate(Request(np.array([0, wrong], finite.dtype)))
    assert guess_inputs(model.inputs)["x"].tobytes() == finite.tobytes()


@pytest.mark.parametrize(
    ("status", "text", "kind", "retryable"),
    [
        ("UNAVAILABLE", "failed to connect", BackendError, None),
        ("UNAVAILABLE", "[request id: x] Exceeds maximum queue size", Overloaded, None),
        ("UNAVAILABLE", "Request timeout expired", DeadlineExceeded, None),
        ("DEADLINE_EXCEEDED", "", DeadlineExceeded, None),
        ("RESOURCE_EXHAUSTED", "quota", Overloaded, None),
        ("RESOURCE_EXHAUSTED", "message larger than max", BackendError, False),
        ("INVALID_ARGUMENT", "NaN", InvalidInput, None),
        ("NOT_FOUND", "unknown model", BackendError, None),
        ("INTERNAL", "Stub process 'm' is not healthy", BackendError, None),
        ("UNIMPLEMENTED", "", BackendError, False),
        ("UNAUTHENTICATED", "", BackendError, False),
        ("PERMISSION_DENIED", "", BackendError, False),
    ],
)
def test_server_errors_are_mapped_and_keep_their_cause(status, text, kind, retryable):
    """Each server error becomes an exception of our hierarchy and keeps its cause."""
    refused = ServerError(status, text)
    refused.__cause__ = OSError("below")
    error = from_status(refused, "it")
    assert type(error) is kind
    assert text in str(error)
    assert error.__cause__ is refused.__cause__
    assert getattr(error, "retryable", None) is retryable


def test_http_statuses_are_read_with_their_text():
    assert [of_http_status(status, "") for status in (400, 401, 404, 418, 429, 500, 503, 504)] == [
        "INVALID_ARGUMENT", "UNAUTHENTICATED", "NOT_FOUND", "UNKNOWN", "RESOURCE_EXHAUSTED", "INTERNAL", "UNAVAILABLE",
        "UNAVAILABLE",
    ]  # fmt: skip
    assert of_http_status(400, "Request for unknown model: 'm'") == "NOT_FOUND"
    assert of_http_status(400, "Stub process is not healthy") == "INTERNAL"


def counters(requests, queue_ns, infer_ns):
    parts = {
        "success": {"count": str(requests)},
        "queue": {"ns": str(queue_ns)},
        "compute_infer": {"ns": str(infer_ns)},
    }
    return [{"inference_count": str(4 * requests), "execution_count": str(requests), "inference_stats": parts}]


def test_server_times_are_differences_of_counters():
    """Server times are differences between counter readings and survive a restart of the server."""
    reader = CounterReader()
    reader.read(counters(100, 10**9, 10**9))
    assert (reader.total.requests, reader.total.queue_s, reader.recent) == (0, 0.0, None)
    reader.read(counters(110, 10**9 + 10**8, 10**9 + 2 * 10**8))
    assert (reader.total.requests, reader.total.rows, reader.total.executions) == (10, 40, 10)
    assert (reader.total.queue_s, reader.total.compute_s) == pytest.approx((0.01, 0.02))
    reader.read(counters(10, 3 * 10**8, 0))  # the server was restarted
    assert (reader.total.requests, reader.recent.requests) == (20, 10)
    assert (reader.total.queue_s, reader.recent.queue_s) == pytest.approx((0.02, 0.03))
    with pytest.raises(KeyError):
        reader.read([{}])


def test_text_for_json_is_text():
    assert strings(np.array([["é", b"a"]], object)) == ["é", "a"]
    for bad, why in ((b"\xff", "takes no binary tensors"), (None, "str or bytes"), ("\ud800", "surrogate")):
        with pytest.raises(InvalidInput, match=why):
            strings(np.array(["a", bad], object))


def test_error_without_input_never_blames_the_caller():
    """An error of a server call that has no input is never reported as the caller's fault."""
    refused = ServerError("INVALID_ARGUMENT", "no such region")
    error = from_status(refused, "registering", has_inputs=False)
    assert type(error) is BackendError
    assert (str(error), error.__cause__) == ("registering failed with INVALID_ARGUMENT: no such region", refused)
    assert type(from_status(ServerError("DEADLINE_EXCEEDED", ""), "registering", has_inputs=False)) is DeadlineExceeded


def test_counters_survive_the_unload_of_a_version():
    """If a version is unloaded, its counters disappear, and the sum continues from their last known values."""

    def of(version, requests):
        return [{**one, "version": version} for one in counters(requests, 0, 0)]

    reader = CounterReader()
    reader.read(of("1", 1000))
    reader.read([*of("1", 1100), *of("2", 50)])
    assert reader.total.requests == 150
    reader.read(of("2", 70))
    assert (reader.total.requests, reader.recent.requests) == (170, 20)
