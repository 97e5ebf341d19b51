"""What the package logs reaches handlers, and their errors reach nothing else."""

import logging

import pytest

from streaminfer._internal.listeners import Listeners
from streaminfer._internal.log import Log


def fail(record):
    raise ConnectionError("the log server is away")


@pytest.fixture
def logger():
    """A logger with a filter that fails."""
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


def test_errors_go_where_stderr_is_closed(logger, tmp_path, monkeypatch):
    with (tmp_path / "stderr").open("w") as closed:
        monkeypatch.setattr("sys.stderr", closed)
    Log(logger.name).warning("a batch hangs")


def test_records_are_those_of_their_callers(caplog):
    """Each has the line that logged it, its arguments, and the fields that came as ``extra``."""
    log = Log("streaminfer.of-a-test")
    with caplog.at_level(logging.INFO):
        log.warning("%s hangs", "a batch", exc_info=ValueError("bad"))
        log.log(logging.INFO, "a state", extra={"event": {"event": "changed"}})
        log.exception("failed")  # noqa: LOG004 - the record matters, not the error

    assert [record.filename for record in caplog.records] == ["test_log.py"] * 3
    assert [record.message for record in caplog.records] == ["a batch hangs", "a state", "failed"]
    assert [bool(record.exc_info) for record in caplog.records] == [True, False, True]
    assert caplog.records[1].event == {"event": "changed"}


def test_listeners_behind_one_that_fails_are_told(logger):
    told = []
    listeners = Listeners(logger.name, "breaker", "a function")
    listeners.add(fail)
    listeners.add(told.append)
    events = ["opened", "closed"]

    listeners.deliver(lambda: iter([events.pop(0)] if events else []))

    assert told == ["opened", "closed"]
