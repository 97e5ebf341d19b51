"""Caches in front of services, batched functions and functions."""
