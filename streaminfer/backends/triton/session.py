"""One start of a backend: a connection, what the server said of the model, and the way of one batch there and back.

**Versions.** Where no version was asked for, a call names none either: the server chooses, so that no call can name one
that was unloaded meanwhile. Each answer says which version it is of. At the first answer of another one the server is
asked again what the model is, and the answer is read by that. An answer to a call that was sent before such a change
says nothing of what the server chooses now: it is read by the description of its own version, and changes nothing.
"""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from streaminfer.backends.signature import NonFinite, TensorSpec
from streaminfer.backends.triton.decode import decode_rows
from streaminfer.backends.triton.dtypes import TEXT, is_text
from streaminfer.backends.triton.errors import ServerError, without_input
from streaminfer.backends.triton.messages import InferRequest, InferResponse, SharedMemoryRef, Tensor, Transport
from streaminfer.backends.triton.model import ModelDescription, Server, describe_model, latest_version
from streaminfer.backends.triton.request_validation import RequestValidator
from streaminfer.backends.triton.sequences import Sequences
from streaminfer.backends.triton.shared_memory import Region, RegionPool, required_bytes
from streaminfer.errors import BackendError, InvalidInput

__all__ = ["Session"]

_UNKNOWN_REGION = ("unable to find shared memory region", "unable to find system shared memory region")

Arrays = Mapping[str, npt.NDArray[Any]]
Parameters = Mapping[str, int | bool | str]


class InFlightCounter:
    """Counts what is at work, and lets others wait until nothing is: ``with hands: ...``."""

    __slots__ = ("_count", "_none")

    def __init__(self) -> None:
        self._count = 0
        self._none = asyncio.Event()
        self._none.set()

    def __enter__(self) -> None:
        self._count += 1
        self._none.clear()

    def __exit__(self, *_: object) -> None:
        self._count -= 1
        if not self._count:
            self._none.set()

    async def until_none(self) -> None:
        """Returns when nothing is at work."""
        while self._count:
            await self._none.wait()


