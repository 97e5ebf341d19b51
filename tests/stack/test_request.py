"""Requests, responses and batches, and the errors that end a request."""

import copy
import importlib
import os
import pickle
import subprocess
import sys
import weakref

import numpy as np
import pytest

import streaminfer as si
from streaminfer import errors
from streaminfer._internal.validation import check_count, check_duration

pytestmark = pytest.mark.uncompiled


@pytest.fixture(params=["installed", "plain"])
def module(request, plain):
    return importlib.import_module("streaminfer._request_cy") if request.param == "installed" else plain("_request_cy")


def test_copy_with_another_deadline(module):
    """`with_deadline` keeps all other fields, as `replace` does."""
    fields = {
        "priority": 2,
        "stream_id": "a",
        "tenant": "b",
        "subject": "c",
        "tags": ("d",),
        "key": "e",
        "store": False,
    }
    request = module.Request(1.0, deadline_ns=5, **fields)

    for deadline_ns in (7, None):
        found, same = module.with_deadline(request, deadline_ns), request.replace(deadline_ns=deadline_ns)
        for name in ("inputs", "deadline_ns", *fields):
            assert getattr(found, name) == getattr(same, name)
    assert request.deadline_ns == 5


def test_request_has_fields_and_replace_keeps_them(module):
    request = module.Request(
        1.0, deadline_ns=5, priority=-2, stream_id="s", tenant="t", subject="u", tags=["a", "b"], key="k", store=False
    )
    assert (request.inputs, request.deadline_ns, request.priority) == (1.0, 5, -2)
    assert (request.stream_id, request.tenant, request.subject, request.key, request.store) == (
        "s",
        "t",
        "u",
        "k",
        False,
    )
    assert request.tags == ("a", "b")
    other = request.replace(inputs=2.0, priority=3)
    assert (other.inputs, other.priority, other.deadline_ns, other.tags, other.store) == (2.0, 3, 5, ("a", "b"), False)
    assert weakref.ref(request)() is request


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("deadline_ns", 1.5), ("deadline_ns", True), ("deadline_ns", 2**63), ("priority", "x"), ("priority", 1.5),
        ("priority", False), ("priority", 2**31), ("tags", "word"),
    ],
)  # fmt: skip
def test_bad_fields_are_named(module, field, value):
    with pytest.raises(si.InvalidInput, match=f"{field}: expected .* got "):
        module.Request(1.0, **{field: value})


def test_compiled_objects_cannot_be_changed():
    if importlib.import_module("streaminfer._request_cy").__file__.endswith(".py"):
        return  # the uncompiled build does not enforce this
    with pytest.raises(AttributeError):
        si.Request(1.0).priority = 3
    with pytest.raises(AttributeError):
        si.Response(1.0).outputs = 3


def test_reprs_are_short_and_say_shapes(module):
    request = module.Request({"x": np.zeros((2, 3), np.float32)}, deadline_ns=7, priority=1, tags=("a",), store=False)
    assert repr(request) == "Request({x: float32[2, 3]}, deadline_ns=7, priority=1, tags=('a',), store=False)"
    assert len(repr(module.Request("x" * 1000, stream_id="s"))) < 100
    endless = {}
    endless["inner"] = endless
    assert repr(module.Request(endless)) == "Request({inner: {inner: {inner: {...}}}})"
    timings = module.Timings(0, 1000, 3000, 10_000, 4)
    assert (timings.queued_s, timings.assembled_s, timings.inferred_s) == (1e-6, 2e-6, 7e-6)
    assert repr(module.Response(1.0, True, "model", timings)) == (
        "Response(1.0, source='model', degraded=True, timings=Timings(queued_s=0.000001, assembled_s=0.000002, "
        "inferred_s=0.000007, batch_size=4))"
    )


def test_requests_and_answers_can_be_pickled():
    request = pickle.loads(pickle.dumps(si.Request(1.0, deadline_ns=5, tags=("a",))))
    assert (request.inputs, request.deadline_ns, request.tags) == (1.0, 5, ("a",))


