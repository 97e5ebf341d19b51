"""Findings in words: one line for each figure, and optional details."""

import math
from collections import Counter
from collections.abc import Sequence

import attrs
import numpy as np
from numpy.typing import NDArray

from demo.audio import CHUNK_S
from demo.budget import Budget
from demo.comparison import MINIMUM_REPEATS, SPREAD, Comparison, Limit, Verdict
from demo.findings import COMPUTED, ENOUGH, KEPT, LOST, SHARED, Served, Sweep, Visited
from demo.machine import CpuUse
from demo.overload import GREED, Overload
from demo.report import Outcome, describe_left
from streaminfer.streams import StreamSessionStatistics

__all__ = [
    "Paragraph",
    "describe_budgets",
    "describe_cache",
    "describe_faces",
    "describe_holds",
    "describe_outcome",
    "describe_overload",
    "describe_speech",
    "describe_sweep",
    "say_headline",
]

OPEN_LOOP = (
    "Open loop: a microphone sends a chunk every 32 ms whether or not the last response has come. Latency counts from "
    "the instant at which a chunk was due, and a lost chunk is not on time. p99 is over all chunks that were due: "
    "“lost” where more than 1% were."
)
TURNS = (
    "Both ways take turns at each load, in alternating order. A way holds the highest load that had 99% of chunks on "
    "time, interpolated to the next, if at most one lower load had less. One ratio is stated if all repeats are on the "
    f"same side of 1 and within a factor of {SPREAD:g} of each other; otherwise the bound that each of them supports; "
    "otherwise nothing."
)
NOT_BATCHED = (
    "Frames are not batched: on a CPU a batch makes this model slower, 3.0 ms a frame alone and 4.9 ms a frame in a "
    "batch of 32."
)
AS_SERVED = (
    "As the service sees it, from the call and not from when a request was due: it can look better than the share on "
    "time."
)


LATEST_ONLY = (
    "Each camera has one frame in work and at most one that waits, the newest: so age depends on the number of cameras "
    "and not on how long the overload lasts."
)
REASONS = {
    "stale": "because a newer frame came first",
    "closed": "because the stream had ended",
    "deadline_exceeded": "because they grew too old",
    "infeasible": "because the planner predicted that they would be too old",
}


@attrs.frozen
class Paragraph:
    """One line, and sentences that a reader may skip."""

    line: str
    details: tuple[str, ...] = ()


def say_headline(comparison: Comparison, sweep: Sweep) -> str:
    """Return the one sentence of the demo; it claims nothing that the repeats do not support."""
    count = len(comparison.ratios)
    if comparison.verdict is Verdict.NEITHER:
        return f"Nothing to compare: no load had {ENOUGH:.0%} of chunks on time, batched or not ({_say_count(count)})."
    if comparison.verdict is Verdict.BOTH:
        return (
            f"Nothing to compare: batched or not, {ENOUGH:.0%} of chunks were on time at the highest load, "
            f"{sweep.batched.repeats[0][-1].microphones:,} live microphones ({_say_count(count)})."
        )
    if comparison.verdict is Verdict.TOO_NOISY:
        return _say_undecided(comparison)
    batched, unbatched = (
        _say_limit(limit, sweep) for limit in (comparison.batched_median, comparison.unbatched_median)
    )
    spread = f"{_say_ratios(comparison)} in {count} repeats"
    what = f"as many live microphones with {ENOUGH:.0%} of chunks on time"
    if comparison.verdict is Verdict.SAME:
        return f"Batched or not, about {what}: {batched} and {unbatched} ({spread})."
    times = {
        Verdict.RATIO: f"{comparison.ratio:.1f}",
        Verdict.AT_LEAST: f"at least {_floor(comparison.ratio):.1f}",
        Verdict.AT_MOST: f"at most {_ceil(comparison.ratio):.1f}",
    }
    return f"Batched, {times[comparison.verdict]} times {what}: {batched} instead of {unbatched} ({spread})."


def describe_sweep(outcome: Outcome) -> Paragraph:
    """Describe the first figure."""
    sweep = outcome.sweep
    count = len(sweep.batched.repeats)
    return Paragraph(
        f"Lines are medians of {count} repeats, dots and bands the repeats themselves; a chunk is on time if its "
        f"response comes within {1e3 * CHUNK_S:.0f} ms of being due.",
        (
            OPEN_LOOP,
            _say_rates(outcome),
            TURNS,
            f"Processors busy meanwhile: {_say_busy(sweep.cpu)}.",
        ),
    )


def describe_holds(outcome: Outcome) -> Paragraph:
    """Describe the seconds with cameras beside the microphones."""
    batched, unbatched = outcome.holds
    return Paragraph(
        f"{batched.microphones:,} microphones{_say_cameras(outcome.cameras)}: batched, "
        f"{batched.chunks.share_on_time:.1%} of chunks on time; unbatched, {unbatched.chunks.share_on_time:.1%}.",
        tuple(
            f"{hold.way.name}: {'' if hold.counted is None else f'{_say_frames(hold.counted.total)}; '}Jain's index of "
            f"fairness over the microphones {hold.fairness:.3f}; processors busy: {_say_busy(hold.cpu)}."
            for hold in outcome.holds
        ),
    )


