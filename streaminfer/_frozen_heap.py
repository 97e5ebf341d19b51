"""Keep full garbage collections short while requests are served.

A full collection visits every object that could be part of a cycle: imported modules, models, settings. They outlive
every request, and a visit to all of them holds up the event loop for 5 to 50 ms. While a stack serves, what existed at
its start is left out (``gc.freeze``). When the last stack stops, it is back.

Objects that existed at the start are still freed when nothing refers to them; only cycles among them stay until the
last stop. So a stack freezes before its layers open connections, which do not outlive every request. A process that
froze objects itself manages its collector, and is left alone.
"""

import gc
import threading

__all__ = ["freeze", "unfreeze"]

_lock = threading.Lock()
_holders = 0


def freeze() -> bool:
    """Collect garbage once, and leave what remains out of later collections until :func:`unfreeze`; thread-safe.

    Returns:
        Whether it did, and so whether :func:`unfreeze` is due: not where the process had frozen objects itself.
    """
    global _holders  # noqa: PLW0603 - one heap per process
    with _lock:
        if _holders == 0 and gc.get_freeze_count():
            return False
        _holders += 1
        gc.collect()
        gc.freeze()
        return True


def unfreeze() -> None:
    """Undo one :func:`freeze`; the last one puts everything back; thread-safe."""
    global _holders  # noqa: PLW0603 - one heap per process
    with _lock:
        _holders -= 1
        if _holders == 0:
            gc.unfreeze()
