"""A no-op model behind Ray Serve, JSON in and out as a deployment reads and writes it: ``python http_ray.py PORT``."""

import signal
import sys
from pathlib import Path

import numpy as np
import ray
from ray import serve

STORE_BYTES = 80 << 20


class NoOp:
    async def __call__(self, request):
        return {"outputs": np.asarray((await request.json())["inputs"], np.float32).tolist()}


if __name__ == "__main__":
    # Ray writes its files into this server's folder, which is removed at the end
    ray.init("local", num_cpus=4, object_store_memory=STORE_BYTES, include_dashboard=False, _temp_dir=str(Path.cwd()))
    serve.start(http_options={"port": int(sys.argv[1])})
    serve.run(serve.deployment(NoOp, max_ongoing_requests=1024).bind(), route_prefix="/")
    signal.pause()
