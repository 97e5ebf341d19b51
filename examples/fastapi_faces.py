"""The face pipeline inside FastAPI: ``uvicorn fastapi_faces:app`` in this folder, then

ffmpeg -i face.jpg -s 192x192 -pix_fmt rgb24 -f rawvideo - | \
    curl --data-binary @- -H 'x-request-timeout-seconds: 0.2' localhost:8000/faces
"""  # noqa: D415 - a command follows

from typing import Annotated

import fastapi
from face_pipeline import make_faces, read_picture
from fastapi import Depends, FastAPI
from pydantic import BaseModel

import streaminfer as si
from streaminfer.fastapi import BoundService, add_stacks, bind

faces = make_faces()
app = FastAPI(title="faces")
add_stacks(app, faces)
app.mount("/metrics", si.telemetry.metrics_app(faces))
app.mount("/live", si.telemetry.dashboard(faces))


class Found(BaseModel):
    """Faces of a picture, each as left, top, right, bottom and score, and the model that found them."""

    faces: list[list[float]]
    source: str
    degraded: bool


@app.post("/faces")
async def find(request: fastapi.Request, service: Annotated[BoundService, Depends(bind(faces))]) -> Found:
    """Find the faces of a picture of 192 × 192 RGB pixels."""
    response = await service.call(si.Request(read_picture(await request.body())))
    return Found(faces=response.outputs.tolist(), source=response.source, degraded=response.degraded)
