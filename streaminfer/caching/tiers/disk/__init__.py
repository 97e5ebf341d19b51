"""A tier in a file of this machine."""
