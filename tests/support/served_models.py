"""Models for tests of servers of the Open Inference Protocol, and requests to them."""

import json

import numpy as np

import streaminfer as si
from streaminfer.testing import ScriptedBackend

__all__ = ["INFER", "binary", "running_total"]

INFER = "/v2/models/m/infer"


def binary(array, name="x", **parameters):
    """Return the body and headers of an HTTP request whose input follows its JSON."""
    tensor = {"name": name, "datatype": "FP32", "shape": list(array.shape)}
    tensor["parameters"] = {"binary_data_size": array.nbytes}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True, **parameters}}).encode()
    return head + array.tobytes(), {"Inference-Header-Content-Length": str(len(head))}


def running_total():
    """Return a stack whose model adds up the inputs of each stream."""

    def add(batch):
        total = batch.inputs["state"] + batch.inputs["x"]
        return [{"y": row, "state_out": row} for row in total]

    example = {"x": np.zeros(1, np.float32), "state": np.zeros(1, np.float32)}
    states = si.streams.StatefulBackend(ScriptedBackend(then=add, example=example), state={"state": "state_out"})
    return si.Stack(si.AdaptiveBatcher(max_batch_size=4), states)
