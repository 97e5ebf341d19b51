"""A no-op model behind LitServe, JSON in and out as its clients send it: ``python http_litserve.py PORT``."""

import sys

import litserve
import numpy as np


class NoOp(litserve.LitAPI):
    def setup(self, device):
        pass

    def decode_request(self, request):
        return np.asarray(request["inputs"], np.float32)

    def predict(self, x):
        return x

    def encode_response(self, output):
        return {"outputs": output.tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(NoOp(), accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), num_api_servers=1, generate_client_file=False, log_level="error"
    )
