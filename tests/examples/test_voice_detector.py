"""The voice detector's example: each microphone hears the speech of the recording, from wherever it begins."""

import asyncio
import importlib

import numpy as np
import pytest


@pytest.fixture
def example(_examples_can_be_imported):
    return importlib.import_module("voice_detector")


def test_each_microphone_detects_the_speech(example, capsys):
    """All play the same recording, so they hear about the same, and one that begins at its start what it hears alone."""
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
