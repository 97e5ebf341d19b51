"""Models on a server of the Open Inference Protocol; see :class:`TritonBackend`.

From the outside in: users make a :mod:`~streaminfer.backends.triton.backend`; ``request_splitter`` decides which
requests a batch becomes; ``lifecycle`` opens a ``session`` at each start, with the server's metadata (``model``,
``request_validation``), ``shared_memory``, each piece of which is a ``region``, and ``sequences``; ``repository`` loads
and unloads the model; ``transport`` sends ``messages`` to an ``endpoint`` and receives the responses, which ``decode``
and ``errors`` read with ``dtypes``.
"""

from streaminfer.backends.triton.backend import TritonBackend
from streaminfer.backends.triton.endpoint import Tls
from streaminfer.backends.triton.sequences import SequenceLost
from streaminfer.backends.triton.server_statistics import ServerStatistics, TritonStatistics

__all__ = ["SequenceLost", "ServerStatistics", "Tls", "TritonBackend", "TritonStatistics"]
