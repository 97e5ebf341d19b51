"""Two settings of the process that keep its tail latency short while stacks serve.

*Heap.* A full collection visits every object that could be part of a cycle: imported modules, models, settings. They
outlive every request, and a visit to all of them holds up the event loop for 5 to 50 ms. While stacks serve, what
existed when the first of them started is left out (``gc.freeze``). It is still freed when nothing refers to it; only
cycles among it stay until the last stop. So a stack enters before its layers open connections, which do not outlive
every request. A process that froze objects itself manages its collector, and is left alone.

*Interpreter lock.* A thread that waits for the lock gets it after 5 ms at the latest, which is longer than most batches
of a fast model take: its worker would wait for the event loop. While a stack serves, it is 1 ms
(``sys.setswitchinterval``). A process that set another interval is left alone.
"""

import gc
import sys
import threading

__all__ = ["enter", "leave"]

_DEFAULT_SWITCH_S = 0.005
_SWITCH_S = 0.001

_lock = threading.Lock()
_holders = 0
_froze = False


def enter() -> None:
    """Apply the settings until :func:`leave`; thread-safe."""
    global _holders, _froze  # noqa: PLW0603 - one heap and one interpreter lock per process
    with _lock:
        _holders += 1
        if _holders > 1:
            return  # what a second stack adds may be connections, and stays in the collector's care
        _froze = gc.get_freeze_count() == 0
        if _froze:
            gc.collect()
            gc.freeze()
        if sys.getswitchinterval() == _DEFAULT_SWITCH_S:
            sys.setswitchinterval(_SWITCH_S)


def leave() -> None:
    """Undo one :func:`enter`; the last one restores what the process had; thread-safe."""
    global _holders  # noqa: PLW0603 - one heap and one interpreter lock per process
    with _lock:
        _holders -= 1
        if _holders:
            return
        if _froze:
            gc.unfreeze()
        if sys.getswitchinterval() == _SWITCH_S:
            sys.setswitchinterval(_DEFAULT_SWITCH_S)
