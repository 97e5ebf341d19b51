"""Examples of one file, each run with little work: they print what their documentation says."""

import asyncio
import importlib


def test_router_with_time_uses_only_the_better_model(monkeypatch, capsys):
    """A router with enough time sends all frames to the better model.

    The test sets a limit that even a busy machine meets, and sends few frames.
    """
    example = importlib.import_module("degrade_on_purpose")
    monkeypatch.setattr(example, "LIMIT_S", 60.0)
    monkeypatch.setattr(example, "SECONDS", 0.1)

    asyncio.run(example.main())

    *offers, summary = capsys.readouterr().out.splitlines()
    assert len(offers) == 3
    assert all(": full " in line and "front" not in line for line in offers)
    assert summary == "mean quality 1.00; why not the full model: {}"


def test_folding_prints_the_duration_per_row(monkeypatch, capsys):
    """Each batch size has a line with the duration per row before and after folding."""
    example = importlib.import_module("fold_batches")
    monkeypatch.setattr(example, "ROUNDS", 1)

    rows = example.main([])

    folded, head, *lines = capsys.readouterr().out.splitlines()
    assert folded.startswith("6 convolutions now run once a batch; the largest difference is ")
    assert head.split() == ["rows", "µs", "a", "row", "folded", "ratio"]
    assert [int(line.split()[0]) for line in lines] == list(example.SIZES)
    assert len(rows) == len(lines)
