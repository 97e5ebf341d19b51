"""Thread that reads and decodes one medium, and reconnects if necessary."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import attrs

from streaminfer._internal.error_log import Log
from streaminfer.errors import InvalidInput
from streaminfer.streams.frame import Frame
from streaminfer.streams.sources.conversion import FrameMaker
from streaminfer.streams.sources.formats import AudioFormat, VideoFormat
from streaminfer.streams.sources.handoff import Handoff
from streaminfer.streams.sources.location import Location, ffmpeg_errors
from streaminfer.streams.sources.reconnect import Backoff, Reconnect
from streaminfer.streams.sources.source import Clock, Counters
from streaminfer.streams.sources.timestamps import Pacer

__all__ = ["MediaThread"]

MAX_CORRUPT_IN_A_ROW = 100  # after more of them, the connection or the file is unusable
NO_PACKET_POLL_S = 0.004  # of a camera that does not block: an eighth of a frame
UNTIMED_FORMATS = frozenset({"mpjpeg", "mjpeg", "h264", "hevc", "image2pipe"})
"""Containers without timestamps: FFmpeg counts 25 frames a second, whatever the camera does."""

_log = Log("streaminfer.streams")


class MediaThread:
    """Feeder that decodes in a separate thread.

    Args:
        av: PyAV.
        location: what to open.
        target: what the model takes.
        realtime: play a file at the speed of its timestamps.
        reconnect: how a live source connects again; ``None``: it ends.
        timeout_s: seconds without a connection, or without a packet, after which the connection has failed.
        clock: returns monotonic nanoseconds.
    """

    def __init__(
        self,
        av: ModuleType,
        location: Location,
        target: VideoFormat | AudioFormat,
        *,
        realtime: bool,
        reconnect: Reconnect | None,
        timeout_s: float,
        clock: Clock,
    ) -> None:
        self.counters = Counters()
        self._av = av
        self._location = location
        self._timeout_s = timeout_s
        self._clock = clock
        self._kind = "video" if isinstance(target, VideoFormat) else "audio"
        self._stall_message = f"no {self._kind} for {timeout_s:g} s"
        self._maker = FrameMaker(av, target, self.counters, live=location.live, converts=True)
        self._pacer = Pacer() if realtime else None
        self._chunk_ns = target.chunk * 1_000_000_000 // target.sample_rate if isinstance(target, AudioFormat) else 0
        self._backoff = Backoff(reconnect) if reconnect is not None and location.live else None
        attempts = None if reconnect is None else reconnect.attempts
        self._attempts = "until it succeeds" if attempts is None else f"up to {attempts} times in a row"
        self._connections = 0
        self._thread: threading.Thread | None = None
        self._packet_ns = 0
        self._corrupt_in_a_row = 0
        self._logged_reason: str | None = None  # the failure that was logged since the last connection

    def start(self, handoff: Handoff) -> None:
        """Begin to read."""
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._closed = handoff.closed
        # a daemon: name look-ups of the system cannot be interrupted, and must not hold up the end of the process
        thread = threading.Thread(target=self._run, args=(handoff,), name=f"source {self._location.name}", daemon=True)
        thread.start()  # before the assignment: if this fails, there is no thread to wait for
        self._thread = thread

    async def stop(self) -> None:
        """Return when the thread has ended.

        FFmpeg ends each read after ``timeout_s``. Opening has two steps, each with this limit.
        """
        if self._thread is None:
            return
        try:
            async with asyncio.timeout(3 * self._timeout_s + 1.0):
                await self._ended.wait()
        except TimeoutError:
            _log.warning("source %s: its thread does not end; it will when the system returns", self._location.name)
        else:
            self._thread.join()

    def _run(self, handoff: Handoff) -> None:
        error: Exception | None = None
        try:
            with ffmpeg_errors(self._av):
                while (delay_s := self._play_once(handoff)) is not None:
                    if self._closed.wait(delay_s):
                        break
        except Exception as raised:  # noqa: BLE001 the reader gets it
            error = raised
        finally:
            handoff.finish(error)
            with contextlib.suppress(RuntimeError):  # the loop is closed: there is no reader
                self._loop.call_soon_threadsafe(self._ended.set)

    def _play_once(self, handoff: Handoff) -> float | None:
        """Play until the end; return how long to wait before the next connection, ``None`` for not at all."""
        backoff, counters = self._backoff, self.counters
        try:
            self._play(handoff)
            reason = "the stream ended"
        except (self._av.FFmpegError, OSError) as error:
            # a protocol, decoder or option that FFmpeg lacks is not there at the next attempt either
            if backoff is None or isinstance(error, self._av.error.LookupError):
                raise
            reason = f"{type(error).__name__}: {error.strerror or error}"
            counters.last_error = reason
            delay_ns = backoff.failed(self._clock())
            if delay_ns is None:
                raise
        else:
            delay_ns = backoff.failed(self._clock()) if backoff is not None else None
        finally:
            counters.connected = False
        if delay_ns is None or self._closed.is_set():
            return None
        if reason != self._logged_reason:
            self._logged_reason = reason
            _log.warning("source %s: %s; connects again %s", self._location.name, reason, self._attempts)
        return delay_ns / 1e9

    def _play(self, handoff: Handoff) -> None:
        try:
            self._open_and_read(handoff)
        except self._av.error.ExitError:
            raise TimeoutError(None, self._stall_message) from None
        except self._av.FFmpegError as error:
            error.args = (*error.args[:2], self._location.name)  # not the URL, which has the password
            raise

    def _open_and_read(self, handoff: Handoff) -> None:
        av, location, counters = self._av, self._location, self.counters
        timeout_s = None if location.local else self._timeout_s
        # PyAV 19 has no such argument
        errors = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
        with av.open(
            location.url, format=location.format, options=location.options, timeout=(timeout_s, timeout_s), **errors
        ) as container:
            streams = container.streams.video if self._kind == "video" else container.streams.audio
            if not streams:
                raise InvalidInput(f"source {location.name} has no {self._kind}")
            if location.live:
                streams[0].codec_context.thread_count = 1  # threads of a decoder hold back a frame each
            counters.connected = True
            self._logged_reason = None
            counters.reconnects += self._connections > 0
            self._connections += 1
            self._maker.repair.restart()
            timed = not (location.live and container.format.name in UNTIMED_FORMATS)
            try:
                for arrival_ns, packet in self._packets(container, streams[0]):
                    for frame in self._decode(packet):
                        made = self._maker.make(frame, frame.pts if timed else None, frame.time_base, arrival_ns)
                        if False in [self._put(handoff, one) for one in made]:  # each is counted
                            return
            finally:
                for chunk in self._maker.flush():
                    self._put(handoff, chunk)

    def _packets(self, container: Any, stream: Any) -> Iterator[tuple[int, Any]]:
        """Yield the packets of a stream with their arrival."""
        self._packet_ns = self._clock()
        self._corrupt_in_a_row = 0
        while not self._closed.is_set():
            try:
                yield from self._demux(container, stream)
            except self._av.error.InvalidDataError:
                self.counters.corrupt += 1
                self._corrupt_in_a_row += 1
                if self._corrupt_in_a_row > MAX_CORRUPT_IN_A_ROW:
                    raise
            except BlockingIOError:
                self._check_stall(self._clock())
                self._closed.wait(NO_PACKET_POLL_S)
            except IndexError:
                return  # PyAV raises this at the end of a container if streams were added meanwhile
            else:
                return

    def _demux(self, container: Any, stream: Any) -> Iterator[tuple[int, Any]]:
        for packet in container.demux():
            now_ns = self._clock()
            if packet.stream is stream:
                if self._backoff is not None:
                    self._backoff.connected(now_ns)
                self._corrupt_in_a_row = 0
                yield now_ns, packet
                self._packet_ns = self._clock()  # the reader may have been slow
            else:
                self._check_stall(now_ns)
            if self._closed.is_set():
                return

    def _check_stall(self, now_ns: int) -> None:
        """Raise if this stream stalls; FFmpeg's own time limit starts over with each packet of any stream."""
        if not self._location.local and now_ns - self._packet_ns > self._timeout_s * 1e9:
            raise TimeoutError(None, self._stall_message)

    def _decode(self, packet: Any) -> Iterator[Any]:
        try:
            frames = packet.decode()
        except self._av.FFmpegError:  # decoders have several for data that they cannot read
            self.counters.corrupt += 1
            return
        for frame in frames:
            if frame.is_corrupt:  # as behind a lost packet, or before the first key frame
                self.counters.corrupt += 1
            else:
                yield frame

    def _put(self, handoff: Handoff, frame: Frame) -> bool:
        """Put a frame into the handoff, when it is due; ``False``: the source was closed."""
        if self._pacer is not None and frame.position_s is not None:
            now_ns = self._clock()
            due_ns = self._pacer.due_ns(round(frame.position_s * 1e9) + self._chunk_ns, now_ns)
            if due_ns > now_ns:
                self._closed.wait((due_ns - now_ns) / 1e9)
            frame = attrs.evolve(frame, captured_ns=due_ns)
        return handoff.put(frame)
