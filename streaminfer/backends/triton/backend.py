"""Models of a server that speaks the Open Inference Protocol: NVIDIA Triton, and peers without its extensions.

One batch is one request. The batcher batches already, so the server's own batching adds only a delay: switch it off
(no ``dynamic_batching`` in the model's configuration, or ``max_queue_delay_microseconds: 0``). Three kinds of models
get one request per row instead, all rows of a batch at once: models without a batch axis; models that keep state for
each sequence (a request is one step of a sequence); and decoupled models (a request has a stream of responses).

**Deadlines** are enforced here. The server's own timeouts fire late: it checks a queued request only when it forms the
next batch (set to 10 ms, measured: 600). With gRPC, the server knows the deadline of a call, and drops a request that
is still queued when it passes. If the model's queue takes timeouts, each request also has one; HTTP has nothing else.
"""

import time
import uuid
from collections.abc import AsyncGenerator, Hashable, Mapping, Sequence
from typing import Any

from streaminfer._internal.display.html_table import html_table
from streaminfer._internal.validation import check_choice, check_count, check_duration, check_instance, expected
from streaminfer._runtime.stack_clock import StackClock
from streaminfer.backends.signature import NonFinite, TensorSpec, describe_shape, free_axes, guess_inputs
from streaminfer.backends.statistics import BackendRecorder, Busy, Counted
from streaminfer.backends.triton.endpoint import Protocol, Tls, find_endpoint
from streaminfer.backends.triton.lifecycle import SessionLifecycle
from streaminfer.backends.triton.model import ModelDescription, Server
from streaminfer.backends.triton.server_statistics import ServerStatistics, TritonStatistics
from streaminfer.backends.triton.session import Session
from streaminfer.backends.triton.settings import Settings
from streaminfer.backends.triton.transport.headers import Headers, HeadersLike
from streaminfer.protocols import Capabilities, Clock, ExampleInputs, ModelTensors, Node, Residency
from streaminfer.request import Batch, Request

__all__ = ["TritonBackend"]


