"""The face pipeline inside a gRPC server: ``python examples/grpc_faces.py 127.0.0.1:8001``.

``/faces.Faces/Find`` takes the pixels of a picture and returns JSON. The Open Inference Protocol is served beside it.
"""

import asyncio
import json
import logging
import signal
import sys
import time
from typing import Any

import grpc
from face_pipeline import make_faces, read_picture

import streaminfer as si

LOG = logging.getLogger("grpc_faces")
SLO_S = 0.25


class Faces:
    """A gRPC service of one method, without generated code.

    Args:
        service: the pipeline.
    """

    def __init__(self, service: si.Stack) -> None:
        self._service = service

    async def find(self, picture: bytes, context: Any) -> bytes:
        """Find faces by the objective or the call's tighter deadline; gRPC cancels this when the client cancels."""
        now_ns = time.monotonic_ns()  # read first, so that the deadline is not later than that of gRPC
        left_s = context.time_remaining()
        deadline_ns = now_ns + round(1e9 * (SLO_S if left_s is None else min(left_s, SLO_S)))
        try:
            response = await self._service.call(si.Request(read_picture(picture), deadline_ns=deadline_ns))
        except Exception as error:  # a row of the model can be an exception of any class
            failure = si.serving.describe_failure(error)
            if failure.is_internal:
                LOG.exception("a request failed")
            if failure.retry_after_s is not None:
                context.set_trailing_metadata((("retry-after", str(failure.retry_after_s)),))
            await context.abort(grpc.StatusCode[failure.grpc_status], failure.text)
            raise  # `abort` has raised
        return json.dumps({"faces": response.outputs.tolist(), "source": response.source}).encode()

    def handlers(self) -> Any:
        """Return the handlers to add to a server."""
        return grpc.method_handlers_generic_handler(
            "faces.Faces", {"Find": grpc.unary_unary_rpc_method_handler(self.find)}
        )


async def serve(address: str, faces: si.Stack, stop: asyncio.Event) -> None:
    """Serve until `stop` is set, then complete the calls in flight."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Faces(faces).handlers(), si.serving.grpc_servicer({"faces": faces})))
    port = server.add_insecure_port(address)
    async with faces:
        await server.start()
        print(f"serving on port {port}", flush=True)
        await stop.wait()
        await server.stop(grace=10.0)


async def main(address: str) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await serve(address, make_faces(slo_s=SLO_S), stop)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8001"))
