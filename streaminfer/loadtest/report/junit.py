"""Checks of a load test as JUnit XML: schedule, objective, and the verdict of a comparison."""

import re
import xml.etree.ElementTree as ET

from streaminfer.loadtest.report.report import Report
from streaminfer.loadtest.report.sentences import describe_schedule, say_headline
from streaminfer.loadtest.verdict.verdict import Verdict

__all__ = ["make_junit"]

_NO_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML cannot represent, such as the escapes of colored output."""


def make_junit(report: Report, verdict: Verdict | None = None) -> str:
    """Return the checks as JUnit XML: "failure" if a check failed, "skipped" if it has no verdict."""
    cases = [
        ("schedule kept", "" if report.kept_schedule else "skipped", describe_schedule(report)),
        ("objective", {True: "", False: "failure", None: "skipped"}[report.passed], say_headline(report)),
    ]
    if verdict is not None:
        kind = "failure" if verdict.regressed else "skipped" if verdict.undecided else ""
        cases.append(("comparison", kind, str(verdict)))
    counts = {kind: str(sum(outcome == kind for _, outcome, _ in cases)) for kind in ("failure", "skipped")}
    suite = ET.Element(
        "testsuite",
        name=report.name or "loadtest",
        tests=str(len(cases)),
        failures=counts["failure"],
        skipped=counts["skipped"],
        errors="0",
        time=f"{report.duration_s:.3f}",
    )
    for name, kind, text in cases:
        case = ET.SubElement(suite, "testcase", classname="loadtest", name=name)
        if kind:
            ET.SubElement(case, kind, message=text)
        else:
            ET.SubElement(case, "system-out").text = text
    ET.indent(suite)
    return _NO_XML.sub("\ufffd", ET.tostring(suite, encoding="unicode", xml_declaration=True))
