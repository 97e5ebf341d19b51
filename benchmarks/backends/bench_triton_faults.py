"""The fault drill: TritonBackend behind breaker and router, against a real Triton that breaks 20 times in each way.

python benchmarks/run.py triton_faults [--rounds N] [--protocol grpc|http] [--shared-memory] [FAULT ...]

Bars: no request without an end, none later than its deadline and 20 ms, none answered wrongly, no error that is not
ours, and after each mending the server answers again by itself; nothing is left afterwards. What the machine made late
(the thread was ready to run and had no core) is told apart and shown. The run ends with 1 where a bar is missed.
"""

import argparse
import asyncio
import math
import statistics
import sys
from collections import Counter

from servers.drill import Held, Plan, Report, drill, held_now
from servers.faults import FAULTS, Protocol
from servers.triton_server import TritonServer

import streaminfer as si
from streaminfer.backends.triton import TritonBackend

COLUMNS = (
    *("fault", "requests", "endless", "late", "excused", "wrong", "untyped"),
    *("server", "local", "errors", "latest_ms", "gap_ms", "back_s", "full_s", "left"),
)
BACK_S = 6.0  # the breaker's longest open time, and what a silent connection and the router's next look take


def hold(
    name: str, server: TritonServer, plan: Plan, protocol: Protocol, shared_memory: bool
) -> tuple[Report, Held, Held]:
    """One fault's rounds, and what the process held before and after."""

    def backend(url: str) -> TritonBackend:
        return TritonBackend(url, "mlp", protocol=protocol, shared_memory=shared_memory)

    before = held_now()
    report = asyncio.run(drill(FAULTS[name], server, backend, plan, protocol=protocol))
    return report, before, held_now()


def left_over(report: Report, before: Held, after: Held) -> list[str]:
    """What was not there before."""
    counted = {
        "files": after.files - before.files,
        "threads": after.threads - before.threads,
        "tasks": report.tasks,
        "connections": report.connections,
        "shm": len(after.shared_memory - before.shared_memory),
    }
    return [f"{count} {what}" for what, count in counted.items() if count > 0]


def judge(report: Report, left: list[str]) -> list[str]:
    """The bars that were missed."""
    own_late = len(report.late) - report.excused
    wrong = sum(not one.right for one in report.endings)
    untyped = Counter(one.how for one in report.endings if not one.typed)
    missed = []
    for count, what in ((report.endless, "without an end"), (own_late, "late"), (wrong, "wrong")):
        if count:
            missed.append(f"{count} {what}")
    if untyped:
        missed.append(f"untyped: {dict(untyped)}")
    if report.crashed:
        missed.append("the server crashed")
    if max(report.mended_s) > BACK_S:
        missed.append(f"back after {max(report.mended_s):.1f} s")
    if stuck := sum(map(math.isinf, report.full_s)):
        missed.append(f"{stuck} rounds after which requests still went elsewhere")
    return missed + [f"left: {one}" for one in left]


def row(report: Report, left: list[str]) -> list[str]:
    during = report.count("fault", routed=True)
    errors = sum(count for how, count in during.items() if how not in {"triton", "local"})
    return [
        report.fault,
        str(len(report.endings)),
        str(report.endless),
        str(len(report.late)),
        str(report.excused),
        str(sum(not one.right for one in report.endings)),
        str(sum(not one.typed for one in report.endings)),
        str(during["triton"]),
        str(during["local"]),
        str(errors),
        f"{report.latest_s * 1e3:.1f}",
        f"{report.longest_gap_s * 1e3:.1f}",
        f"{statistics.median(report.mended_s):.2f}/{max(report.mended_s):.2f}",
        f"{statistics.median(report.full_s):.2f}/{max(report.full_s):.2f}",
        ", ".join(left) or "nothing",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faults", nargs="*", metavar="FAULT", help=", ".join(FAULTS))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--protocol", choices=("grpc", "http"), default="grpc")
    parser.add_argument("--shared-memory", action="store_true")
    asked = parser.parse_args()
    names = asked.faults or list(FAULTS)
    if unknown := set(names) - set(FAULTS):
        parser.error(f"expected faults of {', '.join(FAULTS)}, got {', '.join(sorted(unknown))}")
    si.warmup()
    plan = Plan(rounds=asked.rounds)
    print(
        f"{asked.protocol}{', shared memory' if asked.shared_memory else ''}; {plan.rounds} rounds of each fault, ",
        end="",
    )
    print(
        f"{plan.rate:.0f} requests a second, {plan.timeout_s * 1e3:.0f} ms each; server, local, errors: ended so during"
    )
    print(
        "the fault, of those that go to the router; back, full: median/most seconds from mending to the first answer of"
    )
    print("the server, and to all of them; gap: the longest time for which the event loop did not run\n")
    print(" | ".join(COLUMNS), flush=True)
    missed = []
    with TritonServer(["mlp"]) as server:
        hold(names[0], server, Plan(), asked.protocol, asked.shared_memory)  # what is loaded once is no leak
        for name in names:
            report, before, after = hold(name, server, plan, asked.protocol, asked.shared_memory)
            left = left_over(report, before, after)
            print(" | ".join(row(report, left)), flush=True)
            missed += [f"{name}: {one}" for one in judge(report, left)]
            if report.crashed:
                server.restart()
    print("\n".join(["", *(missed or ["every bar is met"])]))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
