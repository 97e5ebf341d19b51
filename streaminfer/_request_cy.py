# cython: embedsignature=False, binding=True
# Cython embeds the signature of a constructor with its `*` one argument too late
"""One request, its response, and the times of the parts of its work.

One source: Cython compiles it with the C types of ``_request_cy.pxd``, or it runs uncompiled. These objects are created
for each request. They are therefore slotted, validated once at creation, and never changed afterwards; the compiled
build enforces that, the uncompiled one does not.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

from streaminfer._internal.validation import expected
from streaminfer.errors import InvalidInput

__all__ = ["Request", "Response", "Timings", "check_priority", "make_request", "make_response", "with_deadline"]

_FIELDS = ("inputs", "deadline_ns", "priority", "stream_id", "tenant", "subject", "tags", "key", "store")
_DEFAULTS = (None, 0, None, None, None, (), None, True)


class Request:
    """One request for one response; it never has a batch axis.

    Args:
        inputs: what the model reads: one array, or a mapping of input name to array.
        deadline_ns: monotonic instant after which a response is worthless; ``None``: the `Stack` sets it from the
            batcher's ``slo_s``; ``2**63 - 1`` (``streaminfer.request.NEVER_NS``): no deadline.
        priority: a lower number is more urgent; requests of one priority are served in order of arrival.
        stream_id: the live stream of the request; caches never serve a request that has one.
        tenant: the tenant that sends the request; part of every cache key.
        subject: the person whose data the request carries; caches can erase the responses that they store under it.
        tags: labels, for erasing cached responses by tag.
        key: cache key, instead of one made from the contents.
        store: whether caches may store the response.

    Raises:
        InvalidInput: a field has the wrong type.
    """

    __slots__ = ("__weakref__", *_FIELDS)

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
        """Return a copy with some fields changed; layers never change a request, because another route may need it."""
        fields: dict[str, Any] = {name: getattr(self, name) for name in _FIELDS}
        fields.update(changes)
        return Request(fields.pop("inputs"), **fields)

    def __reduce__(self) -> tuple[Any, ...]:
        # neither build can read the pickles that the other would make by default
        return make_request, tuple([getattr(self, name) for name in _FIELDS])

    def __repr__(self) -> str:
        parts = [_brief(self.inputs)]
        for name, default in zip(_FIELDS[1:], _DEFAULTS, strict=True):
            value = getattr(self, name)
            if value != default:
                parts.append(f"{name}={value!r}")
        return f"Request({', '.join(parts)})"


class Timings:
    """Instants of the parts of one request's work, monotonic nanoseconds, and the durations of the parts in seconds.

    A batcher fills it. The reader measures the last part, the delivery of the response, with a clock.

    Attributes:
        enqueued_ns: the batcher accepted the request.
        started_ns: the batcher released its batch to a worker.
        assembled_ns: the inputs of the batch were assembled.
        inferred_ns: the model returned the results.
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
        """Seconds in the queue, until its batch was released."""
        return (self.started_ns - self.enqueued_ns) / 1e9

    @property
    def assembled_s(self) -> float:
        """Seconds from the release of its batch until the inputs were assembled, including the wait for a thread."""
        return (self.assembled_ns - self.started_ns) / 1e9

    @property
    def inferred_s(self) -> float:
        """Seconds that the model took for the batch."""
        return (self.inferred_ns - self.assembled_ns) / 1e9

    def __reduce__(self) -> tuple[Any, ...]:
        return Timings, (self.enqueued_ns, self.started_ns, self.assembled_ns, self.inferred_ns, self.batch_size)

    def __repr__(self) -> str:
        return (
            f"Timings(queued_s={self.queued_s:.6f}, assembled_s={self.assembled_s:.6f}, "
            f"inferred_s={self.inferred_s:.6f}, batch_size={self.batch_size})"
        )


class Response:
    """The response to one request.

    Attributes:
        outputs: what the model returned for this request: one array, or a mapping of output name to array.
        degraded: the response has a lower quality than requested (a fallback model, a stale entry).
        source: name of the route, cache tier or backend that it came from.
        timings: a :class:`Timings`, or ``None`` if no batcher took part.
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
    """Return a `Request`; positional arguments, so that compiled callers build no dictionary of keywords."""
    request = Request.__new__(Request)
    request._fill(inputs, deadline_ns, priority, stream_id, tenant, subject, tags, key, store)
    return request


def with_deadline(request: Request, deadline_ns: int | None) -> Request:
    """Return a copy with another deadline; for compiled callers, because a stack does this for most requests."""
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
    """Check that a priority is a whole number of 32 bits.

    Raises:
        InvalidInput: it is not.
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
            return "{...}"  # a mapping may contain itself
        return "{" + ", ".join([f"{name}: {_brief(item, depth - 1)}" for name, item in value.items()]) + "}"
    shape = getattr(value, "shape", None)
    dtype = getattr(value, "dtype", None)
    if shape is not None and dtype is not None:
        return f"{dtype}{list(shape)}"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
