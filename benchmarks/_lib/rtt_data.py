"""Recorded round-trip times, or synthetic ones if there is no recording.

``STREAMINFER_RTT`` names the folder of the recordings; the default is ``../shared/rtt`` beside the checkout. Without
either, `synthetic` generates pairs with changing times, and `synthetic_car` a car that loses its network.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Run(NamedTuple):
    """One drive over 5G: instants of sending and round-trip times, in seconds."""

    name: str
    sent_s: Floats
    rtt_s: Floats


def folder() -> Path | None:
    """Return the folder of the recordings, if there is one."""
    given = os.environ.get("STREAMINFER_RTT")
    path = Path(given) if given else Path(__file__).parents[3] / "shared" / "rtt"
    return path if (path / "seattle_first_half.npz").exists() else None


def seattle() -> tuple[str, Floats]:
    """Return the source, and the round-trip times of personal devices in seconds, shape (slices, from, to)."""
    where = folder()
    if where is None:
        return "synthetic (no STREAMINFER_RTT)", synthetic()
    stored = np.load(where / "seattle_first_half.npz")
    return "Seattle, 99 personal devices", stored["rtt"] * (float(stored["unit_ms"]) / 1e3)


def planetlab() -> Floats:
    """Return round-trip times of university hosts in seconds, shape (slices, from, to)."""
    where = folder()
    assert where is not None, "PlanetLab needs the recordings: set STREAMINFER_RTT"
    pairs = np.load(where / "planetlab_first_half.npz")["rtt_ms"] / 1e3
    table = np.zeros((len(pairs), 490, 490))
    table[:, *np.triu_indices(490, 1)] = pairs
    return table + table.transpose(0, 2, 1)


def car() -> dict[str, list[Run]]:
    """Return the runs of a car over 5G, by network, by scenario and, if it is unusual, by sending rate."""
    where = folder()
    if where is None:
        return synthetic_car()
    stored = np.load(where / "cicv5g_first_runs.npz")
    groups: dict[str, list[Run]] = {}
    for k, name in enumerate(stored["run"]):
        part = slice(stored["offsets"][k], stored["offsets"][k + 1])
        sent_s, rtt_s = stored["send_ms"][part] / 1e3, stored["rtt_ms"][part] / 1e3
        network = "private" if stored["network"][k].startswith("n8") else "public"
        scenario = str(stored["scenario"][k]).replace("signal-gradient", "weak-signal")
        period_s = float(np.median(np.diff(sent_s)))
        rate = " fast" if period_s < 0.03 else " slow" if period_s > 0.07 else ""
        groups.setdefault(f"5g-{network}-{scenario}{rate}", []).append(Run(str(name), sent_s, rtt_s))
    return groups


def synthetic(slices: int = 344, devices: int = 60, seed: int = 0) -> Floats:
    """Return the round-trip times of devices in a plane, whose hosts and routes become slow for a while."""
    rng = np.random.default_rng(seed)
    places = rng.uniform(0, 0.2, (devices, 2))
    base = np.hypot(*(places[:, None] - places[None]).transpose(2, 0, 1)) + 0.01
    host = _wander(rng, (slices, devices), 0.35)
    route = _wander(rng, (slices, devices, devices), 0.2)
    noise = rng.exponential(0.01, (slices, devices, devices))
    hosts = np.exp(host)
    return np.asarray(base * np.exp(route) + 0.04 * (hosts[:, :, None] + hosts[:, None, :]) + noise)


def synthetic_car(seed: int = 0) -> dict[str, list[Run]]:
    """Return calm runs, and runs whose outages differ so much that no latency can be promised."""
    rng = np.random.default_rng(seed)
    groups: dict[str, list[Run]] = {"5g-calm": [], "5g-outages": []}
    for name, runs in groups.items():
        for number in range(10):
            sent_s = np.asarray(np.arange(1_500) * 0.055)
            rtt_s = np.asarray(0.015 + rng.gamma(4.0, 0.001, sent_s.size))
            for _ in range(number if name == "5g-outages" else 0):
                starts_s, length_s = rng.uniform(0, sent_s[-1]), rng.lognormal(-0.5, 1.0)
                during = (sent_s >= starts_s) & (sent_s < starts_s + length_s)
                rtt_s[during] += starts_s + length_s - sent_s[during]
            runs.append(Run(f"{name} {number}", sent_s, rtt_s))
    return groups


def _wander(rng: np.random.Generator, shape: Sequence[int], scale: float) -> Floats:
    """Return a slow random walk for each host or route; the walks tend to 0."""
    steps = rng.normal(0, scale * np.sqrt(1 - 0.97**2), shape)
    walk: Floats = np.empty(shape)
    walk[0] = rng.normal(0, scale, shape[1:])
    for at in range(1, shape[0]):
        walk[at] = 0.97 * walk[at - 1] + steps[at]
    return walk
