"""The MLP for MLServer, in NumPy, and an echo."""

import numpy as np
from mlserver import MLModel  # type: ignore[import-not-found]  # module of the server
from mlserver.codecs import NumpyCodec  # type: ignore[import-not-found]
from mlserver.types import InferenceRequest, InferenceResponse  # type: ignore[import-not-found]
from mlserver.utils import get_model_uri  # type: ignore[import-not-found]


class Mlp(MLModel):  # type: ignore[misc]  # mypy sees no types of mlserver
    async def load(self) -> bool:
        with np.load(await get_model_uri(self._settings)) as weights:
            self.weights = dict(weights)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        x = self.decode(payload.inputs[0], default_codec=NumpyCodec)
        w = self.weights
        y = np.maximum(x @ w["w1"] + w["b1"], 0) @ w["w2"] + w["b2"]
        return InferenceResponse(
            id=payload.id, model_name=self.name, model_version=self.version, outputs=[NumpyCodec.encode_output("y", y)]
        )


class Echo(MLModel):  # type: ignore[misc]
    async def load(self) -> bool:
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        outputs = [
            NumpyCodec.encode_output(f"{one.name}_out", self.decode(one, default_codec=NumpyCodec))
            for one in payload.inputs
        ]
        return InferenceResponse(id=payload.id, model_name=self.name, model_version=self.version, outputs=outputs)
