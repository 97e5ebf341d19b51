"""One start of a backend: a connection, the model's description, and the path of one batch.

**Versions.** If the user names no version, calls name none either: the server chooses, so that no call can name a
version that was unloaded meanwhile. Each response has its version. At the first response of another version the
session reads the model's description again, and decodes the response by it. A response to a call that was sent before
such a change may be older: it is decoded by the description of its own version, and changes nothing.
"""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextvars import Context
from typing import Any, Self

import attrs
import numpy as np
import numpy.typing as npt

from streaminfer.backends.signature import TEXT, Signature, TensorSpec, zeros
from streaminfer.backends.triton.decode import decode_rows
from streaminfer.backends.triton.dtypes import dtype_of, is_text
from streaminfer.backends.triton.errors import ServerError, explained
from streaminfer.backends.triton.messages import InferRequest, InferResponse, SharedMemoryRef, Tensor
from streaminfer.backends.triton.model import ModelDescription, Server, describe_model, describe_server, latest_version
from streaminfer.backends.triton.sequences import LostSequences, Sequences
from streaminfer.backends.triton.settings import Settings, Transport
from streaminfer.backends.triton.shared_memory.region import Region, required_bytes
from streaminfer.backends.triton.shared_memory.region_pool import RegionPool
from streaminfer.errors import InvalidInput, StreamInferError

__all__ = ["CallCounts", "Session"]

_IDLE_S = 1.0  # Triton's default for how long it keeps an idle sequence
_UNKNOWN_REGION = ("unable to find shared memory region", "unable to find system shared memory region")

Arrays = Mapping[str, npt.NDArray[Any]]
Parameters = Mapping[str, int | bool | str]


@attrs.define
class CallCounts:
    """Counters of a backend's calls, over all its starts.

    Attributes:
        split: batches that were rejected and sent again in halves.
        round_trips: completed calls.
        round_trip_ns: total duration of the completed calls.
    """

    split: int = 0
    round_trips: int = 0
    round_trip_ns: int = 0

    def add_round_trip(self, duration_ns: int) -> None:
        """Count a completed call."""
        self.round_trips += 1
        self.round_trip_ns += duration_ns


class InFlightCounter:
    """Counts the calls in flight: ``with counter: ...``."""

    def __init__(self) -> None:
        self._count = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def __enter__(self) -> None:
        self._count += 1
        self._idle.clear()

    def __exit__(self, *_: object) -> None:
        self._count -= 1
        if not self._count:
            self._idle.set()

    async def wait_idle(self) -> None:
        """Wait until no call is in flight."""
        while self._count:
            await self._idle.wait()


