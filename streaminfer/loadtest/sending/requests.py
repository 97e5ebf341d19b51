"""Requests of a load test: inputs by number, the call of the service, and measurements from its responses."""

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
from streaminfer.request import Request, Response, Timings

__all__ = ["Requests", "check_inputs", "check_sequence", "check_service"]

_MAX_NOTES = 256

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
        _check_takes_a_number(inputs, expectation)
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


def _check_takes_a_number(function: Any, expectation: str) -> None:
    # without this check, the TypeError of every request would count as an error of the service
    try:
        signature = inspect.signature(function, follow_wrapped=False)  # a decorator may add the number
    except ValueError:  # functions written in C may have no signature
        return
    try:
        signature.bind(0)
    except TypeError as error:
        raise TypeError(f"{expected('inputs', expectation, function)}: {error}") from error


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
        stages: seconds of each request by name of the stage; NaN where a request has none.
        values: other measurements by name; NaN where a request has none.
        labels: labels of each request by name; an empty string where a request has none.
    """

    def __init__(self, service: Service, inputs: Callable[[int], Any], count: int) -> None:
        no_numbers = array("d", [math.nan]) * count
        self.stages: defaultdict[str, array[float]] = defaultdict(lambda: no_numbers[:])
        self.values: defaultdict[str, array[float]] = defaultdict(lambda: no_numbers[:])
        self.labels: defaultdict[str, list[str]] = defaultdict(lambda: [""] * count)
        self._samples: list[tuple[int, dict[str, str], dict[str, float]]] = []
        self._timings: list[tuple[int, Timings]] = []
        self._measured: list[tuple[int, dict[str, float], dict[str, float], dict[str, str]]] = []
        self._inputs = inputs
        self._begin_call = adapt(service).begin_call if is_service(service) else None
        self._send: Callable[..., Awaitable[Any]] = (
            (lambda item, **settings: service.call(_request_of(item, **settings))) if is_service(service) else service
        )

    @property
    def call(self) -> Call:
        """Function that sends the request with a number."""
        inputs, send = self._inputs, self._send

        def call(number: int) -> Awaitable[Any]:
            item = inputs(number)
            if type(item) is Sample:
                self._note(number, item)
                return send(item.inputs, **item.settings)
            return send(item)

        return call

    @property
    def begin(self) -> Begin | None:
        """Function that begins the request with a number, without a task; ``None`` without ``begin_call``."""
        begin_call, inputs = self._begin_call, self._inputs
        if begin_call is None:
            return None

        def begin(number: int, receive: Receive) -> Any:
            item = inputs(number)
            if type(item) is Sample:
                self._note(number, item)
                return begin_call(_request_of(item.inputs, **item.settings), receive)
            return begin_call(_request_of(item), receive)

        return begin

    def _note(self, number: int, sample: Sample) -> None:
        self._samples.append((number, dict(sample.labels), dict(sample.stages_s)))
        if len(self._samples) == _MAX_NOTES:
            self.sort_notes()

    def on_result(self, number: int, result: Any) -> None:
        """Collect the timings and measurements of a result."""
        measured = result
        if type(result) is Response:
            measured = result.outputs
            if result.timings is not None:
                self._timings.append((number, result.timings))
        if type(measured) is Measured:  # no outputs, which may be large; copies, because a service may change them
            self._measured.append((number, dict(measured.stages_s), dict(measured.values), dict(measured.labels)))
        if len(self._timings) == _MAX_NOTES or len(self._measured) == _MAX_NOTES:
            self.sort_notes()

    def sort_notes(self) -> None:
        """Move the collected notes into the columns; also called at the end of the run."""
        stages, labels = self.stages, self.labels
        for number, request_labels, stages_s in self._samples:
            for name, label in request_labels.items():
                labels[name][number] = label
            for name, seconds in stages_s.items():
                stages[name][number] = seconds
            if stages_s:
                stages[BEFORE][number] = sum(stages_s.values())
        for number, timings in self._timings:
            _add(stages["queue"], number, timings.queued_s)
            _add(stages["assembly"], number, timings.assembled_s)
            _add(stages["inference"], number, timings.inferred_s)
        for number, stages_s, values, request_labels in self._measured:
            for name, seconds in stages_s.items():
                _add(stages[name], number, seconds)
            for name, value in values.items():
                self.values[name][number] = value
            for name, label in request_labels.items():
                labels[name][number] = label
        self._samples.clear()
        self._timings.clear()
        self._measured.clear()


def _add(column: "array[float]", number: int, seconds: float) -> None:
    """Add the duration of a stage, which a request can have more than once: on its device, and in the service."""
    previous = column[number]
    column[number] = seconds if math.isnan(previous) else previous + seconds


BEFORE = "before sending"
"""Name of the sum of a `Sample`'s stages; the age of a result is this sum plus the latency."""
