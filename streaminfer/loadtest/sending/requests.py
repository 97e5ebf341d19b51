"""Requests of a load test: inputs by number, the call of the service, and measurements from its responses."""

import contextlib
import inspect
import math
from array import array
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import numpy as np

from streaminfer._internal.validation import expected
from streaminfer.loadtest.sample import Measured, Sample
from streaminfer.loadtest.sending.loops import Begin, Call, Receive
from streaminfer.protocols import adapt, is_service
from streaminfer.request import Request, Response

__all__ = ["Requests", "check_inputs", "check_sequence", "check_service", "check_takes"]

_MAX_NOTES = 256
_Numbers = dict[str, float]

Service = Any
"""An object with ``async call(request)``, or an async function of the inputs."""
Inputs = Any
"""A sequence, used in turn; a function of the request's number; or one mapping for all requests."""


def check_service(service: Service) -> None:
    """Check that a service can be called.

    Raises:
        TypeError: ``service`` is neither a service nor callable.
    """
    if not is_service(service) and not callable(service):
        raise TypeError(expected("service", "an object with `async call(request)`, or an async function", service))


def check_inputs(inputs: Inputs) -> Callable[[int], Any]:
    """Return a function from a request's number to its inputs.

    Raises:
        TypeError: ``inputs`` has the wrong type.
        ValueError: ``inputs`` is empty.
    """
    expectation = "a sequence of inputs, a mapping of input name to array, or a function of the request's number"
    if isinstance(inputs, (Mapping, Sample)):
        return lambda _number: inputs
    if callable(inputs):
        # without this check, the TypeError of every request would count as an error of the service
        check_takes("inputs", inputs, expectation, 0)
        return inputs  # type: ignore[no-any-return]
    return check_sequence(inputs, expectation)


def check_sequence(inputs: Any, expectation: str) -> Callable[[int], Any]:
    """Return a function that takes turns through a sequence of inputs; ``expectation`` describes what is accepted.

    Raises:
        TypeError: ``inputs`` is no sequence.
        ValueError: ``inputs`` is empty.
    """
    is_sequence = isinstance(inputs, Sequence) and not isinstance(inputs, (str, bytes))
    if not is_sequence and not (isinstance(inputs, np.ndarray) and inputs.ndim):
        raise TypeError(expected("inputs", expectation, inputs))
    if not (count := len(inputs)):
        raise ValueError(expected("inputs", "at least one", inputs))
    return lambda number: inputs[number % count]


def check_takes(argument: str, function: Any, expectation: str, *values: Any) -> None:
    """Check that a function takes these values, as far as its signature tells.

    Raises:
        TypeError: it does not; ``expectation`` describes the functions that do.
    """
    try:
        with contextlib.suppress(ValueError):  # functions written in C may have no signature
            inspect.signature(function, follow_wrapped=False).bind(*values)  # a decorator may add parameters
    except TypeError as error:
        raise TypeError(f"{expected(argument, expectation, function)}: {error}") from error


def _request_of(inputs: Any, **settings: Any) -> Request:
    return inputs if type(inputs) is Request else Request(inputs, **settings)


class Requests:
    """Sends the requests of one run and collects their labels, stages and values.

    The object first collects raw notes, and sorts many at once into the columns: code that runs only once in a few
    milliseconds is slow, because the processor's caches have lost it.

    Args:
        service: an object with ``async call(request)``, or an async function.
        inputs: returns the inputs of a request by its number.
        count: number of requests.

    Attributes:
        call: sends the request with a number.
        begin: begins the request with a number, without a task; ``None`` without ``begin_call``.
        stages: seconds of each request by name of the stage; NaN where a request has none.
        values: other measurements by name; NaN where a request has none.
        labels: labels of each request by name; an empty string where a request has none.
    """

    def __init__(self, service: Service, inputs: Callable[[int], Any], count: int) -> None:
        no_numbers = array("d", [math.nan]) * count
        self.stages: defaultdict[str, array[float]] = defaultdict(lambda: no_numbers[:])
        self.values: defaultdict[str, array[float]] = defaultdict(lambda: no_numbers[:])
        self.labels: defaultdict[str, list[str]] = defaultdict(lambda: [""] * count)
        self._notes: list[tuple[int, _Numbers, _Numbers, dict[str, str]]] = []
        begin_call = adapt(service).begin_call if is_service(service) else None
        self.begin: Begin | None = None if begin_call is None else self._begin(inputs, begin_call)
        send: Callable[..., Awaitable[Any]] = (
            (lambda item, **settings: service.call(_request_of(item, **settings))) if is_service(service) else service
        )

        def call(number: int) -> Awaitable[Any]:
            item = inputs(number)
            if type(item) is Sample:
                self._note(number, item)
                return send(item.inputs, **item.settings)
            return send(item)

        self.call: Call = call

    def _begin(self, inputs: Callable[[int], Any], begin_call: Callable[[Request, Receive], Any]) -> Begin:
        def begin(number: int, receive: Receive) -> Any:
            item = inputs(number)
            if type(item) is Sample:
                self._note(number, item)
                return begin_call(_request_of(item.inputs, **item.settings), receive)
            return begin_call(_request_of(item), receive)

        return begin

    def _note(self, number: int, sample: Sample) -> None:
        stages_s = dict(sample.stages_s)
        if stages_s:
            stages_s[BEFORE] = sum(stages_s.values())
        self._keep(number, stages_s, {}, dict(sample.labels))

    def on_result(self, number: int, result: Any) -> None:
        """Collect the timings and measurements of a result."""
        measured = result
        if type(result) is Response:
            measured = result.outputs
            if (timings := result.timings) is not None:
                stages_s = {"queue": timings.queued_s, "assembly": timings.assembled_s, "inference": timings.inferred_s}
                self._keep(number, stages_s, {}, {})
        if type(measured) is Measured:  # no outputs, which may be large; copies, because a service may change them
            self._keep(number, dict(measured.stages_s), dict(measured.values), dict(measured.labels))

    def _keep(self, number: int, stages_s: _Numbers, values: _Numbers, labels: dict[str, str]) -> None:
        self._notes.append((number, stages_s, values, labels))
        if len(self._notes) == _MAX_NOTES:
            self.sort_notes()

    def sort_notes(self) -> None:
        """Move the collected notes into the columns; also called at the end of the run."""
        stages, is_missing = self.stages, math.isnan
        for number, stages_s, values, labels in self._notes:
            for name, seconds in stages_s.items():  # a request can have a stage twice: on its device, in the service
                column = stages[name]
                before_s = column[number]
                column[number] = seconds if is_missing(before_s) else before_s + seconds
            for name, value in values.items():
                self.values[name][number] = value
            for name, label in labels.items():
                self.labels[name][number] = label
        self._notes.clear()


BEFORE = "before sending"
"""Name of the sum of a `Sample`'s stages; the age of a result is this sum plus the latency."""
