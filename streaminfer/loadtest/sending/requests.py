"""Requests of a load test: inputs by number, the call of a service, and what its responses tell."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import numpy as np

from streaminfer._internal.validation import expected
from streaminfer.loadtest.sample import Measured, Sample
from streaminfer.loadtest.sending.loops import Call
from streaminfer.loadtest.sending.record import Columns
from streaminfer.protocols import is_service
from streaminfer.request import Request, Response, Timings

__all__ = ["Requests", "check_inputs", "check_service"]

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
        return inputs  # type: ignore[no-any-return]
    if not isinstance(inputs, (Sequence, np.ndarray)) or isinstance(inputs, (str, bytes)) or np.ndim(inputs) == 0:
        raise TypeError(expected("inputs", what, inputs))
    if not (count := len(inputs)):
        raise ValueError(expected("inputs", "at least one", inputs))
    return lambda number: inputs[number % count]


class Requests:
    """Sends requests of one run and notes what is known about them.

    Args:
        service: an object with ``async call(request)``, or an async function.
        inputs: of a request, by its number.
        count: of requests.

    Attributes:
        stages: seconds of the stages of each request, and its labels.
        values: other measurements.
    """

    def __init__(self, service: Service, inputs: Callable[[int], Any], count: int) -> None:
        self.stages, self.values = Columns(count), Columns(count)
        self._inputs = inputs
        self._send: Callable[..., Awaitable[Any]] = (
            (lambda given, **settings: service.call(given if type(given) is Request else Request(given, **settings)))
            if is_service(service)
            else service
        )

    @property
    def call(self) -> Call:
        """Sends the request of a number."""
        inputs, send, note = self._inputs, self._send, self._note_sample

        def call(number: int) -> Awaitable[Any]:
            given = inputs(number)
            if type(given) is Sample:
                note(number, given)
                return send(given.inputs, **given.settings)
            return send(given)

        return call

    def on_result(self, number: int, result: Any) -> None:
        """Note what a result tells beside its outputs."""
        if type(result) is Response:
            if result.timings is not None:
                self._note_timings(number, result.timings)
            if type(result.outputs) is Measured:
                self._note_measured(number, result.outputs)
        elif type(result) is Measured:
            self._note_measured(number, result)

    def _note_sample(self, number: int, sample: Sample) -> None:
        for name, value in sample.labels.items():
            self.stages.put_label(name, number, value)
        for name, seconds in sample.stages_s.items():
            self.stages.put(name, number, seconds)
        if sample.stages_s:
            self.stages.put(BEFORE, number, sum(sample.stages_s.values()))

    def _note_measured(self, number: int, measured: Measured) -> None:
        for name, seconds in measured.stages_s.items():
            self.stages.put(name, number, seconds)
        for name, value in measured.values.items():
            self.values.put(name, number, value)
        for name, label in measured.labels.items():
            self.stages.put_label(name, number, label)

    def _note_timings(self, number: int, timings: Timings) -> None:
        put = self.stages.put
        put("queue", number, timings.queued_s)
        put("assembly", number, timings.assembled_s)
        put("inference", number, timings.inferred_s)


BEFORE = "before sending"
"""The stages of a `Sample` together: added to the latency they are the age of the result."""
