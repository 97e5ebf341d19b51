"""Errors that reach no caller are logged once; errors of log handlers do not reach the code that logs."""

import contextlib
import inspect
import logging
import weakref

import pytest

from streaminfer._internal.error_log import ErrorLog, Log
from streaminfer._internal.listeners import Listeners


def test_first_error_of_a_class_is_logged(caplog):
    """Only the first error of each class and source is logged, with its traceback."""
    log = ErrorLog("streaminfer.caching")
    errors = [OSError("first"), OSError("second"), ValueError("other")]

    def fail_with(error):
        raise error

    with caplog.at_level(logging.WARNING):
        for error in errors:
            with contextlib.suppress(Exception):
                fail_with(error)
            log.report("the tier disk", error)
        log.report("the tier redis", OSError("first"))

    assert [record.message.split(" (")[0] for record in caplog.records] == [
        "the tier disk failed: OSError: first",
        "the tier disk failed: ValueError: other",
        "the tier redis failed: OSError: first",
    ]
    assert [record.message.count("in fail_with\n") for record in caplog.records] == [1, 1, 0]
    assert {record.name for record in caplog.records} == {"streaminfer.caching"}


def test_error_without_printable_message_is_logged(caplog):
    """An error whose message cannot be shown is logged by its class."""

    class Silent(Exception):
        def __str__(self):
            raise ValueError("no message")

    with caplog.at_level(logging.WARNING):
        ErrorLog("streaminfer.caching").report("the tier disk", Silent())

    assert "the tier disk failed: Silent: its message cannot be shown (ValueError)" in caplog.text


def test_record_has_traceback_and_keeps_nothing_alive(caplog):
    """A record has the traceback as text, so a handler that keeps it does not keep the objects of its frames alive."""

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


def fail(record):
    raise ConnectionError("the log server is away")


@pytest.fixture
def logger():
    """Yield a logger with a filter that fails."""
    logger = logging.getLogger("streaminfer.of-a-test")
    logger.addFilter(fail)
    yield logger
    logger.removeFilter(fail)


def test_errors_of_handlers_are_printed(logger, capsys):
    Log(logger.name).warning("a batch hangs")
    assert "ConnectionError: the log server is away" in capsys.readouterr().err


def test_errors_of_handlers_can_be_silenced(logger, capsys, monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", False)
    Log(logger.name).warning("a batch hangs")
    assert not capsys.readouterr().err


def test_errors_are_dropped_where_stderr_is_closed(logger, tmp_path, monkeypatch):
    with (tmp_path / "stderr").open("w") as closed:
        monkeypatch.setattr("sys.stderr", closed)
    Log(logger.name).warning("a batch hangs")


def test_records_are_those_of_their_callers(caplog):
    """Each record has the place of the code that logged it, its arguments, and the fields given as ``extra``."""
    log = Log("streaminfer.of-a-test")
    first = inspect.currentframe().f_lineno + 2
    with caplog.at_level(logging.INFO):
        log.warning("%s hangs", "a batch", exc_info=ValueError("bad"))
        log.log(logging.INFO, "a state", extra={"event": {"event": "changed"}})
        log.exception("failed")  # noqa: LOG004 - the record matters, not the error

    assert {(record.pathname, record.funcName) for record in caplog.records} == {
        (__file__, "test_records_are_those_of_their_callers")
    }
    assert [record.lineno for record in caplog.records] == [first, first + 1, first + 2]
    assert [record.message for record in caplog.records] == ["a batch hangs", "a state", "failed"]
    assert [bool(record.exc_info) for record in caplog.records] == [True, False, True]
    assert caplog.records[1].event == {"event": "changed"}


def test_failing_listener_does_not_stop_later_ones(logger):
    told = []
    listeners = Listeners(logger.name, "breaker", "a function")
    listeners.add(fail)
    listeners.add(told.append)
    events = ["opened", "closed"]

    listeners.deliver(lambda: iter([events.pop(0)] if events else []))

    assert told == ["opened", "closed"]
