"""README, CONTRIBUTING, docs and notebooks use the words of the glossary, short sentences, and say nothing is absent that exists."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GENERATED = {"house.md", "changelog.md"}
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(
        page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts and page.name not in GENERATED
    ),
]
PROSE = [*PAGES, *sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))]
MAX_PAGE_LINES = 200
MAX_SENTENCE_WORDS = 30
FIRST_SCREEN_LINES = 45

REPLACED = {
    r"in hand|under way|in the air": "in flight",
    r"turned away|refus\w+": "rejected",
    r"giv\w+ up|gave up|given up": "cancelled, attempt_timeout",
    r"hand\w* over|hand-over|handed (back|out)": "pipelined, delivery",
    r"journey": "attempt history",
    r"lanes?": "bucket model, route",
    r"ladder|rungs?": "degradation controller, route share",
    r"crew": "worker pool",
    r"doomed|hopeless": "infeasible",
    r"displac\w+": "shed",
    r"sweep\w*|swept": "expiry",
    r"serialis\w+|normalis\w+|optimis\w+|utilis\w+|licence|neighbour\w*|behaviour\w*|colour\w*": "American spelling",
    r"whoever|somebody|nobody|anybody": "the caller, no request",
    r"anew": "again",
    r"who asks|asks it again|may be asked|is asked|are asked|asked twice": "call, send",
    r"as it is|by itself|is seen to|was seen to": "unchanged, alone",
    r"stand(s|ing)? (in front|behind|before|around|under|outside|inside)|stands for": "is around, is inside",
    r"goes on|go on": "continue",
}
ABSENT = re.compile(
    r"not there yet|on the roadmap|in the package today|is planned for|will be added|coming soon", re.IGNORECASE
)
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def _name(page):
    return page.relative_to(ROOT).as_posix()


def _markdown(page):
    """Return the text of a page, or that between the code of a notebook."""
    text = page.read_text(encoding="utf-8")
    if page.suffix != ".ipynb":
        return text
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
    return "\n\n".join("".join(cell["source"]) for cell in cells)


def _prose(page):
    """Return the numbered lines of a page without code, code spans and targets of links."""
    text = FENCE.sub(lambda match: "\n" * match[0].count("\n"), _markdown(page))
    text = re.sub(r"`[^`\n]*`", "CODE", re.sub(r"\]\([^)\s]+\)", "]", text))
    return list(enumerate(text.splitlines(), start=1))


def _sentences(page):
    """Return the numbered sentences outside tables and headings."""
    for number, line in _prose(page):
        if line and not line.startswith(("|", "#", "    ", "![")):
            for sentence in re.split(r"(?<=[.!?])\s+", re.sub(r"^\s*([*\d]+\.?|>)\s+", "", line)):
                yield number, sentence


@pytest.mark.parametrize("page", PROSE, ids=_name)
def test_page_uses_words_of_the_glossary(page):
    """A word that the glossary replaces is in no page."""
    found = [
        f"{_name(page)}:{number}: {match[0]!r} → {better}"
        for number, line in _prose(page)
        for words, better in REPLACED.items()
        for match in re.finditer(rf"\b({words})\b", line, re.IGNORECASE)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("page", PROSE, ids=_name)
def test_page_promises_nothing(page):
    """A page describes what exists: what is absent today may exist tomorrow, and the page would be wrong."""
    found = [f"{_name(page)}:{number}: {line}" for number, line in _prose(page) if ABSENT.search(line)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("page", PROSE, ids=_name)
def test_sentences_are_short(page):
    """A sentence has at most 30 words."""
    long = [
        f"{_name(page)}:{number}: {len(sentence.split())} words: {sentence}"
        for number, sentence in _sentences(page)
        if len(sentence.split()) > MAX_SENTENCE_WORDS
    ]
    assert not long, "\n".join(long)


@pytest.mark.parametrize("page", PROSE, ids=_name)
def test_sentences_have_lines_of_their_own(page):
    """One sentence per line: a diff shows what changed."""
    found = [
        f"{_name(page)}:{number}: {line}"
        for number, line in _prose(page)
        if not line.startswith(("|", "#", "    "))
        and re.search(r"[a-z)*D][.!?]\s+[A-Z*]", re.sub(r"^\s*(\*|\d+\.) \*+[^*]+\*+ |^\*[^*]+\* ", "", line))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("page", [page for page in PAGES if not page.name.startswith("figures-")], ids=_name)
def test_page_is_short(page):
    """A longer page has more than one purpose; tables of figures are as long as their benchmarks are many."""
    assert len(page.read_text(encoding="utf-8").splitlines()) <= MAX_PAGE_LINES


def test_first_screen_of_readme_has_no_figures():
    """The README shows what it is and an example before any measurement."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()

    assert not [
        line for line in lines[:FIRST_SCREEN_LINES] if line.startswith("|") or re.search(r"\d ?(×|%|ms|µs)", line)
    ]
