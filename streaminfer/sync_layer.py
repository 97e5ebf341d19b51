"""Layers that act before and after each request and await nothing: they need no coroutine of their own."""

import inspect
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

from streaminfer._internal.validation import expected
from streaminfer.capabilities import Capabilities
from streaminfer.protocols import Clock, Node, Service, Wrapper, is_service, join_fingerprints
from streaminfer.request import Request, Response

__all__ = ["SyncLayer", "SyncService"]


class SyncService(Wrapper, ABC):
    """A service around another one that acts before and after each request and awaits nothing itself.

    A `Stack` joins those that follow one another and calls them in its own coroutine: :meth:`enter` in order, then what
    is behind them, then :meth:`exit` in reverse order. Each ``enter`` that returned is followed by exactly one
    ``exit``, also when the request is cancelled.

    Args:
        inner: the service behind.
        layer: the primitive that it belongs to.

    Attributes:
        sees_invalid: it is entered before the `Stack` validates the request; only if the layers around it are so too.
    """

    sees_invalid: ClassVar[bool] = False

    def __init__(self, inner: Service, layer: Any = None) -> None:
        super().__init__(inner, layer)
        self._call: Callable[[Request], Awaitable[Response]] = inner.call

    @property
    @abstractmethod
    def clock(self) -> Clock:
        """The clock of the instants that it is given. One that is not the `Stack`'s costs a coroutine per request."""

    @abstractmethod
    def enter(self, request: Request, now_ns: int) -> Any:
        """Act before a request.

        Args:
            request: what was sent.
            now_ns: the present instant.

        Returns:
            A token, which :meth:`exit` is given.

        Raises:
            StreamInferError: the request goes no further; :meth:`exit` is not called.
        """

    @abstractmethod
    def exit(
        self, request: Request, token: Any, outcome: Response | BaseException, now_ns: int
    ) -> Response | BaseException | None:
        """Act after a request.

        Args:
            request: what was sent.
            token: what :meth:`enter` returned.
            outcome: the response, or the error with which the request ended.
            now_ns: the present instant.

        Returns:
            What takes the place of the outcome for the layers around and the caller; ``None``: nothing does.
        """

    async def call(self, request: Request) -> Response:
        """Serve one request without a `Stack`.

        Raises:
            StreamInferError: as the service behind, or :meth:`enter`.
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
    """A layer of one's own that acts before and after each request: a subclass overrides :meth:`exit`, or both.

    ::

        class Signature(SyncLayer):
            def exit(self, request, token, outcome, now_ns):
                if isinstance(outcome, Response):
                    return Response({**outcome.outputs, "signed_by": "me"}, source=outcome.source)

    Attributes:
        clock: of the instants that it is given: the `Stack`'s.
        fingerprint: what it makes of responses, for keys of a cache around it; an empty one: it changes none. ``None``:
            not known, unless it has no :meth:`exit` of its own.
    """

    clock: Clock = staticmethod(time.monotonic_ns)
    fingerprint: str | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        """Refuse an ``enter`` or ``exit`` that nothing would await.

        Raises:
            TypeError: it is a coroutine function.
        """
        super().__init_subclass__(**options)
        for name, method in {"enter": cls.enter, "exit": cls.exit}.items():
            if inspect.iscoroutinefunction(method):
                what = "a plain function (a layer that awaits has wrap(inner), which returns a service)"
                raise TypeError(expected(f"{cls.__name__}.{name}", what, method))

    def wrap(self, inner: Service) -> SyncService:
        """Put the layer around a service.

        Raises:
            TypeError: no service.
        """
        if not is_service(inner):
            raise TypeError(expected("inner", "a service (an object with call)", inner))
        return _LayeredService(self, inner)

    def bind_clock(self, clock: Clock) -> None:
        """Take over the clock of a `Stack`."""
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

    def __init__(self, layer: SyncLayer, inner: Service) -> None:
        super().__init__(inner, layer)
        self._layer = layer

    def capabilities(self) -> Capabilities:
        """What the inner object offers; the fingerprint is that of both."""
        offered = super().capabilities()
        own = "" if type(self._layer).exit is SyncLayer.exit else self._layer.fingerprint
        return offered._replace(fingerprint=join_fingerprints(own, offered.fingerprint))

    @property
    def clock(self) -> Clock:
        return self._layer.clock

    @property
    def enter(self) -> Any:  # the layer's own, so that a request does not call through this object
        return self._layer.enter

    @property
    def exit(self) -> Any:
        return self._layer.exit
