"""Virtual time, a scripted backend and fault injection, for tests of services built on streaminfer.

Nothing sleeps and nothing depends on the machine's speed: on a :class:`VirtualLoop` time jumps to the next timer, and a
run with scripted backends replays exactly.
"""

from streaminfer.testing import faults
from streaminfer.testing.scripted import HANG, ScriptedBackend
from streaminfer.testing.virtual_time import FakeClock, VirtualLoop, run

__all__ = ["HANG", "FakeClock", "ScriptedBackend", "VirtualLoop", "faults", "run"]