class TritonBackend(StackClock, Node):
    """Runs batches on a model of a Triton server; needs the extra ``triton``.

    A request has one array if the model reads one input, or a mapping of input name to array, never with a batch axis;
    text as arrays of ``str`` or ``bytes``. Its result is one array if the model has one output, or a ``dict`` of output
    name to array. These arrays are read-only views of the whole response: copy one that is stored for long or written
    to.

    The inputs are known after :meth:`start`, which reads them from the server; a `Stack` calls it.

    If no version is given, the backend follows the server to a new one: at its first response the backend reads the
    model's description again, and :attr:`fingerprint` changes.

    Thread-safety: none; it belongs to the event loop that started it.

    Args:
        url: ``host:port``, with ``grpc://``, ``grpcs://``, ``http://`` or ``https://`` before it or not, or ``unix:``
            and the path of a socket. Without a port: 8001 for gRPC, 8000 for HTTP.
        model: its name.
        version: its version; empty: the one that the server chooses at each call, as a rule the latest.
        protocol: ``"grpc"`` or ``"http"``.
        tls: how the connection is encrypted; ``True``: with the system's certificate authorities. Required for
            anything but a loopback address or a Unix socket.
        insecure: true allows an unencrypted connection to another machine.
        headers: headers of every call, by name, or a function that returns them and is called before each call, such
            as for tokens. Never shown.
        shared_memory: tensors go through system shared memory; for a server on this machine, Linux only.
        timeout_s: seconds for a batch without a deadline, for each response of a stream without one, and for each
            call of the start.
        statistics_every_s: seconds between readings of the server's own statistics; ``None``: only when
            :meth:`read_statistics` is called.
        keepalive_s: seconds between pings of a quiet gRPC connection; ``None``: none. A server with default options
            ends connections that ping more often than every 300 seconds.
        max_streams: how many streams of a model with sequences the backend remembers.
        non_finite: ``"reject"`` rejects requests with a float that is NaN or infinite, ``"allow"`` does not check.
        example: one request's inputs, of which a batcher measures batches before it accepts requests. ``None``: zeros,
            if the model leaves no sizes open or the batcher's length buckets name them; else nothing is measured.
            Models with sequences and decoupled models are never measured.
        memory_bytes: memory that the model takes on its device, for a `Device` whose models do not all fit; the
            server must run with ``--model-control-mode=explicit``. ``None``: the model is never unloaded.
        load_timeout_s: seconds for a load, and for an unload.
        clock: monotonic nanoseconds; ``None``: the `Stack`'s, else the system's.

    Attributes:
        address: the address of the server.
        encrypted: whether the connection is encrypted.
        model: its name.
        fingerprint: identity of the model: server, model and the version that responds. Before the version is known, it
            is a text that no other backend has. If a model's file changes under the same version, the fingerprint stays
            the same, because the protocol does not report the change.
        inputs: what the model reads, in its order; empty before the first start.
        outputs: what it returns, in its order; empty before the first start.
        batch_axes: the axis on which a batcher stacks each input, by name; always the first.
        max_batch_size: the most rows of a batch; ``None`` where the server sets no limit or gets one
            request per row, or before the first start.
        description: the server's description of the model; ``None`` before the first start.
        server: the server's description of itself; ``None`` before the first start.
        missing_extensions: the extensions that the backend can use and the server lacks; their features are off.

    Raises:
        ValueError: an argument is wrong, or the address needs TLS.
        TypeError: an argument is of the wrong type.
    """

    returns_new_arrays = True
    isolates_rows = True
    idempotent: bool | None = None

    def __init__(
        self,
        url: str,
        model: str,
        *,
        version: str = "",
        protocol: Protocol = "grpc",
        tls: Tls | bool | None = None,
        insecure: bool = False,
        headers: HeadersLike | None = None,
        shared_memory: bool = False,
        timeout_s: float = 30.0,
        statistics_every_s: float | None = 5.0,
        keepalive_s: float | None = None,
        max_streams: int = 10_000,
        non_finite: NonFinite = "allow",
        example: Any = None,
        memory_bytes: int | None = None,
        load_timeout_s: float = 300.0,
        clock: Clock | None = None,
    ) -> None:
        check_choice("protocol", protocol, ("grpc", "http"))
        check_instance("model", model, str, "the model's name")
        if not model:
            raise ValueError(expected("model", "the model's name", model))
        clock = self._accept_clock(clock)
        self._memory_bytes = None if memory_bytes is None else check_count("memory_bytes", memory_bytes)
        address = find_endpoint(url, protocol, tls, insecure)
        self._settings = Settings(
            address=address,
            protocol=protocol,
            headers=Headers(headers),
            keepalive_s=keepalive_s,
            name=f"TritonBackend({model!r} on {address})",
            model=model,
            version=version,
            clock=clock or time.monotonic_ns,
            non_finite=non_finite,
            max_streams=max_streams,
            shared_memory=shared_memory,
            may_be_unloaded=memory_bytes is not None,
            timeout_s=timeout_s,
            load_timeout_s=load_timeout_s,
            statistics_every_s=statistics_every_s,
        )
        if shared_memory and not address.local:
            raise ValueError(f"shared_memory: expected False, since {address} is another machine, got True")
        self._example = example
        self.address = str(address)
        self.encrypted = address.tls is not None
        self.model = model
        self.fingerprint, self._fingerprint_changes = "", 0
        self._set_version(version)
        self.inputs: tuple[TensorSpec, ...] = ()
        self.outputs: tuple[TensorSpec, ...] = ()
        self.batch_axes: Mapping[str, int] = {}
        self.max_batch_size: int | None = None
        self.description: ModelDescription | None = None
        self.server: Server | None = None
        self._recorder = BackendRecorder(1, clock)
        self._lifecycle = SessionLifecycle(self._settings, self._update_description)

    def fingerprint_changes(self) -> int:
        """Return how often :attr:`fingerprint` has changed, for caches that follow it."""
        return self._fingerprint_changes

    @property
    def missing_extensions(self) -> tuple[str, ...]:
        """Extensions that the backend can use and the server lacks; empty before the first start."""
        return () if self.server is None else self.server.missing_extensions

    @property
    def queued_workers(self) -> int | None:
        """Number of copies of the model that take requests from the server's queue.

        ``None``: not known (before the first start, or the server does not say), an ensemble, or one request per row.
        """
        description = self.description
        if description is None or description.by_row or description.ensemble or description.max_batch_size is None:
            return None
        return description.instances

    def capabilities(self) -> Capabilities:
        """Return the model's optional features, as far as they are known, for batchers, caches and the `Stack`."""
        residency = None
        if self._memory_bytes is not None:
            residency = Residency(self._memory_bytes, self.load, self.unload, load_at_start=True)
        return Capabilities(
            validate=self.validate,
            fingerprint=self.fingerprint,
            fingerprint_changes=self.fingerprint_changes,
            max_batch_size=self.max_batch_size,
            returns_new_arrays=self.returns_new_arrays,
            isolates_rows=self.isolates_rows,
            queued_workers=self.queued_workers,
            example_inputs=self.example_inputs,
            server_parts=self.server_parts,
            idempotent=self.idempotent,
            batch_axes=self.batch_axes,
            model_tensors=self.model_tensors,
            residency=residency,
        )

    def model_tensors(self) -> ModelTensors | None:
        """Return the inputs and outputs that the server describes; ``None`` before the first start."""
        if not self.inputs:
            return None
        return ModelTensors(self.inputs, self.outputs, takes_one_array=len(self.inputs) == 1, reads_bytes=True)

    def _use_clock(self, clock: Clock) -> None:
        self._settings.clock = clock
        self._recorder = BackendRecorder(1, clock)

    def validate(self, request: Request) -> None:
        """Check a request's inputs against the model.

        Raises:
            InvalidInput: names the input, what was expected, and what came.
            BackendError: the model was not loaded since the start, so that its inputs are not known.
            Closed: not started, or stopped.
        """
        self._lifecycle.described_splitter().validate(request)

    def example_inputs(self) -> ExampleInputs | None:
        """Return ``example`` or zeros; ``None`` before the start, or if batches change a state."""
        splitter = self._lifecycle.splitter
        if splitter is None or splitter.session.model.sequence or splitter.session.model.decoupled:
            return None
        if self._example is not None:
            return ExampleInputs(self._example, self._infer_uncounted, exclusive=False)
        guess = guess_inputs(self.inputs)
        if not guess:
            return None
        inputs = next(iter(guess.values())) if len(guess) == 1 else guess
        return ExampleInputs(inputs, self._infer_uncounted, False, free_axes(self.inputs), exclusive=False)

    # -- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Connect, and read the model's description from the server; do nothing if the backend is started.

        With ``memory_bytes`` the model need not be loaded; the first :meth:`load` then reads its description.

        Raises:
            ValueError: the server has no such model or version, or lacks a requested feature; or a file of ``tls`` is
                invalid.
            OSError: a file of ``tls`` cannot be read.
            BackendError: the server cannot be reached, or the model is not ready or cannot be used.
            DeadlineExceeded: the server does not respond.
            MissingExtra: the extra ``triton`` is not installed.
            RuntimeError: another loop started it.
        """
        await self._lifecycle.start()

    async def stop(self, *, drain: bool = True) -> None:
        """End the connections; :meth:`start` makes new ones. May be repeated.

        Sequences that have not ended are left to the server, which forgets them when they are idle.

        Args:
            drain: wait for running calls; ``False``: they end with :class:`~streaminfer.errors.Closed`. Streams of
                responses get at most ``timeout_s``, because their callers may have left them.

        Raises:
            RuntimeError: another loop started it.
        """
        await self._lifecycle.stop(drain=drain)

    async def load(self) -> None:
        """Make the server load the model, unless it is in memory, and return when it is ready.

        If the server loses the model later, because it was restarted, the batches that notice it fail, and the backend
        loads it again. If a load fails, the model is unloaded. May be called before :meth:`start` and after
        :meth:`stop`.

        Raises:
            ValueError: the server has no such model; or a file of ``tls`` is invalid.
            OSError: a file of ``tls`` cannot be read.
            BackendError: the server cannot be reached, lets no client load models, or cannot load this one.
            DeadlineExceeded: the server does not respond, or not within ``load_timeout_s``.
        """
        await self._lifecycle.load()

    async def unload(self) -> None:
        """Make the server unload the model, in all its versions, and return when it has left memory.

        A `Device` that is short of memory calls this between batches; batches fail until :meth:`load`. Requests that
        the server has accepted end first. The parts of an ensemble are unloaded with it, unless they were loaded by
        name. May be called before :meth:`start` and after :meth:`stop`.

        Raises:
            ValueError, OSError: a file of ``tls`` is invalid, or cannot be read.
            BackendError: the server cannot be reached, or lets no client unload models.
            DeadlineExceeded: the server does not respond, or not within ``load_timeout_s``.
        """
        await self._lifecycle.control.unload()

    # -- requests -----------------------------------------------------------------------------------------------

    async def infer(self, batch: Batch) -> Sequence[Any]:
        """Return one result per row, or its error if each row is a request of its own.

        Raises:
            DeadlineExceeded: the deadline of the batch passed.
            Overloaded: the server's queue is full.
            InvalidInput: the server rejected a batch of one.
            BackendError: the server cannot be reached, failed, or returned something impossible.
            Closed: not started, or stopped.
            RuntimeError: another loop started it.
        """
        splitter, recorder = self._lifecycle.running(), self._recorder
        with splitter.session.calls, Busy(recorder), Counted(recorder, len(batch.rows)):
            return await splitter.infer(batch)

    def stream(self, request: Request) -> AsyncGenerator[Any, None]:
        """Yield the responses of a decoupled model as they come: ``async for outputs in backend.stream(request)``.

        The stream ends when the model says that nothing follows. Close it with ``contextlib.aclosing`` if the loop can
        end earlier: the request is then cancelled at once, not by the garbage collector. If the model has sequences,
        the request is a step of the sequence of its ``stream_id``; the sequence is lost if the loop ends earlier.

        Args:
            request: its inputs have no batch axis.

        Yields:
            One array where the model has one output, or a mapping of output name to array.

        Raises:
            InvalidInput: wrong inputs, or the server rejected it.
            DeadlineExceeded: its deadline passed; without one, nothing came for ``timeout_s``.
            BackendError: the server cannot be reached, failed, or returned something impossible; or it speaks HTTP.
            Closed: not started, or stopped.
        """
        return self._lifecycle.running().stream(request)

    async def end_stream(self, stream_id: Hashable, inputs: Any = None, *, timeout_s: float | None = None) -> Any:
        """Run the last step of a stream, after its queued and running steps, and let the server forget its state.

        Args:
            stream_id: the stream's id in requests. Without ``inputs``, nothing is done for a stream without a sequence.
            inputs: the inputs of the last step; ``None``: zeros and empty text, for models that only need the end flag.
            timeout_s: seconds; ``None``: as for a batch without a deadline.

        Returns:
            The outputs of the last step (of its last response if the model is decoupled); ``None`` if there were none.

        Raises:
            RuntimeError: the model has no sequences.
            StreamInferError: as :meth:`infer`.
        """
        left_s = self._settings.timeout_s if timeout_s is None else check_duration("timeout_s", timeout_s)
        return await self._lifecycle.running().end_stream(stream_id, inputs, left_s)

    # -- statistics ---------------------------------------------------------------------------------------------

    async def read_statistics(self) -> ServerStatistics:
        """Read the server's statistics of the model now.

        Returns:
            Means over the requests of all clients of the model, since the backend first read them at its first start.

        Raises:
            RuntimeError: the server has no statistics.
            StreamInferError: the server did not respond.
        """
        return await self._lifecycle.reader.read(self._lifecycle.running())

    def statistics(self) -> TritonStatistics:
        """Return the backend's counters, and the server's as last read."""
        workers = 1 if self.description is None else self.description.instances
        return self._lifecycle.reader.statistics(self._recorder, workers)

    def server_parts(self) -> Mapping[str, float]:
        """Return :meth:`TritonStatistics.parts`, with the names of model and server in the keys, for `Telemetry`."""
        where = f"{self.model} on {self.address}"
        return {f"{part}, {where}": mean_s for part, mean_s in self.statistics().parts().items()}

    def _update_description(self, session: Session) -> None:
        """Publish a session's description of the model, also while a stop drains the session."""
        self.server = session.server
        description = self.description = session.model
        self._set_version(description.version)
        self.inputs, self.outputs = description.inputs, description.outputs
        self.batch_axes = session.signature.batch_axes
        self.max_batch_size = None if description.by_row else description.max_batch_size

    def _set_version(self, version: str) -> None:
        self._served_version = version
        mark = version or f"unknown {uuid.uuid4().hex}"
        fingerprint = f"triton {self._settings.protocol}://{self.address} {self.model} {mark}"
        self._fingerprint_changes += fingerprint != self.fingerprint
        self.fingerprint = fingerprint

    async def _infer_uncounted(self, batch: Batch) -> Sequence[Any]:
        splitter = self._lifecycle.running()
        with splitter.session.calls:
            return await splitter.infer(batch)

    def __repr__(self) -> str:
        inputs, outputs = (", ".join(map(str, specs)) for specs in (self.inputs, self.outputs))
        read = f": {inputs} → {outputs}" if inputs else ", not started yet"
        version = f"{self._served_version} " if self._served_version else ""
        return f"TritonBackend({self.model} {version}on {self.address}{read})"

    def _repr_html_(self) -> str:
        rows = [
            (kind, spec.name, describe_shape(spec.dtype, spec.row_shape))
            for kind, specs in (("input", self.inputs), ("output", self.outputs))
            for spec in specs
        ]
        caption = f"TritonBackend: {self.model} {self._served_version} on {self.address}, {self._settings.protocol}"
        return html_table(rows, head=("", "name", "type of one request"), caption=caption)