class Session:
    """From a start of the backend to its stop; belongs to the loop that made it.

    Args:
        transport: to the server; closed with the session.
        server: what it said of itself.
        model: what it said of the model.
        version: the one that calls name; empty: the server chooses.
        changed: called when the server says something else of the model.
        non_finite: of the check of requests.
        max_streams: how many sequences are remembered.
        shared_memory: tensors go through shared memory.
        timeout_s: seconds for a question to the server that belongs to no request.
        clock: monotonic nanoseconds.

    Attributes:
        model: what the server says of the model now.
        check: of requests, by that.
        sequences: those of the model, where it has any.
        changes: how often the server has said something else of the model.
        calls: what somebody awaits.
        streams: those that have not ended; between two answers nobody awaits one.
        round_trips: calls that were answered.
        round_trip_ns: what they took, together.
    """

    def __init__(
        self,
        transport: Transport,
        server: Server,
        model: ModelDescription,
        *,
        version: str,
        changed: Callable[[], None],
        non_finite: NonFinite,
        max_streams: int,
        shared_memory: bool,
        timeout_s: float,
        clock: Callable[[], int],
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.transport = transport
        self.server = server
        self._version = version
        self._changed = changed
        self._non_finite: NonFinite = non_finite
        self._max_streams = max_streams
        self._describing = asyncio.Lock()
        self._earlier: dict[str, ModelDescription] = {}
        self._manner: tuple[str, float] | None = None
        self.sequences: Sequences | None = None
        self.changes = 0
        self._set_model(model)
        self.pool: RegionPool | None = None
        self._timeout_s = timeout_s
        if shared_memory:
            self.pool = RegionPool(self._register, self._unregister, registered=self._registered)
        self._clock = clock
        self.calls = InFlightCounter()
        self.streams = InFlightCounter()
        self.round_trips = 0
        self.round_trip_ns = 0

    async def ask(
        self, arrays: Arrays, rows: int, parameters: Parameters, timeout_s: float, *, batched: bool
    ) -> list[Any]:
        """Asks the model once.

        Args:
            arrays: by input.
            rows: how many there are.
            parameters: of the request.
            timeout_s: seconds after which nobody wants the answer.
            batched: the arrays have the batch axis.

        Returns:
            One result per row.

        Raises:
            ServerError: the server or the way to it said no.
            InvalidInput: the arrays are not of the types that the model reads now.
            BackendError: the answer is not what the model answers.
        """
        changes = self.changes
        started_ns = self._clock()
        inputs = [self._tensor(name, array) for name, array in arrays.items()]
        if self.pool is None:
            answer = await self.transport.infer(
                InferRequest(self.model.name, self._version, inputs, parameters=parameters), timeout_s
            )
        else:
            answer = await self._ask_shared(self.pool, inputs, rows if batched else None, parameters, timeout_s)
        results = await self.read(answer, rows, changes, batched=batched)
        self.round_trips += 1
        self.round_trip_ns += self._clock() - started_ns
        return results

    async def read(self, answer: InferResponse, rows: int, changes: int, *, batched: bool) -> list[Any]:
        """One result per row of an answer, read by the description of the version that gave it.

        Args:
            answer: what came.
            rows: how many were asked.
            changes: how many there had been when the call was sent.
            batched: the outputs have the batch axis.

        Raises:
            BackendError, DeadlineExceeded: the answer is not what the model answers; or it is of another version, and
                the server does not say what that is.
        """
        model = self.model
        if not self._version and answer.version not in {"", model.version}:
            if changes == self.changes or answer.version not in self._earlier:
                await self.describe_again(self.changes, answer.version)
            model = self._earlier.get(answer.version, self.model)
        return decode_rows(model, answer, rows, batched=batched)

    async def describe_again(self, changes: int, version: str = "") -> None:
        """Asks the server what the model is now, once for all calls that see a change.

        Args:
            changes: how many the caller knows; where there were more, nothing is done.
            version: the one that answers now; empty: the one that the server names.

        Raises:
            BackendError, DeadlineExceeded: it does not say.
        """
        async with self._describing:
            if changes != self.changes:
                return
            model = await describe_model(self.transport, self.server, self.model.name, self._version, self._timeout_s)
            if version:  # the server may have gone on to the next one meanwhile, whose answer will say so
                model = attrs.evolve(model, version=version)
            self._earlier[self.model.version] = self.model
            self._earlier.pop(model.version, None)
            self._set_model(model)
            self.changes += 1
            self._changed()

    async def look(self) -> None:
        """Asks which version the server chooses now, for those whose requests are not sent to it: a cache answers them.

        Raises:
            BackendError, DeadlineExceeded: the server does not say, or not what that version is.
        """
        changes = self.changes
        if self._version:
            return
        try:
            version = await latest_version(self.transport, self.model.name, self._timeout_s)
        except ServerError as refused:
            raise without_input(refused, "asking the server for its version") from refused.__cause__
        if version not in {"", self.model.version}:
            await self.describe_again(changes)

    def _set_model(self, model: ModelDescription) -> None:
        """Takes over what the server says; streams keep their sequences where the model still has such."""
        self.model = model
        self.check = RequestValidator(model, self._non_finite)
        self._text = frozenset(spec.name for spec in model.inputs if spec.dtype == TEXT)
        self._inputs = {spec.name: spec for spec in model.inputs}
        self._outputs = {spec.name: spec for spec in model.outputs}
        manner = (model.correlation, model.sequence_idle_s) if model.sequence else None
        if manner is None:
            self.sequences = None
        elif self.sequences is None or manner != self._manner:
            self.sequences = Sequences(*manner, self._max_streams)
        self._manner = manner

    def call(self, arrays: Arrays, parameters: Parameters) -> InferRequest:
        """What is sent for arrays without shared memory."""
        inputs = [self._tensor(name, array) for name, array in arrays.items()]
        return InferRequest(self.model.name, self._version, inputs, parameters=parameters)

    async def statistics(self) -> Sequence[Mapping[str, Any]]:
        """The server's counters of the model, by version.

        Raises:
            ServerError: it does not say.
        """
        return await self.transport.statistics(self.model.name, self._version, self._timeout_s)

    async def prepare(self) -> None:
        """Makes sure that the server can map shared memory, where that is wanted, and frees what others left there.

        Raises:
            BackendError: it cannot: it has another ``/dev/shm``, for one.
            DeadlineExceeded: it does not answer.
        """
        if self.pool is None:
            return
        await self.pool.start()
        region = await self.pool.acquire(1)
        if region is not None:
            self.pool.release(region, answered=True)

    async def close(self) -> None:
        """Forgets the shared memory and ends the connections, whatever fails on the way."""
        try:
            if self.pool is not None:
                await self.pool.close()
        finally:
            await self.transport.close()

    def _tensor(self, name: str, array: npt.NDArray[Any]) -> Tensor:
        spec = self._inputs.get(name)
        came = array.dtype if array.dtype.isnative else array.dtype.newbyteorder("=")
        if spec is None or not (is_text(array) if spec.dtype == TEXT else came == spec.dtype):
            # checked by what the model read before it was replaced; as bytes of another type it would be misread
            what = "none" if spec is None else f"type {spec.dtype}"
            raise InvalidInput(f"model {self.model.name!r}: input {name!r}: expected {what}, got {array.dtype}")
        if not array.flags.c_contiguous or not array.dtype.isnative:
            array = np.ascontiguousarray(array, came)
        return Tensor(name, self.model.datatypes[name], array.shape, array)

    # -- shared memory ------------------------------------------------------------------------------------------

    async def _ask_shared(
        self, pool: RegionPool, inputs: Sequence[Tensor], rows: int | None, parameters: Parameters, timeout_s: float
    ) -> InferResponse:
        """Through one region: inputs at its start, outputs whose size is known behind them.

        To make the server map memory is a part of the request's time.
        """
        end_s = self.loop.time() + timeout_s
        model, outputs_of = self.model, self._outputs
        arrays = {tensor.name: tensor.content for tensor in inputs if tensor.name not in self._text}
        sizes = {spec.name: size for spec in model.outputs if (size := _size_of(spec, rows)) is not None}
        needed = required_bytes([*(array.nbytes for array in arrays.values()), *sizes.values()])
        region = None
        if needed:
            async with _mapped_by(end_s):
                region = await pool.acquire(needed)
        if region is None:
            return await self.transport.infer(
                InferRequest(model.name, self._version, inputs, parameters=parameters), timeout_s
            )
        answered = False
        try:
            places = region.write(arrays)
            room = region.reserve(sizes)
            call = InferRequest(
                model.name,
                self._version,
                [
                    tensor._replace(content=_shared(region.name, places[tensor.name]))
                    if tensor.name in places
                    else tensor
                    for tensor in inputs
                ],
                {
                    spec.name: _shared(region.name, room[spec.name]) if spec.name in room else None
                    for spec in model.outputs
                },
                parameters,
            )
            try:
                answer = await self.transport.infer(call, end_s - self.loop.time())
            except ServerError as refused:
                answered = refused.status == "INVALID_ARGUMENT"
                if not any(words in refused.text.lower() for words in _UNKNOWN_REGION):
                    raise
                answered = False
                async with _mapped_by(end_s):
                    await pool.reregister(region)
                answer = await self.transport.infer(call, end_s - self.loop.time())
            answered = True
            outputs = {
                name: self._read_shared(region, room[name], outputs_of[name], tensor) if name in room else tensor
                for name, tensor in answer.outputs.items()
            }
        finally:
            pool.release(region, answered=answered)
        return answer._replace(outputs=outputs)

    def _read_shared(self, region: Region, place: tuple[int, int], spec: TensorSpec, tensor: Tensor) -> Tensor:
        """An output with its content from the place that it was given; the server does not say that it is there."""
        offset, size = place
        dtype = spec.dtype
        if dtype is None or min(tensor.shape, default=0) < 0 or math.prod(tensor.shape) * dtype.itemsize > size:
            raise BackendError(
                f"model {self.model.name!r}: output {tensor.name!r}: expected at most {size} bytes of shared memory, "
                f"got {tensor.datatype}{list(tensor.shape)}"
            )
        return tensor._replace(content=region.read(offset, dtype, tensor.shape))

    async def _register(self, name: str, key: str, byte_size: int) -> None:
        try:
            await self.transport.register(name, key, byte_size, self._timeout_s)
        except ServerError as refused:
            raise without_input(refused, "registering shared memory") from refused.__cause__

    async def _unregister(self, name: str) -> None:
        try:
            await self.transport.unregister(name, self._timeout_s)
        except ServerError as refused:
            raise without_input(refused, "unregistering shared memory") from refused.__cause__

    async def _registered(self) -> Sequence[str]:
        try:
            return await self.transport.registered(self._timeout_s)
        except ServerError as refused:
            raise without_input(refused, "asking for shared memory") from refused.__cause__


@contextlib.asynccontextmanager
async def _mapped_by(end_s: float) -> AsyncIterator[None]:
    """Around what makes the server map memory.

    Raises:
        ServerError: it was not done at this time of the loop.
    """
    try:
        async with asyncio.timeout_at(end_s):
            yield
    except TimeoutError as error:
        raise ServerError("DEADLINE_EXCEEDED", "the server did not map shared memory in time") from error


def _shared(region: str, place: tuple[int, int]) -> SharedMemoryRef:
    return SharedMemoryRef(region, *place)


def _size_of(spec: TensorSpec, rows: int | None) -> int | None:
    """How many bytes an output has; ``None``: that depends on what is asked."""
    sizes = [size for size in spec.row_shape if isinstance(size, int)]
    if spec.dtype is None or spec.dtype == TEXT or len(sizes) < len(spec.row_shape):
        return None
    return math.prod(sizes) * spec.dtype.itemsize * (1 if rows is None else rows)
