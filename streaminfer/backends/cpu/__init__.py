"""Functions on threads and processes of this machine."""
