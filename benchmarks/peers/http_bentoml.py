"""A no-op model behind BentoML, JSON in and out, batched by its dispatcher: ``bentoml serve http_bentoml:NoOp``."""

import bentoml
import numpy as np


@bentoml.service(workers=1, traffic={"timeout": 30}, logging={"access": {"enabled": False}})
class NoOp:
    @bentoml.api(batchable=True, max_batch_size=64, max_latency_ms=10_000)
    def infer(self, inputs: np.ndarray) -> np.ndarray:
        return inputs
