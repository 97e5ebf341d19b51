"""Pytest plugin with the fixtures ``loadtest`` and ``virtual_loop``.

Pytest loads the plugin in every run where the package is installed, so the plugin imports nothing until a test needs
it. Its annotations are not evaluated, because older versions of pytest lack some of the names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from zlib import crc32

import pytest

if TYPE_CHECKING:
    from streaminfer.loadtest.report.report import Report
    from streaminfer.testing import VirtualLoop

__all__ = [
    "LoadTester",
    "loadtest",
    "pytest_addoption",
    "pytest_configure",
    "pytest_terminal_summary",
    "virtual_loop",
]

_PROPERTY = "loadtest"
_OPTIONS = ("--loadtest-save", "--loadtest-compare")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the plugin."""
    group = parser.getgroup("loadtest", "load tests of streaminfer")
    group.addoption(
        _OPTIONS[0],
        metavar="FOLDER",
        type=Path,
        help="save every run of the fixture loadtest, as TEST.json and .html",
    )
    group.addoption(
        _OPTIONS[1],
        metavar="FOLDER",
        type=Path,
        help="compare every run with the one saved there, and fail tests whose tail regressed",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Reject an option and its folder as separate arguments.

    Pytest does not know the options of plugins at first, so it takes an existing folder after the option for a test
    folder. It then looks for its settings there, and test names differ from those of the saved run.

    Raises:
        pytest.UsageError: an option such as ``--loadtest-compare FOLDER`` has no equals sign.
    """
    for option in _OPTIONS:
        if option in config.invocation_params.args:
            raise pytest.UsageError(
                f"{option}: expected {option}=FOLDER, because pytest takes a folder without the equals sign for one of "
                "tests and looks for its settings there"
            )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the result and the verdict of each load test; with pytest-xdist they come with the tests' reports."""
    reports = (
        each for group in terminalreporter.stats.values() for each in group if isinstance(each, pytest.TestReport)
    )
    lines = [
        str(it) for each in reports if each.when == "call" for name, it in each.user_properties if name == _PROPERTY
    ]
    if lines:
        terminalreporter.section("load tests")
        for line in lines:
            terminalreporter.write_line(line)


class LoadTester:
    """Fixture ``loadtest``: call it with the arguments of `streaminfer.loadtest.run`, without ``await``.

    A test that also uses pytest-benchmark's ``benchmark`` gets the tails in its ``extra_info``.

    Args:
        request: pytest's fixture request.
    """

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._request = request
        self._runs = 0

    def __call__(self, service: Any, **settings: Any) -> Report:
        """Run a load test in a new event loop.

        Returns:
            The report.

        Raises:
            RuntimeError: an event loop already runs in this thread, as in an async test.
            pytest.fail.Exception: with ``--loadtest-compare``, the tail regressed.
        """
        __tracebackhide__ = True
        import asyncio  # noqa: PLC0415 - see above

        if asyncio._get_running_loop() is not None:
            raise RuntimeError(
                "loadtest makes an event loop of its own, and one runs in this thread already: use it in a test that "
                "is not async, or await si.loadtest.run(...) instead"
            )
        return self._finish(self._timed(lambda: asyncio.run(self._run(service, settings))))

    def virtually(self, make_service: Callable[[Callable[[], int]], Any], **settings: Any) -> Report:
        """Run a load test in virtual time: as fast as possible, and with the same result on every machine.

        Args:
            make_service: gets the clock of the loop, for a `Stack`, and returns the service. Nothing in the service may
                take real time.
            **settings: as for `streaminfer.loadtest.run`.

        Raises:
            TypeError: ``make_service`` is a service or an async function.
        """
        __tracebackhide__ = True
        import inspect  # noqa: PLC0415 - see above

        from streaminfer._internal.validation import expected  # noqa: PLC0415 - see above
        from streaminfer.testing import run as run_virtually  # noqa: PLC0415 - see above

        async def test(loop: VirtualLoop) -> Report:
            service = make_service(loop.clock)
            if inspect.iscoroutine(service):  # a stack was called, with the clock as the inputs of a request
                service.close()
                raise TypeError(
                    expected("make_service", "a function of the clock that returns the service", make_service)
                )
            return await self._run(service, settings)

        return self._finish(self._timed(lambda: run_virtually(test)))

    async def _run(self, service: Any, settings: dict[str, Any]) -> Report:
        from streaminfer.loadtest.runner import run  # noqa: PLC0415 - see above

        return await run(service, **{"name": self._name, **settings})

    @property
    def _name(self) -> str:
        path, _, parameters = self._request.node.nodeid.partition("[")
        name = re.sub(r"[^\w.-]+", "-", f"{path.replace('::', '.').replace('/', '.')}[{parameters}".removesuffix("["))
        if re.search(r"[^\w.-]", parameters.removesuffix("]")):  # "p99 < 1" and "p99 > 1" are two tests
            name += f"{crc32(parameters.encode()):08x}"
        return name if self._runs == 0 else f"{name}-{self._runs + 1}"

    def _timed(self, test: Callable[[], Report]) -> Report:
        if "benchmark" not in self._request.fixturenames or self._runs:
            return test()
        benchmark = self._request.getfixturevalue("benchmark")
        report: Report = benchmark.pedantic(test, rounds=1, iterations=1)
        benchmark.extra_info.update(on_time=report.on_time, requests=report.requests, rate=report.rate)
        benchmark.extra_info.update({f"{name}_s": value for name, value in report.to_dict()["latency_s"].items()})
        return report

    def _finish(self, report: Report) -> Report:
        __tracebackhide__ = True
        from streaminfer.loadtest.report.report import Report  # noqa: PLC0415 - see above
        from streaminfer.loadtest.report.sentences import say_headline  # noqa: PLC0415 - see above
        from streaminfer.loadtest.verdict.verdict import compare  # noqa: PLC0415 - see above

        name, config = self._name, self._request.config
        self._runs += 1

        def add_property(text: object) -> None:
            self._request.node.user_properties.append((_PROPERTY, f"{name}: {text}"))

        add_property(say_headline(report))
        baseline = config.getoption(_OPTIONS[1])
        verdict = None
        if baseline is not None:
            baseline_file = baseline / f"{name}.json"
            verdict = compare(Report.load(baseline_file), report) if baseline_file.exists() else None
            add_property(verdict or f"{baseline_file} is missing, so there is nothing to compare with")
        folder = config.getoption(_OPTIONS[0])
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            report.save(folder / f"{name}.json")
            report.to_html(folder / f"{name}.html")
        if verdict is not None and verdict.regressed:
            pytest.fail(str(verdict))  # the functions of this file are hidden: the traceback ends at the test's call
        return report


@pytest.fixture
def loadtest(request: pytest.FixtureRequest) -> LoadTester:
    """Run load tests: ``loadtest(service, arrivals=…, inputs=…, duration_s=…, slo_s=…)`` returns a report."""
    return LoadTester(request)


@pytest.fixture
def virtual_loop() -> Iterator[VirtualLoop]:
    """Return an event loop in virtual time; tasks that are still running at the end are cancelled."""
    import asyncio  # noqa: PLC0415 - see above

    from streaminfer.testing import VirtualLoop  # noqa: PLC0415 - see above

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        loop = cast("VirtualLoop", runner.get_loop())
        asyncio.set_event_loop(loop)
        try:
            yield loop
        finally:
            asyncio.set_event_loop(None)
