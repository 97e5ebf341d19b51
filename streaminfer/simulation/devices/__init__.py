"""Simulation of a device that several models share, and the clairvoyant optimum of two."""
