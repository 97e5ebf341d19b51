"""Signatures of users' functions."""

import inspect
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["signature_of"]


def signature_of(function: Callable[..., Any]) -> inspect.Signature:
    """Return a function's signature without evaluating annotations, which may name type-checking imports only.

    Raises:
        TypeError: it is not callable.
        ValueError: it has no signature, like some compiled functions.
    """
    if sys.version_info >= (3, 14):
        import annotationlib  # noqa: PLC0415 - not there before

        return inspect.signature(function, annotation_format=annotationlib.Format.STRING)
    return inspect.signature(function)
