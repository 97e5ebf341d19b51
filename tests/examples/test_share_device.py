"""Example of two real models on one device, which serves both."""

import asyncio
import importlib


def test_both_models_are_served_on_one_device(capsys):
    # objectives that even a busy machine meets
    statistics = asyncio.run(importlib.import_module("share_device").main(0.3, cameras_slo_s=60.0, uploads_slo_s=60.0))

    assert list(statistics.models) == ["blaze_front", "blaze_full"]
    assert all(had.batches for had in statistics.models.values())
    assert (statistics.running, statistics.waiting) == (0, ())
    printed = capsys.readouterr().out
    assert printed.count(" 45 of 45 requests on time") == 2
