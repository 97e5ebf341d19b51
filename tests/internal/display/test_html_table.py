"""Tables for notebooks and reports."""

from streaminfer._internal.display.html_table import html_table


def test_rows_have_headings_without_a_head():
    """Without column heads the first cell of a row is its heading."""
    assert html_table([("hits", 3)]) == "<table><tbody><tr><th>hits</th><td>3</td></tr></tbody></table>"


def test_head_and_caption():
    """A head names the columns, and a caption the table."""
    shown = html_table([("a", 1)], head=("name", "n"), caption="c")

    assert shown.startswith("<table><caption>c</caption><thead><tr><th>name</th><th>n</th></tr></thead><tbody>")
    assert "<tr><td>a</td><td>1</td></tr>" in shown


def test_everything_is_escaped():
    """No cell, head or caption can add markup."""
    shown = html_table([("<i>", '"&')], head=("<b>", ""), caption="<script>")

    assert not {"<i>", "<b>", "<script>"} & set(shown.replace("><", "> <").split())
    assert "&quot;&amp;" in shown


def test_mark_classes_the_first_cell():
    """The mark of a row is the class of its first cell."""
    rows = html_table([("ok", "x"), ("", "y")], head=("state", "what"), marks={"ok": "good"})

    assert '<td class="good">ok</td><td>x</td>' in rows
    assert "<tr><td></td><td>y</td></tr>" in rows
