"""Statistics as HTML tables: names in words, values with units, nested records as tables."""

import html.parser
import math
import re
from collections.abc import Mapping

import attrs
import pytest

from streaminfer._internal.snapshot import Snapshot


class Page(html.parser.HTMLParser):
    """Captions, cells of each row, and names of all tags of an HTML page."""

    def __init__(self, text):
        super().__init__()
        self.captions, self.rows, self.tags, self.open = [], [], set(), []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in {"td", "th"}:
            self.rows[-1].append("")
        elif tag == "caption":
            self.captions.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1] == "caption":
            self.captions[-1] += data
        else:
            self.rows[-1][-1] += data


def page_of(snapshot):
    return Page(snapshot._repr_html_())


@attrs.frozen(kw_only=True)
class RouteStatistics(Snapshot):
    name: str
    served: int = 0
    failed: int = 0
    latency_s: float = math.nan
    skipped: Mapping[str, int] = {}


@attrs.frozen(kw_only=True)
class OneSideStatistics(Snapshot):
    value: object
    _hidden: int = 1


@pytest.mark.parametrize(
    ("name", "value", "row"),
    [
        ("in_flight", 12345, ["in flight", "12,345"]),
        ("delay_s", 0.0125, ["delay", "12.5 ms"]),
        ("delay_s", 0.0, ["delay", "0 s"]),
        ("delay_s", None, ["delay", "not known"]),
        ("returns_in_s", math.inf, ["returns in", "–"]),
        ("rate_per_s", 1234.56, ["rate", "1,234.6 / s"]),
        ("held_bytes", 2_500_000, ["held", "2.5 MB"]),
        ("hit_rate", 0.123, ["hit rate", "12.3%"]),
        ("quality", 0.98765, ["quality", "0.9877"]),
        ("quality", math.nan, ["quality", "–"]),
        ("cost", 1234567.8, ["cost", "1,234,568"]),
        ("burning", True, ["burning", "yes"]),
        ("state", "half_open", ["state", "half_open"]),
        (
            "reasons",
            {"limit": 1200, "queue_full": 0, "closed": 1},
            ["reasons", "limit: 1,200, queue_full: 0, closed: 1"],
        ),
        ("reasons", {}, ["reasons", "none"]),
        ("waiting", ("a", "b"), ["waiting", "a, b"]),
        ("sizes", tuple(range(20)), ["sizes", ", ".join([*map(str, range(16)), "4 more"])]),
    ],
)
def test_field_name_is_words_and_value_has_its_unit(name, value, row):
    shown = attrs.make_class("Odd", [name], bases=(Snapshot,), frozen=True)(value)

    assert page_of(shown).rows == [row]


def test_a_field_without_a_value_has_no_row():
    assert page_of(OneSideStatistics(value=None)).rows == page_of(OneSideStatistics(value="")).rows == []


def test_caption_is_class_in_words_and_name():
    """The caption of a table is the class in words, followed by the name if there is one."""
    assert page_of(OneSideStatistics(value=1)).captions == ["one side"]
    assert page_of(RouteStatistics(name="best")).captions == ["route: best"]


def test_properties_have_rows():
    class Counted(OneSideStatistics):
        @property
        def failure_rate(self):
            return self.value / 10

    assert page_of(Counted(value=3)).rows == [["value", "3"], ["failure rate", "30.0%"]]


def test_records_are_the_rows_of_a_table():
    """Several records are the rows of one table, without the columns that are empty for all of them."""
    routes = (RouteStatistics(name="a", served=1200), RouteStatistics(name="b", skipped={"limit": 2}))
    by_name = {"x": OneSideStatistics(value=1), "y": OneSideStatistics(value=2)}

    listed, named = (page_of(OneSideStatistics(value=value)) for value in (routes, by_name))

    assert listed.rows == [["name", "served", "skipped"], ["a", "1,200", "none"], ["b", "0", "limit: 2"]]
    assert named.rows == [["name", "value"], ["x", "1"], ["y", "2"]]
    assert listed.captions == ["one side", "value"]


def test_nested_records_of_one_class_share_a_table():
    """A nested record is a table below its parent; two records of one class are rows of one table."""
    pair = attrs.make_class("Pair", ["stable", "canary"], bases=(Snapshot,), frozen=True)
    one, two = RouteStatistics(name="one", served=1), OneSideStatistics(value=2)

    different, alike = page_of(pair(one, two)), page_of(pair(two, attrs.evolve(two, value=3)))

    assert different.captions == ["pair", "stable: one", "canary"]
    assert alike.rows == [["name", "value"], ["stable", "2"], ["canary", "3"]]


def test_value_with_html_repr_draws_itself():
    class Picture:
        def _repr_html_(self):
            return "<svg></svg>"

    assert OneSideStatistics(value=Picture())._repr_html_().endswith("</table><h4>value</h4><svg></svg>")


def test_hostile_names_and_values_are_text():
    """Tags in names, keys and values are shown as text and add no markup."""
    evil = '</table><script>"&'
    held = {evil: RouteStatistics(name=evil, skipped={evil: 1})}

    for value in (evil, {evil: evil}, (evil,), held, (held[evil],), held[evil]):
        shown = page_of(OneSideStatistics(value=value))
        assert shown.tags <= {"table", "caption", "thead", "tbody", "tr", "th", "td"}
        assert re.search(r"</table><script>\"&", str(shown.rows + shown.captions).replace("\\", ""))
