"""Caches around services, batched functions and functions."""
