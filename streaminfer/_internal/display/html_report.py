"""Reports as text, and as one HTML page that loads no other files, with every cell escaped."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

from streaminfer._internal.files.whole_file import write_whole
from streaminfer._internal.units import format_duration

__all__ = ["cells", "instant", "list_of", "text_table", "write_page"]

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --good: #1a7f37; --bad: #cf222e; --so: #9a6700; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
td { overflow-wrap: anywhere; }
.good { color: var(--good); } .bad { color: var(--bad); font-weight: 600; } .so { color: var(--so); }
code { font-size: .85em; overflow-wrap: anywhere; }
@media (prefers-color-scheme: dark) { :root { --good: #3fb950; --bad: #ff7b72; --so: #d29922; } }
"""
_KB = 1000


def write_page(title: str, body: str, path: str | os.PathLike[str] | None = None, *, style_sheet: str = _STYLE) -> str:
    """Return a whole HTML page; with a path, also write it to that file.

    Args:
        title: plain text.
        body: HTML.
        path: path of a file; ``None``: write no file.
        style_sheet: CSS of the page.

    Raises:
        OSError: the file cannot be written.
    """
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style_sheet}</style></head><body>\n{body}\n</body></html>\n"
    )
    if path is not None:
        write_whole(path, page.encode("utf-8", "backslashreplace"))
    return page


def cells(record: Any, names: Sequence[str], no_class: str) -> tuple[str, ...]:
    """Return fields of a record as plain text, by unit: ``…_ns`` an instant, ``…_s`` a duration, ``…_bytes``.

    Args:
        record: the record.
        names: names of its fields.
        no_class: text of a ``data_class`` without a name.
    """
    return tuple(_cell(name, getattr(record, name), no_class) for name in names)


def _cell(name: str, value: Any, no_class: str) -> str:
    formats: dict[str, Callable[[Any], str]] = {"bytes": format_size, "s": format_duration, "ns": instant}
    shown = formats.get(name.rpartition("_")[2])
    if value is None:
        return "not known" if shown is not None or name == "entries" else "–"
    if shown is not None:
        return shown(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else value or (no_class if name == "data_class" else "")


def list_of(texts: Iterable[str], kind: str) -> str:
    """Return an HTML list of plain texts; ``kind`` is its CSS class."""
    return "<ul>" + "".join(f'<li class="{kind}">{escape(text)}</li>' for text in texts) + "</ul>"


def text_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table for a terminal; characters that would move the cursor are shown as escapes."""
    lines = [list(head), *([_printable(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def instant(at_ns: int) -> str:
    """Return an instant of the wall clock as text."""
    try:
        return datetime.fromtimestamp(at_ns // 10**9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):
        return f"{at_ns} ns"


def format_size(number: int) -> str:
    """Return a number of bytes to three digits, in units of powers of 1,000."""
    value, units = float(number), ["B", "kB", "MB", "GB", "TB"]
    while value >= _KB and len(units) > 1:
        value /= _KB
        units.pop(0)
    return f"{value:,.3g} {units[0]}"


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
