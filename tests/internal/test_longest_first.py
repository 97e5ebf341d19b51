"""The order in which `make test` gives test files to its workers."""

from pathlib import Path
from types import SimpleNamespace

import longest_first

TESTS = Path(__file__).parents[1]


def test_named_files_exist():
    """Each file of ``LONGEST`` exists, so a file that is renamed must be renamed there too."""
    assert [file for file in longest_first.LONGEST if not (TESTS / file).is_file()] == []


def test_longest_files_come_first():
    """The longest files come first, then those with the most tests; the tests of a file keep their order."""
    longest = f"tests/{longest_first.LONGEST[0]}"
    names = ["a.py::one", "b.py::one", "b.py::two", f"{longest}::one", f"{longest}::two"]
    items = [SimpleNamespace(nodeid=name) for name in names]

    longest_first.pytest_collection_modifyitems(items)

    assert [item.nodeid for item in items] == [names[3], names[4], names[1], names[2], names[0]]


def test_files_that_share_a_server_are_one_scope():
    """With ``--dist loadfile``, files that share a server are one scope, and each other file is its own scope."""
    options = {"dist": "loadfile", "tx": ["popen"], "px": [], "maxschedchunk": None}
    config = SimpleNamespace(option=SimpleNamespace(), getoption=options.get, getvalue=options.get)
    scheduler = longest_first.pytest_xdist_make_scheduler(config, None)
    scopes = {scheduler._split_scope(f"tests/{file}::test") for file in longest_first.TOGETHER[0]}

    assert scopes == {f"tests/{longest_first.TOGETHER[0][0]}"}
    assert scheduler._split_scope("tests/conftest.py::test") == "tests/conftest.py"
    assert longest_first.pytest_xdist_make_scheduler(SimpleNamespace(getoption=lambda _: "load"), None) is None
