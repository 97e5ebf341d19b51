"""A gRPC client with little cost beside the server that it measures: it repeats the same unary request.

It speaks the part of HTTP/2 that such a request needs, through one connection, like a channel of gRPC. The client
announces an empty header table, so the header of a request has the same bytes each time, and so have the status lines
of responses. A client of ``grpc.aio`` takes as much of a core as a server in Python, and its queue adds milliseconds.
"""

import asyncio
import struct
from typing import Any, Self

__all__ = ["GrpcClient"]

TIMEOUT_S = 30.0
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM = ACK = 1
END_HEADERS = 4
CANCEL = 8
HEADER_TABLE_SIZE, ENABLE_PUSH, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 1, 2, 4, 5
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
MAX_WINDOW, FIRST_WINDOW = 2**31 - 1, 65_535
RENEW_BYTES = 1 << 24  # received before the window of the connection is opened again
POST, SCHEME_HTTP = b"\x83", b"\x86"  # entries of the static table
STATUS_OK = b"\x0bgrpc-status\x010"
"""Name and value of a header, each after its length; no server writes this header in Huffman's code."""


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return a frame of HTTP/2."""
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """Return a header that the server adds to no table."""
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


class GrpcClient:
    """Client that repeats one request through one connection; a context manager.

    Args:
        url: ``host:port``.
        path: path of the method, ``/service/method``.
        message: message of the request.
    """

    def __init__(self, url: str, path: str, message: bytes) -> None:
        host, _, port = url.partition(":")
        self._address = host, int(port)
        headers = {b":path": path.encode(), b":authority": url.encode(), b"te": b"trailers",
                   b"content-type": b"application/grpc", b"grpc-timeout": b"%dS" % TIMEOUT_S}  # fmt: skip
        self._head = POST + SCHEME_HTTP + b"".join(literal(name, value) for name, value in headers.items())
        self._message = struct.pack(">BI", 0, len(message)) + message
        self._connection: Any = None

    async def call(self, _: int) -> None:
        """Send the request and wait for its response.

        Raises:
            OSError: no response came in time, its status is not OK, or the connection ended.
        """
        await self._connection.exchange(self._head, self._message)

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        _, self._connection = await loop.create_connection(_Connection, *self._address)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._connection.transport.abort()


class _Upload:
    """Rest of a message, and the number of its bytes that the server accepts at the moment."""

    __slots__ = ("left", "stream", "window")

    def __init__(self, stream: int, message: bytes, window: int) -> None:
        self.stream = stream
        self.left = memoryview(message)
        self.window = window


class _Connection(asyncio.Protocol):
    transport: Any

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._received = bytearray()
        self._responses: dict[int, asyncio.Future[None]] = {}
        self._uploads: dict[int, _Upload] = {}
        self._next_stream = 1
        self._window = self._first_window = FIRST_WINDOW
        self._max_frame = 16_384
        self._taken = 0  # bytes of data since the window was opened

    async def exchange(self, head: bytes, message: bytes) -> None:
        stream = self._next_stream
        self._next_stream += 2
        response = self._responses[stream] = self._loop.create_future()
        upload = self._uploads[stream] = _Upload(stream, message, self._first_window)
        self._send([frame(HEADERS, END_HEADERS, stream, head)], upload)
        limit = self._loop.call_later(TIMEOUT_S, self._end, stream, f"no response in {TIMEOUT_S:.0f} s")
        try:
            await response
        except BaseException:  # tell the server to stop
            self.transport.write(frame(RST_STREAM, 0, stream, struct.pack(">I", CANCEL)))
            raise
        finally:
            limit.cancel()
            self._responses.pop(stream, None)
            self._uploads.pop(stream, None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        settings = ((HEADER_TABLE_SIZE, 0), (ENABLE_PUSH, 0), (INITIAL_WINDOW_SIZE, MAX_WINDOW))
        packed = b"".join(struct.pack(">HI", *setting) for setting in settings)
        opened = struct.pack(">I", MAX_WINDOW - FIRST_WINDOW)
        self.transport.write(PREFACE + frame(SETTINGS, 0, 0, packed) + frame(WINDOW_UPDATE, 0, 0, opened))

    def data_received(self, data: bytes) -> None:
        received, position = self._received, 0
        received += data
        while len(received) - position >= 9:
            size_and_kind, flags, stream = struct.unpack_from(">IBI", received, position)
            end = position + 9 + (size_and_kind >> 8)
            if end > len(received):
                break
            self._take(size_and_kind & 255, flags, stream & MAX_WINDOW, bytes(received[position + 9 : end]))
            position = end
        del received[:position]

    def connection_lost(self, error: Exception | None) -> None:
        for stream in list(self._responses):
            self._end(stream, f"the connection ended: {error}")

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == DATA:
            self._taken += len(payload)
            if self._taken >= RENEW_BYTES:
                self.transport.write(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", self._taken)))
                self._taken = 0
        elif kind == HEADERS and flags & END_STREAM:
            self._end(stream, None if STATUS_OK in payload else f"expected the status OK, got {payload!r}")
        elif kind == RST_STREAM:
            self._end(stream, f"the stream was reset: {payload.hex()}")
        elif kind == SETTINGS and not flags & ACK:
            self._set(payload)
        elif kind == PING and not flags & ACK:
            self.transport.write(frame(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE:
            self._open(stream, int.from_bytes(payload))
        elif kind == GOAWAY:
            self.transport.abort()

    def _set(self, payload: bytes) -> None:
        for name, value in struct.iter_unpack(">HI", payload):
            if name == MAX_FRAME_SIZE:
                self._max_frame = value
            elif name == INITIAL_WINDOW_SIZE:
                for upload in self._uploads.values():
                    upload.window += value - self._first_window
                self._first_window = value
        self.transport.write(frame(SETTINGS, ACK, 0, b""))
        self._send_waiting()

    def _open(self, stream: int, size: int) -> None:
        if not stream:
            self._window += size
        elif (upload := self._uploads.get(stream)) is not None:
            upload.window += size
        self._send_waiting()

    def _send_waiting(self) -> None:
        for upload in list(self._uploads.values()):
            self._send([], upload)

    def _send(self, frames: list[Any], upload: _Upload) -> None:
        """Send frames, and as much of a message as the server accepts at the moment."""
        while upload.left and (size := min(len(upload.left), self._max_frame, self._window, upload.window)) > 0:
            self._window -= size
            upload.window -= size
            part, upload.left = upload.left[:size], upload.left[size:]
            frames += [struct.pack(">IBI", size << 8 | DATA, 0 if upload.left else END_STREAM, upload.stream), part]
        if not upload.left:
            self._uploads.pop(upload.stream, None)
        if frames:
            self.transport.write(b"".join(frames))

    def _end(self, stream: int, reason: str | None) -> None:
        response = self._responses.get(stream)
        if response is None or response.done():
            return
        if reason is None:
            response.set_result(None)
        else:
            response.set_exception(ConnectionError(reason))
