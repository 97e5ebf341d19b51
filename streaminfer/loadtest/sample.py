"""Labels, stages and measurements of a request, on their way into the report of a load test.

Both classes are optional. A :class:`Sample` is one of the ``inputs`` of a run: it says which device and network the
request comes from, and how long the stages took that were over when it was due. A :class:`Measured` is what a service
may return instead of its bare outputs: the stages that it timed, and values such as an accuracy or CPU seconds. The
report then has a tail for each value of each label, a tail for each stage, and a mean of each value by label.
"""

import math
from collections.abc import Mapping
from typing import Any

import attrs

from streaminfer._internal.validation import check_duration, check_number, expected

__all__ = ["Measured", "Sample"]


def _check_labels(_instance: object, attribute: Any, value: Any) -> None:
    if not isinstance(value, Mapping) or not all(isinstance(it, str) for pair in value.items() for it in pair):
        raise TypeError(expected(attribute.name, "a mapping of names to strings", value))


def _check_stages(_instance: object, attribute: Any, value: Any) -> None:
    for name, seconds in _items(attribute.name, value):
        if type(seconds) is not float or not 0.0 <= seconds < math.inf:
            check_duration(f"{attribute.name}[{name!r}]", seconds)


def _check_values(_instance: object, attribute: Any, value: Any) -> None:
    for name, number in _items(attribute.name, value):
        if type(number) is not float:
            check_number(f"{attribute.name}[{name!r}]", number, "a number", lambda _: True)


def _items(argument: str, value: Any) -> Any:
    if type(value) is dict or isinstance(value, Mapping):  # each response has some: a cheap test first
        for name in value:
            if not isinstance(name, str):
                break
        else:
            return value.items()
    raise TypeError(expected(argument, "a mapping of names to numbers", value))


@attrs.frozen(eq=False)
class Sample:
    """One of the inputs of a load test, with what is known about it before it is sent.

    Args:
        inputs: what the service gets.
        labels: by name, such as ``{"device": "phone", "network": "lte"}``; the report shows a tail for each value.
        stages_s: seconds of the stages that are over when the request is due, in their order, such as ``encode`` and
            ``uplink``. They are not part of the latency, which begins when the request is due, but of the *age*.
        settings: keywords for `streaminfer.Request`, such as ``priority`` or ``stream_id``; for an async function, its
            own keywords.
    """

    inputs: Any
    labels: Mapping[str, str] = attrs.field(kw_only=True, factory=dict, validator=_check_labels)
    stages_s: Mapping[str, float] = attrs.field(kw_only=True, factory=dict, validator=_check_stages)
    settings: Mapping[str, Any] = attrs.field(kw_only=True, factory=dict)


@attrs.frozen(eq=False)
class Measured:
    """Outputs of a service together with what it measured.

    Args:
        outputs: of the service.
        stages_s: seconds of the stages that it timed, in their order. One with the name of a stage of the
            `Sample` adds to it.
        values: other measurements, such as ``{"accuracy": 1.0, "cpu_s": 0.002}``; the report has their means.
        labels: those that are only known now; they add to the labels of the `Sample`.
    """

    outputs: Any
    stages_s: Mapping[str, float] = attrs.field(kw_only=True, factory=dict, validator=_check_stages)
    values: Mapping[str, float] = attrs.field(kw_only=True, factory=dict, validator=_check_values)
    labels: Mapping[str, str] = attrs.field(kw_only=True, factory=dict, validator=_check_labels)
