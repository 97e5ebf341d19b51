"""Samples as arrays, and quantiles of distributions in closed form."""
