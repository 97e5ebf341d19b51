"""Interval logs, and histograms of several processes."""
