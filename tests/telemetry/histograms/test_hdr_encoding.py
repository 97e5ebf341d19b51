"""The wire format of LatencyHistogram: its fields, and the texts that it rejects."""

import base64
import struct
import zlib

import numpy as np
import pytest
from hdrh.codec import HdrHistogramEncoder
from hdrh.histogram import HdrHistogram

from streaminfer.telemetry.histograms.latency_histogram import LatencyHistogram

HEADER = ">IIIIqqd"
DEFAULTS = (0x1C849313, 0, 3, 1000, 3600 * 10**9, 1.0)


def filled():
    histogram = LatencyHistogram()
    histogram.record_many([0.001, 0.0010005, 0.002, 0.3, 3599.0])
    return histogram


def opened(text):
    envelope = base64.b64decode(text)
    return struct.unpack(">II", envelope[:8]), envelope[8:]


def sealed(raw, *, cookie=0x1C849314, length=None):
    compressed = zlib.compress(raw)
    return base64.b64encode(struct.pack(">II", cookie, len(compressed) if length is None else length) + compressed)


def header(payload, cookie=DEFAULTS[0], offset=0, digits=3, lowest=1000, highest=3600 * 10**9, ratio=1.0, length=None):
    return struct.pack(
        HEADER, cookie, len(payload) if length is None else length, offset, digits, lowest, highest, ratio
    )


def test_fields_are_those_that_hdrhistogram_writes():
    text = filled().encode()
    assert isinstance(text, str)
    (cookie, length), compressed = opened(text)
    assert (cookie, length) == (0x1C849314, len(compressed))
    raw = zlib.decompress(compressed)
    cookie, payload_length, *rest = struct.unpack_from(HEADER, raw)
    assert (cookie, *rest) == DEFAULTS
    assert payload_length == len(raw) - 40
    payload = HdrHistogramEncoder.decode(text).payload
    assert payload.normalizing_index_offset == 0
    assert payload.conversion_ratio_bits == 1.0
    assert (payload.significant_figures, payload.lowest_trackable_value) == (3, 1000)
    assert payload.highest_trackable_value == 3600 * 10**9


def test_decode_accepts_text_bytes_and_whitespace():
    """`decode` takes text and bytes, also with white space around the text."""
    histogram = filled()
    text = histogram.encode()
    for given in (text, text.encode(), f"  {text}\n"):
        assert LatencyHistogram.decode(given) == histogram


def test_decode_sets_minimum_and_maximum_to_bounds():
    """A decoded histogram has the bounds of its outer buckets as minimum and maximum."""
    histogram = LatencyHistogram.decode(filled().encode())
    theirs = HdrHistogram(1000, 3600 * 10**9, 3)
    assert histogram.minimum_ns == theirs.get_lowest_equivalent_value(1_000_000)
    assert histogram.maximum_ns == theirs.get_highest_equivalent_value(3599 * 10**9)
    assert histogram.clamped == 0


def test_decode_restores_the_layout_exactly():
    # 1234567 ns as a float of seconds would not survive a round trip by luck
    original = HdrHistogram(1_234_567, 98_765_432_109_876, 2)
    original.record_value(5_000_000)
    histogram = LatencyHistogram.decode(original.encode())
    assert histogram._layout() == (1_234_567, 98_765_432_109_876, 2)
    assert histogram.encode().encode() == original.encode()


def test_values_above_nominal_highest_are_stored():
    """Values above the nominal highest are stored as HdrHistogram stores them."""
    theirs = HdrHistogram(1000, 3600 * 10**9, 3)
    theirs.record_value(4000 * 10**9)
    histogram = LatencyHistogram.decode(theirs.encode())
    assert histogram.max == theirs.get_max_value() / 1e9
    assert histogram.encode().encode() == theirs.encode()
    histogram.merge(histogram)
    assert (histogram.count, histogram.clamped) == (2, 0)


def old(version, counts, word=8, layout=(1000, 3600 * 10**9)):
    """Return a text of V0 or V1, whose counts have ``word`` bytes each."""
    payload = np.array(counts, f">i{word}").tobytes()
    if version == 1:
        return sealed(header(payload, cookie=0x1C849301 | word << 4) + payload, cookie=0x1C849302 | word << 4)
    raw = struct.pack(">IIqqq", 0x1C849308 | word << 4, 3, *layout, sum(counts)) + payload
    return sealed(raw, cookie=0x1C849309 | word << 4)


@pytest.mark.parametrize("word", [2, 4, 8])
@pytest.mark.parametrize("version", [0, 1])
def test_older_versions_are_read(version, word):
    histogram = LatencyHistogram.decode(old(version, [0, 3, 0, 2**15 - 1], word))
    assert histogram.snapshot()[0][:5].tolist() == [0, 3, 0, 2**15 - 1, 0]
    assert histogram._layout() == (1000, 3600 * 10**9, 3)


