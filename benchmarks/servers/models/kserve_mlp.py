"""KServe's server with the MLP in NumPy, on loopback only: python kserve_mlp.py WEIGHTS HTTP_PORT GRPC_PORT.

KServe's own `ModelServer` binds every address, so this module assembles its parts: its REST application in a uvicorn
on loopback, and its gRPC servicer in a gRPC server on loopback.
"""

import asyncio
import sys
from typing import Any

import grpc
import numpy as np
import uvicorn
from kserve import InferInput, InferOutput, InferRequest, InferResponse, Model, ModelRepository  # type: ignore[import-not-found]
from kserve.protocol.dataplane import DataPlane  # type: ignore[import-not-found]
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as services  # type: ignore[import-not-found]
from kserve.protocol.grpc.interceptors import ExceptionToStatusInterceptor  # type: ignore[import-not-found]
from kserve.protocol.grpc.servicer import InferenceServicer  # type: ignore[import-not-found]
from kserve.protocol.model_repository_extension import ModelRepositoryExtension  # type: ignore[import-not-found]
from kserve.protocol.rest.server import RESTServer  # type: ignore[import-not-found]
from kserve.utils.utils import generate_uuid  # type: ignore[import-not-found]

HOST = "127.0.0.1"


class Mlp(Model):  # type: ignore[misc]  # mypy sees no types of kserve
    def __init__(self, name: str, weights: str) -> None:
        super().__init__(name)
        with np.load(weights) as arrays:
            self.weights = dict(arrays)
        self.ready = True

    async def get_input_types(self) -> list[dict[str, Any]]:
        return [{"name": "x", "datatype": "FP32", "shape": [-1, 8]}]

    async def get_output_types(self) -> list[dict[str, Any]]:
        return [{"name": "y", "datatype": "FP32", "shape": [-1, 4]}]

    async def predict(self, payload: InferRequest, *_: Any, **__: Any) -> InferResponse:
        (given,) = payload.inputs
        assert isinstance(given, InferInput)
        x, w = given.as_numpy(), self.weights
        y = np.maximum(x @ w["w1"] + w["b1"], 0) @ w["w2"] + w["b2"]
        output = InferOutput("y", list(y.shape), "FP32")
        output.set_data_from_numpy(y.astype(np.float32), binary_data=False)
        return InferResponse(payload.id or generate_uuid(), self.name, [output])


async def main() -> None:
    weights, http_port, grpc_port = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    models = ModelRepository()
    models.update(Mlp("mlp", weights))
    plane = DataPlane(model_registry=models)
    extension = ModelRepositoryExtension(model_registry=models)
    rest = RESTServer("kserve.model_server:app", plane, extension, http_port)
    rest.create_application()
    rest.config.host = HOST
    server = grpc.aio.server(interceptors=(ExceptionToStatusInterceptor(),))
    services.add_GRPCInferenceServiceServicer_to_server(InferenceServicer(plane, extension), server)
    server.add_insecure_port(f"{HOST}:{grpc_port}")
    await server.start()
    await uvicorn.Server(rest.config).serve()


if __name__ == "__main__":
    asyncio.run(main())
