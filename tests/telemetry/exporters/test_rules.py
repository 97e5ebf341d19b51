"""Alert rules and SLO documents of objectives, and the Grafana dashboard."""

import json
import re
import subprocess

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
from hypothesis import example, given, settings
from hypothesis import strategies as st
from servers.prometheus_server import PROMTOOL

import streaminfer as si
from streaminfer.telemetry import alert_rules, grafana_dashboard, slo_documents
from streaminfer.telemetry.exporters.names import METRICS, STACK_STATE
from streaminfer.telemetry.exporters.rules.queries import duration, slug
from streaminfer.telemetry.exporters.rules.yaml_text import to_yaml

AWKWARD = 'faces "x"\\ é \U0001f680 {{b}}'
SLOS = [
    si.SLO("faces", threshold_s=0.050, objective=0.99),
    si.SLO(AWKWARD, threshold_s=0.1, objective=0.9, period_s=7 * 86_400.0),
]
MINUTE = 60
UNPRINTABLE = "".join(
    map(chr, [*range(0x20), *range(0x7F, 0xA1), 0x2028, 0x2029, 0xD800, 0xDFFF, 0xFEFF, 0xFFFE, 0xFFFF])
)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(0.001, 1000.0),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.from_regex("[a-z]{1,5}x", fullmatch=True), inner, max_size=3)
    ),
    max_leaves=12,
)


def promtool(*arguments):
    done = subprocess.run([PROMTOOL, *map(str, arguments)], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@settings(max_examples=30)
@given(st.dictionaries(st.from_regex("[a-z]{1,5}x", fullmatch=True), PLAIN, max_size=4))
@example({"x": UNPRINTABLE, "y": list(UNPRINTABLE)})
def test_yaml_is_read_back(data):
    """PyYAML reads the same data from the UTF-8 text that `to_yaml` writes."""
    text = to_yaml(data)

    assert yaml.safe_load(text.encode()) == data


@pytest.mark.needs("prometheus")
def test_promtool_accepts_the_rules(tmp_path):
    """Prometheus' own check accepts the rules, also with awkward names."""
    path = tmp_path / "rules.yml"
    path.write_text(alert_rules(*SLOS), encoding="utf-8")

    code, said = promtool("check", "rules", "--lint=all", "--lint-fatal", path)

    assert code == 0, said


def test_name_of_an_objective_is_a_string_of_promql():
    """A character beyond 16 bits is written unchanged, because PromQL has no surrogate pairs."""
    rocket = si.SLO("rocket \U0001f680", threshold_s=0.1)

    for text in (alert_rules(rocket), slo_documents(rocket)):
        assert 'slo=\\"rocket \U0001f680\\"' in text
        assert "\\ud83d" not in text


@pytest.mark.needs("prometheus")
@pytest.mark.parametrize(
    ("bad_per_minute", "bad_minutes", "at_minute", "firing"),
    [
        (20, 70, 70, {("page", "1h"), ("page", "6h"), ("ticket", "1d"), ("ticket", "3d")}),  # burn rate 20
        (20, 2, 4, set()),  # a blip: the long window has not burned
        (20, 70, 80, {("page", "6h"), ("ticket", "1d"), ("ticket", "3d")}),  # it has ended: the short window is clean
        (8, 370, 370, {("page", "6h"), ("ticket", "1d"), ("ticket", "3d")}),  # burn rate 8: too slow for the first pair
        (2, 400, 400, {("ticket", "3d")}),  # burn rate 2
        (0, 0, 400, set()),  # no bad events
    ],
    ids=["fast", "blip", "recovered", "slow", "creeping", "good"],
)
def test_alerts_fire_as_computed(tmp_path, bad_per_minute, bad_minutes, at_minute, firing):
    """With 100 events per minute, the pairs that fire are those whose windows both burn at their rate."""
    rules = tmp_path / "rules.yml"
    rules.write_text(alert_rules(SLOS[0]), encoding="utf-8")
    good = 100 - bad_per_minute
    before = 60  # minutes of good traffic before, in which all windows are young
    series = {
        "late": f"0x{before} {bad_per_minute}+{bad_per_minute}x{bad_minutes} {bad_per_minute * (bad_minutes + 1)}x2000",
        "good": f"0+100x{before} {100 * before + good}+{good}x{bad_minutes} {100 * before + good * (bad_minutes + 1) + 100}+100x2000",
    }
    # windows longer than the history average over the history, as ours do
    expected = [
        {
            "exp_labels": {"slo": "faces", "severity": severity, "window": window},
            "exp_annotations": annotations(window),
        }
        for severity, window in sorted(firing)
    ]
    test = {
        "rule_files": [str(rules)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [
                    {"series": f'streaminfer_slo_events_total{{slo="faces", result="{result}"}}', "values": values}
                    for result, values in series.items()
                ],
                "alert_rule_test": [
                    {
                        "eval_time": f"{before + at_minute}m",
                        "alertname": "StreaminferBudgetBurn",
                        "exp_alerts": expected,
                    }
                ],
            }
        ],
    }
    path = tmp_path / "test.yml"
    path.write_text(json.dumps(test), encoding="utf-8")

    code, said = promtool("test", "rules", path)

    assert code == 0, said


