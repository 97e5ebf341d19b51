"""The text model as a task of razors-edge-batching-scheduler, which imports this module in a separate process.

The scheduler sorts queued items by length, cuts them into batches by a dynamic program over times that it measures at
its start, and runs the batch that its strategy chooses.
"""

import logging
import warnings
from pathlib import Path

import numpy as np
from razors_edge.razors_edge_compute_task import RazorsEdgeComputeTask

logging.disable(logging.WARNING)  # the package logs each step of its start
warnings.filterwarnings("ignore", module="razors_edge")  # and warns of rough splines

MODEL = Path(__file__).resolve().parents[2] / "examples" / "assets" / "g2p_en.onnx"
LONGEST = 32
MAX_BATCH_SIZE = 32


def pad(rows):
    """Return rows of letters as one array, padded to the longest, with a mask."""
    letters = np.zeros((len(rows), max(map(len, rows))), np.int64)
    mask = np.zeros_like(letters)
    for number, row in enumerate(rows):
        letters[number, : len(row)] = row
        mask[number, : len(row)] = 1
    return {"letters": letters, "attention_mask": mask}


def session():
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(MODEL), options, providers=["CPUExecutionProvider"])


class Minmax(RazorsEdgeComputeTask):
    batch_benchmark_sizes = (1, 2, 4, 8, 16, MAX_BATCH_SIZE)
    min_input_size = 2
    max_input_size = LONGEST
    max_input_points = 5
    is_gpu = False
    latency_strategy = "MINMAX"

    def load_model(self, model_pool):  # noqa: ARG002 - the package's signature
        model = session()
        return lambda **inputs: model.run(None, inputs)

    def get_input_size(self, input_data, preprocessed_input):  # noqa: ARG002 - the same
        return len(input_data)

    def preprocess_input_without_size(self, input_data):
        return input_data

    def generate_test_input(self, batch_size, input_size):
        return (), pad([np.full(input_size, 5, np.int64)] * batch_size)

    def create_batch(self, to_batch):
        return (), pad(to_batch)

    def postprocess_output(self, call_output):
        return list(call_output[0])


class Fifo(Minmax):
    latency_strategy = "FIFO"


class Guarded(Minmax):
    latency_strategy = "GUARDED_BATCH_SIZE"


TASKS = {"MINMAX, its default": Minmax, "FIFO": Fifo, "GUARDED_BATCH_SIZE": Guarded}
