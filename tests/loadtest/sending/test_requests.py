"""`Requests` puts the notes about each request into columns."""

import functools
import math

import pytest

from streaminfer.loadtest import Measured, Sample
from streaminfer.loadtest.sending.requests import BEFORE, Requests, check_inputs
from streaminfer.protocols import Node
from streaminfer.request import Request, Response, Timings


async def echo(inputs):
    return inputs


@pytest.mark.parametrize("count", [1, 255, 256, 257, 600])
def test_every_note_is_stored_for_its_request(count):
    """Each column has a note at the number of its request, however many requests there are."""
    sample = Sample(1.0, labels={"device": "phone"}, stages_s={"encode": 0.5})
    requests = Requests(echo, lambda _number: sample, count)
    shared = {"decode": 0.0}
    for number in range(count):
        requests.call(number).close()
        shared["decode"] = number / 1e3  # a service that reuses its dictionary
        timings = Timings(0, 1_000, 2_000, 2_000 + number, 1)
        outputs = Measured(None, stages_s=shared, values={"bytes": float(number)}, labels={"zone": str(number)})
        requests.on_result(number, Response(outputs, timings=timings))

    requests.sort_notes()

    assert list(requests.stages["decode"]) == [number / 1e3 for number in range(count)]
    assert list(requests.stages["inference"]) == pytest.approx([number / 1e9 for number in range(count)])
    assert set(requests.stages[BEFORE]) == {0.5}
    assert list(requests.values["bytes"]) == list(range(count))
    assert requests.labels == {"device": ["phone"] * count, "zone": [str(number) for number in range(count)]}


def test_begin_call_is_used_if_the_service_has_it():
    """A service with ``begin_call`` gets the request of a sample; for an async function there is no ``begin``."""

    class Told(Node):
        """Service that reports the ends of requests to a callback."""

        async def call(self, _request):
            raise NotImplementedError

        @property
        def begin_call(self):
            return lambda request, receive: receive(request, None)

    heard = []
    sample = Sample(1.0, labels={"device": "phone"}, settings={"priority": 2})
    requests = Requests(Told(), [sample, 2.0, Request(3.0)].__getitem__, 3)
    for number in range(3):
        requests.begin(number, lambda request, _error: heard.append((request.inputs, request.priority)))

    assert heard == [(1.0, 2), (2.0, 0), (3.0, 0)]
    requests.sort_notes()
    assert requests.labels == {"device": ["phone", "", ""]}
    assert Requests(echo, lambda number: number, 3).begin is None


def test_stages_of_the_same_name_add_up():
    """Stages of the same name add up, as for the network before the request is due and on the way to the model."""
    sample = Sample(1.0, stages_s={"network": 0.5})
    requests = Requests(echo, lambda number: sample if number == 0 else 2.0, 2)
    for number in range(2):
        requests.call(number).close()
        requests.on_result(number, Measured(None, stages_s={"network": 0.25}))

    requests.sort_notes()
    assert list(requests.stages["network"]) == [0.75, 0.25]


def test_stage_named_as_one_of_the_service_is_kept():
    """The report adds the queue of the device, a stage of the sample, to the queue of the service."""
    sample = Sample(1.0, stages_s={"queue": 0.5})
    requests = Requests(echo, lambda _number: sample, 1)
    requests.call(0).close()
    requests.on_result(0, Response(2.0, timings=Timings(0, 250_000_000, 250_000_000, 300_000_000, 1)))

    requests.sort_notes()
    assert list(requests.stages["queue"]) == [0.75]


def test_requests_without_notes_get_empty_values():
    """A request without a note has NaN as its stage and an empty label."""
    requests = Requests(echo, lambda number: number, 3)

    requests.on_result(1, Measured(None, stages_s={"decode": 0.1}, labels={"zone": "a"}))
    requests.on_result(2, Response(5.0))

    requests.sort_notes()
    assert [math.isnan(seconds) for seconds in requests.stages["decode"]] == [True, False, True]
    assert (requests.labels, requests.values) == ({"zone": ["", "a", ""]}, {})


def test_inputs_decorator_that_takes_the_number():
    """An inputs function whose decorator takes the number is called with the number.

    The signature of the decorator counts, not that of the function inside.
    """

    def numbered(function):
        @functools.wraps(function)
        def call(number):
            return number + function()

        return call

    assert check_inputs(numbered(lambda: 2.0))(3) == 5.0
