"""The report as one page: HTML with its pictures inside, nothing to load from elsewhere."""

from html import escape
from typing import NamedTuple

from demo import plots
from demo.report import HEAD, Outcome, describe_outcome, make_rows

__all__ = ["make_page"]


class Section(NamedTuple):
    """A picture and what it shows."""

    title: str
    text: str
    picture: str


def make_page(outcome: Outcome) -> str:
    """The whole page."""
    head = "".join(f"<th>{escape(name)}</th>" for name in HEAD)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in make_rows(outcome))
    said = "".join(f"<p>{escape(line)}</p>" for line in describe_outcome(outcome))
    sections = "".join(
        f"<section><h2>{escape(section.title)}</h2><p>{escape(section.text)}</p>{section.picture}</section>"
        for section in draw_sections(outcome)
    )
    return PAGE.format(head=head, body=body, said=said, sections=sections)


def draw_sections(outcome: Outcome) -> list[Section]:
    """All pictures that there is something to draw for."""
    holds = [search.hold for search in outcome.searches]
    batched = holds[0]
    sections = [
        Section(
            "How many microphones are held",
            "A microphone sends a chunk every 32 ms and needs the answer before the next one is due. Small dots: half "
            "a second of the ramp. Diamonds: holds; the largest of each way that held is in the table.",
            plots.draw_search(outcome.searches),
        ),
        Section(
            "Latency",
            "From the instant a chunk was due until its sender had the answer; lost chunks have none.",
            plots.draw_latency(holds),
        ),
        Section(
            "Where the time goes",
            "Queued: waiting for a worker and for company. Assembled: the hop to the worker's thread, and stacking the "
            "rows. Inferred: the model. Handed back: the hop to the event loop, until the sender ran.",
            plots.draw_parts(holds),
        ),
    ]
    if batched.voice.batch_sizes:
        sections += [
            Section("Batch sizes", "Batches are as large as the load makes them.", plots.draw_batch_sizes(batched)),
            Section("Timeline", "Every batch of the batched hold that answered.", plots.draw_timeline(batched)),
        ]
    if outcome.visited is not None:
        sections.append(
            Section(
                "Cache",
                "The same visitors upload the same pictures at the same instants, without and with a cache that is "
                "empty at first. Left: latency from when an upload was due. Right: what became of the uploads.",
                plots.draw_cache(outcome.visited),
            )
        )
    sections.append(
        Section(
            "Error budget",
            "What is left of the bad answers that the objective allows, in percent of them, and how many times too "
            "fast they came (red): below zero the budget is overspent. As the service sees it, from the call.",
            plots.draw_budgets(outcome.budgets),
        )
    )
    sections.append(
        Section(
            "What was heard",
            "The recording, and the probability of speech in it.",
            plots.draw_speech(outcome.clip, outcome.speech),
        )
    )
    if batched.faces:
        sections.append(
            Section(
                "What was seen",
                "Frames with the faces found in them. Frames are not batched: on a CPU a batch makes this model "
                "slower, 3.0 ms a frame alone and 4.9 in a batch of 32.",
                plots.draw_faces(outcome.frames, batched.faces),
            )
        )
    return sections


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>streaminfer: live demo</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse; font-size: 0.85rem; width: 100% }}
th, td {{ padding: 0.3rem 0.5rem; text-align: right; border-bottom: 1px solid #ddd }}
th:first-child, td:first-child {{ text-align: left }}
svg {{ width: 100%; height: auto }}
</style>
<h1>Live microphones and cameras on one machine</h1>
<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>
<p>Latency runs from the instant a request was due. The CPU of a microphone's request is that of the whole process,
sender and event loop included, but for the face detector's thread; that of a camera's is this thread's; that of a
visitor's is the whole process's.</p>
{said}
{sections}
<p>Speech: a LibriVox reading, public domain. Video: photographs by NASA and SpaceX, public domain. Models: Silero VAD
(MIT) and BlazeFace (Apache-2.0).</p>
</html>
"""
