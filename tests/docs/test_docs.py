"""The code of the README and of the documentation runs and prints the output shown; links lead to existing files.

A ``python`` block runs in the namespace of the earlier blocks of its page. A ``text output`` block after it has the
output that it must print. A ``python no-run`` block must only be valid Python. Other blocks are not executed.
"""

import ast
import doctest
import importlib
import pkgutil
import re
import sys
import tempfile
import tomllib
import types
from pathlib import Path
from typing import NamedTuple

import attrs
import pytest

import streaminfer

ROOT = Path(__file__).parents[2]
DOCS = sorted(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *DOCS]
INFO_STRINGS = {"python", "python no-run", "text", "text output", "console", "toml", "cython"}
FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HOMES = (
    "streaminfer",
    "streaminfer.auditing.stack_audit",
    "streaminfer.backends",
    "streaminfer.batching",
    "streaminfer.caching",
    "streaminfer.caching.tiers",
    "streaminfer.http_edge",
    "streaminfer.loadtest",
    "streaminfer.loadtest.devices",
    "streaminfer.loadtest.path",
    "streaminfer.errors",
    "streaminfer.fastapi",
    "streaminfer.testing.faults",
    "streaminfer.protocols",
    "streaminfer.resilience",
    "streaminfer.routing",
    "streaminfer.serving",
    "streaminfer.streams",
    "streaminfer.telemetry",
    "streaminfer.testing",
)


def _name(path):
    return path.relative_to(ROOT).as_posix()


class Block(NamedTuple):
    info: str
    text: str
    line: int

    def compile(self, path, folder="/tmp"):  # noqa: S108 - the folder that the pages use
        text = self.text.replace('"/tmp/', f'"{folder}/')
        # empty lines in front, so that a traceback names the line of the page
        return compile("\n" * (self.line - 1) + text, str(path), "exec")


def _blocks(path):
    text = path.read_text(encoding="utf-8")
    return [Block(match[1].strip(), match[2], text.count("\n", 0, match.start()) + 2) for match in FENCE.finditer(text)]


@pytest.fixture
def page_namespace(request, monkeypatch, tmp_path):
    """Return the namespace of a script that runs in the checkout, or in an empty folder if the page is the README."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # pages do not delete the files that they write
    monkeypatch.chdir(tmp_path if request.getfixturevalue("path").name == "README.md" else ROOT)
    script = types.ModuleType("__main__")
    script.__file__ = __file__
    monkeypatch.setitem(sys.modules, "__main__", script)
    return vars(script)


@pytest.mark.parametrize("path", PAGES, ids=_name)
def test_code_of_the_page_runs_with_the_printed_output(path, page_namespace, capsys, tmp_path):
    printed = None
    for block in _blocks(path):
        if block.info == "python":
            exec(block.compile(path, tmp_path), page_namespace)  # noqa: S102 - this test runs the code of the pages
            printed = capsys.readouterr().out
        elif block.info == "text output":
            assert printed is not None, f"{_name(path)}:{block.line}: output without code before it"
            assert printed == block.text, f"{_name(path)}:{block.line}"
            printed = None
        else:
            printed = None


@pytest.mark.parametrize("path", PAGES, ids=_name)
def test_blocks_are_of_known_kinds_and_valid(path):
    for block in _blocks(path):
        if not block.info.startswith("{"):  # a directive
            assert block.info in INFO_STRINGS, f"{_name(path)}:{block.line}"
        if block.info.startswith("python"):
            block.compile(path)


@pytest.mark.parametrize("path", PAGES, ids=_name)
def test_links_lead_to_files_of_the_checkout(path):
    prose = FENCE.sub("", path.read_text(encoding="utf-8"))
    for target in LINK.findall(prose):
        file, _, anchor = target.partition("#")
        if ":" in file:  # another site
            continue
        linked = (path.parent / file).resolve() if file else path
        assert linked.exists(), f"{_name(path)}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", FENCE.sub("", linked.read_text(encoding="utf-8")), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{_name(path)}: {target}"


def test_readme_and_pages_have_code_that_runs():
    running = {path.name for path in PAGES if any(block.info == "python" for block in _blocks(path))}
    shown = {"README.md", "getting-started.md", "batching.md", "stacks.md", "backends.md", "telemetry.md"}
    assert shown | {"CONTRIBUTING.md", "calls.md", "live-audio.md"} <= running


@pytest.mark.parametrize("group", ["Tutorials", "How-to guides", "Explanation", "Reference"])
def test_index_lists_every_page_under_its_group(group):
    """Each folder of pages is one section of the index, with a link to each of its pages."""
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    section = re.search(rf"^## {group}$(.*?)(?=^## |^```)", index, re.MULTILINE | re.DOTALL)
    folder = ROOT / "docs" / group.lower().removesuffix(" guides")

    assert section is not None
    assert {f"{folder.name}/{page.name}" for page in folder.glob("*.md")} == set(LINK.findall(section[1]))


def test_page_of_examples_lists_every_program():
    """The page of examples links every file of the folder, because readers do not find a file without a link."""
    page = (ROOT / "docs" / "reference" / "examples.md").read_text(encoding="utf-8")
    linked = {Path(target).name for target in LINK.findall(page) if target.startswith("../../examples/")}

    assert {path.name for path in (ROOT / "examples").iterdir() if path.is_file()} <= linked


def test_each_example_program_says_how_it_is_run():
    """The docstring of each example program says how to run it; modules that only others import need no command."""
    for path in (ROOT / "examples").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        if re.search(r"^(asyncio\.run\(|if __name__ == |app = )", text, re.MULTILINE):
            command = rf"{path.stem}(\.py|:app)|make demo|Run it from the root of\s+a checkout"
            assert re.search(command, ast.get_docstring(ast.parse(text))), path.name


def test_first_tutorial_lists_every_extra():
    """The tables of the first tutorial name exactly the extras that the package declares."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    page = (ROOT / "docs" / "tutorials" / "getting-started.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)

    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(extras)


