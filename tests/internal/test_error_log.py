"""Errors that no caller gets are logged once."""

import logging

from streaminfer._internal.error_log import ErrorLog


def test_first_error_of_a_class_is_logged(caplog):
    """Each class of each source has one record, with the traceback."""
    log = ErrorLog("streaminfer.caching")
    errors = [OSError("first"), OSError("second"), ValueError("other")]

    with caplog.at_level(logging.WARNING):
        for error in errors:
            log.report("the tier disk", error)
        log.report("the tier redis", OSError("first"))

    assert [record.message.split(" (")[0] for record in caplog.records] == [
        "the tier disk failed: OSError: first",
        "the tier disk failed: ValueError: other",
        "the tier redis failed: OSError: first",
    ]
    assert [record.exc_info[1] for record in caplog.records[:2]] == errors[::2]
    assert {record.name for record in caplog.records} == {"streaminfer.caching"}
