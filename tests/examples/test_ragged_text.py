import asyncio
import importlib
import re

import numpy as np
import onnxruntime as ort
import pytest

import streaminfer as si


@pytest.fixture
def text(_examples_can_be_imported):
    return importlib.import_module("ragged_text")


@pytest.fixture(scope="module")
def words():
    """Return eight words of each available length, from the sources of these tests and the example."""
    from pathlib import Path

    here = Path(__file__).parent
    pages = [here.parents[1] / "examples" / "ragged_text.py", *sorted(here.glob("*.py"))]
    found = sorted(set(re.findall("[a-z]+", " ".join(page.read_text(encoding="utf-8") for page in pages).lower())))
    by_length = {}
    for word in found:
        by_length.setdefault(len(word), []).append(word)
    chosen = [word for length, same in by_length.items() if length <= 31 for word in same[:8]]
    assert {2, 5, 10, 20} <= by_length.keys()
    return chosen


@pytest.fixture(scope="module")
def session():
    from pathlib import Path

    return ort.InferenceSession(str(Path(__file__).parents[2] / "examples" / "assets" / "g2p_en.onnx"))


def padded(rows, length, garbage=0):
    letters = np.full((len(rows), length), garbage, np.int64)
    mask = np.zeros((len(rows), length), np.int64)
    for number, row in enumerate(rows):
        letters[number, : len(row)] = row
        mask[number, : len(row)] = 1
    return {"letters": letters, "attention_mask": mask}


@pytest.mark.parametrize(
    ("word", "sound"),
    [
        ("activationist", "AE2 K T IH0 V EY1 SH AH0 N IH0 S T"),  # the package's own example
        ("cat", "K AE1 T"),
        ("inference", "IH1 N F ER0 AH0 N S"),
        ("counterrevolutionary", "K AW2 N T ER0 AH0 V ER1 AH0 SH AH0 L EH2 R IY0"),  # wrong, as in the original
    ],
)
def test_words_have_the_expected_phonemes(text, session, word, sound):
    (row,) = session.run(None, padded([text.encode(word)], len(word) + 1))[0]
    assert text.decode(row) == sound


def test_response_is_independent_of_padding_and_batch(text, session, words):
    """The response to a word depends neither on its padding nor on its batch."""
    rows = [text.encode(word) for word in words]
    alone = [session.run(None, padded([row], len(row)))[0][0] for row in rows]
    np.testing.assert_array_equal(session.run(None, padded(rows, 32))[0], alone)
    np.testing.assert_array_equal(session.run(None, padded(rows, 40, garbage=5))[0], alone)


def test_padding_changes_the_result_without_the_mask(text, session):
    inputs = padded([text.encode("cat")], 8, garbage=5)
    inputs["attention_mask"][:] = 1
    assert text.decode(session.run(None, inputs)[0][0]) != "K AE1 T"


def test_letters_and_phonemes_are_those_of_the_model(text, session):
    assert text.encode("az").tolist() == [3, 28, 2]
    assert text.encode("é").tolist() == [1, 2]
    assert len(text.PHONEMES) == 74
    assert text.PHONEMES[4] == "AA0"
    assert text.PHONEMES[-1] == "ZH"
    assert text.decode(np.array([69, 0, 0])) == "V"


def test_batched_words_of_any_length_match_single_ones(text, session, words):
    """Words of any length have the same response through the batcher as alone."""
    batcher = si.AdaptiveBatcher(max_batch_size=8, buckets=text.buckets())
    sounds = asyncio.run(text.pronounce(words, batcher))
    alone = [text.decode(session.run(None, padded([text.encode(word)], len(word) + 1))[0][0]) for word in words]
    assert sounds == alone
    assert max(batcher.statistics().batch_sizes) > 1


def test_every_word_of_the_model_has_a_bucket(text):
    assert text.buckets().lengths[-1] == text.LONGEST + 1


def test_script_prints_one_line_per_word(text, capsys):
    text.main(["long", "short", "incomprehensibly"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["long", "L", "AO1", "NG"]
    assert lines[2].startswith("incomprehensibly ")
    assert lines[-1].startswith("batches by size: {")


def test_planner_starts_from_a_profile_of_the_model(text):
    """A batcher starts from a profile of the model that was measured before the stack starts."""

    async def main():
        model = si.OnnxBackend(text.MODEL)
        examples = [{"letters": text.encode(word)} for word in ("six", "seven", "unremarkable")]
        found = await si.batching.profile(model, examples, max_batch_size=4, budget_s=0.1, buckets=text.buckets())
        batcher = si.AdaptiveBatcher(max_batch_size=4, slo_s=30.0, buckets=text.buckets(), service_time=found)
        return found, await text.pronounce(["seven"], batcher)

    found, sounds = asyncio.run(main())
    assert sounds == ["S EH1 V AH0 N"]
    assert list(found) == [10, 32]
    assert all(times.sizes[0] == 1 and times.seconds(4) > 0 for times in found.values())