def annotations(window):
    rules = yaml.safe_load(alert_rules(SLOS[0]))["groups"][0]["rules"]
    return next(rule["annotations"] for rule in rules if rule.get("labels", {}).get("window") == window)


def test_rules_watch_the_pairs_of_the_objective():
    """The windows, the burn rate and the minimum of events in the rules are those of the objective."""
    slo = si.SLO(
        "s",
        threshold_s=0.05,
        objective=0.9,
        alert_pairs=[si.telemetry.AlertPair(100.0, 90.0, 1.5, "ticket")],
        minimum_events=7,
    )

    *recorded, alert = yaml.safe_load(alert_rules(slo))["groups"][0]["rules"]

    assert [rule["record"].rpartition("rate")[2] for rule in recorded] == ["1s500ms", "1m30s"]
    assert ">= 8 * 0.1 and" in alert["expr"]  # a rate that cannot be reached is lowered
    assert alert["expr"].endswith(">= 7")


@pytest.mark.parametrize("version", ["openslo/v1", "openslo/v1alpha", "pyrra.dev/v1alpha1"])
def test_slo_documents_match_the_objectives(version):
    """Documents of each version have the target, the period and the queries of their objective, and valid names."""
    documents = list(yaml.safe_load_all(slo_documents(*SLOS, version=version)))

    assert [document["apiVersion"] for document in documents] == [version] * 2
    for slo, document in zip(SLOS, documents, strict=True):
        text = json.dumps(document)
        assert re.fullmatch("[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", document["metadata"]["name"])
        assert (
            json.dumps(f"slo={json.dumps(slo.name, ensure_ascii=False)}")[1:-1] in text
            or json.dumps(slo.name)[1:-1] in text
        )
        spec = document["spec"]
        if version.startswith("pyrra"):
            assert (float(spec["target"]), spec["window"]) == (100 * slo.objective, duration(slo.period_s))
            continue
        [objective] = spec["objectives"]
        assert objective["target"] == slo.objective
        [window] = spec.get("timeWindow") or spec["timeWindows"]
        days = window["duration"] if version == "openslo/v1" else f"{window['count']}d"
        assert days == duration(slo.period_s)


def test_good_events_match_objective_of_any_name():
    """The query of good events selects those of the objective, for any name of it.

    A name that has an operator of PromQL is the same in both queries.
    """
    document = yaml.safe_load(slo_documents(si.SLO("a!=b", threshold_s=0.05)))

    ratio = document["spec"]["indicator"]["spec"]["ratioMetric"]
    good, total = (ratio[which]["metricSource"]["spec"]["query"] for which in ("good", "total"))
    assert good == 'streaminfer_slo_events_total{slo="a!=b", result="good"}'
    assert total == 'streaminfer_slo_events_total{slo="a!=b"}'


@pytest.mark.parametrize(
    ("period_s", "window"), [(30 * 86_400.0, "30d"), (129_600.0, "36h"), (5_400.0, "90m"), (20.0, "1m")]
)
def test_openslo_document_has_what_its_schema_requires(period_s, window):
    """An OpenSLO document has the fields, types and spellings that its schema requires.

    The checks are written by hand from https://github.com/OpenSLO/OpenSLO/tree/main/schemas/v1.
    """
    slo = si.SLO("x" * 70, threshold_s=0.05, period_s=period_s, alert_pairs=[])

    document = yaml.safe_load(slo_documents(slo))

    assert (document["apiVersion"], document["kind"]) == ("openslo/v1", "SLO")
    spec, indicator = document["spec"], document["spec"]["indicator"]
    for name in (document["metadata"]["name"], spec["service"], indicator["metadata"]["name"]):
        assert re.fullmatch("[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name)
    assert spec.keys() >= {"service", "budgetingMethod", "objectives"}
    assert "indicatorRef" not in spec  # a document has either this or an indicator
    assert len(spec["description"]) <= 1050
    assert spec["budgetingMethod"] in {"Occurrences", "Timeslices"}
    assert spec["timeWindow"] == [{"duration": window, "isRolling": True}]  # one; a whole number of one unit
    assert re.fullmatch("[1-9][0-9]*[mhdwMQY]", window)
    [objective] = spec["objectives"]
    assert objective["displayName"]
    assert 0 <= objective["target"] < 1
    assert indicator["spec"].keys() == {"ratioMetric"}
    ratio = indicator["spec"]["ratioMetric"]
    assert ratio.keys() == {"counter", "good", "total"}  # good or bad, not both
    assert ratio["counter"] is True
    for source in (ratio["good"]["metricSource"], ratio["total"]["metricSource"]):
        assert isinstance(source["type"], str)
        assert isinstance(source["spec"], dict)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(300.0, "5m"), (3600.0, "1h"), (259_200.0, "3d"), (1.5, "1s500ms"), (1e-9, "1ms"), (129_600.0, "1d12h")],
)
def test_durations_are_in_prometheus_syntax(seconds, text):
    """Durations are written as Prometheus reads them: in whole units, the largest first."""
    assert duration(seconds) == text


