import asyncio
import importlib
import json

import pytest


@pytest.fixture
def example(_examples_can_be_imported):
    return importlib.import_module("compliant_cache")


def test_printed_output_matches_report_and_log(example, tmp_path, capsys):
    example.main(str(tmp_path))
    text = capsys.readouterr().out
    assert "erased of one person: {'memory': 1, 'disk': 1}, complete: True" in text
    assert "no violation is known" in text
    assert "audit: 0 fail, 0 ask for attention" in text
    assert "records, whole; head " in text
    assert text.endswith("files in which a person is named: none\n")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in (tmp_path / "retention.jsonl").read_text(encoding="utf-8").splitlines()]
    erased = [line for line in lines if line["action"] == "erased"]
    assert [(line["where"], line["count"]) for line in erased] == [("memory", 1), ("disk", 1)]
    assert erased[0]["subject"] in page
    assert not any(name in text + page for name in example.PEOPLE)


def test_mentions_finds_a_name_in_a_file(example, tmp_path):
    for number, written in enumerate([example.PEOPLE[0], json.dumps(example.PEOPLE[0])]):
        (tmp_path / f"{number}.txt").write_text(written, encoding="utf-8")
        assert example.mentions(tmp_path / f"{number}.txt", example.PEOPLE)


def test_a_log_that_was_altered_is_found(example, tmp_path):
    asyncio.run(example.demonstrate(tmp_path))
    path = tmp_path / "retention.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"count":1', b'"count":0', 1))
    assert "it was changed" in example.check_files(tmp_path)[1]


def test_example_runs_without_a_folder(example, capsys):
    example.main()
    assert "complete: True" in capsys.readouterr().out
