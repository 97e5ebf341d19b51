"""Fault injection for tests: a plan of faults by schedule and seed, in front of a backend, a service or a function.

::

    plan = FaultPlan(
        delay(lognormal(median_s=0.010, sigma=0.3)),
        error(OSError("device lost"), rate=0.05).between(2.0, 4.0),
        hang().on(17),
        seed=1,
    )
    async with Stack(batcher, Faulty(backend, plan), clock=loop.clock) as service:
        ...
    assert plan.injected["hang"] == 1

Idea: each call has a number, and whether a fault strikes it is a function of the plan's seed, the fault's place in the
plan, the number of the call and its instant; there is no generator whose state would depend on the order in which calls
end or on which other faults are in the plan. So the same seed gives the same faults, and a fault that is added changes
none of the others.

Order within one call: delays add up and are waited for; then it hangs; then it fails; else the inner one is asked,
slowed down, and what it answered is spoilt. All of it is decided, and counted, when the call begins, but for what
depends on the answer: what strikes its rows, and the death of a process.

Time is the running event loop's, so virtual on a ``VirtualLoop``; around a sync function outside of one, the plan's
``clock`` and ``sleep``.
"""

import asyncio
import hashlib
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist
from typing import Any, overload

import attrs

from streaminfer._internal.validation import check_count, check_duration, check_instance, check_number, expected
from streaminfer.protocols import Backend, Clock, P, R, Service
from streaminfer.testing._faulty import Injury, kill_workers, put_in_front

