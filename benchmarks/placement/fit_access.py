"""Fit the access profiles of the package to public measurements.

    PYTHONPATH=.:benchmarks python benchmarks/placement/fit_access.py

5G: the runs of a car, one profile for each network and road; runs that sent much more or less often are left out,
because the network treated them differently. ``personal`` and ``wired``: devices at homes and hosts at universities.
Their last mile was not measured alone. It is estimated as the common part of all round-trip times of a device above the
fastest of each pair, at both ends together: an upper bound for one end. A group of a few devices counts as a run.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from _lib.rtt_data import Floats, car, folder, planetlab, seattle

from streaminfer.placement.network.access import FittedAccess

CICV5G = (
    "CICV5G: Zhang, Xiong, Zhang, Feng, Huang, Wang, Tian, '5G communication delay dataset for cloud-based vehicle "
    "planning and control', Zenodo 10.5281/zenodo.17475688 (2025), CC BY 4.0; changed: quantiles of each run"
)
NETLATENCY = (
    "NetLatency-Data, {}: Zhu, Liu, Niu, Li, Zhao, 'Network Latency Estimation for Personal Devices: A Matrix "
    "Completion Approach', IEEE/ACM ToN 25(2), 2017, MIT; changed: excess over the fastest of each pair, by device"
)
TARGET = Path(__file__).parents[2] / "streaminfer" / "placement" / "network" / "access_profiles.json"


def excess(rtt_s: Floats) -> Floats:
    """Return the median excess of a device's round-trip times over each pair's fastest, shape (devices, slices)."""
    above = rtt_s - rtt_s.min(axis=0)
    above[:, np.eye(rtt_s.shape[1], dtype=bool)] = np.nan
    return np.asarray(np.nanmedian(above, axis=2).T)


def of_devices(name: str, excess_s: Floats, runs: int, part: str) -> FittedAccess:
    groups = [devices.ravel() for devices in np.array_split(excess_s, runs)]
    return FittedAccess.fit(name, groups, source=NETLATENCY.format(part))


def short(value: Any) -> Any:
    """Return the record rounded to six digits; its shares still have the sum 1."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, list):
        return [short(one) for one in value]
    if not isinstance(value, dict):
        return value
    record = {key: short(one) for key, one in value.items()}
    if "shares" in record:
        shares = record["shares"] = [round(share, 6) for share in record["shares"]]
        shares[shares.index(max(shares))] += 1 - sum(shares)
        record["shares"] = [round(share, 6) for share in shares]
    return record


def main() -> None:
    assert folder() is not None, "set STREAMINFER_RTT"
    profiles = [
        of_devices("wired", excess(planetlab()), 49, "PlanetLab"),
        of_devices("personal", excess(seattle()[1]), 33, "Seattle"),
    ]
    for name, runs in sorted(car().items()):
        if " " not in name:
            sent_s = [run.sent_s for run in runs]
            profiles.append(FittedAccess.fit(name, [run.rtt_s for run in runs], sent_s=sent_s, source=CICV5G))
    stored = {}
    for profile in profiles:
        record = short(profile.to_json())
        stored[record.pop("name")] = record
    TARGET.write_text(json.dumps(stored, separators=(",", ":")).replace('},"', '},\n"') + "\n", encoding="utf-8")
    for profile in profiles:
        print(profile, profile.outages and f"{profile.outages.per_hour:.0f} outages an hour")
        for share in (0.9, 0.95, 0.99):
            print("   ", share, profile.promise(share).reason or "promisable")


if __name__ == "__main__":
    main()
