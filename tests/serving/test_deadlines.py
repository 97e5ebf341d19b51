import math

import pytest

from streaminfer.errors import InvalidInput
from streaminfer.serving.deadlines import read_settings, read_timeout_s


@pytest.mark.parametrize(
    ("headers", "parameters", "timeout_s"),
    [
        ({}, {}, None),
        ({}, {"timeout": 0}, None),
        ({}, {"timeout": 2500}, 0.0025),
        ({"grpc-timeout": "20m"}, {}, 0.02),
        ({"grpc-timeout": "2H"}, {}, 7200.0),
        ({"grpc-timeout": "7u"}, {}, 7e-6),
        ({"x-envoy-expected-rq-timeout-ms": "15"}, {}, 0.015),
        ({"x-envoy-expected-rq-timeout-ms": "0"}, {}, None),
        ({"x-request-timeout-seconds": "1.5"}, {}, 1.5),
        ({"x-request-timeout-seconds": "0"}, {}, None),
        ({"x-streaminfer-timeout-s": "0"}, {}, 0.0),
        ({"x-streaminfer-timeout-s": str(1e-4 / 3)}, {}, 1e-4 / 3),  # 3.3333333333333335e-05
        ({"x-streaminfer-timeout-s": str(0.25 - 0.2)}, {}, 0.05),  # 0.04999999999999999
        ({"x-request-timeout-seconds": "3.3333333333333335E-5"}, {}, 1e-4 / 3),
        ({"x-envoy-expected-rq-timeout-ms": "0.0000033333333333333333"}, {}, 1e-8 / 3),
        ({"x-streaminfer-timeout-s": "0.2", "x-envoy-expected-rq-timeout-ms": "90"}, {"timeout": 100_000}, 0.09),
    ],
)
def test_the_tightest_timeout_wins(headers, parameters, timeout_s):
    found = read_timeout_s(headers, parameters)

    assert found is timeout_s is None or math.isclose(found, timeout_s)


@pytest.mark.parametrize(
    ("headers", "parameters"),
    [
        ({"grpc-timeout": "20"}, {}),
        ({"grpc-timeout": "123456789S"}, {}),
        ({"grpc-timeout": "-1S"}, {}),
        ({"x-envoy-expected-rq-timeout-ms": "soon"}, {}),
        ({"x-request-timeout-seconds": "nan"}, {}),
        ({"x-streaminfer-timeout-s": "1e9"}, {}),
        ({"x-streaminfer-timeout-s": "1e-"}, {}),
        ({"x-streaminfer-timeout-s": "٣"}, {}),
        ({}, {"timeout": -1}),
        ({}, {"timeout": True}),
        ({}, {"timeout": "5"}),
        ({}, {"priority": "high"}),
        ({}, {"priority": 2**40}),
        ({"x-streaminfer-priority": "1.5"}, {}),
        ({"x-streaminfer-priority": str(2**40)}, {}),
        ({}, {"sequence_id": []}),
        ({}, {"sequence_id": True}),
        ({}, {"sequence_id": "x" * 257}),
        ({}, {"sequence_start": 1}),
        ({"x-streaminfer-tenant": "x" * 257}, {}),
    ],
)
def test_unreadable_settings_are_rejected(headers, parameters):
    with pytest.raises(InvalidInput, match="expected"):
        read_settings(headers, parameters)


def test_headers_come_before_parameters():
    headers = {"x-streaminfer-priority": "-3", "x-streaminfer-stream-id": "camera", "x-streaminfer-tenant": "t"}

    settings = read_settings(headers, {"priority": 5, "sequence_id": 7, "sequence_end": True})

    assert settings == (None, -3, "t", "camera", False, True)


@pytest.mark.parametrize("none", [0, ""])
def test_empty_sequence_id_means_no_stream(none):
    assert read_settings({}, {"sequence_id": none}).stream_id is None
