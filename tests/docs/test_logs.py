"""The table of loggers in the reference."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
USED = re.compile(
    r"""(?:getLogger|Log|ErrorLog|Listeners(?:\[\w+\])?)\(\s*"(streaminfer[.a-z_]*)"|_LOG_NAME = "([.a-z_]+)\""""
)


def test_every_logger_is_in_the_table():
    """The table of loggers names exactly the loggers that the package uses."""
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "streaminfer").rglob("*.py"))
    section = (ROOT / "docs" / "reference" / "errors.md").read_text(encoding="utf-8").partition("## Logs")[2]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]

    assert {name for row in rows for name in re.findall(r"`([^`]+)`", row)} == {
        one or other for one, other in USED.findall(sources)
    }
