"""Batches that are sent again in halves; without a server."""

import asyncio
from types import SimpleNamespace

import numpy as np
from triton_settings import make_settings

from streaminfer.backends.triton.errors import ServerError
from streaminfer.backends.triton.request_splitter import RequestSplitter
from streaminfer.request import Batch, Request


class Server:
    """Session of a server that takes at most two rows; a row of -1 fails in this process."""

    def __init__(self):
        self.model = SimpleNamespace(by_row=False, max_batch_size=8, priority_levels=0, takes_timeout=False)
        self.signature = SimpleNamespace(batch_by_name=lambda inputs, _name: inputs)
        self.counts = SimpleNamespace(split=0)
        self.changes = 0

    async def infer(self, arrays, size, parameters, timeout_s):
        if size > 2:
            raise ServerError("RESOURCE_EXHAUSTED", "Received message larger than max")
        await asyncio.sleep(0)
        if -1 in arrays["x"]:
            raise MemoryError
        await asyncio.sleep(0)
        return list(arrays["x"] + 1)


def test_any_error_of_one_half_leaves_the_other():
    """A failure of this process, such as no memory for a message, is the result of the rows of its half only."""
    batch = Batch({"x": np.array([1, 2, -1, 4])}, [Request(0.0) for _ in range(4)])
    splitter = RequestSplitter(Server(), make_settings(timeout_s=5.0, clock=lambda: 0), lambda: None)

    first, second, *failed = asyncio.run(splitter.infer(batch))

    assert (first, second) == (2, 3)
    assert [type(error) for error in failed] == [MemoryError, MemoryError]
