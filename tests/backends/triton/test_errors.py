"""Retry times and texts of the failures that servers and proxies report, in any form."""

import pytest

from streaminfer.backends.triton.errors import ServerError, from_status, retry_after
from streaminfer.backends.triton.transport.http_transport import _error_text
from streaminfer.errors import Overloaded


@pytest.mark.parametrize(
    ("said", "after_s"),
    [
        (None, None),
        ("2.5", 2.5),
        ("-1", 0.0),
        ("inf", None),
        ("soon", None),
        ("Mon, 01 Jan 2001 00:00:00 GMT", 0.0),
        ("Mon, 01 Jan 99999999999999999999 00:00:00 GMT", None),
    ],
    ids=str,
)
def test_retry_after_is_seconds_or_a_date(said, after_s):
    """The retry time is a number of seconds or a date; any other value is ignored."""
    assert retry_after(said) == after_s


@pytest.mark.parametrize("after_s", [None, 0.0, 2.5], ids=str)
@pytest.mark.parametrize(("status", "text"), [("RESOURCE_EXHAUSTED", "quota"), ("UNAVAILABLE", "queue full")])
def test_full_queue_passes_on_retry_after(status, text, after_s):
    """The error of a full queue has the retry time that the server states, if any.

    If the server states none, the time is unknown, which does not mean a retry at once.
    """
    error = from_status(ServerError(status, text, after_s), "m")
    assert isinstance(error, Overloaded)
    assert error.retry_after_s == after_s


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"error": "no such model"}', "no such model"),
        (b'{"detail": "busy"}', "busy"),
        (b"<html>", "<html>"),
        (b"[" * 100_000, "[" * 500),
    ],
    ids=["triton", "fastapi", "html", "deep"],
)
def test_unparsable_error_body_is_quoted(body, text):
    """The error text is the message in a JSON body; a body that is not JSON, or is nested too deeply, is quoted."""
    assert _error_text(body) == text
