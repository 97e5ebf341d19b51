"""Layers that act before and after each request without awaiting, so that they need no coroutine of their own."""

import inspect
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

from streaminfer._internal.validation import check_instance, expected
from streaminfer.capabilities import Capabilities
from streaminfer.protocols import Clock, Node, Service, Wrapper, is_service, join_fingerprints
from streaminfer.request import Request, Response

__all__ = ["SyncLayer", "SyncService"]


class SyncService(Wrapper, ABC):
    """A service around another one that acts before and after each request without awaiting.

    A `Stack` joins consecutive services of this kind and calls them in one coroutine: :meth:`enter` of each in order,
    then the inner service, then :meth:`exit` in reverse order. For each ``enter`` that returned, the stack calls
    ``exit`` exactly once, also if the request is cancelled.

    Args:
        inner: the inner service.
        layer: the primitive that made this service.

    Attributes:
        sees_invalid: it is entered before the `Stack` validates the request, if this is true of all layers around it.
    """

    sees_invalid: ClassVar[bool] = False

    def __init__(self, inner: Service, layer: Any = None) -> None:
        super().__init__(inner, layer)
        self._call: Callable[[Request], Awaitable[Response]] = inner.call

    @property
    @abstractmethod
    def clock(self) -> Clock:
        """Clock of the instants for ``enter`` and ``exit``. One that differs from the `Stack`'s costs a coroutine."""

    @abstractmethod
    def enter(self, request: Request, now_ns: int) -> Any:
        """Act before a request.

        Args:
            request: the request.
            now_ns: the present instant.

        Returns:
            A token for :meth:`exit`.

        Raises:
            StreamInferError: the request is rejected; :meth:`exit` is not called.
        """

    @abstractmethod
    def exit(
        self, request: Request, token: Any, outcome: Response | BaseException, now_ns: int
    ) -> Response | BaseException | None:
        """Act after a request.

        Args:
            request: the request.
            token: what :meth:`enter` returned.
            outcome: the response, or the error with which the request ended.
            now_ns: the present instant.

        Returns:
            The outcome that replaces this one for the outer layers and the caller; ``None``: it is not replaced.
        """

    async def call(self, request: Request) -> Response:
        """Serve one request without a `Stack`.

        Raises:
            StreamInferError: the error of the inner service or of :meth:`enter`.
        """
        token = self.enter(request, self.clock())
        try:
            response = await self._call(request)
        except BaseException as error:
            changed = self.exit(request, token, error, self.clock())
            if changed is None or changed is error:
                raise
        else:
            changed = self.exit(request, token, response, self.clock())
            if changed is None:
                return response
        if isinstance(changed, BaseException):
            raise changed
        return changed


class SyncLayer(Node):
    """Base class for layers of your own that act before and after each request: override :meth:`exit`, or both.

    ::

        class Signature(SyncLayer):
            def exit(self, request, token, outcome, now_ns):
                if isinstance(outcome, Response):
                    return Response({**outcome.outputs, "signed_by": "me"}, source=outcome.source)

    Attributes:
        clock: clock of the instants for ``enter`` and ``exit``: the `Stack`'s.
        fingerprint: names how the layer changes responses, for the keys of outer caches; empty: it changes none.
            ``None``: unknown if it overrides :meth:`exit`, else it changes none.
    """

    clock: Clock = staticmethod(time.monotonic_ns)
    fingerprint: str | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        """Reject an ``enter`` or ``exit`` that is a coroutine function, because it would never be awaited.

        Raises:
            TypeError: it is one.
        """
        super().__init_subclass__(**options)
        for name, method in {"enter": cls.enter, "exit": cls.exit}.items():
            if inspect.iscoroutinefunction(method):
                expectation = "a plain function (a layer that awaits has wrap(inner), which returns a service)"
                raise TypeError(expected(f"{cls.__name__}.{name}", expectation, method))

    def wrap(self, inner: Service) -> SyncService:
        """Put the layer around a service.

        Raises:
            TypeError: ``inner`` is not a service.
        """
        check_instance("inner", inner, is_service, "a service (an object with call)")
        return _LayeredService(inner, self)

    def bind_clock(self, clock: Clock) -> None:
        """Use the clock of a `Stack`."""
        self.clock = clock

    def enter(self, request: Request, now_ns: int) -> Any:  # noqa: ARG002 - for subclasses
        """Act before a request; as :meth:`SyncService.enter`."""
        return None

    def exit(
        self,
        request: Request,  # noqa: ARG002 - for subclasses
        token: Any,  # noqa: ARG002
        outcome: Response | BaseException,  # noqa: ARG002
        now_ns: int,  # noqa: ARG002
    ) -> Response | BaseException | None:
        """Act after a request; as :meth:`SyncService.exit`."""
        return None


class _LayeredService(SyncService):
    """A service with a `SyncLayer` around it."""

    layer: SyncLayer

    def capabilities(self) -> Capabilities:
        """Return what the inner object offers, with the joint fingerprint of layer and inner object."""
        offered = super().capabilities()
        own = "" if type(self.layer).exit is SyncLayer.exit else self.layer.fingerprint
        return offered._replace(fingerprint=join_fingerprints(own, offered.fingerprint))

    @property
    def clock(self) -> Clock:
        return self.layer.clock

    @property
    def enter(self) -> Any:  # a property, so that a request calls the layer's method directly
        return self.layer.enter

    @property
    def exit(self) -> Any:
        return self.layer.exit
