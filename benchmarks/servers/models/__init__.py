"""Models for Triton's Python backend: they run inside the server's processes."""
