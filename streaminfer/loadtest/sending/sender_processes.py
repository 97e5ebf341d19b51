"""Sender processes: each sends its share of one schedule on its own event loop, by the clock that all processes share.

Each process connects its service and reports that it is ready. When all are ready, the parent sends them the instant at
which the schedule begins. Each process sends its progress over a pipe, and at the end its record or its error.
"""

import asyncio
import contextlib
import multiprocessing
import pickle
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any

import attrs

from streaminfer._internal.validation import expected
from streaminfer.loadtest.arrivals import Floats
from streaminfer.loadtest.sending.record import Record
from streaminfer.loadtest.sending.requests import check_takes
from streaminfer.loadtest.sending.sender import OnProgress, Progress, running, send

__all__ = ["send_from_processes"]

_Share = Callable[..., Awaitable[Record]]
"""Sends the share of a process: :func:`send` with all arguments but the service, the progress and the start."""
_LEAD_S = 0.2
"""Seconds from the instant at which all processes are ready to the start of the schedule."""


async def send_from_processes(
    make_service: Callable[[], Any],
    inputs: Any,
    due_s: Floats,
    senders: int,
    *,
    drain_s: float,
    duration_s: float,
    progress: OnProgress | None = None,
) -> Record:
    """Send requests from several processes.

    Args:
        make_service: returns the service; called in each process.
        inputs: as for `run`; pickled.
        due_s: due times of all requests, in seconds. Sender ``k`` of ``n`` sends the requests ``k``, ``k + n`` and so
            on.
        senders: number of processes.
        drain_s: as for `run`.
        duration_s: duration that the progress reports.
        progress: as for `run`.

    Raises:
        TypeError: ``make_service`` or ``inputs`` cannot be pickled, or ``make_service`` takes arguments.
    """
    _check_portable("service", make_service)
    _check_portable("inputs", inputs)
    expectation = "a function without arguments that returns the service, because sender processes call it"
    check_takes("service", make_service, expectation)
    context = multiprocessing.get_context("spawn")
    loop = asyncio.get_running_loop()
    pipes: list[Connection] = []
    children: list[Any] = []

    failures: list[Exception] = []

    def report(state: Progress) -> None:
        try:
            if progress is not None and not failures:
                progress(state)
        except Exception as error:  # noqa: BLE001 - raised at the end, as in a run without processes
            failures.append(error)

    send_part = partial(send, inputs=inputs, drain_s=drain_s, duration_s=duration_s, step=senders)
    collecting: asyncio.Future[list[Record]] | None = None
    try:
        for first in range(senders):
            parent_end, child_end = context.Pipe()
            pipes.append(parent_end)
            share = partial(send_part, due_s=due_s[first::senders], first=first)
            child = context.Process(target=_send_share, args=(child_end, make_service, share), daemon=True)
            with contextlib.closing(child_end):
                child.start()
            children.append(child)
        collecting = loop.run_in_executor(
            None, _collect, pipes, lambda state: loop.call_soon_threadsafe(report, state), progress is not None
        )
        record = Record.merge(await asyncio.shield(collecting))
        if failures:
            raise failures[0]
        return record
    finally:
        await _end(children, collecting, pipes)


async def _end(children: list[Any], collecting: "asyncio.Future[list[Record]] | None", pipes: list[Connection]) -> None:
    """End the processes and the collecting thread, even if the run is cancelled again meanwhile."""
    for child in children:
        child.kill()  # a service may ignore SIGTERM
    if collecting is not None:
        while not collecting.done():  # the thread ends with the processes
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([collecting])
        collecting.exception()  # marks the error as read: in a cancelled run the processes ended
    for child in children:
        child.join()
    for pipe in pipes:
        pipe.close()


def _check_portable(argument: str, value: Any) -> None:
    try:
        pickle.dumps(value)
    except Exception as error:
        expectation = "something importable from its module, because sender processes load it"
        raise TypeError(expected(argument, expectation, value)) from error


def _collect(pipes: list[Connection], report: Callable[[Progress], object], has_progress: bool) -> list[Record]:
    for pipe in pipes:
        _receive(pipe)
    start_ns = time.monotonic_ns() + round(_LEAD_S * 1e9)
    for pipe in pipes:
        with contextlib.suppress(OSError):  # the process has ended: receiving raises
            pipe.send((start_ns, has_progress))
    records: dict[int, Record] = {}
    latest: dict[int, Progress] = {}  # of the running processes that have reported since
    while len(records) < len(pipes):
        for ready in wait([pipe for number, pipe in enumerate(pipes) if number not in records]):
            number = pipes.index(ready)  # type: ignore[arg-type]  # on this system a pipe is a Connection
            message = _receive(pipes[number])
            if isinstance(message, Record):
                records[number] = message
                latest.pop(number, None)
                continue
            latest[number] = message
            if len(latest) + len(records) == len(pipes):
                report(_total(message, list(latest.values()), list(records.values())))
                latest.clear()
    return [records[number] for number in range(len(pipes))]


def _receive(pipe: Connection) -> Any:
    try:
        message = pipe.recv()
    except (EOFError, OSError):  # OSError if it left data unread
        raise RuntimeError("a sender process ended before its requests did") from None
    if isinstance(message, BaseException):
        raise message
    return message


def _total(last: Progress, running: list[Progress], ended: list[Record]) -> Progress:
    requests = sum(map(len, ended))
    return attrs.evolve(
        last,
        sent=requests + sum(part.sent for part in running),
        requests=requests + sum(part.requests for part in running),
        in_flight=sum(part.in_flight for part in running),
    )


def _send_share(pipe: Connection, make_service: Callable[[], Any], share: _Share) -> None:
    """Run one sender; the main function of a sender process."""
    with contextlib.closing(pipe):
        try:
            message: Any = asyncio.run(_send(pipe, make_service, share))
        except (KeyboardInterrupt, asyncio.CancelledError):  # Ctrl-C reaches all processes; or the parent has ended
            return
        except Exception as error:  # noqa: BLE001 - any error is the parent's to raise
            message = _portable(error)
        with contextlib.suppress(BrokenPipeError):  # the parent has ended
            pipe.send(message)


async def _send(pipe: Connection, make_service: Callable[[], Any], share: _Share) -> Record:
    async with running(make_service()) as service:
        pipe.send("ready")
        start_ns, has_progress = await asyncio.to_thread(pipe.recv)
        with _cancelled_with_parent(pipe):
            return await share(service, progress=pipe.send if has_progress else None, start_ns=start_ns)


@contextlib.contextmanager
def _cancelled_with_parent(pipe: Connection) -> Iterator[None]:
    """Cancel this task when the parent ends, for example by a signal; otherwise it would continue to send."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None  # noqa: S101 - `asyncio.run` made one

    def end() -> None:  # the parent sends nothing else, so the pipe was closed
        loop.remove_reader(pipe.fileno())
        task.cancel()

    loop.add_reader(pipe.fileno(), end)
    try:
        yield
    finally:
        loop.remove_reader(pipe.fileno())


def _portable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - of our own making
    except Exception:  # noqa: BLE001 - an error that cannot be pickled still has its text
        return RuntimeError(f"a sender process failed: {error!r}")
    return error
