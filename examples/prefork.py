"""A server of several worker processes, each with a stack, and one merged tail.

In this folder: ``TAIL_FOLDER=$(mktemp -d) uvicorn prefork:app --workers 2``, then

curl -d '{"x": [1, 2, 3, 4]}' -H 'content-type: application/json' localhost:8000/double; curl localhost:8000/tail
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from typing import Annotated, Any

import numpy as np
from fastapi import Depends, FastAPI
from pydantic import BaseModel, Field

import streaminfer as si
from streaminfer.fastapi import BoundService, add_stacks, bind
from streaminfer.telemetry import WorkerHistograms


def double(rows: Any) -> Any:
    """Double each row, in place of a model."""
    return rows * 2


telemetry = si.Telemetry("doubles")
model = si.CpuBackend(double, example=np.zeros(4, np.float32))
doubles = si.Stack(telemetry, si.AdaptiveBatcher(max_batch_size=32, slo_s=1.0), model)


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Publish the counts of this worker for the others."""
    # a folder for one run of the server, empty at its start
    workers = WorkerHistograms(os.environ["TAIL_FOLDER"], telemetry.histograms, name="doubles")
    app.state.workers = workers
    app.state.metrics = si.telemetry.metrics_app(workers)
    publishing = asyncio.ensure_future(workers.keep_published())
    try:
        yield
    finally:
        publishing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await publishing
        workers.close()


async def metrics(scope: Any, receive: Any, send: Any) -> None:
    """Serve the metrics of all workers, from any worker."""
    await app.state.metrics(scope, receive, send)


app = FastAPI(lifespan=lifespan)
add_stacks(app, doubles)
app.mount("/metrics", metrics)


class Row(BaseModel):
    """A row of four numbers."""

    x: Annotated[list[float], Field(min_length=4, max_length=4)]


@app.post("/double")
async def answer(row: Row, service: Annotated[BoundService, Depends(bind(doubles))]) -> dict[str, Any]:
    """Double a row."""
    doubled = await service(np.array(row.x, np.float32))
    return {"y": doubled.tolist(), "worker": os.getpid()}


@app.get("/tail")
async def tail() -> dict[str, Any]:
    """Return the counts of all workers, dead ones included; those of other workers are up to a second old."""
    latency = app.state.workers.merge()["latency"]
    quantiles = {f"p{percent}_s": latency.quantile(percent / 100) for percent in (50, 99)}
    return {"count": latency.count, "worker": os.getpid(), **quantiles}
