"""Telemetries that have recorded given durations."""

import numpy as np

import streaminfer as si

__all__ = ["DURATIONS_S", "telemetry"]

_RNG = np.random.default_rng(17)

DURATIONS_S = {
    "lognormal": _RNG.lognormal(-4.0, 0.5, 200_000),
    "short": _RNG.lognormal(-4.0, 0.5, 3_000),
    "narrow": _RNG.normal(0.020, 0.0005, 50_000),
    "bimodal": np.where(_RNG.random(50_000) < 0.985, 0.004, 0.3) * _RNG.lognormal(0.0, 0.02, 50_000),
    "constant": np.full(1_000, 0.0123),
    "wide": _RNG.lognormal(-5.0, 1.5, 200_000),
}
"""Shapes of latency: smooth, the same with few requests, within one octave, two modes, one value, over twenty octaves."""


def telemetry(name, durations_s, **settings):
    """Return a telemetry whose requests had these latencies."""
    found = si.Telemetry(name, **settings)
    found._histograms[0].record_many(durations_s)
    return found
