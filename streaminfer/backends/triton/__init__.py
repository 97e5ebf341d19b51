"""Models behind a server of the Open Inference Protocol; see :class:`TritonBackend`.

From the outside in: :mod:`~streaminfer.backends.triton.backend` is what users make; ``asking`` decides which requests a
batch becomes; ``session`` is one start, with what the server said then (``model``, ``check``), ``shared_memory`` and
``sequences``; ``grpc_transport`` and ``http_transport`` carry a ``call`` there and back, with ``wire``, ``dtypes``,
``headers`` and ``endpoint``; ``decode`` and ``errors`` read responses.
"""

from streaminfer.backends.triton.backend import TritonBackend
from streaminfer.backends.triton.endpoint import Tls
from streaminfer.backends.triton.sequences import SequenceLost
from streaminfer.backends.triton.server_statistics import ServerStatistics, TritonStatistics

__all__ = ["SequenceLost", "ServerStatistics", "Tls", "TritonBackend", "TritonStatistics"]