def test_pickles_of_one_build_are_read_by_the_other():
    """Compiled and uncompiled builds read each other's pickles: a machine without a compiler can call one with it."""
    sent = [
        si.Request({"x": 1.0}, priority=2, stream_id=3, tenant="b", subject="c", tags=("d",), key=(4,), store=False),
        si.Response({"y": 2.0}, True, "model", si.request.Timings(1000, 2000, 4000, 11_000, 4)),
    ]
    code = "import pickle, sys; values = pickle.load(sys.stdin.buffer); sys.stdout.buffer.write(pickle.dumps(values))"
    for disabled in "01":
        back = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"STREAMINFER_DISABLE_COMPILED": disabled},
            input=pickle.dumps(sent),
            stdout=subprocess.PIPE,
            check=True,
        )
        request, response = pickle.loads(back.stdout)
        assert (repr(request), repr(response)) == tuple(map(repr, sent))
        assert response.timings.enqueued_ns == 1000


def test_batch_has_its_given_fields():
    batch = si.Batch(np.zeros((2, 3)), [si.Request(1), si.Request(2)], 77)
    assert (len(batch), batch.deadline_ns, batch.inputs.shape) == (2, 77, (2, 3))
    assert repr(batch) == "Batch(2 rows, deadline_ns=77)"


def test_exceptions_match_the_documented_tree():
    for name in errors.__all__:
        thing = getattr(errors, name)
        if isinstance(thing, type):
            assert issubclass(thing, si.StreamInferError)
            assert name in errors.__doc__
    assert issubclass(si.DeadlineExceeded, TimeoutError)
    assert issubclass(si.InvalidInput, ValueError)
    assert issubclass(si.MissingExtra, ImportError)


@pytest.mark.parametrize("kind", [si.Overloaded, si.CircuitOpen])
def test_retry_after_survives_copy_and_pickle(kind):
    """An error keeps its `retry_after_s` through a copy, a pickle and `for_caller`."""
    error = kind("no", retry_after_s=1.5)
    for twin in (copy.copy(error), pickle.loads(pickle.dumps(error)), errors.for_caller(error, "x")):
        assert type(twin) is kind
        assert (twin.args, twin.retry_after_s) == (("no",), 1.5)


def test_for_caller_keeps_the_cause():
    cause = ValueError("original")
    error = errors.for_caller(cause, "the model")
    assert type(error) is si.BackendError
    assert error.__cause__ is cause
    assert str(error) == "the model raised ValueError: original"
    assert errors.for_caller(error, "y").__cause__ is cause


def test_missing_extra_names_the_pip_command():
    from streaminfer._internal.loading.extras import require

    with pytest.raises(
        si.MissingExtra, match=r"the thing needs no_such_module_x, .*pip install 'streaminfer\[thing\]'"
    ):
        require("no_such_module_x", extra="thing", purpose="the thing")
    assert require("json", extra="x", purpose="y").dumps([1]) == "[1]"


def test_installed_extra_lacking_a_dependency(tmp_path, monkeypatch):
    """If an installed extra lacks a dependency of its own, the error names that dependency, not the extra."""
    from streaminfer._internal.loading.extras import require

    (tmp_path / "half_installed.py").write_text("import no_such_module_y\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_module_y") as caught:
        require("half_installed", extra="x", purpose="y")
    assert not isinstance(caught.value, si.MissingExtra)


def test_checks_accept_numpy_numbers():
    assert check_duration("x", np.float32(0.5)) == 0.5
    assert check_count("x", np.int64(3)) == 3
    for bad in (np.bool_(True), "1", None, 1j):
        with pytest.raises(TypeError, match="x: expected"):
            check_duration("x", bad)


def test_request_help_has_no_false_signature():
    """The help of `Request` lacks Cython's signature, which would show ``deadline_ns`` before the ``*``."""
    assert si.Request.__doc__.startswith("One request for one response;")
    with pytest.raises(TypeError, match="positional argument"):
        si.Request(1.0, 5)
