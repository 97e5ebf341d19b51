"""The retention report: stored data and its limits, erasures, and owed erasures, without names of subjects."""

import itertools
import json
import re
from html.parser import HTMLParser

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaminfer.compliance import retention_log
from streaminfer.compliance.retention import Holding, Retention
from streaminfer.compliance.retention_log import ACTIONS, RetentionLog
from streaminfer.compliance.retention_report import PURGE_BOUNDS_S, build_report

pytestmark = pytest.mark.uncompiled

S = 10**9
NOW = 1_700_000_000 * S
SECRET = b"a secret that lives elsewhere 01"
POLICY = Retention(3600.0, classes={"face": Retention(60.0, encrypt=True, allow_disk=False), "voice": Retention(10.0)})


def holding(where="memory", data_class="", entries=3, oldest_age_s=5.0, size_bytes=4096):
    return Holding(where, data_class, entries, oldest_age_s, size_bytes)


def report(*holdings, log=None, **more):
    return build_report(POLICY, holdings, log, at_ns=NOW, **more)


@pytest.fixture
def log():
    instants = itertools.chain([NOW], range(NOW, NOW + 10**6 * S, S))  # the log reads its clock once
    return RetentionLog(wall_clock=lambda: next(instants))


def note(log, action="erased", **more):
    fields = {"where": "memory", "data_class": "face", "count": 2, "reason": "asked for", **more}
    log.record(action, **fields)


# -- stored data -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "data_class", "oldest_s", "state"),
    [
        ("memory", "", 0.0, "within"),
        ("memory", "", 3599.9, "within"),
        ("memory", "", 3600.0, "due"),
        ("memory", "", 3600.25, "due"),
        ("memory", "", 3600.26, "over"),
        ("memory", "face", 59.9, "within"),
        ("memory", "face", 61.0, "over"),
        ("disk", "face", 61.0, "due"),
        ("disk", "face", 90.1, "over"),
        ("elsewhere", "voice", 9.9, "within"),
        ("elsewhere", "voice", 10.1, "over"),
        ("memory", "", None, "unknown"),
    ],
)
def test_holding_is_judged_by_its_class_and_place(where, data_class, oldest_s, state):
    """A holding is judged by the maximum age of its class plus the purge bound of its place."""
    made = report(holding(where, data_class, oldest_age_s=oldest_s))
    (it,) = made.holdings
    assert it.state == state
    assert it.max_age_s == {"": 3600.0, "face": 60.0, "voice": 10.0}[data_class]
    assert it.purge_bound_s == PURGE_BOUNDS_S.get(where, 0.0)
    assert bool(made.violations) == (state == "over")


def test_violation_names_place_class_and_excess():
    made = report(holding("disk", "face", oldest_age_s=300.0))
    assert made.violations == [
        "disk holds data of class 'face' that is 5 min old: 60 s are allowed, and 30 s to remove it"
    ]
    assert made.holdings[0] == attrs.evolve(
        made.holdings[0],
        where="disk",
        data_class="face",
        entries=3,
        oldest_age_s=300.0,
        size_bytes=4096,
        max_age_s=60.0,
        purge_bound_s=30.0,
        state="over",
    )


def test_purge_bounds_can_be_given():
    assert report(holding("disk", "face", oldest_age_s=100.0), purge_bounds_s={"disk": 50.0}).violations == []
    assert report(holding("memory", "face", oldest_age_s=60.1), purge_bounds_s={}).violations != []


def test_unknown_holdings_have_the_state_unknown():
    made = report(holding("redis", entries=None, oldest_age_s=None, size_bytes=None))
    assert made.holdings[0].state == "unknown"
    assert made.violations == []
    assert "not known" in str(made)


def test_class_unknown_to_policy_is_a_violation():
    """A holding of a class that the policy does not have is a violation; a holding without entries is empty."""
    made = report(holding(entries=0, oldest_age_s=None), holding("disk", "?", entries=2, oldest_age_s=1.0))
    assert [(it.state, it.max_age_s) for it in made.holdings] == [("unknown", None), ("empty", 3600.0)]
    assert made.violations == ["disk holds 2 entries of data of class '?': the policy has none"]
    assert report(holding(data_class="?", entries=0)).violations == []


