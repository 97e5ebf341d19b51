"""Subject and tags of the results of a wrapped function: values of its parameters, by which they can be erased."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from streaminfer._internal.signatures import signature_of
from streaminfer._internal.validation import check_instance, expected
from streaminfer.errors import InvalidInput

__all__ = ["ArgumentLabels"]

_COLLECTED = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}


class ArgumentLabels:
    """Labels of a function's results, made of its arguments alone, as its keys are: one key, one label.

    Args:
        function: whose arguments.
        subject: name of the parameter that says whose data a result is; ``None``: none does.
        tags: names of the parameters whose values are tags.

    Raises:
        TypeError: no names.
        ValueError: names of something else than its parameters.

    Attributes:
        identity: what sets apart the entries of the same function with other labels.
    """

    __slots__ = ("_signature", "_subject", "_tags", "identity")

    def __init__(self, function: Callable[..., Any], subject: str | None, tags: Iterable[str]) -> None:
        check_instance("subject", subject, lambda it: it is None or isinstance(it, str), "the name of a parameter")
        what = "names of parameters, as in a tuple"
        check_instance("tags", tags, lambda it: isinstance(it, Iterable) and not isinstance(it, str), what)
        self._subject = subject
        self._tags = tuple(tags)
        self.identity = ""
        if subject is None and not self._tags:
            return  # compiled functions may have no signature, which is needed for labels only
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
            InvalidInput: the value of a named parameter is no label.
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
