"""Writer of Perfetto traces: tracks with slices, instants, flows and counters, as protobuf.

*Design.* A trace is a sequence of ``TracePacket`` messages, for https://ui.perfetto.dev and its trace processor. Names
are interned: each name is written once and then referred to by a number. A trace has hundreds of thousands of instants
and counters, which differ in a few numbers only. NumPy writes them as rows of one byte matrix; varints are padded to
the length of the longest, which protobuf allows. Slices differ in length, so they are written one by one.

*Order.* The reader sorts by time and keeps the order of the file among equal instants. An end event closes the slice
that began last. The end of a slice is therefore written before the next begin of its track, which may be at the same
instant.

*Complexity.* O(n), about 30 ns for an instant and 4 µs for a slice with its annotations.

*References.* https://perfetto.dev/docs/reference/synthetic-track-event and ``protos/perfetto/trace/`` in its source.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streaminfer._internal._protobuf_cy import ProtobufWriter

__all__ = ["TraceBuilder"]

_SEQUENCE = 1  # sequence id of all packets; any number except 0
_SLICE_BEGIN, _SLICE_END, _INSTANT, _COUNTER = 1, 2, 3, 4
_COUNT = 2  # the unit of counters
_Bytes = NDArray[np.uint8]
"""Bytes with one row per event, shape (n, length), or the same for all events, shape (1, length)."""


class _Packet:
    """Fields of ``TracePacket`` and of the messages inside it."""

    PACKET = 1
    TIMESTAMP, SEQUENCE_ID, TRACK_EVENT, INTERNED_DATA, SEQUENCE_FLAGS, TRACK_DESCRIPTOR = 8, 10, 11, 12, 13, 60
    TYPE, NAME_IID, TRACK_UUID, COUNTER_VALUE, DOUBLE_COUNTER_VALUE, FLOW_IDS, ANNOTATIONS = 9, 10, 11, 30, 44, 47, 4
    UUID, NAME, PROCESS, PARENT_UUID, COUNTER, ORDERING, RANK = 1, 2, 3, 5, 8, 11, 12
    PID, PROCESS_NAME, UNIT = 1, 6, 3
    EVENT_NAMES, ANNOTATION_NAMES, IID, INTERNED_NAME = 2, 3, 1, 2
    ANNOTATION_NAME_IID, ANNOTATION_BOOL, ANNOTATION_UINT, ANNOTATION_DOUBLE = 1, 2, 3, 5


class TraceBuilder:
    """A trace under construction; ``bytes(builder)`` is the file.

    Args:
        process: name of the process that the tracks belong to.
        names: names of all events.
        annotations: names of all annotations.
    """

    def __init__(self, process: str, names: Sequence[str], annotations: Sequence[str] = ()) -> None:
        self._parts: list[bytes] = []
        self._packets = ProtobufWriter()  # packets after `_parts`
        self._names = {name: number for number, name in enumerate(dict.fromkeys(names), 1)}
        self._annotations = {name: number for number, name in enumerate(annotations, 1)}
        self._tracks = 1  # the process is the first
        self._describe(process)

    def add_track(self, name: str, *, is_counter: bool = False) -> int:
        """Add a track below the earlier ones, and return its number."""
        self._tracks += 1
        descriptor = ProtobufWriter()
        descriptor.varint(_Packet.UUID, self._tracks)
        descriptor.text(_Packet.NAME, name)
        descriptor.varint(_Packet.PARENT_UUID, 1)
        descriptor.varint(_Packet.RANK, self._tracks)
        if is_counter:
            counter = ProtobufWriter()
            counter.varint(_Packet.UNIT, _COUNT)
            descriptor.message(_Packet.COUNTER, counter)
        packet = ProtobufWriter()
        packet.message(_Packet.TRACK_DESCRIPTOR, descriptor)
        self._add(packet)
        return self._tracks

    def add_slice(
        self,
        track: int,
        name: str,
        at_ns: int,
        end_ns: int | None,
        *,
        flows: Sequence[int] = (),
        annotations: Mapping[str, bool | float] | None = None,
    ) -> None:
        """Add a slice; it must not begin before the earlier slices of its track have ended.

        Args:
            track: number from :meth:`add_track`.
            name: one of the names.
            at_ns: start of the slice.
            end_ns: end of the slice; ``None``: it has not ended.
            flows: numbers of the arrows that end here; each begins at the instant with the same number.
            annotations: values shown when the slice is selected.
        """
        event = self._event(_SLICE_BEGIN, track, self._names[name])
        for flow in flows:
            event.fixed64(_Packet.FLOW_IDS, flow)
        annotation = ProtobufWriter()
        for label, value in (annotations or {}).items():
            annotation.clear()
            annotation.varint(_Packet.ANNOTATION_NAME_IID, self._annotations[label])
            if isinstance(value, bool):
                annotation.varint(_Packet.ANNOTATION_BOOL, value)
            elif isinstance(value, int):
                annotation.varint(_Packet.ANNOTATION_UINT, value)
            else:
                annotation.float64(_Packet.ANNOTATION_DOUBLE, value)
            event.message(_Packet.ANNOTATIONS, annotation)
        self._add_event(at_ns, event)
        if end_ns is not None:
            self._add_event(end_ns, self._event(_SLICE_END, track))

    def add_instants(
        self, track: int, names: Sequence[str], at_ns: ArrayLike, flows: NDArray[np.uint64] | None = None
    ) -> None:
        """Mark instants on a track.

        Args:
            track: number from :meth:`add_track`.
            names: one name for all instants, or one per instant.
            at_ns: shape (n,), the instants.
            flows: shape (n,), number of the arrow that begins at each instant; ``None``: no arrows.
        """
        numbers = np.array([self._names[name] for name in names], np.uint64)
        instants = np.asarray(at_ns)
        tail = [_varint(_Packet.NAME_IID << 3), _varints(np.broadcast_to(numbers, instants.shape))]
        if flows is not None:
            tail += [_varint(_Packet.FLOW_IDS << 3 | 1), _fixed(flows)]
        self._add_events(instants, self._event(_INSTANT, track), tail)

    def add_counts(self, track: int, at_ns: ArrayLike, values: ArrayLike) -> None:
        """Set a counter at instants, shape (n,), to integers ≥ 0 or to floating-point numbers, shape (n,)."""
        numbers = np.asarray(values)
        if numbers.dtype.kind == "f":
            tail = [_varint(_Packet.DOUBLE_COUNTER_VALUE << 3 | 1), _fixed(numbers.astype("<f8"))]
        else:
            tail = [_varint(_Packet.COUNTER_VALUE << 3), _varints(numbers)]
        self._add_events(np.asarray(at_ns), self._event(_COUNTER, track), tail)

    def __bytes__(self) -> bytes:
        self._flush()
        return b"".join(self._parts)

    def _describe(self, process: str) -> None:
        process_descriptor = ProtobufWriter()
        process_descriptor.varint(_Packet.PID, 1)
        process_descriptor.text(_Packet.PROCESS_NAME, process)
        descriptor = ProtobufWriter()
        descriptor.varint(_Packet.UUID, 1)
        descriptor.message(_Packet.PROCESS, process_descriptor)
        descriptor.varint(_Packet.ORDERING, 3)  # order children by rank
        interned = ProtobufWriter()
        for field, names in ((_Packet.EVENT_NAMES, self._names), (_Packet.ANNOTATION_NAMES, self._annotations)):
            for name, number in names.items():
                entry = ProtobufWriter()
                entry.varint(_Packet.IID, number)
                entry.text(_Packet.INTERNED_NAME, name)
                interned.message(field, entry)
        packet = ProtobufWriter()
        packet.message(_Packet.TRACK_DESCRIPTOR, descriptor)
        packet.message(_Packet.INTERNED_DATA, interned)
        self._add(packet, flags=1)  # flag 1: names are defined from here on

    def _event(self, kind: int, track: int, name: int = 0) -> ProtobufWriter:
        event = ProtobufWriter()
        event.varint(_Packet.TYPE, kind)
        event.varint(_Packet.TRACK_UUID, track)
        if name:
            event.varint(_Packet.NAME_IID, name)
        return event

    def _add_event(self, at_ns: int, event: ProtobufWriter) -> None:
        packet = ProtobufWriter()
        packet.varint(_Packet.TIMESTAMP, at_ns)
        packet.message(_Packet.TRACK_EVENT, event)
        self._add(packet)

    def _add(self, packet: ProtobufWriter, flags: int = 2) -> None:
        packet.varint(_Packet.SEQUENCE_ID, _SEQUENCE)
        packet.varint(_Packet.SEQUENCE_FLAGS, flags)
        self._packets.message(_Packet.PACKET, packet)

    def _flush(self) -> None:
        self._parts.append(bytes(self._packets))
        self._packets.clear()

    def _add_events(self, at_ns: NDArray[Any], event: ProtobufWriter, tail: Sequence[_Bytes]) -> None:
        """Write events that differ only in their instants and in the fields at their end."""
        sequence = ProtobufWriter()
        sequence.varint(_Packet.SEQUENCE_ID, _SEQUENCE)
        sequence.varint(_Packet.SEQUENCE_FLAGS, 2)
        message = _message(_Packet.TRACK_EVENT, [_constant(event), *tail])
        packet = [_varint(_Packet.TIMESTAMP << 3), _varints(at_ns), _constant(sequence), *message]
        groups = itertools.groupby(_message(_Packet.PACKET, packet), len)  # parts with equal row counts
        joined = [np.hstack(list(pieces)) for _, pieces in groups]
        rows = [np.broadcast_to(it, (at_ns.size, it.shape[1])) for it in joined]
        self._flush()
        self._parts.append(np.concatenate(rows, axis=1).tobytes())


def _message(field: int, content: Sequence[_Bytes]) -> list[_Bytes]:
    """Return a message with its tag and its length in front."""
    return [_varint(field << 3 | 2), _varint(sum(it.shape[1] for it in content)), *content]


def _constant(writer: ProtobufWriter) -> _Bytes:
    return np.frombuffer(bytes(writer), np.uint8)[np.newaxis]


def _varint(number: int) -> _Bytes:
    return _varints(np.array([number]))


def _fixed(values: NDArray[np.generic]) -> _Bytes:
    return np.ascontiguousarray(values).view(np.uint8).reshape(-1, 8)


def _varints(values: NDArray[np.generic]) -> _Bytes:
    """Return numbers ≥ 0 as varints, all as long as that of the largest number, shape (n, length)."""
    width = max(-(-int(values.max(initial=0)).bit_length() // 7), 1)
    groups = values.astype(np.uint64)[:, None] >> np.arange(0, 7 * width, 7, dtype=np.uint64)
    encoded = (groups & np.uint64(0x7F)).astype(np.uint8)
    encoded[:, :-1] |= 0x80
    return encoded