def test_holdings_are_sorted_and_rules_are_the_policys():
    """Holdings are sorted by place and class, and the rules are those of the policy."""
    made = report(holding("memory", "voice"), holding("memory", ""), holding("disk", "face"))
    assert [(it.where, it.data_class) for it in made.holdings] == [
        ("disk", "face"),
        ("memory", ""),
        ("memory", "voice"),
    ]
    assert [(rule.data_class, rule.max_age_s, rule.encrypt, rule.allow_disk) for rule in made.rules] == [
        ("", 3600.0, False, True),
        ("face", 60.0, True, False),
        ("voice", 10.0, False, True),
    ]


def test_report_time_defaults_to_now(monkeypatch):
    monkeypatch.setattr("time.time_ns", lambda: 7)
    assert build_report(POLICY, []).at_ns == 7


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"policy": 3600.0}, "policy"),
        ({"purge_bounds_s": {"disk": -1}}, r"purge_bounds_s\['disk'\]"),
        ({"purge_bounds_s": None}, "purge_bounds_s"),
        ({"at_ns": "now"}, "at_ns"),
    ],
)
def test_rejected_arguments_are_named(wrong, named):
    with pytest.raises((TypeError, ValueError), match=f"^{named}: "):
        build_report(**{"policy": POLICY, "inventory": [], **wrong})


# -- erasures --------------------------------------------------------------------------------------------------------


def test_report_lists_erasures_only(log):
    note(log, subject="anna")
    note(log, "expired", count=5)
    note(log, "expired", count=6)
    note(log, "erased", where="disk", tag="camera 3")
    made = report(log=log)
    assert [(event.where, event.subject, event.tag) for event in made.erasures] == [
        ("memory", log.pseudonym("anna"), None),
        ("disk", None, "camera 3"),
    ]
    assert made.violations == []
    assert made.log == log.verify()
    assert made.log.head == log.head
    without = report()
    assert (without.erasures, without.log) == ((), None)


def test_failed_erasure_is_owed_until_it_succeeds(log):
    def made():
        return report(log=log)

    note(log, "erase_failed", where="redis", subject="anna", count=0, reason="BackendError: down")
    note(log, "erase_failed", where="redis", tag="t", count=0, reason="down")
    note(log, "erased", subject="anna")
    name = log.pseudonym("anna")
    assert made().violations == [
        f"an erasure in redis (subject {name}) failed on 2023-11-14 22:13:20 UTC and is still to be made: BackendError: down",
        "an erasure in redis (tag 't') failed on 2023-11-14 22:13:21 UTC and is still to be made: down",
    ]
    note(log, "erased", where="redis", subject="anna")
    assert [event.tag for event in made().pending] == ["t"]


def test_failed_erasure_is_owed_after_record_is_gone(monkeypatch):
    monkeypatch.setattr(retention_log, "_MAX_RECENT", 1)
    log = RetentionLog()
    note(log, "erase_failed", where="redis", subject="anna", count=0)
    note(log, "expired", count=3)
    note(log, "expired", count=4)
    made = report(log=log)
    assert len(made.violations) == 1


def test_a_report_sees_what_another_process_recorded(tmp_path):
    one = RetentionLog(tmp_path / "log", secret=SECRET)
    note(RetentionLog(tmp_path / "log", secret=SECRET), subject="anna")
    made = report(log=one)
    assert len(made.erasures) == 1
    assert made.log.records == 1


def test_a_log_that_was_altered_is_a_violation(tmp_path):
    path = tmp_path / "log"
    log = RetentionLog(path, secret=SECRET)
    note(log)
    path.write_bytes(path.read_bytes().replace(b"asked", b"never"))
    made = report(log=log)
    assert made.violations == ["the log is not whole: record 0: it was changed, or written with another secret"]
    assert "the log is not whole" in str(made)


