# cython: embedsignature=False, binding=True
# Cython embeds the signature of a constructor with its `*` one argument too late
"""What travels: one request, its answer, and when each part of the work happened.

One source, compiled by Cython with the C types of ``_request_cy.pxd``, or run as it is. These objects are made once a
request, so they are slotted, validated once, where they are made, and never changed afterwards (the compiled
build enforces it; the plain one trusts).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

from streaminfer._internal.validation import expected
from streaminfer.errors import InvalidInput

__all__ = ["Request", "Response", "Timings", "check_priority", "make_request", "make_response", "with_deadline"]

_FIELDS = ("inputs", "deadline_ns", "priority", "stream_id", "tenant", "subject", "tags", "key", "store")


class Request:
    """One request for one answer; it never carries a batch axis.

    Args:
        inputs: what the model reads: one array, or a mapping of input name to array.
        deadline_ns: monotonic instant after which an answer is worthless; ``None``: the `Stack` stamps it from the
            batcher's ``slo_s``; ``2**63 - 1``, which is ``streaminfer.request.NEVER_NS``: it has none.
        priority: a lower number is more urgent; requests of one priority are served in order of arrival.
        stream_id: the live stream it belongs to; such a request is never answered from a cache.
        tenant: on whose behalf; part of every cache key.
        subject: the person whose data it carries; what a cache keeps of it can be erased by this name.
        tags: labels, for erasing cached answers by tag.
        key: cache key, instead of one made from the contents.
        store: whether an answer may be kept.

    Raises:
        InvalidInput: a field of the wrong type.
    """

    __slots__ = (
        "__weakref__",
        "deadline_ns",
        "inputs",
        "key",
        "priority",
        "store",
        "stream_id",
        "subject",
        "tags",
        "tenant",
    )

    def __init__(
        self,
        inputs: Any,
        *,
        deadline_ns: int | None = None,
        priority: int = 0,
        stream_id: Hashable = None,
        tenant: str | None = None,
        subject: str | None = None,
        tags: Iterable[str] = (),
        key: Hashable = None,
        store: bool = True,
    ) -> None:
        self._fill(inputs, deadline_ns, priority, stream_id, tenant, subject, tags, key, store)

    def _fill(
        self,
        inputs: Any,
        deadline_ns: int | None,
        priority: int,
        stream_id: Hashable,
        tenant: str | None,
        subject: str | None,
        tags: Iterable[str],
        key: Hashable,
        store: bool,
    ) -> None:
        if deadline_ns is not None and (type(deadline_ns) is not int or not -(2**63) <= deadline_ns < 2**63):
            raise InvalidInput(
                expected("deadline_ns", "a monotonic instant in whole nanoseconds, of 64 bits, or None", deadline_ns)
            )
        if type(priority) is not int or priority != 0:
            check_priority(priority)
        if type(tags) is not tuple or len(tags) > 0:
            tags = _checked_tags(tags)
        if tenant is not None and not isinstance(tenant, str):
            raise InvalidInput(expected("tenant", "a string or None", tenant))
        if subject is not None and not isinstance(subject, str):
            raise InvalidInput(expected("subject", "a string or None", subject))
        if stream_id is not None or key is not None:
            _check_hashable("stream_id", stream_id)
            _check_hashable("key", key)
        if store is not True and store is not False:
            raise InvalidInput(expected("store", "True or False", store))
        self.inputs = inputs
        self.deadline_ns = deadline_ns
        self.priority = priority
        self.stream_id = stream_id
        self.tenant = tenant
        self.subject = subject
        self.tags = tags
        self.key = key
        self.store = store

    def replace(self, **changes: Any) -> Request:
        """A copy with some fields changed; layers never change a request, another route may still need it."""
        fields: dict[str, Any] = {name: getattr(self, name) for name in _FIELDS}
        fields.update(changes)
        return Request(fields.pop("inputs"), **fields)

    def __reduce__(self) -> tuple[Any, ...]:
        # Cython's own pickle of a class is none that the plain build can read, and the other way round
        return make_request, tuple([getattr(self, name) for name in _FIELDS])

    def __repr__(self) -> str:
        parts = [_brief(self.inputs)]
        if self.deadline_ns is not None:
            parts.append(f"deadline_ns={self.deadline_ns}")
        if self.priority:
            parts.append(f"priority={self.priority}")
        for name in ("stream_id", "tenant", "subject", "key"):
            value = getattr(self, name)
            if value is not None:
                parts.append(f"{name}={value!r}")
        if self.tags:
            parts.append(f"tags={self.tags!r}")
        if not self.store:
            parts.append("store=False")
        return f"Request({', '.join(parts)})"


class Timings:
    """When the parts of one answer happened: monotonic instants in nanoseconds, and the parts in seconds.

    A batcher fills it; the last part, handing back, ends where the reader's own clock says.

    Attributes:
        enqueued_ns: the request was accepted.
        started_ns: its batch was released to a worker.
        assembled_ns: the batch's inputs stood together.
        inferred_ns: the model had answered.
        batch_size: how many requests shared the batch.
    """

    __slots__ = ("assembled_ns", "batch_size", "enqueued_ns", "inferred_ns", "started_ns")

    def __init__(
        self,
        enqueued_ns: int,
        started_ns: int = 0,
        assembled_ns: int = 0,
        inferred_ns: int = 0,
        batch_size: int = 0,
    ) -> None:
        self.enqueued_ns = enqueued_ns
        self.started_ns = started_ns
        self.assembled_ns = assembled_ns
        self.inferred_ns = inferred_ns
        self.batch_size = batch_size

    @property
    def queued_s(self) -> float:
        """Seconds it waited for a worker and for company."""
        return (self.started_ns - self.enqueued_ns) / 1e9

    @property
    def assembled_s(self) -> float:
        """Seconds from its batch's release until the inputs stood together, waiting for a thread included."""
        return (self.assembled_ns - self.started_ns) / 1e9

    @property
    def inferred_s(self) -> float:
        """Seconds the model took for the batch."""
        return (self.inferred_ns - self.assembled_ns) / 1e9

    def __reduce__(self) -> tuple[Any, ...]:
        return Timings, (self.enqueued_ns, self.started_ns, self.assembled_ns, self.inferred_ns, self.batch_size)

    def __repr__(self) -> str:
        return (
            f"Timings(queued_s={self.queued_s:.6f}, assembled_s={self.assembled_s:.6f}, "
            f"inferred_s={self.inferred_s:.6f}, batch_size={self.batch_size})"
        )


