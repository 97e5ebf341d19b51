"""Kinds of faults, and the schedule of each."""

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import attrs

from streaminfer._internal.validation import check_count, check_duration, check_number, expected, field_check

__all__ = [
    "Fault",
    "delay",
    "error",
    "garbage",
    "hang",
    "kill",
    "lognormal",
    "partial",
    "row_errors",
    "slow_start",
    "slowdown",
    "wrong_shape",
]

_NORMAL = NormalDist()


@attrs.frozen
class Fault:
    """One kind of fault and its schedule; made by the functions of this module.

    Attributes:
        kind: the name in :attr:`FaultPlan.injected`.
        rate: the share of calls with this fault, 0 to 1; for ``row_errors``, the share of rows.
        value: the kind's setting: seconds or a distribution, an exception, a factor, a number of rows.
        over_s: seconds within which a ``slow_start`` fades, from ``start_s`` on; infinite for other kinds.
        start_s: the first instant, seconds after the plan's start.
        end_s: the instant at which the fault ends, seconds after the plan's start.
        calls: the numbers of the calls that can get the fault, from 0; ``None`` means any call.
    """

    kind: str
    rate: float = attrs.field(validator=field_check(check_number, "a share from 0 to 1", lambda it: 0.0 <= it <= 1.0))
    value: Any = None
    over_s: float = math.inf
    start_s: float = 0.0
    end_s: float = math.inf
    calls: frozenset[int] | None = None

    def between(self, start_s: float, end_s: float) -> "Fault":
        """Return the same fault, only for calls that start from ``start_s`` to before ``end_s`` of the plan's time."""
        check_duration("start_s", start_s)
        if check_duration("end_s", end_s) <= start_s:
            raise ValueError(expected("end_s", "more seconds than start_s", end_s))
        return attrs.evolve(self, start_s=float(start_s), end_s=float(end_s))

    def on(self, *calls: int) -> "Fault":
        """Return the same fault, only for the calls with these numbers; the plan's first call has number 0."""
        return attrs.evolve(self, calls=frozenset(check_count("calls", number, at_least=0) for number in calls))


def lognormal(median_s: float, sigma: float) -> Callable[[float], float]:
    """Return a distribution for :func:`delay`.

    Args:
        median_s: the median delay, seconds.
        sigma: standard deviation of the logarithm; with 1.0, one delay in a hundred is over ten times the median.

    Returns:
        The quantile function: takes a number between 0 and 1, and returns seconds.
    """
    median = check_duration("median_s", median_s, positive=True)
    spread = check_duration("sigma", sigma)
    return lambda share: median * math.exp(spread * _NORMAL.inv_cdf(share))


def delay(seconds: float | Callable[[float], float], *, rate: float = 1.0) -> Fault:
    """Delay calls.

    Args:
        seconds: the delay, or a quantile function of it such as :func:`lognormal`.
        rate: share of calls; a small share makes spikes.
    """
    if not callable(seconds):
        seconds = check_duration("seconds", seconds)
    return Fault("delay", rate, seconds)


def slowdown(factor: float, *, rate: float = 1.0) -> Fault:
    """Make calls take ``factor`` ≥ 1 times as long, injected delays included: a brownout."""
    return Fault("slowdown", rate, _factor(factor))


def slow_start(factor: float, *, over_s: float) -> Fault:
    """Make calls take ``factor`` times as long at first, falling linearly to 1 within ``over_s`` seconds."""
    return Fault("slow_start", 1.0, _factor(factor), over_s=check_duration("over_s", over_s, positive=True))


def error(what: BaseException | type[BaseException], *, rate: float = 1.0) -> Fault:
    """Fail calls, after their delay and before the inner call.

    Args:
        what: an exception, which is copied for each call, or an exception class, which is created with a text.
        rate: share of calls.
    """
    return Fault("error", rate, _exception("what", what))


def hang(*, rate: float = 1.0, for_s: float | None = None) -> Fault:
    """Make calls wait until they are cancelled; with ``for_s``, they wait so many seconds and then continue."""
    return Fault("hang", rate, None if for_s is None else check_duration("for_s", for_s))


def partial(missing: int = 1, *, rate: float = 1.0) -> Fault:
    """Drop the last ``missing`` rows of a batch's results, or all rows if there are fewer."""
    return Fault("partial", rate, check_count("missing", missing))


def wrong_shape(*, rate: float = 1.0) -> Fault:
    """Stack each array of a response twice on a new first axis."""
    return Fault("wrong_shape", rate)


def row_errors(what: BaseException | type[BaseException], *, rate: float) -> Fault:
    """Replace rows of a batch's results by exceptions; ``rate`` is the probability for each row, independently."""
    return Fault("row_errors", rate, _exception("what", what))


def garbage(*, rate: float = 1.0) -> Fault:
    """Replace the contents of each array of a response by random bytes; shape and dtype stay."""
    return Fault("garbage", rate)


def kill(*, after_s: float = 0.05, rate: float = 1.0) -> Fault:
    """Kill the worker processes of a ``CpuBackend``, ``after_s`` after the backend received the batch.

    If the batch completes earlier, no process is killed and nothing is counted. A process that is killed while idle is
    replaced without a failure, so ``after_s`` must lie within the batch's duration. For real time only.
    """
    return Fault("kill", rate, check_duration("after_s", after_s))


def _exception(name: str, value: Any) -> Any:
    if not (isinstance(value, BaseException) or (isinstance(value, type) and issubclass(value, BaseException))):
        raise TypeError(expected(name, "an exception or a class of exceptions", value))
    return value


def _factor(value: object) -> float:
    return check_number("factor", value, "a finite number ≥ 1", lambda it: 1.0 <= it < math.inf)