def test_a_log_that_was_cut_is_a_violation(tmp_path):
    log = RetentionLog(tmp_path / "log", secret=SECRET)
    note(log)
    (tmp_path / "log").write_bytes(b"")
    (said,) = report(log=log).violations
    assert "1 records that this process has seen were cut off" in said


def test_overdue_entries_under_a_hold_are_no_violation():
    """Overdue entries are no violation during a hold, because a place does not know which entries the hold protects."""
    log = RetentionLog()
    note(log, "held", where="all", subject="anna", count=0)
    (held,) = report(holding("disk", "face", 1, 3600.0), log=log).holdings
    assert held.state == "held"
    note(log, "released", where="all", subject="anna", count=0)
    (over,) = report(holding("disk", "face", 1, 3600.0), log=log).holdings
    assert over.state == "over"


# -- forms -----------------------------------------------------------------------------------------------------------


def test_json_has_schema_version_and_all_fields(log):
    """The report as JSON has a schema, a version and every field of the report."""
    note(log, subject="anna")
    note(log, "erase_failed", where="redis", subject="anna", count=0)
    made = report(holding(), holding("redis", entries=None, oldest_age_s=None, size_bytes=None), log=log)
    read = json.loads(made.to_json())
    assert read == made.to_dict()
    assert made.to_json() == report(*made_holdings(made), log=log).to_json()
    assert (read["schema"], read["version"], read["at_ns"]) == ("streaminfer.retention-report", 1, NOW)
    assert list(read) == [
        "schema",
        "version",
        "at_ns",
        "violations",
        "rules",
        "holdings",
        "erasures",
        "pending",
        "holds",
        "log",
    ]
    assert read["rules"][1] == {
        "data_class": "face",
        "max_age_s": 60.0,
        "encrypt": True,
        "allow_disk": False,
        "allow_shared": True,
        "min_age_s": 0.0,
    }
    assert read["holdings"][0] == {
        "where": "memory",
        "data_class": "",
        "entries": 3,
        "oldest_age_s": 5.0,
        "size_bytes": 4096,
        "max_age_s": 3600.0,
        "purge_bound_s": 0.25,
        "state": "within",
    }
    assert read["erasures"] == [log.events[0].to_dict()]
    assert read["pending"] == [log.events[1].to_dict()]
    assert read["log"]["head"] == log.head
    assert report().to_dict()["log"] is None


def made_holdings(made):
    return [Holding(it.where, it.data_class, it.entries, it.oldest_age_s, it.size_bytes) for it in made.holdings]


def test_text_form_is_a_table(log):
    note(log, subject="anna", reason="asked\x1b[2J")
    text = str(report(holding(), holding("disk", "face", oldest_age_s=300.0, size_bytes=5_000_000), log=log))
    lines = text.splitlines()
    assert lines[0] == "Retention report, 2023-11-14 22:13:20 UTC"
    assert lines[2].split() == ["state", "where", "class", "entries", "size", "oldest", "allowed", "purge", "bound"]
    assert re.split(r" {2,}", lines[3]) == ["over", "disk", "face", "3", "5 MB", "5 min", "60 s", "30 s"]
    assert re.split(r" {2,}", lines[4]) == [
        "within",
        "memory",
        "(all others)",
        "3",
        "4.1 kB",
        "5 s",
        "60 min",
        "250 ms",
    ]
    assert "1 erasures of 2 entries, the latest:" in lines
    assert lines[-1].startswith("VIOLATION: disk holds")
    assert "\x1b" not in text
    assert str(report()).endswith("no violation is known")


def test_report_says_which_classes_a_line_covers(log):
    """An erasure covers all classes; the default rule covers those that no other rule names."""
    note(log, data_class="", subject="anna")
    erased = str(report(log=log)).splitlines()[-3]
    assert re.split(r" {2,}", erased)[1:5] == ["erased", "memory", "(all)", "2"]
    page = Page(report(holding(), log=log).to_html()).text
    assert (page.count("(all others)"), page.count("(all)")) == (2, 1)
    assert "(all others)" not in str(build_report(Retention(60.0), [holding()], at_ns=NOW))


