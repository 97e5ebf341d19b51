"""Cached functions: their shell, their misses, and the labels of their results, which are arguments of the call.

The shell repeats the parameters of the wrapped function, so that f(1) and f(x=1) have one key.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from streaminfer._internal.signatures import define_with_parameters, signature_of
from streaminfer._internal.validation import check_instance, expected
from streaminfer.caching.defensive_copy import freeze
from streaminfer.caching.single_flight._flight_cy import Refreshes
from streaminfer.caching.tiers.protocol import TierHit
from streaminfer.caching.wrapping._hit_path_cy import HitPath, Miss, copy_out
from streaminfer.caching.wrapping.layer import OUTDATED, Layer
from streaminfer.errors import InvalidInput
from streaminfer.protocols import P

if TYPE_CHECKING:
    from streaminfer.caching.edge_cache import EdgeCache
    from streaminfer.caching.freshness import About

__all__ = ["ArgumentLabels", "CachedCalls", "CachedFunction", "cached_function"]

_MAX_THREADS = 8

_WRAPPER_SOURCE = """
async def cached({parameters}):
    __found = __look({values})
    if __type(__found) is not __Missed:
        return __found
    return await __on_miss(__found, __partial(__function, {arguments}))
def key_of({parameters}):
    return __key({values})
"""
_COLLECTED = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}


R_co = TypeVar("R_co", covariant=True)


class CachedFunction(Protocol[P, R_co]):
    """Cached function, as type checkers see it."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Return the function's result, from the cache if possible."""

    def key_of(self, *args: P.args, **kwargs: P.kwargs) -> bytes:
        """Return the key of a call with these arguments."""


class ArgumentLabels:
    """Labels (subject and tags) of a function's results. They depend only on the arguments, so one key has one label.

    Args:
        function: the wrapped function.
        subject: name of the parameter that identifies the data subject of a result; ``None``: no subject.
        tags: names of the parameters whose values are tags.

    Raises:
        TypeError: ``subject`` or ``tags`` are not names.
        ValueError: a name is not a parameter of the function.

    Attributes:
        identity: part of the key that separates entries of the same function with other label parameters.
    """

    def __init__(self, function: Callable[..., Any], subject: str | None, tags: Iterable[str]) -> None:
        check_instance("subject", subject, str | None, "the name of a parameter")
        expectation = "names of parameters, as in a tuple"
        check_instance("tags", tags, lambda it: isinstance(it, Iterable) and not isinstance(it, str), expectation)
        self._subject = subject
        self._tags = tuple(tags)
        self.identity = ""
        if subject is None and not self._tags:
            return  # compiled functions may have no signature, and only labels need one
        self.identity = f" subject {subject!r} tags {self._tags!r}"
        self._signature = signature_of(function)
        names = [name for name, it in self._signature.parameters.items() if it.kind not in _COLLECTED]
        for argument, named in (("subject", () if subject is None else (subject,)), ("tags", self._tags)):
            for name in named:
                if name not in names:
                    raise ValueError(expected(argument, f"a parameter's name, of {', '.join(names) or 'none'}", name))

    def of(self, call: Callable[[], Any]) -> tuple[str | None, tuple[str, ...]]:
        """Return subject and tags of a call.

        Args:
            call: a ``partial`` of the function with all arguments.

        Raises:
            InvalidInput: the value of a named parameter cannot be a label.
        """
        if not self.identity or not isinstance(call, partial):
            return None, ()
        bound = self._signature.bind(*call.args, **call.keywords)
        bound.apply_defaults()
        subject = None if self._subject is None else bound.arguments[self._subject]
        if subject is not None and not isinstance(subject, str):
            raise InvalidInput(expected(str(self._subject), "a string or None, because it is the subject", subject))
        words: list[str] = []
        for name in self._tags:
            value = bound.arguments[name]
            several = (value,) if isinstance(value, str) else () if value is None else value
            if not isinstance(several, Iterable) or not all(isinstance(word, str) for word in several):
                raise InvalidInput(expected(name, "a string, several, or None, because they are tags", value))
            words += several
        return subject, tuple(words)


