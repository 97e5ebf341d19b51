"""What the demo found out, as a table and in sentences."""

from collections.abc import Sequence

import attrs
import numpy as np
from numpy.typing import NDArray

from demo.audio import CHUNK_S, Clip
from demo.budget import Budget
from demo.findings import COMPUTED, ENOUGH, KEPT, LOST, Hold, Search, Served, Visited
from demo.machine import CpuUse
from demo.meter import Meter
from demo.recognition import Pictures, Speech, compare_speech, count_faces
from demo.video import Frames

__all__ = ["HEAD", "Outcome", "describe_outcome", "make_rows", "render_table"]

HEAD = (
    "",
    "streams",
    "held",
    "requests/s",
    "p50",
    "p99",
    "p99.9",
    "on time",
    "SLO",
    "budget left",
    "mean batch",
    "CPU/request",
)


@attrs.frozen(eq=False)
class Outcome:
    """All that the demo found out.

    Attributes:
        machine: what it ran on.
        clip: what the microphones played.
        frames: what the cameras played.
        cameras: how many.
        reference: speech probabilities of the clip, run once in batches of one.
        searches: batched first, then unbatched unless it was left out.
        rates: chunks a second of every unbatched way, saturated, from which the best one was chosen.
        visited: visitors without and with a cache; ``None``: they were left out.
    """

    machine: str
    clip: Clip
    frames: Frames
    cameras: int
    reference: NDArray[np.float32]
    searches: Sequence[Search]
    rates: dict[str, float]
    visited: Visited | None = None

    @property
    def ratio(self) -> float | None:
        """Microphones held batched over unbatched; ``None`` where either did not hold or was not tried."""
        if len(self.searches) != 2 or not all(search.hold.enough for search in self.searches):
            return None
        return self.searches[0].hold.microphones / self.searches[1].hold.microphones

    @property
    def served(self) -> list[Served]:
        """The ways in which visitors were served."""
        return [] if self.visited is None else [self.visited.plain, self.visited.cached]

    @property
    def budgets(self) -> list[Budget]:
        """Every error budget that was kept, in the order of the table."""
        return [search.hold.budget for search in self.searches] + [served.budget for served in self.served]

    @property
    def speech(self) -> Speech:
        """What the microphones of the batched hold heard."""
        return compare_speech(self.searches[0].hold.heard, self.reference)

    @property
    def pictures(self) -> Pictures:
        """What the cameras of the batched hold saw."""
        return count_faces(self.searches[0].hold.faces)


def make_rows(outcome: Outcome) -> list[tuple[str, ...]]:
    """The rows under :data:`HEAD`: microphones and cameras of each hold, and visitors."""
    rows = []
    for search in outcome.searches:
        hold = search.hold
        held = "yes" if hold.enough else "no"
        rows.append(
            (
                f"microphones, {hold.way.name}",
                f"{hold.microphones}",
                held,
                *_figures(hold.chunks, hold.seconds, CHUNK_S),
                _left(hold.budget),
                f"{hold.voice.mean_batch_size:.1f}",
                f"{1e6 * hold.cpu_per_chunk_s:,.0f} µs",
            )
        )
        if hold.pictures is not None:
            rows.append(
                (
                    "cameras beside them",
                    f"{outcome.cameras}",
                    "",
                    *_figures(hold.pictures, hold.seconds, 1 / outcome.frames.rate),
                    "",
                    "1.0",
                    f"{1e6 * hold.cpu.faces_s / max(hold.pictures.ended, 1):,.0f} µs",
                )
            )
    rows += [
        (
            served.name,
            "",
            "yes" if served.enough else "no",
            *_figures(served.meter, served.seconds, served.meter.slo_ns / 1e9),
            _left(served.budget),
            "1.0",
            f"{1e6 * served.cpu_per_request_s:,.0f} µs",
        )
        for served in outcome.served
    ]
    return rows


def render_table(rows: Sequence[tuple[str, ...]]) -> str:
    """Text in columns."""
    widths = [max(len(row[column]) for row in (HEAD, *rows)) for column in range(len(HEAD))]
    lines = []
    for row in (HEAD, *rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells))
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def describe_outcome(outcome: Outcome) -> list[str]:
    """What there is to say beside the table, a paragraph each."""
    lines = [_verdict(outcome), _listened(outcome)]
    speech = outcome.speech
    if speech.after_loss:
        lines.append(
            f"A stream that lost a chunk goes on with its last state: of the {speech.after_loss} chunks after a loss "
            f"{speech.after_loss_agreeing / speech.after_loss:.1%} were decided as without it."
        )
    if outcome.cameras:
        seen = outcome.pictures
        lines.append(
            f"Faces in {outcome.frames.name}: {seen.with_face} of the {seen.frames} different frames that were "
            f"answered show one, {seen.mean_faces:.2f} in each of these, mean score {seen.mean_score:.2f}."
        )
    lines += [f"{search.hold.way.name}: {_ended(search.hold)}" for search in outcome.searches]
    if outcome.rates:
        rates = ", ".join(f"{name} {rate:,.0f}" for name, rate in outcome.rates.items())
        lines.append(
            f"Unbatched ways, saturated, chunks a second: {rates}. Of the two fastest, the baseline is the one "
            "that stood more microphones in its ramp."
        )
    if outcome.visited is not None:
        lines += _describe_visitors(outcome.visited)
    lines.append(_describe_budgets(outcome.budgets))
    lines.append(f"Everything ran on one machine, senders included: {outcome.machine}.")
    return lines