class Page(HTMLParser):
    """Tags, text and targets that a browser would find in a page."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.targets = [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.targets += [
            (name, value) for name, value in attributes if name in {"href", "src", "style"} or name[:2] == "on"
        ]

    def handle_data(self, data):
        self.text.append(data)


def test_html_page_is_self_contained_and_complete(log, tmp_path):
    note(log, subject="anna", reason="asked by letter")
    note(log, "erase_failed", where="redis", subject="anna", count=0)
    made = report(holding(), holding("disk", "face", oldest_age_s=300.0), log=log)
    written = made.to_html(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == written == made.to_html()
    assert written.startswith("<!DOCTYPE html>")
    page = Page(written)
    assert page.targets == []
    assert not {"script", "link", "img", "iframe", "form"} & set(page.tags)
    text = " ".join(page.text)
    for shown in [
        *made.violations,
        "asked by letter",
        log.head,
        log.pseudonym("anna"),
        "2023-11-14 22:13:20 UTC",
        "5 min",
    ]:
        assert shown in text
    assert "No violation" not in text
    assert "No violation is known." in Page(report().to_html()).text
    assert "http" not in written.replace("http-equiv", "")
    fragment = made._repr_html_()
    assert "<html" not in fragment
    assert "asked by letter" in fragment


def test_page_shows_latest_erasures_and_counts_earlier(log):
    """The page shows the latest erasures and says how many earlier ones there are."""
    for number in range(502):
        note(log, reason=f"number {number}.")
    text = " ".join(Page(report(log=log).to_html()).text)
    assert "2 earlier erasures are in the JSON." in text
    assert "number 1." not in text
    assert "number 2." in text
    assert len(report(log=log).to_dict()["erasures"]) == 502


def test_class_named_like_a_state_is_no_state():
    policy = Retention(1.0, classes={"over": Retention(1.0)})
    made = build_report(policy, [holding(data_class="over", oldest_age_s=0.5)], at_ns=NOW)
    assert 'class="bad"' not in made.to_html()
    assert 'class="good">within' in made.to_html()


@pytest.mark.parametrize("at_ns", [0, 2**63 - 1, 10**30])
def test_any_instant_can_be_shown(at_ns):
    made = build_report(POLICY, [], at_ns=at_ns)
    assert str(made)
    assert made.to_html()


NASTY = st.text() | st.sampled_from(
    ["<script>alert(1)</script>", '"><img src=x onerror=y>', "&lt;", "'", "\ud800", "a\nb", "]]>"]
)


@given(NASTY, NASTY, NASTY, NASTY)
def test_no_text_can_become_markup(tmp_path_factory, where, data_class, reason, tag):
    log = RetentionLog()
    note(log, "erase_failed", where=where, data_class=data_class, reason=reason, tag=tag)
    note(log, "erased", where=where + "x", data_class=data_class, reason=reason, tag=tag)
    made = build_report(POLICY, [holding(where, data_class)], log, at_ns=NOW)
    plain = RetentionLog()
    note(plain, "erase_failed", where="w", data_class="c", reason="r", tag="t")
    note(plain, "erased", where="wx", data_class="c", reason="r", tag="t")
    like = build_report(POLICY, [holding("w", "c" if made.holdings[0].max_age_s is None else "")], plain, at_ns=NOW)
    path = tmp_path_factory.getbasetemp() / "nasty.html"
    page = Page(made.to_html(path))
    assert page.tags == Page(like.to_html()).tags
    assert page.targets == []
    assert path.stat().st_size > 0
    assert json.loads(made.to_json())["holdings"][0]["where"] == where
    assert str(made)


@given(st.text(min_size=1), st.sampled_from(list(ACTIONS)))
def test_subject_names_are_never_in_a_report(name, action):
    name = f"~{name}~"
    log = RetentionLog()
    note(log, action, subject=name, reason=f"for {name}", tag=f"{name} of camera 3")
    made = report(holding(), log=log)
    shown = (
        json.dumps(made.to_dict(), ensure_ascii=False) + made.to_html() + made._repr_html_() + str(made) + repr(made)
    )
    assert name not in shown
    assert log.pseudonym(name) in shown or action not in {"erased", "erase_failed"}
