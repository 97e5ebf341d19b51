"""Pages, notebooks, docstrings and comments use the words of the glossary; pages have short sentences and are up to date."""

import ast
import io
import json
import re
import tokenize
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
CODE = ["streaminfer", "tests", "benchmarks", "examples", "docs"]
PROSE = [*PAGES, *sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))]
MAX_PAGE_LINES = 200
MAX_TEST_NAME = 50
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
    """Return the text of a page, or the Markdown cells of a notebook."""
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


def _modules(folder):
    """Return the modules of a folder, without the files in `__pycache__`."""
    return sorted(path for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in path.parts)


def _docstrings_and_comments(path):
    """Return the numbered docstrings and comments of a module, without code spans."""
    source = path.read_text(encoding="utf-8")
    texts = [
        (node.lineno, node.value.value)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    texts += [(token.start[0], token.string) for token in tokens if token.type == tokenize.COMMENT]
    return [(number, re.sub(r"``[^`]*``|`[^`]*`", "CODE", text)) for number, text in texts]


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


@pytest.mark.parametrize("folder", CODE)
def test_code_uses_words_of_the_glossary(folder):
    """A word that the glossary replaces is in no docstring and no comment."""
    found = [
        f"{_name(path)}:{number}: {match[0]!r} → {better}"
        for path in _modules(folder)
        for number, text in _docstrings_and_comments(path)
        for words, better in REPLACED.items()
        for match in re.finditer(rf"\b({words})\b", text, re.IGNORECASE)
    ]
    assert not found, "\n".join(found)


def test_names_of_tests_are_short():
    """A name of a test has at most 50 characters; the rule that it checks is in its docstring."""
    found = [
        f"{_name(path)}:{node.lineno}: {node.name}"
        for path in _modules("tests")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        if node.name.startswith("test_") and len(node.name) > MAX_TEST_NAME
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("page", PROSE, ids=_name)
def test_page_promises_nothing(page):
    """A page promises no future feature, because the sentence becomes wrong when the feature exists."""
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
    """A line has one sentence, so that a diff shows what changed."""
    found = [
        f"{_name(page)}:{number}: {line}"
        for number, line in _prose(page)
        if not line.startswith(("|", "#", "    "))
        and re.search(r"[a-z)*D][.!?]\s+[A-Z*]", re.sub(r"^\s*(\*|\d+\.) \*+[^*]+\*+ |^\*[^*]+\* ", "", line))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("page", [page for page in PAGES if not page.name.startswith("figures-")], ids=_name)
def test_page_is_short(page):
    """A page has at most 200 lines, because a longer page has more than one purpose.

    Tables of figures are exempt: their length depends on the number of benchmarks.
    """
    assert len(page.read_text(encoding="utf-8").splitlines()) <= MAX_PAGE_LINES


def test_first_screen_of_readme_has_no_figures():
    """The first 45 lines of the README, its purpose and an example, have no table and no measurement."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()

    assert not [
        line for line in lines[:FIRST_SCREEN_LINES] if line.startswith("|") or re.search(r"\d ?(×|%|ms|µs)", line)
    ]
