"""Retry budget."""
