"""Descriptions of failures for clients."""

import math

import pytest

import streaminfer as si
from streaminfer.serving import describe_failure

pytestmark = pytest.mark.uncompiled


@pytest.mark.parametrize(
    ("retry_after_s", "seconds"),
    [(None, 1), (0.2, 1), (1.2, 2), (-1.0, 1), (math.nan, 1), (math.inf, 1_000_000_000)],
)
@pytest.mark.parametrize("kind", [si.Overloaded, si.CircuitOpen])
def test_retry_after_is_a_number_of_seconds(kind, retry_after_s, seconds):
    """The retry time is a positive whole number of seconds, whatever value a layer of the user sets."""
    assert describe_failure(kind("full", retry_after_s=retry_after_s)).retry_after_s == seconds


def test_an_error_without_a_text_is_internal():
    """An error of a library is internal, and its text is not read, because the text is for the log only."""

    class Unprintable(Exception):
        def __str__(self):
            raise ZeroDivisionError

    assert describe_failure(Unprintable())[:2] == (500, "INTERNAL")


def test_unprintable_error_text_hides_no_status():
    """If the text of an error cannot be shown or sent, the client still gets the status."""

    class Unprintable(si.InvalidInput):
        def __str__(self):
            raise ZeroDivisionError

    assert describe_failure(Unprintable())[:3] == (
        400, "INVALID_ARGUMENT", "its message cannot be shown (ZeroDivisionError)",
    )  # fmt: skip
    assert describe_failure(si.InvalidInput("no file \udcff")).text == "no file ?"  # `os.fsdecode` returns such names


def test_every_error_has_a_status():
    assert [
        describe_failure(error)[:2]
        for error in (
            si.InvalidInput("x"), si.Overloaded("x"), si.CircuitOpen("x"), si.Closed("x"), si.DeadlineExceeded("x"),
            si.ErasureHeld(("x",)), si.BackendError("x"), OSError("x"),
        )
    ] == [
        (400, "INVALID_ARGUMENT"), (429, "RESOURCE_EXHAUSTED"), (503, "UNAVAILABLE"), (503, "UNAVAILABLE"),
        (504, "DEADLINE_EXCEEDED"), (409, "FAILED_PRECONDITION"), (500, "INTERNAL"), (500, "INTERNAL"),
    ]  # fmt: skip
