"""The fault drill: TritonBackend behind breaker and router, against a real Triton that breaks 20 times in each way.

python benchmarks/run.py triton_faults [--rounds N] [--protocol grpc|http] [--shared-memory] [FAULT ...]

Requests that the machine made late (the thread was ready to run and had no core) are counted separately. After a
repair, the server responds again after at most the breaker's longest open time, plus the times of a silent connection
and of the router's next check. The exit status is 1 if a bar is missed or the server crashed.
"""

import argparse
import asyncio
import statistics
import sys
from collections import Counter

from _lib.figures import Figure
from servers.drill import Held, Plan, Report, drill, held_now
from servers.faults import FAULTS, Protocol
from servers.triton_server import TritonServer

import streaminfer as si
from streaminfer.backends.triton import TritonBackend

COLUMNS = (
    *("fault", "requests", "endless", "late", "excused", "wrong", "untyped"),
    *("server", "local", "errors", "latest_ms", "gap_ms", "back_s", "full_s", "left"),
)
NAMES: dict[Protocol, str] = {"grpc": "gRPC", "http": "HTTP"}
ENDLESS = Figure("requests of the fault drill without an end", form="{:.0f}", at_most=0)
LATE = Figure("requests of the fault drill later than their deadline and 20 ms", form="{:.0f}", at_most=0)
WRONG = Figure("wrong responses in the fault drill", form="{:.0f}", at_most=0)
UNTYPED = Figure("errors in the fault drill that are not of streaminfer", form="{:.0f}", at_most=0)
LEFT = Figure("files, threads, tasks and connections left by the fault drill", form="{:.0f}", at_most=0)
BACK = Figure("longest time from a repair to Triton's first response", form="{:.2f} s", at_most=6.0)
FULL = Figure("longest time from a repair until Triton serves all requests", form="{:.2f} s", at_most=15.0)
LATEST = Figure("end of the latest request of the fault drill, after its deadline", form="{:+.1f} ms")


def hold(
    name: str, server: TritonServer, plan: Plan, protocol: Protocol, shared_memory: bool
) -> tuple[Report, Held, Held]:
    """Run the rounds of one fault; return their report, and the resources that the process held before and after."""

    def backend(url: str) -> TritonBackend:
        return TritonBackend(url, "mlp", protocol=protocol, shared_memory=shared_memory)

    before = held_now()
    report = asyncio.run(drill(FAULTS[name], server, backend, plan, protocol=protocol))
    return report, before, held_now()


def left_over(report: Report, before: Held, after: Held) -> Counter[str]:
    """Count the resources that the process did not hold before."""
    counted = {
        "files": after.files - before.files,
        "threads": after.threads - before.threads,
        "tasks": report.tasks,
        "connections": report.connections,
        "shm": len(after.shared_memory - before.shared_memory),
    }
    return Counter({what: count for what, count in counted.items() if count > 0})


def row(report: Report, left: Counter[str]) -> list[str]:
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
        ", ".join(f"{count} {what}" for what, count in left.items()) or "nothing",
    ]


def report_fault(report: Report, way: str) -> bool:
    """Report the figures of one fault; return whether its bars are met."""
    case, during = f"{way}, {report.fault}", report.count("fault", routed=True)
    LATEST.report(report.latest_s * 1e3, case=case, note=f"{len(report.endings):,} requests")
    back, full = report.mended_s, report.full_s
    served = f"{during['triton']} requests served by Triton and {during['local']} locally during the fault"
    met = [
        BACK.report(max(back), case=case, note=f"median {statistics.median(back):.2f} s; {served}"),
        FULL.report(max(full), case=case, note=f"median {statistics.median(full):.2f} s"),
    ]
    return all(met)


def report_totals(reports: list[Report], left: Counter[str], way: str) -> bool:
    """Report the totals of all faults; return whether their bars are met."""
    endings = [one for report in reports for one in report.endings]
    excused = sum(report.excused for report in reports)
    untyped = Counter(one.how for one in endings if not one.typed)
    endless = sum(report.endless for report in reports)
    total = len(endings) + endless
    met = [
        ENDLESS.report(endless, case=way, of=total),
        LATE.report(
            sum(len(report.late) for report in reports) - excused,
            case=way,
            of=total,
            note=f"{excused} more had no core",
        ),
        WRONG.report(sum(not one.right for one in endings), case=way, of=total),
        UNTYPED.report(untyped.total(), case=way, of=total, note=", ".join(untyped)),
        LEFT.report(left.total(), case=way, note=", ".join(left)),
    ]
    return all(met)


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
    way = f"{NAMES[asked.protocol]}{', shared memory' if asked.shared_memory else ''}"
    print(f"{way}; {plan.rounds} rounds of each fault, ", end="")
    print(
        f"{plan.rate:.0f} requests a second, {plan.timeout_s * 1e3:.0f} ms each; server, local, errors: ended so during"
    )
    print(
        "the fault, of those that go to the router; back, full: median/most seconds from mending to the first answer of"
    )
    print("the server, and to all of them; gap: the longest time for which the event loop did not run\n")
    print(" | ".join(COLUMNS), flush=True)
    reports, left, crashed = [], Counter[str](), []
    with TritonServer(["mlp"]) as server:
        hold(names[0], server, Plan(), asked.protocol, asked.shared_memory)  # not counted: what loads once is no leak
        for name in names:
            report, before, after = hold(name, server, plan, asked.protocol, asked.shared_memory)
            found = left_over(report, before, after)
            print(" | ".join(row(report, found)), flush=True)
            reports.append(report)
            left += found
            if report.crashed:
                crashed.append(name)
                server.restart()
    print()
    met = [report_fault(report, way) for report in reports] + [report_totals(reports, left, way)]
    if crashed:
        print(f"the server crashed: {', '.join(crashed)}")
    return 0 if all(met) and not crashed else 1


if __name__ == "__main__":
    sys.exit(main())