def describe_speech(outcome: Outcome) -> Paragraph:
    """Describe the speech results of the batched way."""
    speech = outcome.speech
    segments = ", ".join(f"{start:.2f} to {end:.2f} s" for start, end in speech.segments) or "none"
    intact = (
        f"{speech.intact} of {speech.microphones} microphones lost no chunk; {speech.agreeing} of these decided every "
        f"chunk as the clip run alone does (largest difference of a probability {speech.largest_difference:.1e})."
    )
    details = [intact]
    if speech.after_loss:
        details.append(
            f"A stream that lost a chunk continues with its last state: of the {speech.after_loss} chunks after a loss "
            f"{speech.after_loss_agreeing / speech.after_loss:.1%} were decided as without it."
        )
    return Paragraph(
        f"Speech in {outcome.clip.name} ({speech.heard_s:.1f} of {outcome.clip.duration_s:.1f} s heard): {segments}.",
        tuple(details),
    )


def describe_faces(outcome: Outcome) -> Paragraph:
    """Describe the face results of the cameras beside the batched way."""
    seen = outcome.pictures
    return Paragraph(
        f"{outcome.frames.name}: {seen.with_face} of the {seen.frames} different frames with a response show a face, "
        f"on average {seen.mean_faces:.2f} faces with a score of {seen.mean_score:.2f}.",
        (NOT_BATCHED,),
    )


def describe_overload(found: Overload) -> Paragraph:
    """Describe the temporary overload by cameras."""
    before, meanwhile, after = (_say_p99(found.ages_of(third)) for third in range(3))
    fairness = (
        f"The detector completes {found.capacity:,.0f} frames a second here. In the overload the cameras take turns: "
        f"Jain's index of fairness over those that send at the same rate is {found.fairness:.3f} (1: all get the "
        f"same). One camera sends {GREED} times as many frames as each other one and gets {found.shares[-1]:.1f} "
        f"results a second; the others get {found.shares[:-1].mean():.1f} on average."
    )
    return Paragraph(
        f"{found.calm} {'camera' if found.calm == 1 else 'cameras'}, and for a while {found.most}, which send "
        f"{found.load:.1f} times what the face detector completes: 99% of results are at most {before} old before the "
        f"overload, {meanwhile} in it and {after} after it.",
        (LATEST_ONLY, f"Every frame is accounted for: {_say_frames(found.total)}.", fairness),
    )


def describe_cache(visited: Visited) -> Paragraph:
    """Describe the visitors."""
    uploads, cached = visited.uploads, visited.cached
    details = [_say_visitors(visited)]
    if cached.cache is not None:
        details.append(
            f"The cache, empty at first: {cached.share(KEPT):.1%} of the uploads were answered from it, "
            f"{cached.share(SHARED):.1%} shared a computation (single flight), {cached.share(COMPUTED):.1%} were "
            f"computed; it held {cached.cache.held_bytes / 2**20:.1f} MiB and evicted {cached.cache.evicted}. Of "
            f"{visited.compared:,} responses that were stored or shared, {visited.equal:,} are, to the last bit, what "
            "the model says without a cache."
        )
    return Paragraph(
        f"Visitors upload {uploads.rate:,.0f} pictures a second: without a cache {_say_on_time(visited.plain)}; "
        f"with one {_say_on_time(cached)}.",
        tuple(details),
    )


def describe_budgets(budgets: Sequence[Budget]) -> Paragraph:
    """Describe the error budgets."""
    return Paragraph(
        f"{1 - ENOUGH:.0%} of requests may be late or lost. Of this error budget: "
        + "; ".join(
            f"{budget.statistics.name}, {describe_left(budget)}{'' if budget.overspent else ' left'}"
            for budget in budgets
        )
        + ".",
        (
            AS_SERVED,
            *(_say_burned(budget) for budget in budgets),
        ),
    )


def describe_outcome(outcome: Outcome) -> list[str]:
    """Return the lines to print in a terminal below the headline."""
    paragraphs = [describe_holds(outcome), describe_speech(outcome)]
    if outcome.holds[0].faces:
        paragraphs.append(describe_faces(outcome))
    if outcome.overload is not None:
        paragraphs.append(describe_overload(outcome.overload))
    if outcome.visited is not None:
        paragraphs += [describe_cache(outcome.visited), describe_budgets(outcome.budgets)]
    return [*(paragraph.line for paragraph in paragraphs), say_machine(outcome)]


def say_machine(outcome: Outcome) -> str:
    """Return a sentence about the machine."""
    return f"Everything ran on one machine, senders included: {outcome.machine}."


