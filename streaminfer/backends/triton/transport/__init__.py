"""Transports of the Open Inference Protocol: gRPC and HTTP.

Both classes have the same methods. Each of these raises :class:`~streaminfer.backends.triton.errors.ServerError` when
the server or the connection fails, :class:`~streaminfer.errors.BackendError` for a response that cannot be read, and
:class:`~streaminfer.errors.Closed` when ``close`` ended the connection. The attribute ``binary`` says whether tensors
are sent as bytes, or as JSON.
"""
