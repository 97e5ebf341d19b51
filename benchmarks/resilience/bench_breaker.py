"""CircuitBreaker: cost of a guarded call over a bare one: ``python benchmarks/run.py breaker``.

The bare call and the guarded ones alternate in the same run. Slow calls are detected, so the breaker reads the clock
before and after each call. ``benchmarks/peers/breakers.py`` measures the peers with the same code.
"""

import contextlib
import time
from collections.abc import Callable
from typing import Any

from _lib.figures import Figure
from _lib.guarded_calls import CALLS, async_bare, awaits_of, bare, calls_of, eight_threads_s, least_ns, let_through

from streaminfer.errors import CircuitOpen
from streaminfer.resilience import CircuitBreaker

ADDED = {
    "function": Figure("time that `CircuitBreaker` adds to a call", form="{:.0f} ns", at_most=150),
    "async function": Figure("time that `CircuitBreaker` adds to an async call", form="{:.0f} ns", at_most=250),
}


def blocks_of(breaker: CircuitBreaker) -> dict[str, Callable[[], None]]:
    async def in_async(_: Any) -> None:
        async with breaker.guard():
            pass

    async def in_async_bare(_: Any) -> None:
        pass

    def block() -> None:
        for _ in range(CALLS):
            with breaker.guard():
                pass

    def by_hand() -> None:
        for _ in range(CALLS):
            breaker.record(True, 0.001, breaker.try_acquire())

    def nothing() -> None:
        for _ in range(CALLS):
            pass

    return {
        "loop": nothing,
        "with guard()": block,
        "try_acquire, record": by_hand,
        "empty async": awaits_of(in_async_bare),
        "async with guard()": awaits_of(in_async),
    }


def tripped() -> CircuitBreaker:
    """Return a half-open breaker, whose open time is short enough to wait for."""
    breaker = CircuitBreaker(minimum_calls=1, open_s=0.01, half_open_calls=3, half_open_s=60.0)
    breaker.record(False, 0.0)
    time.sleep(0.02)
    return breaker


def main() -> None:
    for window, case in ((100, "window of 100 calls"), ("10s", "window of 10 s")):
        breaker = CircuitBreaker(slow_call_s=0.2, window=window)
        wrapped = breaker.wrap(bare)
        async_wrapped = breaker.wrap(async_bare)
        best = least_ns(
            {
                "bare": calls_of(bare),
                "function": calls_of(wrapped),
                "async bare": awaits_of(async_bare),
                "async function": awaits_of(async_wrapped),
                **blocks_of(breaker),
            }
        )
        bases = {
            "function": "bare",
            "async function": "async bare",
            "with guard()": "loop",
            "try_acquire, record": "loop",
            "async with guard()": "empty async",
        }
        print(f"window={window!r}, slow_call_s=0.2: added ns a call")
        for name, base in bases.items():
            added = best[name] - best[base]
            print(f"  {name:<20}{added:8.0f}   ({best[name]:.0f} over {best[base]:.0f})")
        for name, figure in ADDED.items():
            figure.report(best[name] - best[bases[name]], case=case)
    breaker = CircuitBreaker()
    breaker.force_open()
    best = least_ns({"permits": looks(breaker), "refused": rejections(breaker)})
    print(f"open: permits() {best['permits']:.0f} ns, a rejected call {best['refused']:.0f} ns")
    print(f"half open: {let_through(tripped(), 20)} of 20 threads let through (half_open_calls=3)")
    print(f"8 threads, calls of 200 ms: {eight_threads_s(CircuitBreaker()):.2f} s")


def looks(breaker: CircuitBreaker) -> Callable[[], None]:
    def run() -> None:
        for _ in range(CALLS):
            breaker.permits()

    return run


def rejections(breaker: CircuitBreaker) -> Callable[[], None]:
    wrapped = breaker.wrap(bare)

    def run() -> None:
        for _ in range(CALLS):
            with contextlib.suppress(CircuitOpen):
                wrapped(1)

    return run


if __name__ == "__main__":
    main()
