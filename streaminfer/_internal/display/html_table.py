"""Tables for notebooks and reports, as HTML that loads no other files."""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

__all__ = ["html_table"]


def html_table(
    rows: Iterable[Sequence[object]],
    *,
    head: Sequence[str] = (),
    caption: str = "",
    marks: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Return a table as HTML, with each cell escaped.

    Args:
        rows: the cells of each row. Without a head, the first cell of each row is its heading.
        head: headings of the columns.
        caption: text above the table.
        marks: CSS classes of first cells, by the text of the cell.
    """
    from html import escape  # noqa: PLC0415 - a notebook's need, not every import's

    tag = "td" if head else "th"
    lines = []
    for row in rows:
        kind = marks.get(str(row[0]), "")
        first, *rest = (escape(str(cell)) for cell in row)
        opening = f'<{tag} class="{kind}">' if kind else f"<{tag}>"
        lines.append(f"<tr>{opening}{first}</{tag}>{''.join(f'<td>{cell}</td>' for cell in rest)}</tr>")
    above = f"<caption>{escape(caption)}</caption>" if caption else ""
    if head:
        above += f"<thead><tr>{''.join(f'<th>{escape(text)}</th>' for text in head)}</tr></thead>"
    return f"<table>{above}<tbody>{''.join(lines)}</tbody></table>"
