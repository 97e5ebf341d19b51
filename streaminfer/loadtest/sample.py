"""Labels, stages and measurements of a request, for the report of a load test.

Both classes are optional. A :class:`Sample` is one of the ``inputs`` of a run. It has labels such as device and
network, and the durations of the stages before the request was due. A service can return a :class:`Measured` in place
of its outputs, with the stages that it timed, and values such as accuracy or CPU seconds. The report then has a tail
for each value of each label, a tail for each stage, and a mean of each value by label.
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
    if type(value) is dict or isinstance(value, Mapping):  # runs for each response: the cheap test first
        for name in value:
            if not isinstance(name, str):
                break
        else:
            return value.items()
    raise TypeError(expected(argument, "a mapping of names to numbers", value))


@attrs.frozen(eq=False)
class Sample:
    """One of the inputs of a load test, with labels and earlier stages.

    Args:
        inputs: inputs of the service.
        labels: labels such as ``{"device": "phone", "network": "lte"}``; the report has a tail for each value.
        stages_s: seconds of the stages before the request is due, in order, such as ``encode`` and ``uplink``. They
            count in the *age*, but not in the latency, which begins when the request is due. A stage with the name of
            one that the service times (``queue``, ``assembly``, ``inference``) is added to it.
        settings: keywords for `streaminfer.Request`, such as ``priority`` or ``stream_id``; for an async function,
            keywords of the function.
    """

    inputs: Any
    labels: Mapping[str, str] = attrs.field(kw_only=True, factory=dict, validator=_check_labels)
    stages_s: Mapping[str, float] = attrs.field(kw_only=True, factory=dict, validator=_check_stages)
    settings: Mapping[str, Any] = attrs.field(kw_only=True, factory=dict)


@attrs.frozen(eq=False)
class Measured:
    """Outputs of a service together with its measurements.

    Args:
        outputs: outputs of the service.
        stages_s: seconds of the stages that the service timed, in order. A stage with the same name as a stage of the
            `Sample` is added to it.
        values: other measurements, such as ``{"accuracy": 1.0, "cpu_s": 0.002}``; the report has their means.
        labels: labels known only after the call, in addition to the labels of the `Sample`.
    """

    outputs: Any
    stages_s: Mapping[str, float] = attrs.field(kw_only=True, factory=dict, validator=_check_stages)
    values: Mapping[str, float] = attrs.field(kw_only=True, factory=dict, validator=_check_values)
    labels: Mapping[str, str] = attrs.field(kw_only=True, factory=dict, validator=_check_labels)
