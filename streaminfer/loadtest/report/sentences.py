"""Description of a report in sentences."""

import math
from textwrap import shorten

import numpy as np

from streaminfer._internal.units import format_duration
from streaminfer.loadtest.quantiles import say_latency, say_share
from streaminfer.loadtest.report.report import Report
from streaminfer.loadtest.sending.record import ANSWERED

__all__ = ["describe", "describe_lateness", "describe_schedule", "say_headline"]


def say_headline(report: Report) -> str:
    """Return the result in one sentence."""
    slo = format_duration(report.slo_s)
    objective = f"{report.objective:.10g}"
    share = say_share(report.on_time, max(2, len(objective) - len("0.00")))  # as exact as the objective
    on_time = f"{share} of {report.requests:,} requests within {slo} at {report.rate:,.4g}/s"
    passed = report.passed
    if passed is None:
        return f"No verdict, because requests were sent late: {on_time}"
    return f"{'Passed' if passed else 'Missed'}: {on_time} (objective {objective})"


def describe_schedule(report: Report) -> str:
    """Return a sentence about how well the sender kept the schedule."""
    if report.kept_schedule:
        return f"99 % of the requests were sent within {format_duration(report.schedule_error_s())} of their schedule."
    where = (
        f"{report.senders} sender processes" if report.senders else "the event loop that sends, which is the service's,"
    )
    return (
        f"The schedule was not kept: {describe_lateness(report)}. "
        f"Either {where} could not keep up, or the machine was busy, so there is no verdict. The latencies still count "
        f"from the instants at which requests were due."
    )


def describe_lateness(report: Report) -> str:
    """Return a phrase about how late the requests were sent."""
    error_s, limit = report.schedule_error_s(), format_duration(report.schedule_limit_s)
    if math.isinf(error_s):
        return f"{np.mean(np.isnan(report.record.late_s)):.2%} of the requests were not sent"
    return f"at the 99th percentile requests were sent {format_duration(error_s)} late, and {limit} is allowed"


def describe(report: Report) -> list[str]:
    """Return the result in sentences."""
    tail = ", ".join(f"{name} {say_latency(seconds)}" for name, seconds in report.total.quantiles_s.items())
    sentences = [f"{say_headline(report)}.", f"Latency from the intended send time: {tail}.", describe_schedule(report)]
    if report.outcomes.keys() - {ANSWERED}:
        sentences.append(_describe_failures(report))
    if report.capacity is not None:
        sentences.append(f"Found: {report.capacity}.")
    return sentences


def _describe_failures(report: Report) -> str:
    messages = report.record.messages
    counts = [
        f"{count:,} {name}{f' ({shorten(messages[name], 200)})' if messages.get(name) else ''}"
        for name, count in report.outcomes.items()
        if name != ANSWERED
    ]
    return f"No response: {', '.join(counts)}."
