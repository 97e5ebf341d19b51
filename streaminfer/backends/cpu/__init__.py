"""Functions as backends, on threads and processes of this machine."""