def _verdict(outcome: Outcome) -> str:
    if outcome.ratio is not None:
        return (
            f"Batched, {outcome.ratio:.1f} times as many live microphones as in the best unbatched way "
            f"({' and '.join(str(search.hold.microphones) for search in outcome.searches)}), "
            f"at least {ENOUGH:.0%} of all chunks on time."
        )
    return "; ".join(
        f"{search.hold.way.name}: {search.hold.microphones} microphones {'' if search.hold.enough else 'NOT '}held, "
        f"{search.hold.chunks.share_on_time:.2%} on time in {search.hold.seconds:.1f} s"
        for search in outcome.searches
    )


def _listened(outcome: Outcome) -> str:
    speech = outcome.speech
    segments = ", ".join(f"{start:.2f} to {end:.2f} s" for start, end in speech.segments) or "none"
    return (
        f"Speech in {outcome.clip.name} ({speech.heard_s:.1f} of {outcome.clip.duration_s:.1f} s heard): {segments}. "
        f"{speech.intact} of {speech.microphones} microphones lost no chunk; {speech.agreeing} of these decided every "
        f"chunk as the clip run alone does (largest difference of a probability {speech.largest_difference:.1e})."
    )


def _describe_visitors(visited: Visited) -> list[str]:
    cached = visited.cached
    lines = [_who_came(visited)]
    if cached.cache is not None and cached.flights is not None:
        lines.append(
            f"The cache, empty at first: {cached.share(KEPT):.1%} answered from it, {cached.flights.joined} more "
            f"shared a computation with who had asked before (single flight), {cached.share(COMPUTED):.1%} computed; "
            f"{cached.cache.held_bytes / 2**20:.1f} MiB held, {cached.cache.evicted} answers evicted. Of "
            f"{visited.compared:,} answers that were kept or shared, {visited.equal:,} are, to the last bit, what the "
            "model says without a cache."
        )
    return lines


def _who_came(visited: Visited) -> str:
    uploads = visited.uploads
    return (
        f"Visitors: the face detector alone answers {visited.capacity:,.0f} pictures a second here, and "
        f"{uploads.rate:,.0f} a second come ({len(uploads):,} in all, independent of each other). They bring real "
        f"frames of the clip, chosen by a made-up popularity (Zipf's law over {visited.catalogue} frames, seeded): "
        f"{uploads.different} different ones, so {uploads.share_repeated:.0%} of the uploads repeat an earlier one. "
        f"Without a cache {_on_time(visited.plain)}; the same visitors with one: {_on_time(visited.cached)}."
    )


def _on_time(served: Served) -> str:
    lost = f", {served.share(LOST):.1%} lost" if served.share(LOST) else ""
    return f"{served.meter.share_on_time:.1%} answered within {served.meter.slo_ns / 1e6:.0f} ms{lost}"


def _describe_budgets(budgets: Sequence[Budget]) -> str:
    said = "; ".join(_describe_budget(budget) for budget in budgets)
    return (
        f"Error budgets: {1 - ENOUGH:.0%} of answers may be late or missing. As the service sees it, from the call and "
        f"not from when it was due: it can look better than the share on time. {said}."
    )


def _describe_budget(budget: Budget) -> str:
    alerts = ", ".join(alert.severity for alert in budget.alerts) or "none"
    return (
        f"{budget.statistics.name}: {_left(budget)}{'' if budget.overspent else ' left'}, highest burn rate over "
        f"{budget.window_s:.1f} s {budget.worst_burn_rate:.1f}, alerts: {alerts}"
    )


def _left(budget: Budget) -> str:
    left = budget.statistics.budget_remaining
    return f"spent {1 - left:.1f}×" if budget.overspent else f"{left:.0%}"


def _ended(hold: Hold) -> str:
    lost = ", ".join(f"{count} {name}" for name, count in hold.chunks.lost.items()) or "none"
    return f"chunks lost: {lost}; processors busy: {_busy(hold.cpu)}."


def _busy(cpu: CpuUse) -> str:
    return f"{cpu.process_s / cpu.wall_s:.2f} with this process, {cpu.others_s / cpu.wall_s:.2f} with all else"


def _figures(meter: Meter, seconds: float, slo_s: float) -> tuple[str, ...]:
    """Requests a second, three percentiles, the share on time and the objective."""
    quantiles = [
        f"{1e3 * meter.latency.quantile(q):.1f} ms" if meter.latency.count else "-" for q in (0.5, 0.99, 0.999)
    ]
    return (
        f"{meter.latency.count / seconds:,.0f}",
        *quantiles,
        f"{meter.share_on_time:.2%}",
        f"{1e3 * slo_s:.0f} ms",
    )