@pytest.mark.parametrize(
    "statistics", ["batching.BatcherStatistics", "backends.BackendStatistics"], ids=lambda name: name.partition(".")[2]
)
def test_statistics_page_defines_every_counter(statistics):
    """The page of counting rules names each field of the snapshot by its current name."""
    page = (ROOT / "docs" / "reference" / "statistics.md").read_text(encoding="utf-8")
    module, _, name = statistics.partition(".")
    snapshot = getattr(importlib.import_module(f"streaminfer.{module}"), name)

    assert {field.name for field in attrs.fields(snapshot)} <= set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))


def _reference():
    """Return the kind and the path of each entry of the API pages."""
    pages = (ROOT / "docs" / "reference").glob("api*.md")
    reference = "".join(page.read_text(encoding="utf-8") for page in pages)
    return re.findall(r"auto(class|exception|function|data|module):: ([\w.]+)", reference)


def _imports(source):
    """Return the modules of this package from which some Python code imports names."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom) and node.module]
    return {node.module for node in nodes if node.module.partition(".")[0] == "streaminfer"}


def test_examples_import_from_public_modules():
    """Pages and examples import from modules on the API pages only, so users can do what they show."""
    public = {*HOMES, *(path if kind == "module" else path.rpartition(".")[0] for kind, path in _reference())}
    sources = [(page, block.text) for page in PAGES for block in _blocks(page) if block.info.startswith("python")]
    sources += [(path, path.read_text(encoding="utf-8")) for path in (ROOT / "examples").rglob("*.py")]
    assert {_name(path): private for path, source in sources if (private := _imports(source) - public)} == {}


def test_reference_documents_every_public_name():
    documented = set()
    for kind, path in _reference():
        documented |= set(importlib.import_module(path).__all__) if kind == "module" else {path.rpartition(".")[2]}
    for home in HOMES:
        module = importlib.import_module(home)
        public = {name for name in module.__all__ if not isinstance(getattr(module, name), types.ModuleType)}
        assert public <= documented, home


def test_examples_in_docstrings():
    finder, runner = doctest.DocTestFinder(recurse=True), doctest.DocTestRunner()
    for info in pkgutil.walk_packages(streaminfer.__path__, "streaminfer."):
        if info.name.endswith("_cy"):
            continue  # their classes are found in the modules that publish them
        for test in finder.find(importlib.import_module(info.name)):
            if test.examples:  # each run looks at all imported files, which takes time
                runner.run(test)
    assert runner.failures == 0
    assert runner.tries > 0
