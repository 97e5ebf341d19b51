"""Virtual time, a scripted backend and fault injection, for tests of services built on streaminfer.

Tests do not sleep and do not depend on the speed of the machine: on a :class:`VirtualLoop`, time jumps to the next
timer. A run with scripted backends replays exactly.
"""

from streaminfer.testing import faults
from streaminfer.testing.scripted import HANG, ScriptedBackend
from streaminfer.testing.virtual_time import FakeClock, VirtualLoop, run

__all__ = ["HANG", "FakeClock", "ScriptedBackend", "VirtualLoop", "faults", "run"]
