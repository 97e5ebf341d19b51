"""Measurement of circuit breakers, ours and the peers': cost of a guarded call over a bare one, and calls that pass.

This module imports only the standard library, so that the peers' environment can use it too.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

CALLS = 1_000
ROUNDS = 600


def bare(x: Any) -> Any:
    return x


async def async_bare(x: Any) -> Any:
    return x


def calls_of(function: Callable[[Any], Any]) -> Callable[[], None]:
    def run() -> None:
        for _ in range(CALLS):
            function(1)

    return run


def awaits_of(function: Callable[[Any], Any]) -> Callable[[], None]:
    """Return a function that awaits an async function `CALLS` times; without an event loop, because nothing waits."""

    async def main() -> None:
        for _ in range(CALLS):
            await function(1)

    def run() -> None:
        try:
            main().send(None)
        except StopIteration:
            return
        raise RuntimeError("it waited for something")

    return run


def least_ns(functions: dict[str, Callable[[], None]], rounds: int = ROUNDS) -> dict[str, float]:
    """Return the minimum nanoseconds of a call, over many short rounds in alternation.

    Even a busy machine leaves some of the rounds undisturbed.
    """
    best = dict.fromkeys(functions, float("inf"))
    for _ in range(rounds):
        for name, function in functions.items():
            started = time.perf_counter_ns()
            function()
            best[name] = min(best[name], (time.perf_counter_ns() - started) / CALLS)
    return best


def let_through(guard: Callable[[Callable[[], Any]], Callable[[], Any]], threads: int) -> int:
    """Return how many of some threads enter a guarded function before the first of them returns.

    The first thread returns when each thread has entered or was rejected, or after a second if the breaker queues
    callers.
    """
    inside, refused = 0, 0
    counting = threading.Lock()
    all_tried = threading.Event()
    over = False

    def work() -> None:
        nonlocal inside, over
        with counting:
            inside += not over
            if inside + refused == threads:
                all_tried.set()
        all_tried.wait(timeout=0.0 if over else 1.0)
        over = True

    guarded = guard(work)

    def caller() -> None:
        nonlocal refused
        try:
            guarded()
        except Exception:
            with counting:
                refused += 1
                if inside + refused == threads:
                    all_tried.set()

    started = [threading.Thread(target=caller) for _ in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    return inside


def eight_threads_s(guard: Callable[[Callable[[], Any]], Callable[[], Any]]) -> float:
    """Return the seconds of eight threads with one guarded call of 200 ms each; 0.2 if the calls are concurrent."""
    guarded = guard(lambda: time.sleep(0.2))
    threads = [threading.Thread(target=guarded) for _ in range(8)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - started
