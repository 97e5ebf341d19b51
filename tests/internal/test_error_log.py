"""Errors that no caller gets are logged once."""

import logging
import weakref

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
    assert {record.name for record in caplog.records} == {"streaminfer.caching"}


def test_an_error_whose_message_cannot_be_shown_is_logged(caplog):
    class Silent(Exception):
        def __str__(self):
            raise ValueError("no message")

    with caplog.at_level(logging.WARNING):
        ErrorLog("streaminfer.caching").report("the tier disk", Silent())

    assert "the tier disk failed: Silent: its message cannot be shown (ValueError)" in caplog.text


def test_a_record_has_the_traceback_and_keeps_nothing_alive(caplog):
    """A handler may keep records for long; what the frames of an error hold goes when the error does."""

    class Connection:
        pass

    def fail():
        connection = Connection()
        connections.add(connection)
        raise OSError("broken")

    connections = weakref.WeakSet()
    with caplog.at_level(logging.WARNING):
        try:
            fail()
        except OSError as error:
            ErrorLog("streaminfer.routing").report("the probe", error)

    assert "in fail\n" in caplog.records[0].getMessage()
    assert not connections
