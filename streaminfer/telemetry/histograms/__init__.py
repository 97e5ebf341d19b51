"""Latency histograms."""
