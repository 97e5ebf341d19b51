"""Capacity at an SLO, with a confidence interval."""
