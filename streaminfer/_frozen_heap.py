"""Keep full garbage collections short while requests are served.

A full collection visits every object that could be part of a cycle: imported modules, models, settings. They outlive
every request, and a visit to all of them holds up the event loop for 5 to 50 ms. While a stack serves, what existed at
its start is left out (``gc.freeze``). When the last stack stops, it is back.

Thread-safe. Objects that existed at the start are still freed when nothing refers to them; only cycles among them stay
until the last stop.
"""

import gc
import threading

__all__ = ["freeze", "unfreeze"]

_lock = threading.Lock()
_holders = 0
_ours = False  # whether nothing was frozen before


def freeze() -> None:
    """Collect garbage once, and leave what remains out of later collections until :func:`unfreeze`."""
    global _holders, _ours  # noqa: PLW0603 - one heap per process
    with _lock:
        if _holders == 0:
            _ours = gc.get_freeze_count() == 0
        _holders += 1
        gc.collect()
        gc.freeze()


def unfreeze() -> None:
    """Undo one :func:`freeze`; the last one puts everything back, unless the process had frozen objects before."""
    global _holders  # noqa: PLW0603 - one heap per process
    with _lock:
        _holders -= 1
        if _holders == 0 and _ours:
            gc.unfreeze()