def _say_undecided(comparison: Comparison) -> str:
    count = len(comparison.ratios)
    if count < MINIMUM_REPEATS:
        return (
            f"Too few repeats to tell how many more live microphones batching allows: {count}, of at least "
            f"{MINIMUM_REPEATS}."
        )
    ratios = _say_ratios(comparison)
    if comparison.reaches_too_little:
        return (
            "The loads do not reach far enough to tell how many more live microphones batching allows: a limit lies "
            f"outside them in each of {count} repeats{ratios and f' ({ratios} as many)'}."
        )
    return (
        f"Too noisy to tell how many more live microphones batching allows: the {count} repeats disagree"
        f"{ratios and f' ({ratios} as many)'}. Run it again on a quieter machine."
    )


def _say_count(repeats: int) -> str:
    return f"{repeats} {'repeat' if repeats == 1 else 'repeats'}"


def _say_limit(limit: Limit, sweep: Sweep) -> str:
    per_load = sweep.rate * CHUNK_S
    if limit.high == math.inf:
        return f"more than {limit.low * per_load:,.0f}"
    return f"{limit.low * per_load:,.0f}" if limit.low else f"fewer than {limit.high * per_load:,.0f}"


def _say_ratios(comparison: Comparison) -> str:
    """Return the range of the ratios of the repeats; an empty text if they have no bound."""
    low, high = min(ratio.low for ratio in comparison.ratios), max(ratio.high for ratio in comparison.ratios)
    if high == math.inf:
        return f"{_floor(low):.1f} times and more" if low else ""
    return f"{_floor(low):.1f} to {_ceil(high):.1f} times"


def _floor(ratio: float) -> float:
    """Round down to tenths, except for floating-point errors, so that a lower bound stays a lower bound."""
    return math.floor(10 * ratio + 1e-6) / 10


def _ceil(ratio: float) -> float:
    return math.ceil(10 * ratio - 1e-6) / 10


def _say_cameras(count: int) -> str:
    return f" and {count} {'camera' if count == 1 else 'cameras'}" if count else ""


def _say_rates(outcome: Outcome) -> str:
    rates = "; ".join(f"{name} {rate:,.0f}" for name, rate in outcome.rates.items())
    return (
        "The unbatched ways are what one writes by hand: onnxruntime, a dict of contexts and states, and threads or "
        "none; a chunk that is late before its turn is skipped. The batched way has the same model with its "
        "convolutions folded (fold_batch), so that they run once a batch; for single chunks the original takes less "
        "time. "
        f"A load of 1× is {outcome.sweep.rate:,.0f} chunks a second, what the best unbatched way "
        f"({outcome.sweep.unbatched.way.name}) completes here when it is saturated. All unbatched ways, saturated, "
        f"chunks a second: {rates}. Of the fastest three, the baseline is the one with most live chunks on time at "
        f"0.50 to 0.80 of the fastest one's rate."
    )


def _say_visitors(visited: Visited) -> str:
    uploads = visited.uploads
    return (
        f"The face detector alone completes {visited.capacity:,.0f} pictures a second here, and {uploads.rate:,.0f} a "
        f"second come ({len(uploads):,} in all, independent of each other). They bring real frames of the clip, "
        f"chosen by a made-up popularity (Zipf's law over {visited.catalog} frames, seeded): {uploads.different} "
        f"different ones, so {uploads.share_repeated:.0%} of the uploads repeat an earlier one."
    )


def _say_on_time(served: Served) -> str:
    lost = f" ({served.share(LOST):.1%} lost)" if served.share(LOST) else ""
    return f"{served.meter.share_on_time:.1%} are on time{lost}"


def _say_p99(ages_s: NDArray[np.float64]) -> str:
    return f"{1e3 * np.quantile(ages_s, 0.99):.0f} ms" if len(ages_s) else "(none)"


def _say_burned(budget: Budget) -> str:
    severities = Counter(alert.severity for alert in budget.alerts)
    alerts = ", ".join(f"{count} {severity}" for severity, count in severities.items()) or "none"
    return (
        f"{budget.statistics.name}: highest burn rate over {budget.window_s:.1f} s {budget.worst_burn_rate:.1f}, "
        f"alerts: {alerts}."
    )


def _say_frames(total: StreamSessionStatistics) -> str:
    dropped = ", ".join(f"{count:,} {REASONS.get(reason, reason)}" for reason, count in sorted(total.dropped.items()))
    return (
        f"{total.received:,} captured = {total.delivered:,} answered + {sum(total.dropped.values()):,} dropped "
        f"({dropped or 'none'}) + {total.failed:,} failed"
    )


def _say_busy(cpu: CpuUse) -> str:
    others = "" if math.isnan(cpu.others_s) else f", {cpu.others_s / cpu.wall_s:.2f} with all else"
    return f"{cpu.process_s / cpu.wall_s:.2f} with this process{others}"
