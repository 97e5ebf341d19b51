"""`Stack`: layers around a backend, composed into one service.

The arguments give the order of the layers, outermost first, and the order matters: telemetry outside the batcher sees
rejections and queueing; a breaker inside the batcher counts a failed batch of 32 as one failure, not as 32.
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
    """A service made of layers around a backend or around another service.

    ::

        batcher = AdaptiveBatcher(max_batch_size=8, slo_s=0.05)
        async with Stack(Telemetry("faces"), batcher, OnnxBackend("faces.onnx")) as faces:
            boxes = await faces(image, timeout_s=0.04)

    A stack belongs to the event loop that started it; calls from another loop or a forked process raise
    ``RuntimeError``. It can be started again after it stopped.

    Args:
        *layers: outermost first; the last one is a backend or a service. If none of them is a batcher, the backend gets
            batches of one.
        clock: returns monotonic nanoseconds, for each layer without a clock of its own; ``None``:
            ``time.monotonic_ns``.

    Raises:
        TypeError: a layer is not a layer, or the last one is neither a backend nor a service.
    """

    def __init__(self, *layers: Any, clock: Clock | None = None) -> None:
        if not layers:
            raise TypeError("layers: expected at least a backend or a service, got none")
        clock = check_clock("clock", clock)
        from streaminfer._stack.composition import check_layers, compose  # noqa: PLC0415 - not at the package's import

        check_layers(layers)
        self.layers = layers
        self.clock: Clock = clock or time.monotonic_ns
        self._clock_given = clock is not None
        if clock is not None:
            super().bind_clock(clock)
        self._parts, self._single = compose(layers, self.clock)
        self.inner = self._parts[-1]
        self._run: StackRun | None = None  # the latest run
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
        """Send one request and return the model's outputs.

        Args:
            inputs: what the model reads, without a batch axis: one array, or a mapping of input name to array.
            timeout_s: seconds from now after which a response is worthless; ``None``: the batcher's ``slo_s``, if it
                has one; ``math.inf``: no deadline, even with ``slo_s``.
            priority: a lower number is more urgent.
            stream_id: the live stream of the request.
            tenant: the tenant that sends the request.
            subject: the person whose data the request carries.
            tags: labels for erasing cached responses.
            key: cache key, instead of one made from the contents.
            store: whether caches may store the response.
            wait: if the queue is full, wait for room, at most until the deadline, instead of raising ``Overloaded``;
                requests of one tenant, stream and priority enter the queue in the order of arrival. Layers and their
                statistics see the request only after that wait.

        Returns:
            The model's outputs for this request.

        Raises:
            StreamInferError: the request failed or was rejected; the class names the reason.
            Exception: an error of a service or layer of your own, unchanged.
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
        """Send one request and return the whole response.

        Args:
            request: the request to send.
            timeout_s: as for calling the stack; it replaces the request's deadline. ``None``: that deadline holds.

        Raises:
            StreamInferError: the request failed or was rejected; the class names the reason.
            Exception: an error of a service or layer of your own, unchanged.
            TypeError: ``request`` is not a `Request`.
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
        """Function that starts :meth:`call` without a task; ``None``: no batcher, or a subclass overrides it."""
        return self._begin_call if type(self).call is Stack.call and self._chain.batcher is not None else None

    def _begin_call(
        self, request: Request, receive: Callable[[Response | None, BaseException | None], None]
    ) -> Passage:
        return self._chain.open_request(request, None, None, receive)

    async def map(
        self,
        inputs: Iterable[Any],
        *,
        concurrency: int | None = None,
        return_exceptions: bool = False,
        **settings: Unpack[MapSettings],
    ) -> list[Any]:
        """Send many requests and return the outputs in their order; the size of the queue sets no limit.

        Args:
            inputs: inputs of the requests; read one by one when each is sent, so it may be a generator.
            concurrency: how many requests are in flight at the same time; ``None``: as many as keep the workers of the
                batcher busy with full batches.
            return_exceptions: return the errors of requests among the outputs; otherwise the first error cancels the
                remaining requests. An error raised by ``inputs`` itself always cancels them.
            **settings: ``timeout_s`` (for each request, from when it is sent), ``priority``, ``stream_id``, ``tenant``,
                ``subject``, ``tags`` and ``store``, as for a call.

        Returns:
            The model's outputs, one for each of the inputs.

        Raises:
            InvalidInput: a setting is wrong, also with ``return_exceptions``.
            TypeError, ValueError: ``inputs`` or ``concurrency`` is wrong, or a setting is unknown.
            Exception: the first error of a request, as for a call.
        """
        from streaminfer._stack import many_calls  # noqa: PLC0415 - not at the package's import

        if concurrency is None:
            concurrency = many_calls.default_concurrency(self._offered)
        check_count("concurrency", concurrency)
        check_instance("inputs", inputs, Iterable, "an iterable of what each brings")
        settings["tags"] = many_calls.check_settings("map", settings).tags  # they may be an iterator

        def send(item: Any) -> Any:
            return self(item, wait=True, **settings)

        return await many_calls.answer_all(inputs, send, concurrency, return_exceptions)

    async def rows(self, inputs: Any, **settings: Unpack[MapSettings]) -> Any:
        """Send a request of several rows; either all of them succeed by one deadline, or the call fails.

        Each row is a separate request for every layer: it shares batches with other callers' requests, and there may be
        more rows than ``max_batch_size`` or than the queue holds. The first row that fails cancels the others. The
        leading axis of the inputs and of the outputs counts rows, even if the model batches on another axis.

        Args:
            inputs: an array whose first axis holds the rows, or a mapping of input name to such arrays.
            **settings: ``timeout_s`` (one deadline for all rows), ``priority``, ``stream_id``, ``tenant``, ``subject``,
                ``tags`` and ``store``, as for a call.

        Returns:
            The model's outputs with a leading axis of as many rows: an array, or a mapping or tuple of arrays. Outputs
            that are neither arrays nor numbers become a list with one entry per row.

        Raises:
            InvalidInput: the inputs are not arrays, have no rows, or have different numbers of rows.
            BackendError: the outputs of the rows differ in shape, so they form no array; :meth:`map` returns a list.
            StreamInferError: the error of the first row that failed.
        """
        from streaminfer._stack.many_calls import answer_rows  # noqa: PLC0415 - not at the package's import

        return await answer_rows(self._chain, self._places(), self._offered, inputs, **settings)

    @property
    def children(self) -> Mapping[str, Any]:
        """The layers by the name of their class, outermost first; a second one of a class has the suffix ``#2``."""
        named: dict[str, Any] = {}
        for layer in self.layers:
            named[unique_name(type(layer).__name__, named)] = layer
        return named

    def capabilities(self) -> Capabilities:
        """Return what the layers offer together; the stack itself validates requests and enforces their deadlines."""
        return super().capabilities()._replace(validate=None, admission=self.admission, enforces_deadline=True)

    def admission(self, request: Request, now_ns: int) -> Admission:
        """Predict without side effects whether a request sent from the stack's event loop would be accepted now."""
        if self._chain.loop is None:
            return Admission(False, AdmissionReason.CLOSED)
        return Admission(True) if self._admission is None else self._admission(request, now_ns)

    def blocking(self) -> BlockingStack:
        """Return the same service for synchronous callers; its event loop runs in a separate thread.

        ::

            with stack.blocking() as infer:
                y = infer(x, timeout_s=0.05)
        """
        from streaminfer.blocking import BlockingStack  # noqa: PLC0415 - blocking stands above stack

        return BlockingStack(self)

    # -- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the layers from the innermost outward, until the first request will be as fast as later ones.

        A batcher runs batches of its backend's example inputs, which takes a few seconds at most. While the stack runs,
        full garbage collections skip the objects that existed at its start. If a layer fails or the start is cancelled,
        the stack stops the layers that it has started.
        ``statistics().start`` and one line in the log ``streaminfer`` report how long each layer took.

        Raises:
            RuntimeError: the stack is running, or has not stopped yet.
            BaseException: the error of a layer.
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
        """Accept no more requests, complete those in flight and stop the layers, outermost first.

        A second call waits for the first; a stack that is not running is unchanged. If a draining stop is cancelled,
        the remaining requests end with ``Closed``, and every layer is still stopped.

        Args:
            drain: complete the requests in flight first; otherwise they end with ``Closed``.
            timeout_s: seconds after which the remaining requests end with ``Closed``, worker processes are killed, and
                threads with a hanging batch are abandoned; it returns half a second later at most. ``None``: no limit.

        Raises:
            TypeError, ValueError: ``timeout_s`` is not a duration.
            RuntimeError: from another loop, or while the stack is starting.
        """
        if timeout_s is not None:
            timeout_s = check_duration("timeout_s", timeout_s)
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
        """Reject ``with``; the error says to write ``async with``.

        Raises:
            TypeError: always.
        """
        raise TypeError("a Stack is entered with `async with`; synchronous code: `with stack.blocking() as infer`")

    def __exit__(self, *_: object) -> None:
        """Never called; ``with`` requires the method."""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop(drain=error is None)

    def bind_clock(self, clock: Clock) -> None:
        """Use the clock of an outer `Stack`, unless this one was created with a clock."""
        if not self._clock_given:
            self.clock = clock
            self._clock_given = True
            super().bind_clock(clock)
            if self._single is not None:
                self._single.bind_clock(clock)
            loop = self._chain.loop  # not None if the stack was running before an outer stack wrapped it
            self._chain = self._join()
            self._chain.loop = loop

    @property
    def stack_state(self) -> StackState:
        """The ``state`` of its statistics; a run is over if its event loop is closed or it is another process's."""
        if self._run is None:
            return "new"
        return "stopped" if self._run.is_orphaned else self._run.state

    @property
    def ready(self) -> bool:
        """Whether the stack accepts requests: from the end of :meth:`start` to the beginning of :meth:`stop`.

        For health checks. Thread-safe; false in a forked process, and if its event loop was closed without a stop.
        """
        return self.stack_state == "running"

    def statistics(self) -> StackStatistics:
        """Return a frozen snapshot of every layer with statistics, including layers inside routers."""
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
        """Join the synchronous layers into one chain around the service that must be awaited."""
        from streaminfer._stack.composition import join  # noqa: PLC0415 - as above

        self._offered = adapt(self.inner).capabilities()
        self._admission = self._offered.admission
        return join(self.inner, self._offered, self.clock, self._reject, self._run)

    def _places(self) -> PlaceQueue:  # not a property: tools that list members, such as `create_autospec`, read those
        if self._run is None:
            self._reject()
        return self._run.places

    def _reject(self) -> NoReturn:
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