@pytest.mark.parametrize(("name", "text"), [("Faces #1", "faces-1"), ("é", "slo"), ("x" * 80, "x" * 63), ("-a-", "a")])
def test_slug_is_a_label_of_kubernetes(name, text):
    """Inside a slug, other characters become dashes."""
    assert slug(name) == text


def test_objectives_with_equal_names_are_an_error():
    """Names must differ, because rules tell objectives apart by their names."""
    with pytest.raises(ValueError, match="different names"):
        alert_rules(SLOS[0], si.SLO("faces", threshold_s=1.0))
    with pytest.raises(TypeError, match="SLO objects"):
        slo_documents("faces")
    for make in (alert_rules, slo_documents):
        with pytest.raises(TypeError, match="slos: expected at least one SLO, got none"):
            make()
    with pytest.raises(ValueError, match="names that differ in letters and digits, got 'Faces!'"):
        slo_documents(SLOS[0], si.SLO("Faces!", threshold_s=1.0))
    with pytest.raises(ValueError, match="version"):
        slo_documents(SLOS[0], version="v2")


def test_a_dashboard_rejects_a_title_of_no_string():
    """The error names the argument, the expected type and the given value."""
    with pytest.raises(TypeError, match=r"title: expected a string, got 3 \(int\)"):
        grafana_dashboard(3)


def test_grafana_model_reads_the_dashboard():
    """Grafana's own model reads the dashboard and writes the same panels and queries again."""
    text = grafana_dashboard("mine")

    model = Dashboard.from_json(json.loads(text))

    assert model.title == "mine"
    again = json.loads(JSONEncoder(sort_keys=True).encode(model))
    assert [panel["title"] for panel in again["panels"]] == [panel["title"] for panel in json.loads(text)["panels"]]
    for ours, theirs in zip(json.loads(text)["panels"], again["panels"], strict=True):
        assert [target["expr"] for target in theirs["targets"]] == [target["expr"] for target in ours["targets"]]
        assert ours["gridPos"].items() <= theirs["gridPos"].items()


def test_each_dashboard_title_has_its_own_uid():
    """Each title has its own uid of at most 40 characters, because Grafana replaces a dashboard of the same uid."""
    titles = ("streaminfer", "Faces of Berlin", "x" * 80)

    assert [json.loads(grafana_dashboard(title))["uid"] for title in titles] == [
        "streaminfer",
        "faces-of-berlin",
        "x" * 40,
    ]


def test_dashboard_queries_only_exported_metrics():
    """Each metric in a query of the dashboard is exported."""
    names = {
        metric.prometheus for metric in (STACK_STATE, *(metric for listed in METRICS.values() for metric in listed))
    }

    used = set(re.findall(r"streaminfer_\w+", grafana_dashboard()))

    assert used <= names
    assert len(used) > 10


@pytest.mark.needs("prometheus")
def test_dashboard_queries_parse(tmp_path):
    """promtool reads each query, with Grafana's variables filled in."""
    queries = [target["expr"] for panel in json.loads(grafana_dashboard())["panels"] for target in panel["targets"]]
    filled = [query.replace("$__rate_interval", "5m").replace("$service", ".*") for query in queries]
    path = tmp_path / "rules.yml"
    path.write_text(
        to_yaml({"groups": [{"name": "g", "rules": [{"record": f"r{n}", "expr": q} for n, q in enumerate(filled)]}]})
    )

    code, said = promtool("check", "rules", path)

    assert code == 0, said