__all__ = [
    "Fault",
    "FaultPlan",
    "Faulty",
    "delay",
    "error",
    "garbage",
    "hang",
    "kill",
    "kill_workers",
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
    """One kind of fault and when it strikes; made by the functions of this module.

    Attributes:
        kind: under which the plan counts it.
        rate: the share of calls that it strikes (of rows: ``row_errors``), 0 to 1.
        value: what the kind needs: seconds or a distribution, an exception, a factor, a number of rows.
        over_s: seconds over which it fades, from the beginning of its time; infinite: it does not.
        start_s: from when on it strikes, in seconds after the plan began.
        end_s: until when.
        calls: the numbers of the calls that it strikes, from 0; ``None``: any.
    """

    kind: str
    rate: float = attrs.field()
    value: Any = None
    over_s: float = math.inf
    start_s: float = 0.0
    end_s: float = math.inf
    calls: frozenset[int] | None = None

    @rate.validator
    def _check_rate(self, _: Any, value: object) -> None:
        check_number("rate", value, "a share from 0 to 1", lambda it: 0.0 <= it <= 1.0)

    def between(self, start_s: float, end_s: float) -> "Fault":
        """The same fault, for calls that begin at ``start_s`` or later and before ``end_s``, of the plan's time."""
        check_duration("start_s", start_s)
        if check_duration("end_s", end_s) <= start_s:
            raise ValueError(expected("end_s", "more seconds than start_s", end_s))
        return attrs.evolve(self, start_s=float(start_s), end_s=float(end_s))

    def on(self, *calls: int) -> "Fault":
        """The same fault, for the calls of these numbers; the plan's first is 0."""
        return attrs.evolve(self, calls=frozenset(check_count("calls", number, at_least=0) for number in calls))


def lognormal(median_s: float, sigma: float) -> Callable[[float], float]:
    """A distribution for :func:`delay`.

    Args:
        median_s: half of the delays are shorter.
        sigma: standard deviation of the logarithm; 1.0: one in a hundred takes ten times the median.

    Returns:
        A function of a number between 0 and 1 that returns seconds: the quantile function.
    """
    median = check_duration("median_s", median_s, positive=True)
    spread = check_duration("sigma", sigma)
    return lambda share: median * math.exp(spread * _NORMAL.inv_cdf(share))


def delay(seconds: float | Callable[[float], float], *, rate: float = 1.0) -> Fault:
    """Calls take longer.

    Args:
        seconds: by so much, or by what a quantile function gives, such as :func:`lognormal`.
        rate: share of calls; a small one makes spikes.
    """
    if not callable(seconds):
        check_duration("seconds", seconds)
    return Fault("delay", rate, seconds)


def slowdown(factor: float, *, rate: float = 1.0) -> Fault:
    """A brown-out: an answer takes ``factor`` times as long, injected delays included; ``factor`` ≥ 1."""
    return Fault("slowdown", rate, _factor(factor))


def slow_start(factor: float, *, over_s: float) -> Fault:
    """Answers take ``factor`` times as long at first, and in a straight line within ``over_s`` as long as ever."""
    return Fault("slow_start", 1.0, _factor(factor), over_s=check_duration("over_s", over_s, positive=True))


def error(what: BaseException | type[BaseException], *, rate: float = 1.0) -> Fault:
    """Calls fail, after their delay and without reaching what is inside.

    Args:
        what: the exception, of which each call gets a copy, or its class.
        rate: share of calls.
    """
    return Fault("error", rate, _exception("what", what))


def hang(*, rate: float = 1.0, for_s: float | None = None) -> Fault:
    """Calls wait until they are cancelled, or for so many seconds and then go on."""
    return Fault("hang", rate, None if for_s is None else check_duration("for_s", for_s))


def partial(missing: int = 1, *, rate: float = 1.0) -> Fault:
    """The answer to a batch lacks its last ``missing`` rows, or all where it has fewer."""
    return Fault("partial", rate, check_count("missing", missing))


def wrong_shape(*, rate: float = 1.0) -> Fault:
    """Each array of the answer comes twice, stacked on a new first axis."""
    return Fault("wrong_shape", rate)


def row_errors(what: BaseException | type[BaseException], *, rate: float) -> Fault:
    """Rows of the answer are exceptions, each row with this rate, independently."""
    return Fault("row_errors", rate, _exception("what", what))


def garbage(*, rate: float = 1.0) -> Fault:
    """Each array of the answer has the right shape and dtype, and random bytes for its contents."""
    return Fault("garbage", rate)


def kill(*, after_s: float = 0.05, rate: float = 1.0) -> Fault:
    """The worker processes of a ``CpuBackend`` are killed, ``after_s`` after the batch was handed to it.

    A batch that was answered earlier kills nobody and is not counted. An idle process that is killed is replaced
    without a failure, so ``after_s`` lies within what the batch takes. Real time only.
    """
    return Fault("kill", rate, check_duration("after_s", after_s))


class FaultPlan:
    """Which faults strike which calls; counts what it injected.

    Its time begins with the first call, or when what it stands in front of is started. As a layer,
    ``Stack(batcher, plan, backend)``, or by :class:`Faulty`, it may stand in front of several things: their calls are
    numbered together.

    Args:
        *faults: made by the functions of this module.
        seed: of all that is random.
        clock: returns monotonic nanoseconds; ``None``: the running event loop's time, else ``time.monotonic``.
        sleep: how a sync function waits, ``time.sleep`` unless a test says otherwise, such as ``FakeClock.advance``.

    Raises:
        TypeError, ValueError: an argument does not fit.

    Threads: any may call what it stands in front of.
    """

    def __init__(
        self,
        *faults: Fault,
        seed: int = 0,
        clock: Clock | None = None,
        sleep: Callable[[float], Any] = time.sleep,
    ) -> None:
        for each in faults:
            check_instance("faults", each, lambda it: isinstance(it, Fault), "faults, such as delay(0.1)")
        check_instance("clock", clock, lambda it: it is None or callable(it), "a callable or None")
        check_instance("sleep", sleep, callable, "a function of seconds")
        self.faults = faults
        self.seed = check_count("seed", seed, at_least=0)
        self.sleep = sleep
        self._clock = clock
        self._lock = threading.Lock()
        self._injected: Counter[str] = Counter()
        self._calls = 0
        self._began_s: float | None = None

    @property
    def calls(self) -> int:
        """How many calls there were."""
        return self._calls

    @property
    def injected(self) -> Mapping[str, int]:
        """How often each kind of fault struck: calls, or rows for ``row_errors``; 0 for kinds that never did."""
        with self._lock:
            return Counter(self._injected)

    def restart(self) -> None:
        """Begins again: call 0, time 0, nothing injected. The same calls meet the same faults."""
        with self._lock:
            self._injected.clear()
            self._calls = 0
            self._began_s = None

    @overload
    def wrap(self, inner: Service | Backend) -> Any: ...
    @overload
    def wrap(self, inner: Callable[P, R]) -> Callable[P, R]: ...
    def wrap(self, inner: Any) -> Any:
        """Puts the plan in front of a backend, a service or a function, as a layer does.

        Raises:
            TypeError: none of these, or a fault that cannot strike it.
        """
        return put_in_front(inner, self, owns=False)

    def now_s(self) -> float:
        """The present, in seconds of whatever clock it goes by."""
        if self._clock is not None:
            return self._clock() / 1e9
        try:
            return asyncio.get_running_loop().time()
        except RuntimeError:
            return time.monotonic()

    def begin(self) -> None:
        """Lets its time begin, if it has not."""
        with self._lock:
            if self._began_s is None:
                self._began_s = self.now_s()

    def draw(self) -> Injury:
        """What strikes the next call."""
        self.begin()
        now_s = self.now_s()
        with self._lock:
            number = self._calls
            self._calls += 1
            since_s = now_s - (self._began_s or 0.0)
            injury = Injury(self, number, now_s)
            for place, fault in enumerate(self.faults):
                if fault.start_s <= since_s < fault.end_s and (fault.calls is None or number in fault.calls):
                    injury.add(place, fault, since_s)
            self._injured(injury.kinds)
        return injury

    def count(self, kind: str, times: int = 1) -> None:
        """Counts what is known only when the answer is there."""
        with self._lock:
            self._injected[kind] += times

    def uniform(self, place: int, number: int, which: int) -> float:
        """A number above 0 and below 1, always the same for the same seed and arguments."""
        text = f"{self.seed}/{place}/{number}/{which}".encode()
        return (int.from_bytes(hashlib.blake2b(text, digest_size=6).digest(), "big") + 0.5) / 2**48

    def _injured(self, kinds: Sequence[str]) -> None:
        self._injected.update(kinds)

    def __repr__(self) -> str:
        return f"<FaultPlan: {len(self.faults)} faults, {self._calls} calls, injected {dict(self._injected)}>"


def Faulty(inner: Any, plan: FaultPlan) -> Any:  # noqa: N802 - it stands for the wrapper that it makes
    """What fails as the plan says; it starts and stops what is inside.

    Args:
        inner: a backend (``infer``), a service (``call``) or a sync or async function; what a function returns is taken
            for the rows of a batch where it is a list, a tuple or an array with an axis.
        plan: a :class:`FaultPlan`.

    Returns:
        The same kind of thing.

    Raises:
        TypeError: none of these, or a fault that cannot strike it: ``partial`` and ``row_errors`` need rows, ``kill`` a
            ``CpuBackend`` with processes, and a hang that never ends something that can be cancelled.
    """
    check_instance("plan", plan, lambda it: isinstance(it, FaultPlan), "a FaultPlan")
    return put_in_front(inner, plan, owns=True)


def _exception(name: str, value: Any) -> Any:
    if not (isinstance(value, BaseException) or (isinstance(value, type) and issubclass(value, BaseException))):
        raise TypeError(expected(name, "an exception or a class of exceptions", value))
    return value


def _factor(value: object) -> float:
    return check_number("factor", value, "a finite number ≥ 1", lambda it: 1.0 <= it < math.inf)
