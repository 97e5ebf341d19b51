"""Requests of a load test: inputs by number, the call of a service, and what its responses tell."""

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

__all__ = ["Requests", "check_inputs", "check_service"]

_NOTES = 256

Service = Any
"""An object with ``async call(request)``, or an async function of the inputs."""
Inputs = Any
"""A sequence, whose elements are sent in turn; a function of the request's number; or one mapping for all requests."""


def check_service(service: Service) -> None:
    """Refuse what cannot be called.

    Raises:
        TypeError: neither a service nor callable.
    """
    if not is_service(service) and not callable(service):
        raise TypeError(expected("service", "an object with `async call(request)`, or an async function", service))


def check_inputs(inputs: Inputs) -> Callable[[int], Any]:
    """Return a function of a request's number.

    Raises:
        TypeError: no inputs.
        ValueError: none at all.
    """
    what = "a sequence of inputs, a mapping of input name to array, or a function of the request's number"
    if isinstance(inputs, (Mapping, Sample)):
        return lambda _number: inputs
    if callable(inputs):
        _check_takes_a_number(inputs, what)
        return inputs  # type: ignore[no-any-return]
    if not isinstance(inputs, (Sequence, np.ndarray)) or isinstance(inputs, (str, bytes)) or np.ndim(inputs) == 0:
        raise TypeError(expected("inputs", what, inputs))
    if not (count := len(inputs)):
        raise ValueError(expected("inputs", "at least one", inputs))
    return lambda number: inputs[number % count]


def _check_takes_a_number(function: Any, what: str) -> None:
    # otherwise every request of the run would count its TypeError as an error of the service
    try:
        signature = inspect.signature(function, follow_wrapped=False)  # a decorator may add the number
    except ValueError:  # one written in C may have none
        return
    try:
        signature.bind(0)
    except TypeError as error:
        raise TypeError(f"{expected('inputs', what, function)}: {error}") from error


def _request_of(given: Any, **settings: Any) -> Request:
    return given if type(given) is Request else Request(given, **settings)


class Requests:
    """Sends requests of one run and notes what is known about them.

    A note is kept as it comes, and many at once go into the columns: code that runs once in milliseconds is slow, since
    the processor's caches have forgotten it.

    Args:
        service: an object with ``async call(request)``, or an async function.
        inputs: of a request, by its number.
        count: of requests.

    Attributes:
        stages: by name, seconds of each request; NaN where it has none.
        values: other measurements, likewise.
        labels: by name, that of each request; empty where it has none.
    """

    def __init__(self, service: Service, inputs: Callable[[int], Any], count: int) -> None:
        nothing = array("d", [math.nan]) * count
        self.stages: defaultdict[str, array[float]] = defaultdict(lambda: nothing[:])
        self.values: defaultdict[str, array[float]] = defaultdict(lambda: nothing[:])
        self.labels: defaultdict[str, list[str]] = defaultdict(lambda: [""] * count)
        self._samples: list[tuple[int, dict[str, str], dict[str, float]]] = []
        self._timings: list[tuple[int, Timings]] = []
        self._measured: list[tuple[int, dict[str, float], dict[str, float], dict[str, str]]] = []
        self._inputs = inputs
        self._begin_call = adapt(service).begin_call if is_service(service) else None
        self._send: Callable[..., Awaitable[Any]] = (
            (lambda given, **settings: service.call(_request_of(given, **settings))) if is_service(service) else service
        )

    @property
    def call(self) -> Call:
        """Sends the request of a number."""
        inputs, send = self._inputs, self._send

        def call(number: int) -> Awaitable[Any]:
            given = inputs(number)
            if type(given) is Sample:
                self._note(number, given)
                return send(given.inputs, **given.settings)
            return send(given)

        return call

    @property
    def begin(self) -> Begin | None:
        """Begins the request of a number, where the service tells of its end; ``None``: it is awaited."""
        begin_call, inputs = self._begin_call, self._inputs
        if begin_call is None:
            return None

        def begin(number: int, receive: Receive) -> Any:
            given = inputs(number)
            if type(given) is Sample:
                self._note(number, given)
                return begin_call(_request_of(given.inputs, **given.settings), receive)
            return begin_call(_request_of(given), receive)

        return begin

    def _note(self, number: int, sample: Sample) -> None:
        self._samples.append((number, dict(sample.labels), dict(sample.stages_s)))
        if len(self._samples) == _NOTES:
            self.sort_notes()

    def on_result(self, number: int, result: Any) -> None:
        """Note what a result tells beside its outputs."""
        measured = result
        if type(result) is Response:
            measured = result.outputs
            if result.timings is not None:
                self._timings.append((number, result.timings))
        if type(measured) is Measured:  # without its outputs, which may be large; copies, since a service may go on
            self._measured.append((number, dict(measured.stages_s), dict(measured.values), dict(measured.labels)))
        if len(self._timings) == _NOTES or len(self._measured) == _NOTES:
            self.sort_notes()

    def sort_notes(self) -> None:
        """Put what was noted into the columns; at the end of the run, too."""
        stages, labels = self.stages, self.labels
        for number, its_labels, stages_s in self._samples:
            for name, label in its_labels.items():
                labels[name][number] = label
            for name, seconds in stages_s.items():
                stages[name][number] = seconds
            if stages_s:
                stages[BEFORE][number] = sum(stages_s.values())
        for number, timings in self._timings:
            stages["queue"][number] = timings.queued_s
            stages["assembly"][number] = timings.assembled_s
            stages["inference"][number] = timings.inferred_s
        for number, stages_s, values, its_labels in self._measured:
            for name, seconds in stages_s.items():
                before = stages[name][number]
                stages[name][number] = seconds if math.isnan(before) else before + seconds
            for name, value in values.items():
                self.values[name][number] = value
            for name, label in its_labels.items():
                labels[name][number] = label
        self._samples.clear()
        self._timings.clear()
        self._measured.clear()


BEFORE = "before sending"
"""The stages of a `Sample` together: added to the latency they are the age of the result."""
