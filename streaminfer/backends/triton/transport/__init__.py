"""Transports of the Open Inference Protocol: gRPC and HTTP."""
