"""A no-op model behind mosec, bytes in and out, which is its cheapest format: ``python http_mosec.py --port PORT``."""

import numpy as np
from mosec import Server, Worker


class NoOp(Worker):
    def deserialize(self, data):
        return np.frombuffer(data, np.float32)

    def serialize(self, data):
        return data.tobytes()

    def forward(self, data):
        return data


if __name__ == "__main__":
    server = Server()
    server.append_worker(NoOp, num=1, max_batch_size=64, max_wait_time=1)
    server.run()