class Response:
    """The answer to one request.

    Attributes:
        outputs: what the model answered for this request: one array, or a mapping of output name to array.
        degraded: a lesser answer than asked for (a fallback model, a stale entry).
        source: who answered: a route, a cache tier or a backend.
        timings: a :class:`Timings`, or ``None`` where no batcher took part.
    """

    __slots__ = ("__weakref__", "degraded", "outputs", "source", "timings")

    def __init__(self, outputs: Any, degraded: bool = False, source: str = "", timings: Timings | None = None) -> None:
        self.outputs = outputs
        self.degraded = degraded
        self.source = source
        self.timings = timings

    def __reduce__(self) -> tuple[Any, ...]:
        return Response, (self.outputs, self.degraded, self.source, self.timings)

    def __repr__(self) -> str:
        mark = ", degraded=True" if self.degraded else ""
        return f"Response({_brief(self.outputs)}, source={self.source!r}{mark}, timings={self.timings!r})"


def make_request(
    inputs: Any,
    deadline_ns: int | None,
    priority: int,
    stream_id: Hashable,
    tenant: str | None,
    subject: str | None,
    tags: Iterable[str],
    key: Hashable,
    store: bool,
) -> Request:
    """Return a `Request`; for compiled callers, which need no keywords here and so build no dictionary of them."""
    request = Request.__new__(Request)
    request._fill(inputs, deadline_ns, priority, stream_id, tenant, subject, tags, key, store)
    return request


def with_deadline(request: Request, deadline_ns: int | None) -> Request:
    """Return a copy with another deadline; for compiled callers, as a stack does it for most requests."""
    return make_request(
        request.inputs,
        deadline_ns,
        request.priority,
        request.stream_id,
        request.tenant,
        request.subject,
        request.tags,
        request.key,
        request.store,
    )


def make_response(outputs: Any, source: str, timings: Timings | None) -> Response:
    """Return the `Response` of a batcher; for compiled callers."""
    response = Response.__new__(Response)
    response.outputs = outputs
    response.degraded = False
    response.source = source
    response.timings = timings
    return response


def check_priority(priority: Any) -> None:
    """A whole number of 32 bits.

    Raises:
        InvalidInput: it is none.
    """
    if not isinstance(priority, int) or isinstance(priority, bool) or not -(2**31) <= priority < 2**31:
        raise InvalidInput(expected("priority", "a whole number of 32 bits, lower is more urgent", priority))


def _checked_tags(tags: Any) -> tuple[str, ...]:
    if isinstance(tags, str) or not isinstance(tags, Iterable):
        raise InvalidInput(expected("tags", "a sequence of strings", tags))
    checked = tuple(tags)
    for tag in checked:
        if not isinstance(tag, str):
            raise InvalidInput(expected("tags", "a sequence of strings", tags))
    return checked


def _check_hashable(name: str, value: object) -> None:
    try:
        hash(value)
    except TypeError:
        raise InvalidInput(expected(name, "a hashable value or None", value)) from None


def _brief(value: object, depth: int = 3) -> str:
    if isinstance(value, dict):
        if not depth:
            return "{...}"  # it may be in itself
        return "{" + ", ".join([f"{name}: {_brief(item, depth - 1)}" for name, item in value.items()]) + "}"
    shape = getattr(value, "shape", None)
    dtype = getattr(value, "dtype", None)
    if shape is not None and dtype is not None:
        return f"{dtype}{list(shape)}"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