OLD = {
    "a word of three bytes": sealed(header(b"\0" * 12, cookie=0x1C849361) + b"\0" * 12, cookie=0x1C849362),
    "a count below 0": old(0, [-1]),
    "a count cut off": sealed(header(b"123", cookie=0x1C849321) + b"123", cookie=0x1C849322),
    "more counts than parts": old(0, [1] * 24_577),
    "a payload that is too short": sealed(header(b"\0\0", cookie=0x1C849321, length=4) + b"\0\0", cookie=0x1C849322),
    "the header of another version": sealed(header(b"\0\0", cookie=0x1C849303) + b"\0\0", cookie=0x1C849322),
}


@pytest.mark.parametrize("text", OLD.values(), ids=OLD)
def test_malformed_older_texts_are_an_error(text):
    with pytest.raises(ValueError, match=r"^text: "):
        LatencyHistogram.decode(text)


@pytest.mark.parametrize("single_zero", [b"\x00", b"\x01"], ids=["java", "python"])
def test_both_ways_to_write_a_single_zero_are_read(single_zero):
    payload = single_zero + b"\x02"
    histogram = LatencyHistogram.decode(sealed(header(payload) + payload))
    assert histogram.snapshot()[0][:3].tolist() == [0, 1, 0]


def test_offset_and_ratio_are_ignored():
    """`decode` ignores the offset and the ratio that other writers set."""
    payload = b"\x02"
    histogram = LatencyHistogram.decode(sealed(header(payload, offset=1, ratio=5e-324) + payload))
    assert histogram.count == 1


def test_ninth_varint_byte_holds_eight_bits():
    payload = b"\xfe" + b"\xff" * 8  # 2^64 - 2, ZigZag for 2^63 - 1
    histogram = LatencyHistogram.decode(sealed(header(payload) + payload))
    assert histogram.count == 2**63 - 1


def test_ninth_byte_with_high_bit_ends_its_number():
    """A ninth byte whose high bit is set does not join the next number."""
    payload = b"\x80" * 9 + b"\x02"  # 2^63, ZigZag for 2^62, and then 1
    histogram = LatencyHistogram.decode(sealed(header(payload) + payload))
    assert histogram.snapshot()[0][:3].tolist() == [2**62, 1, 0]


def test_zip_bombs_are_rejected_before_inflation():
    bomb = header(b"", length=0) + bytes(100_000_000)
    with pytest.raises(ValueError, match="expected a payload of 0 bytes"):
        LatencyHistogram.decode(sealed(bomb))


PAYLOADS = {
    "more counts than parts": b"\x02" * 24_577,
    "more zeros than parts": b"\x81\x80\x04",
    "zeros that wrap around": (b"\xff" * 8 + b"\x7f") * 4,  # four times 2^62
    "a count after the last part": b"\xff\xff\x02\x02",
    "a number cut off": b"\x02\x80",
    "counts beyond 2^63": (b"\xfe" + b"\xff" * 8) * 2,
}


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
def test_malformed_payloads_are_an_error(payload):
    with pytest.raises(ValueError, match=r"^text: "):
        LatencyHistogram.decode(sealed(header(payload) + payload))


def test_payload_may_fill_every_bucket():
    payload = b"\x02" * 24_576
    assert LatencyHistogram.decode(sealed(header(payload) + payload)).count == 24_576
    payload = b"\xff\xff\x02"  # 24,576 zeros
    assert LatencyHistogram.decode(sealed(header(payload) + payload)).count == 0


TEXTS = {
    "not base64": "no, this is text",
    "not ascii": "é",
    "empty": "",
    "short": base64.b64encode(b"1234"),
    "another cookie": sealed(header(b""), cookie=0x1C849301),
    "another length": sealed(header(b""), length=5),
    "not compressed": base64.b64encode(struct.pack(">II", 0x1C849314, 4) + b"abcd"),
    "no header": sealed(b"short"),
    "another inner cookie": sealed(header(b"", cookie=0x1C849301)),
    "shorter than it says": sealed(header(b"\x02", length=2) + b"\x02"),
    "longer than it says": sealed(header(b"\x02", length=0) + b"\x02"),
    "no digits": sealed(header(b"", digits=0)),
    "too many digits": sealed(header(b"", digits=200)),
    "lowest of zero": sealed(header(b"", lowest=0)),
    "lowest of less": sealed(header(b"", lowest=-5)),
    "highest below lowest": sealed(header(b"", highest=1001)),
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_malformed_texts_are_an_error(text):
    with pytest.raises(ValueError, match=r"^(text|layout): "):
        LatencyHistogram.decode(text)


def test_truncated_text_is_an_error():
    text = filled().encode()
    for end in range(0, len(text), 4):
        with pytest.raises(ValueError, match=r"^text: "):
            LatencyHistogram.decode(text[:end])


@pytest.mark.parametrize("text", [None, 3, np.zeros(3), bytearray(b"x")], ids=repr)
def test_text_of_another_type_is_an_error(text):
    with pytest.raises(TypeError, match=r"^text: expected str or bytes"):
        LatencyHistogram.decode(text)
