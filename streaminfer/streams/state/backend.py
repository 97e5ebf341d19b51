"""`StatefulBackend`: a recurrent model for many streams; their steps share batches."""

import asyncio
import functools
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streaminfer._internal.forking import call_in_child
from streaminfer._internal.own_arrays import own_arrays
from streaminfer._internal.validation import check_count, check_duration_ns, check_instance, expected
from streaminfer._runtime.lifecycle import start_owned, stop_all
from streaminfer._runtime.stack_clock import StackClock
from streaminfer._runtime.waiters import wake_from_thread
from streaminfer.errors import BackendError, InvalidInput, Overloaded, for_caller
from streaminfer.protocols import Capabilities, Clock, ExampleInputs, ModelTensors, Wrapper, check_infer, is_backend
from streaminfer.request import Batch, Request
from streaminfer.streams.state._step_cy import Block, Step
from streaminfer.streams.state.fed_batch import FedBatch
from streaminfer.streams.state.layout import Growing, Initial
from streaminfer.streams.state.outputs import Outputs, read_outputs
from streaminfer.streams.state.record import read_record, write_record
from streaminfer.streams.state.signature import StateSignature
from streaminfer.streams.state.statistics import StatefulStatistics
from streaminfer.streams.state.store import StateStore

__all__ = ["StatefulBackend"]

Array = NDArray[Any]


