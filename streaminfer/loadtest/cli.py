"""``streaminfer loadtest scenario.toml``: run a scenario, write its reports, and exit by the verdict."""

import argparse
import asyncio
import contextlib
import io
import sys
import traceback
from pathlib import Path
from typing import Any

import attrs

from streaminfer._internal.files.whole_file import write_whole
from streaminfer._internal.validation import expected
from streaminfer.errors import StreamInferError
from streaminfer.loadtest.capacity.find import find_capacity
from streaminfer.loadtest.path.cdn_edge import CdnEdge
from streaminfer.loadtest.path.device_group import run_devices
from streaminfer.loadtest.quantiles import say_share
from streaminfer.loadtest.report.junit import make_junit
from streaminfer.loadtest.report.page import make_page
from streaminfer.loadtest.report.report import Report
from streaminfer.loadtest.report.sentences import describe
from streaminfer.loadtest.runner import run
from streaminfer.loadtest.scenario import Scenario
from streaminfer.loadtest.sending.sender import Progress
from streaminfer.loadtest.verdict.verdict import Verdict, compare

__all__ = ["FAILED", "PASSED", "UNDECIDED", "add_arguments", "execute"]

PASSED, FAILED, UNDECIDED = 0, 1, 3
"""Exit statuses; status 2 means a wrong command line or scenario."""
_USAGE = 2
_INTERRUPTED = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to a parser."""
    parser.add_argument("scenario", type=Path, help="a TOML file; see docs/reference/scenario-files.md")
    parser.add_argument("--html", type=Path, metavar="PATH", help="write the report as one page")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write figures and requests, for --compare")
    parser.add_argument("--junit", type=Path, metavar="PATH", help="write the checks as JUnit XML")
    parser.add_argument("--compare", type=Path, metavar="PATH", help="a run saved with --json: has the tail changed?")
    parser.add_argument("--seed", type=int, help="in place of the scenario's")


def execute(options: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        0: passed; 1: the objective was missed, or the tail regressed; 2: a wrong scenario, a service that does not
        start, or a report that cannot be written; 3: no verdict; 130: ended by Ctrl-C.
    """
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # like python -m: a scenario names modules of the project
    running = ""
    try:
        scenario = Scenario.load(options.scenario)
        if options.seed is not None:
            scenario = attrs.evolve(scenario, seed=options.seed)
        baseline = None if options.compare is None else Report.load(options.compare)
        _check_targets(options)
        running = f"{options.scenario}: "  # prefix of errors of the run; the errors above name the file already
        report = _run(scenario)
    except KeyboardInterrupt:
        return _end("interrupted", _INTERRUPTED)
    except StreamInferError as error:  # errors of requests are in the report
        return _end(f"the service does not start: {error}")
    except (OSError, ValueError) as error:
        return _end(f"{running}{error}")
    except (Exception, SystemExit) as error:  # noqa: BLE001 - of the scenario's code: its author needs the traceback
        traceback.print_exc()
        return _end(f"service or inputs of the scenario failed: {error!r}")
    verdict = None if baseline is None else compare(baseline, report)
    try:
        _write(options, report, verdict)
    except (OSError, StreamInferError) as error:  # a full disk, no matplotlib
        return _end(error)
    return _status(report, verdict)


def _end(reason: object, status: int = _USAGE) -> int:
    """Print why the command ends, and return the exit status."""
    print(f"streaminfer loadtest: {reason}", file=sys.stderr)
    return status


def _check_targets(options: argparse.Namespace) -> None:
    """Check before the run that the reports can be written."""
    for name in ("html", "json", "junit"):
        path: Path | None = getattr(options, name)
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            raise NotADirectoryError(expected(f"--{name}", "a file in a folder that exists", str(path)))


def _run(scenario: Scenario) -> Report:
    service, settings = scenario.service.maker(), scenario.run_settings() | {"progress": _print_progress}
    target = service if scenario.senders else service()
    if scenario.devices:
        return asyncio.run(_run_devices(scenario, target, settings))
    return asyncio.run(_run_requests(scenario, target, settings | {"inputs": scenario.make_inputs()}))


async def _run_devices(scenario: Scenario, service: object, settings: dict[str, Any]) -> Report:
    del settings["arrivals"], settings["senders"]
    async with contextlib.AsyncExitStack() as stack:
        edge = None
        if scenario.edge is not None:
            edge = await stack.enter_async_context(CdnEdge(consumers=scenario.edge.consumers))
        return await run_devices(service, scenario.devices, score=scenario.score, edge=edge, **settings)


async def _run_requests(scenario: Scenario, service: object, settings: dict[str, Any]) -> Report:
    report = await run(service, **settings)
    if scenario.capacity is None:
        return report
    names = ("inputs", "slo_s", "objective", "seed", "senders")
    capacity = await find_capacity(
        service,
        on_step=lambda step: print(f"  {step.rate:,.0f}/s: {say_share(step.on_time)} on time", file=sys.stderr),
        **{name: settings[name] for name in names},
        **attrs.asdict(scenario.capacity),
    )
    return attrs.evolve(report, capacity=capacity)


def _write(options: argparse.Namespace, report: Report, verdict: Verdict | None) -> None:
    try:
        if options.html is not None:
            make_page(report, verdict, options.html)
        if options.json is not None:
            report.save(options.json)
        if options.junit is not None:
            write_whole(options.junit, make_junit(report, verdict).encode())
    finally:  # print the result even if the disk is full, and write the files even if it cannot be printed
        if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in ("strict", "surrogateescape"):
            sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may lack "µ" and "→"
        print(*describe(report), *(() if verdict is None else (verdict,)), sep="\n")


def _status(report: Report, verdict: Verdict | None) -> int:
    if report.passed is False or (verdict is not None and verdict.regressed):
        return FAILED
    if report.passed is None or (verdict is not None and verdict.undecided):
        return UNDECIDED
    return PASSED


def _print_progress(progress: Progress) -> None:
    print(
        f"  {progress.elapsed_s:4.0f} of {progress.duration_s:g} s: {progress.sent:,} of {progress.requests:,} sent, "
        f"{progress.in_flight:,} in flight",
        file=sys.stderr,
        flush=True,
    )
