"""Burn alerts on synthetic months, against the closed form of the SRE workbook's table.

    python benchmarks/run.py alerts

A month has one event per second, at an objective of 99.9 %, and incidents of one kind, or none. While a share ``e`` of
the events is bad, the budget burns at ``b = e / 0.001``. A pair of windows for a rate ``r`` over ``w`` seconds fires
``w · r / b`` seconds after a sudden incident begins, and never if the incident is shorter than that, or ``b < r``. The
expected alerts of a month follow from that table alone, and the benchmark compares those of ``SLO`` with them. An alert
may be late by two of the 128 slices of the long window.
"""

import sys
from collections.abc import Callable

import attrs
import numpy as np
from _lib.figures import Figure

from streaminfer.telemetry import SLO, Alert, workbook_pairs
from streaminfer.testing import FakeClock

DAY_S = 86400
MONTH_S = 30 * DAY_S
ALLOWED = 0.001
PAIRS = workbook_pairs()
WRONG = Figure("burn alerts of ten synthetic months that are missing, false or too early", form="{:.0f}", at_most=0)
LATEST = Figure("delay of the latest burn alert, as a share of its long window", form="{:.2f} %", at_most=1.6)


@attrs.frozen
class Month:
    """Synthetic month with incidents of one kind.

    Attributes:
        name: name in the table.
        burns: burn rate during an incident.
        lasts_s: seconds of an incident.
        begins_s: second at which each incident begins.
        traffic: returns true if a second has an event.
    """

    name: str
    burns: float
    lasts_s: int
    begins_s: tuple[int, ...]
    traffic: Callable[[int], bool] = lambda _: True

    def expected_s(self) -> list[float | None]:
        """Return when each pair fires by the closed form, in seconds from the first incident; ``None``: never."""
        found: list[float | None] = []
        for pair in PAIRS:
            after_s = pair.long_s * pair.burn_rate / self.burns
            found.append(after_s if after_s <= self.lasts_s and self.burns >= pair.burn_rate else None)
        return found


def weekday(second: int) -> bool:
    return 8 * 3600 <= second % DAY_S < 20 * 3600


MONTHS = [
    Month("outage of 30 min", 1000.0, 1800, (3 * DAY_S,)),
    Month("fast: 14.4 × 1.5 for 3 h", 21.6, 3 * 3600, (3 * DAY_S,)),
    Month("8 × for 12 h", 8.0, 12 * 3600, (3 * DAY_S,)),
    Month("slow: 4 × for 30 h", 4.0, 30 * 3600, (4 * DAY_S,)),
    Month("slow: 1.5 × for 10 days", 1.5, 10 * DAY_S, (5 * DAY_S,)),
    Month("0.9 × for 20 days", 0.9, 20 * DAY_S, (5 * DAY_S,)),
    Month("blips: outage of 30 s each day", 1000.0, 30, tuple(range(5 * DAY_S, 29 * DAY_S, DAY_S))),
    Month("healthy", 1.0, 0, ()),
    Month("no traffic by night, healthy", 1.0, 0, (), weekday),
    Month("no traffic after an outage of 30 s", 1000.0, 30, (5 * DAY_S,), lambda second: second < 5 * DAY_S + 30),
]


def run(month: Month) -> tuple[list[float | None], int]:
    """Return when each pair first fired, in seconds after the first incident began, and the number of alerts."""
    clock = FakeClock()
    slo = SLO("month", threshold_s=0.1, objective=1.0 - ALLOWED, clock=clock)
    fired: dict[float, float] = {}
    alerts: list[Alert] = []
    second = 0

    @slo.on_alert
    def note(alert: Alert) -> None:
        if alert.firing:
            alerts.append(alert)
            fired.setdefault(alert.pair.long_s, second - (month.begins_s or (0,))[0])

    in_trouble = np.zeros(MONTH_S, bool)
    for begin in month.begins_s:
        in_trouble[begin : begin + month.lasts_s] = True
    # the bad events are spread evenly over an incident
    bad = in_trouble & (np.diff(np.floor(np.cumsum(in_trouble) * month.burns * ALLOWED), prepend=0.0) >= 1.0)
    for second, is_bad in enumerate(bad.tolist()):
        clock.advance(1.0)
        if month.traffic(second):
            slo.record(1.0 if is_bad else 0.01)
    slo.alerts()
    return [fired.get(pair.long_s) for pair in PAIRS], len(alerts)


def text(seconds: float | None) -> str:
    return "—" if seconds is None else f"{seconds:,.0f} s"


def main() -> int:
    names = [f"{pair.burn_rate:g} × {pair.long_s / 3600:g} h" for pair in PAIRS]
    print(f"{'month':36}{'alerts':>7}  " + "".join(f"{name:>26}" for name in names))
    print(f"{'':36}{'':>7}  " + f"{'measured / closed form':>26}" * len(PAIRS))
    wrong, worst = 0, 0.0
    for month in MONTHS:
        measured, alerts = run(month)
        expected = month.expected_s() if month.begins_s else [None] * len(PAIRS)
        cells = []
        for pair, ours, closed in zip(PAIRS, measured, expected, strict=True):
            cells.append(f"{text(ours)} / {text(closed)}")
            if ours is None or closed is None:
                wrong += ours is not closed
            else:
                wrong += ours < closed - 1.0
                worst = max(worst, (ours - closed) / pair.long_s)
        wrong += max(alerts - sum(closed is not None for closed in expected), 0)
        print(f"{month.name:36}{alerts:>7}  " + "".join(f"{cell:>26}" for cell in cells), flush=True)
    is_met = WRONG.report(wrong)
    is_met &= LATEST.report(100 * worst)
    return not is_met


if __name__ == "__main__":
    sys.exit(main())
