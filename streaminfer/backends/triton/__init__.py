"""Models on a server of the Open Inference Protocol; see :class:`TritonBackend`.

From the outside in: users create a :mod:`~streaminfer.backends.triton.backend`. ``request_splitter`` decides which
requests a batch becomes. ``lifecycle`` opens a ``session`` at each start, with the server's metadata (``model``),
``sequences`` and ``shared_memory``, which consists of regions (``region``). ``repository``
loads and unloads the model. ``transport`` sends ``messages`` to an ``endpoint`` and receives the responses; ``decode``
and ``errors`` read them, with ``dtypes``.
"""

from streaminfer.backends.triton.backend import TritonBackend
from streaminfer.backends.triton.endpoint import Tls
from streaminfer.backends.triton.sequences import SequenceLost
from streaminfer.backends.triton.server_statistics import ServerStatistics, TritonStatistics

__all__ = ["SequenceLost", "ServerStatistics", "Tls", "TritonBackend", "TritonStatistics"]
