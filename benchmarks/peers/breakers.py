"""Cost of the peers' circuit breakers per call, measured like ours in benchmarks/run.py breaker; see run.py.

Each breaker has its default settings, except for the thresholds and times of the half-open figure. interlock measures
slow calls; the others cannot.
"""

import contextlib
import importlib.metadata
import time

from _lib.figures import Figure
from _lib.guarded_calls import async_bare, awaits_of, bare, calls_of, eight_threads_s, least_ns, let_through

OPEN_S = 0.05
BEST = Figure("time that the best breaker of another library adds to a call", form="{:.0f} ns")
BEST_ASYNC = Figure("time that the best breaker of another library adds to an async call", form="{:.0f} ns")


def circuitbreaker_():
    from circuitbreaker import CircuitBreaker

    def make(**settings):
        return CircuitBreaker(**settings)

    return make(), make(), make(failure_threshold=1, recovery_timeout=OPEN_S)


def purgatory_():
    from purgatory import AsyncCircuitBreakerFactory, SyncCircuitBreakerFactory

    return (
        SyncCircuitBreakerFactory()("sync"),
        AsyncCircuitBreakerFactory()("async"),
        SyncCircuitBreakerFactory()("half-open", threshold=1, ttl=OPEN_S),
    )


def pybreaker_():
    from pybreaker import CircuitBreaker

    return CircuitBreaker(), None, CircuitBreaker(fail_max=1, reset_timeout=OPEN_S)


def interlock_():
    from interlock import CircuitBreaker, Config

    slow = Config(slow_call_duration_threshold=0.2)
    quick = Config(minimum_number_of_calls=1, wait_duration_in_open=OPEN_S)
    return (
        CircuitBreaker(name="sync", config=slow),
        CircuitBreaker(name="async", config=slow),
        CircuitBreaker(name="half-open", config=quick),
    )


PEERS = {
    "circuitbreaker": circuitbreaker_,
    "purgatory": purgatory_,
    "pybreaker": pybreaker_,
    "interlock-cb": interlock_,
}


def trip(guard):
    def fail():
        raise OSError

    guarded = guard(fail)
    for _ in range(20):
        with contextlib.suppress(Exception):
            guarded()
    time.sleep(2 * OPEN_S)


def main():
    print(f"{'':16}{'version':>9}{'sync':>9}{'async':>9}{'half open, of 20':>19}{'8 threads':>11}")
    added, added_async = {}, {}
    for name, make in PEERS.items():
        sync, asynchronous, short = make()
        functions = {"bare": calls_of(bare), "sync": calls_of(sync(bare)), "async bare": awaits_of(async_bare)}
        if asynchronous is not None:
            functions["async"] = awaits_of(asynchronous(async_bare))
        best = least_ns(functions, rounds=300)
        added[name] = best["sync"] - best["bare"]
        if "async" in best:
            added_async[name] = best["async"] - best["async bare"]
        awaited = f"{added_async[name]:9.0f}" if name in added_async else f"{'–':>9}"
        trip(short)
        probes = let_through(short, 20)
        print(
            f"{name:16}{importlib.metadata.version(name):>9}{added[name]:9.0f}{awaited}{probes:19}"
            f"{eight_threads_s(make()[0]):9.2f} s",
            flush=True,
        )
    for figure, of in ((BEST, added), (BEST_ASYNC, added_async)):
        best = min(of, key=of.get)
        figure.report(of[best], note=best)


if __name__ == "__main__":
    main()
