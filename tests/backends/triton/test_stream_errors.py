"""Errors that come on a stream of responses as text without a status; without a server."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
from triton_settings import make_settings

from streaminfer.backends.triton.errors import ServerError
from streaminfer.backends.triton.request_splitter import RequestSplitter
from streaminfer.errors import BackendError, DeadlineExceeded


@pytest.mark.parametrize(
    ("now_ns", "deadline_ns", "expected"),
    [(1_000, 1_000, DeadlineExceeded), (999, 1_000, BackendError), (1_000, None, BackendError)],
    ids=["late", "in time", "no deadline"],
)
def test_error_of_a_stream_after_its_deadline(now_ns, deadline_ns, expected):
    """A server that ends a stream at its deadline can say so before the client's own timer does."""
    clock = SimpleNamespace(now_ns=0)

    async def stream(call, timeout_s):
        clock.now_ns = now_ns
        raise ServerError("UNKNOWN", "the time is up")
        yield

    session = SimpleNamespace(
        model=SimpleNamespace(max_batch_size=0),
        changes=0,
        transport=SimpleNamespace(stream=stream),
        call=lambda arrays, parameters: None,
    )
    splitter = RequestSplitter(session, make_settings(clock=lambda: clock.now_ns), lambda: None)

    async def main():
        with pytest.raises(expected, match="the time is up") as caught:
            await anext(splitter.responses({"n": np.ones((1, 1))}, {}, deadline_ns))
        assert type(caught.value) is expected
        assert isinstance(caught.value.__cause__, ServerError)

    asyncio.run(main())