class CachedCalls(Layer):
    """Misses of one cached function."""

    def __init__(self, cache: EdgeCache, hit_path: HitPath, labels: ArgumentLabels) -> None:
        super().__init__(cache, hit_path)
        self._labels = labels
        self._thread_refreshes = Refreshes(_MAX_THREADS)

    def _about(self, call: Callable[[], Any]) -> About:
        return self._labels.of(call)

    async def resolve(self, missed: Miss, call: Callable[[], Any]) -> Any:
        """Return the result of an async function after a miss."""
        key = missed.key
        if self.gives_stale(missed):
            self.refresh(key, call)
            return copy_out(missed.value)
        fallback = missed.fallback if missed.state == OUTDATED else None
        work = (self._computing, key, call, fallback is None)
        try:
            value, led = await self.flights.here().share(self.flight_key(key, call), work)
        except Exception as error:
            if fallback is None or not self.replaces(error, key, call, fallback):
                raise
            return copy_out(missed.value)
        if value.__class__ is TierHit:
            self.follow_up(value, led, key, call)
            value = value.value
        return copy_out(value)

    def resolve_sync(self, missed: Miss, call: Callable[[], Any]) -> Any:
        """Return the result of a sync function after a miss."""
        key, threads = missed.key, self.flights.threads
        flight_key = self.flight_key(key, call)
        if self.gives_stale(missed):
            work, limit_s = (self._compute_sync, key, call, False), self.budget.refresh_s()
            threads.refresh(flight_key, work, refreshes=self._thread_refreshes, limit_s=limit_s)
            return copy_out(missed.value)
        fallback = missed.fallback if missed.state == OUTDATED else None
        try:
            value, _ = threads.share(flight_key, (self._compute_sync, key, call, fallback is None))
        except Exception as error:
            if fallback is None or not self.replaces(error, key, call, fallback):
                raise
            return copy_out(missed.value)
        return copy_out(value)

    async def _compute(self, key: Any, call: Any, stores_errors: bool, erasures: int | None = None) -> Any:
        about, begun_ns = self._about(call), self.now()
        erasures = self.memory.erasures if erasures is None else erasures
        try:
            value = freeze(await call())
        except Exception as error:
            self.store_error(key, about, erasures, error, stores_errors)
            raise
        self.budget.computed(self.now() - begun_ns)
        self.store(key, about, erasures, value)
        return value

    def _compute_sync(self, key: Any, call: Callable[[], Any], stores_errors: bool) -> Any:
        about, erasures, begun_ns = self._about(call), self.memory.erasures, self.now()
        try:
            value = freeze(call())
        except Exception as error:
            self.store_error(key, about, erasures, error, stores_errors)
            raise
        self.budget.computed(self.now() - begun_ns)
        self.store(key, about, erasures, value)
        return value


def cached_function(function: Any, layer: CachedCalls, *, is_async: bool) -> Any:
    """Return a function of the same kind and with the same parameters, which looks into the cache first.

    Collected arguments (``*args`` and ``**kwargs``) are keyed in the form in which the caller passes them.

    Args:
        function: the wrapped function.
        layer: looks into the cache, and computes missing values.
        is_async: whether the function is async.
    """
    source = _WRAPPER_SOURCE if is_async else _WRAPPER_SOURCE.replace("async ", "").replace("await ", "")
    names = {
        "__look": layer.hit_path.lookup,
        "__key": layer.hit_path.key,
        "__Missed": Miss,
        "__type": type,
        "__on_miss": layer.resolve if is_async else layer.resolve_sync,
        "__partial": partial,
    }
    cached, key_of = define_with_parameters(function, source, names).values()
    wraps(function)(cached)
    cached.key_of = key_of
    return cached