class Session:
    """State of the backend from a start to its stop; belongs to the event loop that created it.

    Args:
        transport: the connection to the server; closed with the session.
        server: the server's description.
        model: the model's description.
        settings: settings of the backend.
        changed: called with this session when the model's description changes.
        counts: counters of its calls.

    Attributes:
        model: the model's current description.
        signature: checks requests against that description; of text, the shape only.
        sequences: the model's sequences; ``None`` if it has none.
        changes: how often the description has changed.
        calls: calls that a caller awaits, without streams of responses.
        stream_reads: reads of the next response of a stream that a caller awaits.
        streams: streams that have not ended; between two responses no caller awaits them.
    """

    def __init__(
        self,
        transport: Transport,
        server: Server,
        model: ModelDescription,
        settings: Settings,
        changed: Callable[["Session"], None],
        counts: CallCounts,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.transport = transport
        self.server = server
        self._settings = settings
        self._version = settings.version
        self._changed = changed
        self._describing: asyncio.Task[None] | None = None
        self._descriptions: dict[str, ModelDescription] = {}
        self.sequences: Sequences | None = None
        self._lost_sequences: LostSequences | None = None
        self.changes = 0
        self.pool: RegionPool | None = None
        if settings.shared_memory:
            self.pool = RegionPool(self._register, self._unregister, self._registered)
        self.calls = InFlightCounter()
        self.stream_reads = InFlightCounter()
        self.streams = InFlightCounter()
        self.counts = counts
        self._set_model(model)  # last, because it may create a task

    @classmethod
    async def open(cls, settings: Settings, changed: Callable[["Session"], None], counts: CallCounts) -> Self:
        """Read the model's description from the server and return a session; close everything on a failure.

        The arguments are those of the constructor.

        Raises:
            ValueError: the server has no such model or version, or cannot share memory.
            BackendError, DeadlineExceeded: the server or the model cannot be used, or does not respond.
        """
        transport = settings.connect()
        opened: Transport | Self = transport
        try:
            server, model = await describe_server(transport, settings)
            transport.binary = "binary_tensor_data" in server.extensions
            if settings.shared_memory:
                server.check_shared_memory()
            session = opened = cls(transport, server, model, settings, changed, counts)
            # raises if the server cannot map memory (it has another /dev/shm), and frees what ended processes left
            if session.pool is not None and (region := await session.pool.acquire(1)) is not None:
                session.pool.release(region, completed=True)
        except BaseException:
            await opened.close()
            raise
        return session

    async def infer(self, arrays: Arrays, rows: int, parameters: Parameters, timeout_s: float) -> list[Any]:
        """Run the model once.

        Args:
            arrays: the inputs, by name, with a batch axis.
            rows: number of rows.
            parameters: parameters of the request.
            timeout_s: seconds after which the response is late.

        Returns:
            One result per row.

        Raises:
            ServerError: the server or the connection failed.
            InvalidInput: an array does not have the type that the model currently reads.
            BackendError: the response does not match the model's description.
        """
        changes, batched = self.changes, self.model.has_batch_axis
        started_ns, end_s = self._settings.clock(), self.loop.time() + timeout_s
        call = self.call(arrays, parameters)
        if self.pool is None:
            response = await self.transport.infer(call, timeout_s)
        else:
            response = await self._infer_shared(self.pool, call, rows if batched else None, end_s)
        results = await self.read(response, rows, changes, batched=batched, end_s=end_s)
        self.counts.add_round_trip(self._settings.clock() - started_ns)
        return results

    async def read(
        self, response: InferResponse, rows: int, changes: int, *, batched: bool, end_s: float | None = None
    ) -> list[Any]:
        """Return one result per row of a response, decoded by the description of its version.

        Args:
            response: the server's response.
            rows: number of rows of the request.
            changes: :attr:`changes` when the call was sent.
            batched: whether the outputs have the batch axis.
            end_s: the loop's time after which the results are late; ``None``: they are never late.

        Raises:
            BackendError, DeadlineExceeded: the response does not match the model's description; or it is of another
                version, and the server does not describe that version.
            ServerError: the server did not describe it in time.
        """
        model = self.model
        if not self._version and response.version not in {"", model.version}:
            if changes == self.changes or response.version not in self._descriptions:
                async with _time_limit(end_s, "describe its new version"):
                    await self.refresh_model(self.changes, response.version)
            model = self._descriptions.get(response.version, self.model)
        return decode_rows(model, response, rows, batched=batched)

    async def refresh_model(self, changes: int, version: str = "") -> None:
        """Read the model's description again, once for all calls that see a change.

        The reading continues after its callers have left, so that it ends even if each caller's deadline is too short.

        Args:
            changes: :attr:`changes` as the caller knows it; if the number has changed, nothing is done.
            version: the version that responds now; empty: the one that the server names.

        Raises:
            BackendError, DeadlineExceeded: the server does not describe the model.
        """
        if changes != self.changes:
            return
        if self._describing is None:
            self._describing = self.loop.create_task(self._describe(version), context=Context())
            self._describing.add_done_callback(self._described)
        await asyncio.shield(self._describing)

    async def _describe(self, version: str) -> None:
        model = await describe_model(self.transport, self.server, self._settings)
        if version:  # the server may have a newer version already; the first response of that version will show it
            model = attrs.evolve(model, version=version)
        self._descriptions[self.model.version] = self.model
        self._descriptions.pop(model.version, None)
        self._set_model(model)
        self.changes += 1
        self._changed(self)

    def _described(self, describing: asyncio.Task[None]) -> None:
        self._describing = None
        if not describing.cancelled():
            describing.exception()  # retrieved, because all callers may have left

    async def check_version(self) -> None:
        """Read which version the server chooses now, because a cache may serve all requests.

        Raises:
            BackendError, DeadlineExceeded: the server does not name the version, or does not describe it.
        """
        changes = self.changes
        if self._version:
            return
        with explained("reading the server's version"):
            version = await latest_version(self.transport, self._settings)
        if version not in {"", self.model.version}:
            await self.refresh_model(changes)

    def _set_model(self, model: ModelDescription) -> None:
        """Set the model's description; streams keep their sequences if the model still has sequences."""
        self.model = model
        self.signature = Signature(
            model.inputs, model.outputs, non_finite=self._settings.non_finite, text_fits=lambda _: True
        )
        self._inputs = {spec.name: spec for spec in model.inputs}
        if not model.sequence:
            self.sequences = None
        elif self.sequences is not None:
            self.sequences.update(model.correlation, model.sequence_idle_s)
        else:
            if self._lost_sequences is None:
                self._lost_sequences = LostSequences(self._end_sequence)
            self.sequences = Sequences(
                model.correlation, model.sequence_idle_s, self._settings.max_streams, self._lost_sequences.add
            )

    def call(self, arrays: Arrays, parameters: Parameters) -> InferRequest:
        """Return the request for arrays with a batch axis, without shared memory."""
        batched = self.model.has_batch_axis
        # without the axis, scalars stay arrays
        inputs = [self._tensor(name, array if batched else array[0, ...]) for name, array in arrays.items()]
        return InferRequest(self.model.name, self._version, inputs, parameters=parameters)

    async def _end_sequence(self, correlation: int | str) -> None:
        """Send the last step of a lost sequence, with zeros and empty text, which lets the server forget it."""
        model = self.model
        arrays = {spec.name: zeros(spec)[np.newaxis] for spec in model.inputs}
        parameters = {"sequence_id": correlation, "sequence_start": False, "sequence_end": True}
        timeout_s = min(self._settings.timeout_s, model.sequence_idle_s or _IDLE_S)
        # after an error the server does not know the sequence, or forgets it once it was idle for long enough
        with contextlib.suppress(ServerError, StreamInferError):
            call = self.call(arrays, parameters)
            if not model.decoupled:
                await self.transport.infer(call, timeout_s)
                return
            async with contextlib.aclosing(self.transport.stream(call, timeout_s)) as responses:
                async for _ in responses:
                    pass

    async def statistics(self) -> Sequence[Mapping[str, Any]]:
        """Return the server's counters of the model, by version.

        Raises:
            ServerError: the server has no statistics.
        """
        return await self.transport.statistics(self.model.name, self._version, self._settings.timeout_s)

    async def close(self) -> None:
        """Free the shared memory and end the connections, even if one of the steps fails."""
        try:
            if self._lost_sequences is not None:
                await self._lost_sequences.stop()
            if self.pool is not None:
                await self.pool.close()
        finally:
            await self.transport.close()
            if self._describing is not None:  # its call ended with the connections
                await asyncio.wait([self._describing])

    def _tensor(self, name: str, array: npt.NDArray[Any]) -> Tensor:
        spec = self._inputs.get(name)
        dtype = array.dtype if array.dtype.isnative else array.dtype.newbyteorder("=")
        if spec is None or not (is_text(array) if spec.dtype == TEXT else dtype == spec.dtype):
            # the description has changed since the validation; sent as another type, the bytes would be misread
            expectation = "none" if spec is None else f"type {spec.dtype}"
            raise InvalidInput(f"model {self.model.name!r}: input {name!r}: expected {expectation}, got {array.dtype}")
        if not array.flags.c_contiguous or not array.dtype.isnative:
            array = np.ascontiguousarray(array, dtype)
        return Tensor(name, self.model.datatypes[name], array.shape, array)

    # -- shared memory ------------------------------------------------------------------------------------------

    async def _infer_shared(
        self, pool: RegionPool, call: InferRequest, rows: int | None, end_s: float
    ) -> InferResponse:
        """Run through a region of shared memory; once more if a restarted server does not know it.

        The time in which the server maps memory is part of the request's time.
        """
        try:
            return await self._infer_in_region(pool, call, rows, end_s)
        except ServerError as failure:
            if not failure.says(_UNKNOWN_REGION):
                raise
        pool.retire_all()
        return await self._infer_in_region(pool, call, rows, end_s)

    async def _infer_in_region(
        self, pool: RegionPool, call: InferRequest, rows: int | None, end_s: float
    ) -> InferResponse:
        """Run with the inputs at the start of a region, followed by outputs of known size."""
        model = self.model
        arrays = {  # the server accepts no tensor of zero bytes
            tensor.name: tensor.content
            for tensor in call.inputs
            if tensor.datatype != "BYTES" and tensor.content.nbytes
        }
        sizes = {spec.name: size for spec in model.outputs if (size := _size_of(spec, rows))}
        needed = required_bytes([*(array.nbytes for array in arrays.values()), *sizes.values()])
        region = None
        if needed:
            async with _time_limit(end_s, "map shared memory"):
                region = await pool.acquire(needed)
        if region is None:
            return await self.transport.infer(call, end_s - self.loop.time())
        completed = False
        try:
            written = {name: SharedMemoryRef(region.name, *place) for name, place in region.write(arrays).items()}
            reserved = {name: SharedMemoryRef(region.name, *place) for name, place in region.reserve(sizes).items()}
            call = call._replace(
                inputs=[tensor._replace(content=written.get(tensor.name, tensor.content)) for tensor in call.inputs],
                outputs={spec.name: reserved.get(spec.name) for spec in model.outputs},
            )
            try:
                response = await self.transport.infer(call, end_s - self.loop.time())
            except ServerError as failure:
                completed = failure.status == "INVALID_ARGUMENT"
                raise
            completed = True
            outputs = {
                name: _read_shared(region, reserved[name], tensor) if name in reserved else tensor
                for name, tensor in response.outputs.items()
            }
        finally:
            pool.release(region, completed=completed)
        return response._replace(outputs=outputs)

    async def _register(self, name: str, key: str, byte_size: int) -> None:
        with explained("registering shared memory"):
            await self.transport.register(name, key, byte_size, self._settings.timeout_s)

    async def _unregister(self, name: str) -> None:
        with explained("unregistering shared memory"):
            await self.transport.unregister(name, self._settings.timeout_s)

    async def _registered(self) -> Sequence[str]:
        with explained("listing shared memory"):
            return await self.transport.registered(self._settings.timeout_s)


@contextlib.asynccontextmanager
async def _time_limit(end_s: float | None, action: str) -> AsyncIterator[None]:
    """Limit the time in which the server does something.

    Raises:
        ServerError: the server did not finish before this time of the loop.
    """
    try:
        async with asyncio.timeout_at(end_s):
            yield
    except TimeoutError as error:
        raise ServerError("DEADLINE_EXCEEDED", f"the server did not {action} in time") from error


def _read_shared(region: Region, place: SharedMemoryRef, tensor: Tensor) -> Tensor:
    """Return an output with its content from shared memory, at the place that the request named.

    Raises:
        ServerError: the output has an unexpected type, or is larger than its place.
    """
    dtype = dtype_of(tensor.datatype)  # the type in the response, which may be of a newer version than the description
    smallest = min(tensor.shape, default=0)
    if dtype is None or dtype == TEXT or smallest < 0 or math.prod(tensor.shape) * dtype.itemsize > place.byte_size:
        raise ServerError(
            "INTERNAL",
            f"output {tensor.name!r}: expected at most {place.byte_size} bytes of shared memory, got "
            f"{tensor.datatype}{list(tensor.shape)}",
        )
    return tensor._replace(content=region.read(place.offset, dtype, tensor.shape))


def _size_of(spec: TensorSpec, rows: int | None) -> int | None:
    """Return the size of an output in bytes; ``None`` if it depends on the request, 0 if it has no elements."""
    sizes = [size for size in spec.row_shape if isinstance(size, int)]
    if spec.dtype is None or spec.dtype == TEXT or len(sizes) < len(spec.row_shape):
        return None
    return math.prod(sizes) * spec.dtype.itemsize * (1 if rows is None else rows)
