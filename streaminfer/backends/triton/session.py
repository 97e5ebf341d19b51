"""One start of a backend: a connection, what the server said at its beginning, and the way of one batch there and back.

What the server is asked at start: its extensions, whether the model is there and ready, what it reads and answers, and
its configuration. A peer of the protocol that lacks one of Triton's extensions is used without it
(:func:`missing_of`), unless what lacks was asked for.
"""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from streaminfer.backends._signature import TensorSpec
from streaminfer.backends.triton.answer import read_rows
from streaminfer.backends.triton.call import Answer, Call, Shared, Tensor, Transport
from streaminfer.backends.triton.check import RequestCheck
from streaminfer.backends.triton.dtypes import TEXT
from streaminfer.backends.triton.errors import Refused, without_input
from streaminfer.backends.triton.model import ModelDescription, latest, read_model
from streaminfer.backends.triton.sequences import Sequences
from streaminfer.backends.triton.shared_memory import Region, RegionPool, required_bytes
from streaminfer.errors import BackendError

__all__ = ["Server", "Session", "describe_server"]

EXTENSIONS = (
    "model_configuration",
    "sequence",
    "statistics",
    "system_shared_memory",
    "schedule_policy",
    "binary_tensor_data",
)
"""Of Triton, those that the backend makes use of."""

_UNKNOWN_REGION = ("unable to find shared memory region", "unable to find system shared memory region")
_NO_SUCH_MODEL = ("unknown model", "is not found", "not found")

Arrays = Mapping[str, npt.NDArray[Any]]
Parameters = Mapping[str, int | bool | str]


@attrs.frozen
class Server:
    """What a server says of itself.

    Attributes:
        name: it has.
        version: of its software.
        extensions: of the protocol that it knows.
    """

    name: str
    version: str
    extensions: frozenset[str]

    @property
    def missing_extensions(self) -> tuple[str, ...]:
        """Those that the backend could make use of and the server does not know."""
        return tuple(name for name in EXTENSIONS if name not in self.extensions)


async def describe_server(
    transport: Transport, model: str, version: str, timeout_s: float
) -> tuple[Server, ModelDescription]:
    """Asks a server about itself and a model.

    Args:
        transport: to the server.
        model: its name.
        version: its version; empty: the latest that the server has now.
        timeout_s: seconds for each question.

    Raises:
        ValueError: the server has no such model, or not in this version.
        DeadlineExceeded, BackendError: it does not answer, or the model is not ready, or cannot be used.
    """
    what = f"model {model!r}" + (f" version {version!r}" if version else "")
    try:
        said = await transport.server(timeout_s)
        server = Server(str(said.get("name", "")), str(said.get("version", "")), frozenset(said.get("extensions", ())))
        try:
            metadata = await transport.metadata(model, version, timeout_s)
        except Refused as refused:
            if refused.status in {"NOT_FOUND", "INVALID_ARGUMENT"}:
                raise await _unknown(transport, server, model, version, refused, timeout_s) from refused
            raise
        version = version or latest(metadata.get("versions") or ())
        if not await transport.ready(model, version, timeout_s):
            raise BackendError(f"{what} is not ready: the server loads it, or could not")
        config = None
        if "model_configuration" in server.extensions:
            config = await transport.config(model, version, timeout_s)
    except Refused as refused:
        raise without_input(refused, f"asking the server about {what}") from refused.__cause__
    return server, read_model(model, version, metadata, config)


async def _unknown(
    transport: Transport, server: Server, model: str, version: str, refused: Refused, timeout_s: float
) -> ValueError | BackendError:
    """Says which models and versions there are instead."""
    known: list[str] = []
    if "model_repository" in server.extensions:
        try:
            for one in await transport.index(timeout_s):
                state = str(one.get("state", ""))
                number = str(one.get("version", ""))
                if one.get("name") == model and state not in {"READY", ""} and (not version or number == version):
                    return BackendError(f"model {model!r} is not ready: {state} {one.get('reason', '')}".rstrip())
                if state == "READY":
                    known.append(f"{one.get('name')!r} {number}")
        except Refused as without:
            known = [f"(its list cannot be read: {without.text})"]
    if "no available versions" in refused.text.lower():
        return BackendError(f"model {model!r} is not ready: {refused.text}")
    argument, value = ("version", version) if version else ("model", model)
    there = f"; it has {', '.join(known)}" if known else ""
    return ValueError(
        f"{argument}: expected {f'a version of model {model!r}' if version else 'a model'} of the server, got {value!r}"
        f"{there} ({refused.text})"
    )


