"""Hedged requests."""
