"""Live streams: cameras and microphones through one service, in order, with state, never stale."""

from streaminfer.streams.frame import Frame

__all__ = ["Frame"]