class Hands:
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
        check: of requests.
        max_streams: how many sequences are remembered.
        shared_memory: tensors go through shared memory.
        timeout_s: seconds for a question to the server that belongs to no request.
        clock: monotonic nanoseconds.

    Attributes:
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
        check: RequestCheck,
        *,
        max_streams: int,
        shared_memory: bool,
        timeout_s: float,
        clock: Callable[[], int],
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.transport = transport
        self.server = server
        self.model = model
        self.check = check
        self.sequences = Sequences(model.correlation, model.sequence_idle_s, max_streams) if model.sequence else None
        self.pool: RegionPool | None = None
        self._timeout_s = timeout_s
        if shared_memory:
            self.pool = RegionPool(self._register, self._unregister, registered=self._registered)
        self._clock = clock
        self._text = frozenset(spec.name for spec in model.inputs if spec.dtype == TEXT)
        self._outputs = {spec.name: spec for spec in model.outputs}
        self.calls = Hands()
        self.streams = Hands()
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
            Refused: the server or the way to it said no.
            BackendError: the answer is not what the model answers.
        """
        model = self.model
        started_ns = self._clock()
        inputs = [self._tensor(name, array) for name, array in arrays.items()]
        if self.pool is None:
            answer = await self.transport.infer(
                Call(model.name, model.version, inputs, parameters=parameters), timeout_s
            )
        else:
            answer = await self._ask_shared(self.pool, inputs, rows if batched else None, parameters, timeout_s)
        results = read_rows(model, answer, rows, batched=batched)
        self.round_trips += 1
        self.round_trip_ns += self._clock() - started_ns
        return results

    def call(self, arrays: Arrays, parameters: Parameters) -> Call:
        """What is sent for arrays without shared memory."""
        inputs = [self._tensor(name, array) for name, array in arrays.items()]
        return Call(self.model.name, self.model.version, inputs, parameters=parameters)

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
        if not array.flags.c_contiguous or not array.dtype.isnative:
            array = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
        return Tensor(name, self.model.datatypes[name], array.shape, array)

    # -- shared memory ------------------------------------------------------------------------------------------

    async def _ask_shared(
        self, pool: RegionPool, inputs: Sequence[Tensor], rows: int | None, parameters: Parameters, timeout_s: float
    ) -> Answer:
        """Through one region: inputs at its start, outputs whose size is known behind them.

        To make the server map memory is a part of the request's time.
        """
        end_s = self.loop.time() + timeout_s
        model = self.model
        arrays = {tensor.name: tensor.content for tensor in inputs if tensor.name not in self._text}
        sizes = {spec.name: size for spec in model.outputs if (size := _size_of(spec, rows)) is not None}
        needed = required_bytes([*(array.nbytes for array in arrays.values()), *sizes.values()])
        region = None
        if needed:
            async with _mapped_by(end_s):
                region = await pool.acquire(needed)
        if region is None:
            return await self.transport.infer(Call(model.name, model.version, inputs, parameters=parameters), timeout_s)
        answered = False
        try:
            places = region.write(arrays)
            room = region.reserve(sizes)
            call = Call(
                model.name,
                model.version,
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
            except Refused as refused:
                answered = refused.status == "INVALID_ARGUMENT"
                if not any(words in refused.text.lower() for words in _UNKNOWN_REGION):
                    raise
                answered = False
                async with _mapped_by(end_s):
                    await pool.reregister(region)
                answer = await self.transport.infer(call, end_s - self.loop.time())
            answered = True
            outputs = {name: self._read_shared(region, room, tensor) for name, tensor in answer.outputs.items()}
        finally:
            pool.release(region, answered=answered)
        return answer._replace(outputs=outputs)

    def _read_shared(self, region: Region, room: Mapping[str, tuple[int, int]], tensor: Tensor) -> Tensor:
        """An output with its content, wherever that is; the server does not say which are in shared memory."""
        if tensor.name not in room:
            return tensor
        offset, size = room[tensor.name]
        dtype = self._outputs[tensor.name].dtype
        if dtype is None or min(tensor.shape, default=0) < 0 or math.prod(tensor.shape) * dtype.itemsize > size:
            raise BackendError(
                f"model {self.model.name!r}: output {tensor.name!r}: expected at most {size} bytes of shared memory, "
                f"got {tensor.datatype}{list(tensor.shape)}"
            )
        return tensor._replace(content=region.read(offset, dtype, tensor.shape))

    async def _register(self, name: str, key: str, byte_size: int) -> None:
        try:
            await self.transport.register(name, key, byte_size, self._timeout_s)
        except Refused as refused:
            raise without_input(refused, "registering shared memory") from refused.__cause__

    async def _unregister(self, name: str) -> None:
        try:
            await self.transport.unregister(name, self._timeout_s)
        except Refused as refused:
            raise without_input(refused, "unregistering shared memory") from refused.__cause__

    async def _registered(self) -> Sequence[str]:
        try:
            return await self.transport.registered(self._timeout_s)
        except Refused as refused:
            raise without_input(refused, "asking for shared memory") from refused.__cause__


@contextlib.asynccontextmanager
async def _mapped_by(end_s: float) -> AsyncIterator[None]:
    """Around what makes the server map memory.

    Raises:
        Refused: it was not done at this time of the loop.
    """
    try:
        async with asyncio.timeout_at(end_s):
            yield
    except TimeoutError as error:
        raise Refused("DEADLINE_EXCEEDED", "the server did not map shared memory in time") from error


def _shared(region: str, place: tuple[int, int]) -> Shared:
    return Shared(region, *place)


def _size_of(spec: TensorSpec, rows: int | None) -> int | None:
    """How many bytes an output has; ``None``: that depends on what is asked."""
    sizes = [size for size in spec.row_shape if isinstance(size, int)]
    if spec.dtype is None or spec.dtype == TEXT or len(sizes) < len(spec.row_shape):
        return None
    return math.prod(sizes) * spec.dtype.itemsize * (1 if rows is None else rows)