class StatefulBackend(StackClock, Wrapper):
    """Keeps the state of each stream, so that steps of many streams share the batches of a recurrent model.

    A request has a ``stream_id`` and the inputs that are not states. Its response has the outputs that are not states:
    one array if there is only one, else a mapping by name. The backend rejects a request without a ``stream_id``.

    A step that fails, is cancelled or is dropped leaves the state of its stream unchanged. Steps of one stream run one
    at a time, in the order in which the backend got them.

    Thread-safety: as the inner backend; all event loops and threads share the states.

    Args:
        backend: a backend whose ``infer`` takes a mapping of inputs and returns a mapping of outputs, or one mapping
            per row. A state output has the layout of its input, including the batch axis.
        state: name of a state input → name of the output with its next value.
        context: name of an input → number of samples of the previous step that precede the samples of a request, along
            the last axis. For another axis, a pair: number of samples, and axis in a request.
        initial: name of a state input → initial value of a stream, without the batch axis: an array, or a function of
            the stream's id. The default is zeros; required if the backend does not know shape and type.
        growing: name of a state input → how the state grows with each step. Such a state starts empty, unless
            ``initial`` has a value for it.
        max_streams: maximum number of streams with state; requests of a further stream get `Overloaded`. Address space
            is reserved for all states, but memory is used only as streams arrive.
        idle_ttl_s: seconds without a request after which a stream is forgotten; ``None``: never.
        keep_on_reload: keep the states when the model of the backend is replaced; otherwise all streams start again.
        clock: returns monotonic nanoseconds; ``None``: the clock of the `Stack`.

    Raises:
        TypeError, ValueError: an argument is of the wrong type, or does not fit the backend.
    """

    def __init__(
        self,
        backend: Any,
        *,
        state: Mapping[str, str],
        context: Mapping[str, int | tuple[int, int]] | None = None,
        initial: Mapping[str, Initial] | None = None,
        growing: Mapping[str, Growing] | None = None,
        max_streams: int = 1024,
        idle_ttl_s: float | None = None,
        keep_on_reload: bool = False,
        clock: Clock | None = None,
    ) -> None:
        check_instance("backend", backend, is_backend, "a backend, with `async def infer`")
        check_infer("backend", backend)
        super().__init__(backend)
        capabilities = super().capabilities()
        self._signature = StateSignature(capabilities, state, context, initial, growing)
        self._max_streams = check_count("max_streams", max_streams, at_most=1 << 62)
        self._ttl_ns = None if idle_ttl_s is None else check_duration_ns("idle_ttl_s", idle_ttl_s, positive=True)
        check_instance("keep_on_reload", keep_on_reload, bool, "True or False")
        self._keep_on_reload = keep_on_reload
        self._clock: Clock = self._accept_clock(clock) or time.monotonic_ns
        self._copies_outputs = not capabilities.returns_new_arrays
        self._validates_kinds = capabilities.validates_kinds
        self._valid_kinds: set[Hashable] = set()
        self._changes = capabilities.fingerprint_changes or (lambda: 0)
        self._max_blocks = (capabilities.queued_workers or 1) + 1
        self._store = StateStore(self._signature.tensors, max_streams, self._max_blocks)
        self._model = self._changes()
        self._restarts = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_loop: asyncio.AbstractEventLoop  # set if there is a timer
        call_in_child(self._forget)

    def capabilities(self) -> Capabilities:
        """Return the capabilities of the backend, for requests without states, and the states of the streams."""
        offered = super().capabilities()
        return offered._replace(
            validate=self._validation(offered),
            example_inputs=None if offered.example_inputs is None else self._example_inputs,
            batch_axes=self._signature.batch_axes,
            idempotent=None,
            stream_states=self,
            model_tensors=self._model_tensors,
        )

    def _model_tensors(self) -> ModelTensors:
        describe = super().capabilities().model_tensors
        model = None if describe is None else describe()
        # even if the inputs are not known, it is known whether they have names
        return self._signature.tensors_of_requests(model or ModelTensors(()))

    async def infer(self, batch: Batch) -> Sequence[Any]:
        """Run a step of each row's stream.

        Returns:
            One result per row; a row without a stream, or with a stream beyond ``max_streams``, gets an exception.

        Raises:
            BackendError: the backend failed; all states are unchanged.
        """
        rows = batch.rows
        now_ns = self._clock()
        store = self._store
        with store.lock:
            self._forget_idle(now_ns)
            steps = store.table.begin(rows, now_ns)
        self._set_timer(now_ns)
        if len(steps) == 1 and len(steps[0].rows) == len(rows):
            return await self._run(store, steps[0], batch)
        return await self._run_in_sequence(store, steps, batch)

    async def start(self) -> None:
        """Start the inner backend, unless another owner has started it."""
        await start_owned(self, self.inner)

    async def stop(self, *, drain: bool = True) -> None:
        """Stop the inner backend, unless it has another owner, and forget all states, which are personal data."""
        try:
            await stop_all(self, [self.inner], drain=drain)
        finally:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._store.clear()

    def bind_clock(self, clock: Clock) -> None:
        """Use the clock of the first `Stack`, unless the constructor got a clock."""
        StackClock.bind_clock(self, clock)
        Wrapper.bind_clock(self, clock)

    def reset_stream(self, stream_id: Hashable) -> None:
        """Let the next step of a stream start from the initial state, even if a step runs now."""
        with self._store.lock:
            self._store.table.reset(stream_id)

    def end_stream(self, stream_id: Hashable) -> None:
        """Forget a stream; its place is free for another."""
        with self._store.lock:
            self._store.table.drop(stream_id)

    def export_state(self, stream_id: Hashable) -> bytes:
        """Return the state of a stream after its latest step that succeeded.

        Returns:
            A record of a documented format, without pickle, for :meth:`import_state` of another process.

        Raises:
            InvalidInput: the stream has no state.
        """
        with self._store.lock:
            self._restart_if_replaced()
            stream = self._store.table.find(stream_id)
            if stream is None or stream.is_initial:
                raise InvalidInput(f"stream_id: expected a stream that has state, got {stream_id!r}")
            states = self._store.row(stream)
            fingerprint = self._fingerprint()
        return write_record(states, fingerprint)

    def import_state(self, stream_id: Hashable, state: bytes) -> None:
        """Let the next step of a stream continue from a state that :meth:`export_state` returned.

        The import counts as a request for ``idle_ttl_s``. If no event loop runs, the idle stream is forgotten at the
        next request at the earliest.

        Raises:
            InvalidInput: ``state`` is not such a record, was altered, or comes from another model.
            Overloaded: the stream is new, and ``max_streams`` others have state or a step in flight.
        """
        Request(None, stream_id=stream_id)  # checks the id
        if stream_id is None:
            raise InvalidInput(expected("stream_id", "the id of a stream", stream_id))
        states = read_record(state, self._signature.tensors, self._fingerprint())
        now_ns = self._clock()
        with self._store.lock:
            self._restart_if_replaced()
            self._forget_idle(now_ns)
            if not self._store.table.put(stream_id, states, now_ns):
                raise self._too_many_streams(stream_id)
        self._set_timer(now_ns)

    def statistics(self) -> StatefulStatistics:
        """Return a snapshot of the counters."""
        store = self._store
        with store.lock:
            return StatefulStatistics(
                streams=len(store.table),
                rows=store.table.slots_in_use,
                bytes=store.bytes_in_use(),
                gathers=store.gathers,
                sticky_batches=store.sticky,
                copied_rows=store.copied_rows,
                expired=store.table.expired,
                rejected=store.table.rejected,
                restarts=self._restarts,
            )

    def _forget(self) -> None:
        """Discard all states in a forked process: streams would wait for steps that end only in the parent."""
        self._store.clear()
        self._store = StateStore(self._signature.tensors, self._max_streams, self._max_blocks)
        self._timer = None

    async def _run(
        self, store: StateStore, step: Step, batch: Batch, positions: Sequence[int] | None = None
    ) -> Sequence[Any]:
        """Run one step, of some rows of a batch or of all, when its turn has come."""
        try:
            if step.pending:
                await _wait_for_turn(store, step)
            fed_batch = FedBatch(batch, functools.partial(store.read, step), self._signature, positions)
            while True:
                with store.lock:
                    model = self._restart_if_replaced()
                results = await self.inner.infer(fed_batch)
                if self._keep_on_reload or self._changes() == model:
                    break
                fed_batch = fed_batch.again()  # not known which model ran: the new one runs from the initial state
            outputs = self._read(results, fed_batch)
            assert fed_batch.states is not None  # noqa: S101 - else it was not read
            lengths = store.grow(fed_batch.states, outputs.states)
            size = fed_batch.size
            block = Block(outputs.states, size if store.is_input(outputs.states, size) else -1, lengths)
            abandoned = fed_batch.left(self._clock())  # a caller that gets no response can send its step again
            with store.lock:
                store.table.commit(step, block, {*outputs.failed, *abandoned})
            return outputs.rows
        finally:
            _end(store, step)

    async def _run_in_sequence(self, store: StateStore, steps: list[Step], batch: Batch) -> Sequence[Any]:
        """Run the steps of a batch one after another, if a stream occurs twice in it or a row has no place."""
        results: list[Any] = [None] * len(batch.rows)
        missing = set(range(len(results))).difference(*(step.rows for step in steps))
        for row in missing:
            stream_id = batch.rows[row].stream_id
            results[row] = self._too_many_streams(stream_id) if stream_id is not None else InvalidInput(_NO_STREAM)
        try:
            for step in steps:
                if not step.rows:
                    continue
                try:
                    outputs = await self._run(store, step, batch, step.rows)
                except Exception as error:
                    if len(steps) == 1:
                        raise
                    outputs = [for_caller(error, self.name) for _ in step.rows]
                for row, output in zip(step.rows, outputs, strict=True):
                    results[row] = output
        finally:
            for step in steps:
                _end(store, step)
        return results

    def _read(self, results: Any, fed_batch: FedBatch) -> Outputs:
        if self._copies_outputs:
            results = own_arrays(results)
        outputs = read_outputs(results, self._signature.written, len(fed_batch.rows), fed_batch.size, self.name)
        if fed_batch.states is None:
            raise BackendError(f"{self.name}: expected a backend that reads batch.inputs, got one that does not")
        outputs.states.update(fed_batch.ends)
        return outputs

    def _restart_if_replaced(self) -> int:
        """Restart all streams if the model has changed; the caller holds the lock."""
        model = self._changes()
        if model != self._model:
            self._model = model
            if not self._keep_on_reload:
                self._restarts += 1
                self._store.table.restart()
        return model

    def _fingerprint(self) -> str | None:
        fingerprint = super().capabilities().fingerprint
        value = fingerprint() if callable(fingerprint) else fingerprint
        return value.hex() if isinstance(value, bytes) else value

    def _too_many_streams(self, stream_id: Hashable) -> Overloaded:
        return Overloaded(
            f"stream {stream_id!r}: {self._max_streams} streams have state already (max_streams={self._max_streams}); "
            "end_stream frees a place, and idle_ttl_s those of streams that are idle"
        )

    def _validation(self, capabilities: Capabilities) -> Callable[[Request], None] | None:
        if capabilities.validate is not None:
            return self._validate
        return self._validate_names if self._signature.only_input is None else None

    def _validate_names(self, request: Request) -> None:
        self._signature.check_names(request.inputs)

    def _validate(self, request: Request) -> None:
        kind = _kind_of(request.inputs) if self._validates_kinds else None
        if kind is not None and kind in self._valid_kinds:
            return
        validate = super().capabilities().validate
        assert validate is not None  # noqa: S101 - offered only where there is one
        model_request = request.replace(inputs=self._signature.with_states(request.inputs))
        try:
            validate(model_request)
        except InvalidInput as error:
            raise self._signature.explain(error) from None
        if kind is not None:
            if len(self._valid_kinds) >= _MAX_KINDS:
                self._valid_kinds.clear()
            self._valid_kinds.add(kind)

    def _example_inputs(self) -> ExampleInputs | None:
        make = super().capabilities().example_inputs
        example = None if make is None else make()
        if example is None:
            return None
        signature, resize, inner_infer_on_each = self._signature, example.resize, example.infer_on_each

        async def infer(batch: Batch) -> Sequence[Any]:
            fed_batch = FedBatch(batch, self._store.read_initial, signature)
            return self._read(await example.infer(fed_batch), fed_batch).rows

        async def infer_on_each(batch: Batch) -> None:
            assert inner_infer_on_each is not None  # noqa: S101 - offered only where there is one
            await inner_infer_on_each(FedBatch(batch, self._store.read_initial, signature))

        return example._replace(
            inputs=signature.without_states(example.inputs),
            infer=infer,
            free_axes={name: axes for name, axes in example.free_axes.items() if not signature.is_state(name)},
            resize=None if resize is None else lambda size: signature.without_states(resize(size)),
            infer_on_each=None if inner_infer_on_each is None else infer_on_each,
            infer_now=None,
        )

    def _forget_idle(self, now_ns: int) -> int:
        """Forget idle streams; return when the longest idle of the others was seen. The caller holds the lock."""
        return -1 if self._ttl_ns is None else self._store.table.expire(now_ns - self._ttl_ns, now_ns)

    def _set_timer(self, seen_ns: int) -> None:
        """Set the timer that forgets a stream last seen at ``seen_ns``, even if no request comes."""
        if self._ttl_ns is None or (self._timer is not None and not self._timer_loop.is_closed()):
            return
        due_ns = seen_ns + self._ttl_ns
        try:
            self._timer_loop = asyncio.get_running_loop()
        except RuntimeError:
            return  # an import in a thread, or before the loop: the next request sets it
        self._timer = self._timer_loop.call_later(max(due_ns - self._clock(), 0) / 1e9, self._expire, due_ns)

    def _expire(self, due_ns: int) -> None:
        self._timer = None
        with self._store.lock:
            seen_ns = self._forget_idle(max(self._clock(), due_ns))
        if seen_ns >= 0:
            self._set_timer(seen_ns)

    def __repr__(self) -> str:
        return f"StatefulBackend({self.inner!r}, state={self._signature.state!r}, streams={len(self._store.table)})"


_MAX_KINDS = 64
"""Shapes of requests that are remembered as valid: enough for one source, and few for an attacker."""
_NO_STREAM = "stream_id: expected the stream of the request, got None: the model keeps state for each stream"


def _kind_of(inputs: Any) -> Hashable:
    """Return names, shapes and types of the inputs of a request; ``None`` if they are not only plain arrays."""
    if type(inputs) is np.ndarray:
        return inputs.shape, inputs.dtype
    if type(inputs) is not dict or any(type(value) is not np.ndarray for value in inputs.values()):
        return None
    return tuple((name, value.shape, value.dtype) for name, value in inputs.items())


async def _wait_for_turn(store: StateStore, step: Step) -> None:
    waiter = asyncio.get_running_loop().create_future()
    with store.lock:
        if not step.pending:
            return
        step.waiter = waiter
    await waiter


def _end(store: StateStore, step: Step) -> None:
    with store.lock:
        ready = store.table.end(step)
    for one in ready:
        if one.waiter is not None:
            wake_from_thread(one.waiter)
