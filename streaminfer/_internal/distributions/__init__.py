"""Quantiles of distributions, in closed form."""
