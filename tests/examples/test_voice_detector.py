"""Example of the voice detector: each microphone hears the speech of the recording, wherever it begins."""

import asyncio
import importlib

import numpy as np
import pytest


@pytest.fixture
def example(_examples_can_be_imported):
    return importlib.import_module("voice_detector")


def test_each_microphone_detects_the_speech(example, capsys):
    """All microphones hear about the same speech; the one that starts with the recording hears the same as alone."""
    heard = asyncio.run(example.main())

    assert len(heard) == example.MICROPHONES
    assert max(heard) - min(heard) < 0.5
    assert min(heard) > 4
    assert f"{example.MICROPHONES} microphones heard" in capsys.readouterr().out

    async def alone():
        detector = example.make_detector()
        batches = []
        for chunk in example.load_chunks():
            batch = example.si.Batch(chunk[None], [example.si.Request(chunk, stream_id=0)])
            batches.append(float((await detector.infer(batch))[0][0]))
        await detector.stop()
        return batches

    assert heard[0] == np.count_nonzero(np.array(asyncio.run(alone())) > 0.5) * example.CHUNK / example.RATE
