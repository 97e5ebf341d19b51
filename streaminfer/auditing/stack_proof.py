"""`prove`: whether anything is left of what a `Stack` should have forgotten, found by looking.

What is looked at, and what counts, is written in ``auditing.cache_proof``.
"""

from __future__ import annotations

from collections.abc import Iterable

from streaminfer._internal.validation import expected
from streaminfer.auditing.cache_proof import Proof, prove_caches
from streaminfer.auditing.traversal import is_a, walk
from streaminfer.caching.edge_cache import EdgeCache
from streaminfer.http_edge.nginx_folder import NginxFolder
from streaminfer.stack import Stack

__all__ = ["prove"]


def prove(stack: Stack, *, http_caches: Iterable[NginxFolder] = ()) -> Proof:
    """Look for remains of erased subjects and of expired answers, in every place that a stack writes to.

    It reads memory, raw bytes of files and every key of servers; it changes nothing. It blocks, about a second for
    1 GB of disk tier, and may be called in any thread, of a stack that runs or does not: beside a serving event loop,
    use ``await asyncio.to_thread(si.prove, stack)``.

    Args:
        stack: the stack; nested stacks, routes and replicas are looked into.
        http_caches: folders of HTTP caches in front of the process.

    Returns:
        Counts by place, each of which must be zero.

    Raises:
        TypeError: no `Stack`.
        BackendError: a medium or the retention log cannot be read, so nothing is proven.
    """
    if not is_a(stack, Stack):
        raise TypeError(expected("stack", "a Stack", stack))
    caches = [found.thing for found in walk(stack) if is_a(found.thing, EdgeCache)]
    return prove_caches(caches, http_caches=http_caches)
