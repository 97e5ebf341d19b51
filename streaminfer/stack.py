"""`Stack`: primitives in front of a backend, composed into one service that starts, stops and answers.

The order is the order of the arguments, outermost first, and it matters: a telemetry outside the batcher sees
refusals and queueing; a breaker under the batcher counts a failed batch of 32 as one failure and not as 32.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self, Unpack

from streaminfer._internal.display.unique_name import unique_name
from streaminfer._internal.loading.lazy import lazy_attributes
from streaminfer._internal.validation import check_clock, check_count, check_duration, check_instance, expected
from streaminfer._runtime.lifecycle import STOP_LIMIT_S
from streaminfer.errors import Closed, InvalidInput
from streaminfer.protocols import Admission, AdmissionReason, Capabilities, Clock, Wrapper, adapt
from streaminfer.request import MapSettings, Request, Response

if TYPE_CHECKING:
    from streaminfer._stack._chain_cy import Chain, Passage
    from streaminfer._stack.many_calls import PlaceQueue
    from streaminfer._stack.run import StackRun
    from streaminfer._stack.start_report import PartStart, StartReport
    from streaminfer._stack.statistics import PartStatistics, StackState, StackStatistics
    from streaminfer.blocking import BlockingStack

__all__ = ["PartStart", "PartStatistics", "Stack", "StackStatistics", "StartReport"]

_HOMES = {
    "_stack.start_report": ["PartStart", "StartReport"],
    "_stack.statistics": ["PartStatistics", "StackStatistics"],
}

_ANOTHER_LOOP = (
    "this stack belongs to the event loop that started it: another thread calls "
    "asyncio.run_coroutine_threadsafe(stack(...), loop), or starts it itself, by stack.blocking()"
)

if not TYPE_CHECKING:  # loaded by the first start or snapshot, because the package's import should cost little
    __getattr__, __dir__ = lazy_attributes(__name__, _HOMES)


class Stack(Wrapper):
    """A service made of layers in front of a backend or of another service.

    ::

        batcher = AdaptiveBatcher(max_batch_size=8, slo_s=0.05)
        async with Stack(Telemetry("faces"), batcher, OnnxBackend("faces.onnx")) as faces:
            boxes = await faces(image, timeout_s=0.04)

    A stack belongs to the event loop that started it; calls from another loop or a forked process raise
    ``RuntimeError``. It can be started again after it stopped.

    Args:
        *layers: outermost first; the last is a backend or a service. Without a batcher among them a backend gets
            batches of one.
        clock: returns monotonic nanoseconds, for every layer that has no clock of its own; ``None``:
            ``time.monotonic_ns``.

    Raises:
        TypeError: a layer that is none, or a last one that is neither backend nor service.
    """

    def __init__(self, *layers: Any, clock: Clock | None = None) -> None:
        if not layers:
            raise TypeError("layers: expected at least a backend or a service, got none")
        check_clock("clock", clock)
        from streaminfer._stack.composition import check_layers, compose  # noqa: PLC0415 - not at the package's import

        check_layers(layers)
        self.layers = layers
        self.clock: Clock = clock or time.monotonic_ns
        self._clock_given = clock is not None
        if clock is not None:
            super().bind_clock(clock)
        self._parts, self._single = compose(layers, self.clock)
        self.inner = self._parts[-1]
        self._run: StackRun | None = None  # the latest
        self._chain = self._join()

    # -- callers ------------------------------------------------------------------------------------------------

    async def __call__(
        self,
        inputs: Any,
        *,
        timeout_s: float | None = None,
        priority: int = 0,
        stream_id: Hashable = None,
        tenant: str | None = None,
        subject: str | None = None,
        tags: Iterable[str] = (),
        key: Hashable = None,
        store: bool = True,
        wait: bool = False,
    ) -> Any:
        """Answers one request.

        Args:
            inputs: what the model reads, without a batch axis: one array, or a mapping of input name to array.
            timeout_s: seconds from now after which an answer is worthless; ``None``: the batcher's ``slo_s``, if it
                has one; ``math.inf``: no deadline, whatever ``slo_s`` says.
            priority: a lower number is more urgent.
            stream_id: the live stream that it belongs to.
            tenant: on whose behalf.
            subject: the person whose data it carries.
            tags: labels for erasing cached answers.
            key: cache key, instead of one made from the contents.
            store: whether an answer may be kept.
            wait: where the queue is full, wait for a place until the deadline, in the order of arrival, instead of
                raising ``Overloaded``. The layers, and what they count, see the request from its place on.

        Returns:
            The model's outputs for this request.

        Raises:
            StreamInferError: it could not be answered; the class says why.
            Exception: what a service or layer of your own raised, unchanged.
        """
        if wait is not False and wait is not True:
            raise InvalidInput(expected("wait", "True or False", wait))
        chain = self._chain
        passage = chain.open(inputs, timeout_s, priority, stream_id, tenant, subject, tags, key, store, wait)
        try:
            outcome = await passage.awaited
        except BaseException as error:
            response = chain.failed(passage, error)
            if response is None:
                raise
            return response.outputs
        return chain.outputs(passage, outcome)

    async def call(self, request: Request, *, timeout_s: float | None = None) -> Response:
        """Answers one request, with all that is known about the answer.

        Args:
            request: what is asked.
            timeout_s: as calling the stack, in place of the request's own deadline; ``None``: that one.

        Raises:
            StreamInferError: it could not be answered; the class says why.
            Exception: what a service or layer of your own raised, unchanged.
            TypeError: no `Request`.
        """
        if not isinstance(request, Request):
            raise TypeError(expected("request", "a Request (calling the stack itself takes inputs)", request))
        chain = self._chain
        passage = chain.open_request(request, timeout_s)
        try:
            outcome = await passage.awaited
        except BaseException as error:
            response = chain.failed(passage, error)
            if response is None:
                raise
            return response
        return chain.response(passage, outcome)

    @property
    def begin_call(self) -> Callable[[Request, Callable[[Response | None, BaseException | None], None]], Any] | None:
        """Begins what :meth:`call` awaits, where a batcher ends it; ``None`` too where a subclass has replaced that."""
        return self._begin_call if type(self).call is Stack.call and self._chain.batcher is not None else None

    def _begin_call(
        self, request: Request, receive: Callable[[Response | None, BaseException | None], None]
    ) -> Passage:
        return self._chain.begin(request, receive)

    async def map(
        self,
        inputs: Iterable[Any],
        *,
        concurrency: int | None = None,
        return_exceptions: bool = False,
        **settings: Unpack[MapSettings],
    ) -> list[Any]:
        """Answers many requests, in their order, however small the queue is.

        Args:
            inputs: what each request brings; read when its turn comes, so that it may be a generator.
            concurrency: how many requests are in flight at the same time; ``None``: as many as keep the workers of the
                batcher busy with full batches.
            return_exceptions: put errors of requests among the answers; otherwise the first one cancels what is left.
                An error of ``inputs`` itself always does.
            **settings: ``timeout_s``, for each request from its turn on, ``priority``, ``stream_id``, ``tenant``,
                ``subject``, ``tags`` and ``store``: as for a call.

        Returns:
            The model's outputs, one for each of the inputs.

        Raises:
            InvalidInput: one of the settings is wrong, also with ``return_exceptions``.
            TypeError, ValueError: not such ``inputs`` or ``concurrency``, or an unknown setting.
            Exception: of the first request that could not be answered, as of a call.
        """
        from streaminfer._stack import many_calls  # noqa: PLC0415 - not at the package's import

        if concurrency is None:
            concurrency = many_calls.default_concurrency(self._offered)
        check_count("concurrency", concurrency)
        check_instance("inputs", inputs, lambda value: isinstance(value, Iterable), "an iterable of what each brings")
        settings["tags"] = many_calls.check_settings("map", settings).tags  # they may be an iterator

        def ask(one: Any) -> Any:
            return self(one, wait=True, **settings)

        return await many_calls.answer_all(inputs, ask, concurrency, return_exceptions)

    async def rows(self, inputs: Any, **settings: Unpack[MapSettings]) -> Any:
        """Answers a request of several rows: all of them, by one deadline, or none.

        Each row is a request of its own for every layer: rows share batches with other callers' requests, and more rows
        than ``max_batch_size`` or places in the queue are no error. The first row that cannot be answered ends the
        others. The leading axis holds the rows of the inputs and of the answer, whatever axis the model batches on.

        Args:
            inputs: an array whose first axis holds the rows, or a mapping of input name to such arrays.
            **settings: ``timeout_s``, from now on for all rows, ``priority``, ``stream_id``, ``tenant``, ``subject``,
                ``tags`` and ``store``: as for a call.

        Returns:
            The model's outputs with a leading axis of as many rows: an array, or a mapping or tuple of them. What is
            neither array nor number becomes a list with one entry per row.

        Raises:
            InvalidInput: no array, no rows, or arrays of different numbers of them.
            BackendError: outputs of different shapes, which cannot form one array; :meth:`map` returns a list.
            StreamInferError: the first row that could not be answered.
        """
        from streaminfer._stack.many_calls import answer_rows  # noqa: PLC0415 - not at the package's import

        return await answer_rows(self._chain, self._places(), self._offered, inputs, **settings)

    @property
    def children(self) -> Mapping[str, Any]:
        """Its layers by the name of their class, outermost first; a second one of a class has ``#2`` behind it."""
        named: dict[str, Any] = {}
        for layer in self.layers:
            named[unique_name(type(layer).__name__, named)] = layer
        return named

    def capabilities(self) -> Capabilities:
        """What the layers offer together; it validates requests itself, and each ends at its deadline."""
        return super().capabilities()._replace(validate=None, admission=self.admission, enforces_deadline=True)

    def admission(self, request: Request, now_ns: int) -> Admission:
        """Whether a request from the event loop of its start would be accepted now; changes nothing."""
        if self._chain.loop is None:
            return Admission(False, AdmissionReason.CLOSED)
        return Admission(True) if self._admission is None else self._admission(request, now_ns)

    def blocking(self) -> BlockingStack:
        """The same service for synchronous callers, on an event loop in a thread of its own.

        ::

            with stack.blocking() as infer:
                y = infer(x, timeout_s=0.05)
        """
        from streaminfer.blocking import BlockingStack  # noqa: PLC0415 - blocking stands above stack

        return BlockingStack(self)

    # -- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Starts the layers from the innermost, and returns when the first request will be as fast as later ones.

        A batcher runs batches of its backend's example inputs, which takes some seconds at most. While a stack runs,
        full garbage collections leave out what existed at its start. What started is stopped again where a layer
        fails, or where the start is cancelled.
        ``statistics().start`` and one line in the log ``streaminfer`` say how long each layer took.

        Raises:
            RuntimeError: it runs already, or has not stopped yet.
            BaseException: what a layer raised.
        """
        if (state := self.stack_state) not in {"new", "stopped"}:
            raise RuntimeError(f"this stack is {state} already")
        from streaminfer._stack.run import StackRun  # noqa: PLC0415 - not at the package's import
        from streaminfer._stack.start_report import names_of_parts  # noqa: PLC0415

        self._chain.loop = None
        run = self._run = StackRun(self, self._parts)
        title = f"stack {' → '.join(type(layer).__name__ for layer in self.layers)}"
        await run.start(title, names_of_parts(self._parts, self.layers, self._single))
        self._chain = self._join()
        self._chain.loop = run.loop

    async def stop(self, *, drain: bool = True, timeout_s: float | None = STOP_LIMIT_S) -> None:
        """Accept nothing more, complete the requests in flight and stop the layers, outermost first.

        A second call waits for the first; a stack that does not run is left alone. A draining stop that is cancelled
        ends what is left with ``Closed`` and still stops every layer.

        Args:
            drain: complete the requests in flight first; otherwise they end with ``Closed``.
            timeout_s: seconds after which what is left ends with ``Closed``, worker processes are killed, and threads
                in which a batch hangs left behind; the stop returns at most half a second later. ``None``: no limit.

        Raises:
            TypeError, ValueError: ``timeout_s`` is no duration.
            RuntimeError: from another loop, or while the stack is starting.
        """
        if timeout_s is not None:
            check_duration("timeout_s", timeout_s)
        run = self._run
        if run is None or self.stack_state == "stopped":
            return
        if asyncio.get_running_loop() is not run.loop:
            raise RuntimeError(_ANOTHER_LOOP)
        if run.state == "starting":
            raise RuntimeError("this stack is starting: stop it when it has started")
        self._chain.loop = None
        await run.stop(self._chain, drain=drain, timeout_s=timeout_s)

    def __enter__(self) -> NoReturn:
        """Refused, with what to write instead.

        Raises:
            TypeError: always.
        """
        raise TypeError("a Stack is entered with `async with`; synchronous code: `with stack.blocking() as infer`")

    def __exit__(self, *_: object) -> None:
        """Never called: what ``with`` looks for before :meth:`__enter__`."""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop(drain=error is None)

    def bind_clock(self, clock: Clock) -> None:
        """Takes over the clock of an outer `Stack`, unless one was given."""
        if not self._clock_given:
            self.clock = clock
            self._clock_given = True
            super().bind_clock(clock)
            if self._single is not None:
                self._single.bind_clock(clock)
            loop = self._chain.loop  # it may be running: an outer stack is made around it
            self._chain = self._join()
            self._chain.loop = loop

    @property
    def stack_state(self) -> StackState:
        """The ``state`` of its statistics; a run that a closed event loop or another process has left is over."""
        if self._run is None:
            return "new"
        return "stopped" if self._run.is_orphaned else self._run.state

    @property
    def ready(self) -> bool:
        """Whether it accepts requests: true from the end of :meth:`start` to the beginning of :meth:`stop`.

        For health checks. Thread-safe; false in a forked process, and where its event loop was closed without a stop.
        """
        return self.stack_state == "running"

    def statistics(self) -> StackStatistics:
        """A frozen snapshot of every layer that keeps statistics, and of what is inside routers and the like."""
        from streaminfer._stack.statistics import StackStatistics, statistics_inside  # noqa: PLC0415 - as above

        layers = self.children
        snapshots = {name: adapt(layer).statistics() for name, layer in layers.items()}
        return StackStatistics(
            self.stack_state,
            {name: snapshot for name, snapshot in snapshots.items() if snapshot is not None},
            None if self._run is None else self._run.report,
            {name: inside for name, layer in layers.items() if (inside := statistics_inside(layer))},
        )

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Stack cannot be copied or pickled: make one where it is used, in each process its own")

    def __repr__(self) -> str:
        return f"<Stack, {self.stack_state}: {' → '.join(type(layer).__name__ for layer in self.layers)}>"

    def _repr_html_(self) -> str:
        return self.statistics()._repr_html_()

    # -- inside -------------------------------------------------------------------------------------------------

    def _join(self) -> Chain:
        """Join the layers that await nothing, in front of what has to be awaited."""
        from streaminfer._stack.composition import join  # noqa: PLC0415 - as above

        self._offered = adapt(self.inner).capabilities()
        self._admission = self._offered.admission
        return join(self.inner, self._offered, self.clock, self._refuse, self._run)

    def _places(self) -> PlaceQueue:  # no property: what lists members, such as `create_autospec`, reads those
        if self._run is None:
            self._refuse()
        return self._run.places

    def _refuse(self) -> NoReturn:
        if self._run is None or self._chain.loop is None:
            raise Closed(f"this stack is {self.stack_state}: use it inside `async with stack`")
        if os.getpid() != self._run.pid:
            raise RuntimeError("this stack was started in another process: a forked process starts a stack of its own")
        if self._chain.loop.is_closed():
            raise Closed(
                "this stack belongs to an event loop that has ended (one asyncio.run each?): start it again on "
                "this one with `async with stack`"
            )
        raise RuntimeError(_ANOTHER_LOOP)
