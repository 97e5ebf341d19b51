"""ASGI apps for ``uvicorn`` and ``granian``: a no-op model behind the Open Inference Protocol, and a bare echo."""

from typing import Any

import numpy as np

import streaminfer as si

__all__ = ["echo", "no_op_stack", "ours"]


def no_op_stack() -> si.Stack:
    """Return a stack whose model returns its input, 16 numbers."""
    model = si.CpuBackend(_same, example=np.zeros(16, np.float32), executor="inline", copy_outputs=False)
    return si.Stack(si.AdaptiveBatcher(max_batch_size=64), model)


def _same(rows: Any) -> Any:
    return rows


ours = si.serving.asgi_app({"m": no_op_stack()})


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Read the body and send it back."""
    if scope["type"] == "lifespan":
        for step in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{step}.complete"})
        return
    body, more = b"", True
    while more:
        message = await receive()
        body += message["body"]
        more = message["more_body"]
    headers = [(b"content-type", b"application/octet-stream"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
