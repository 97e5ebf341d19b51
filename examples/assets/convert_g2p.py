"""Convert the weights of the package g2p-en 2.1.0 to `g2p_en.onnx`: from the letters of words to their phonemes.

    pip download --no-deps g2p-en==2.1.0; unzip g2p_en-2.1.0-py3-none-any.whl
    python examples/assets/convert_g2p.py g2p_en/checkpoint20.npz

Weights are stored as float16, half the size, and used as float32. The graph does what the original does in Python: a
GRU reads each word up to its end, and a loop writes one phoneme per turn, at most 20, until every word of the batch has
its end. The phonemes of a word depend neither on its padding nor on the other words of the batch.
"""

import sys
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

LONGEST = 20  # phonemes, as in the original
START, END, PAD = 2, 3, 0
Int, Float, Bool = TensorProto.INT64, TensorProto.FLOAT, TensorProto.BOOL


def gates_for_onnx(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Reorder gates from reset, update, new to update, reset, hidden."""
    reset, update, new = np.split(weights, 3)
    return np.concatenate([update, reset, new])


def one_phoneme() -> onnx.GraphProto:
    """Return the body of the loop: the next phoneme of every word, and padding for a finished word."""
    node = helper.make_node
    nodes = [
        node("Gather", ["phoneme_gates", "last"], ["from_phoneme"]),
        node("Gemm", ["hidden", "dec_w_hh", "dec_b_hh"], ["from_hidden"], transB=1),
        node("Split", ["from_phoneme"], ["reset_p", "update_p", "new_p"], axis=1, num_outputs=3),
        node("Split", ["from_hidden"], ["reset_h", "update_h", "new_h"], axis=1, num_outputs=3),
        node("Add", ["reset_p", "reset_h"], ["reset_sum"]),
        node("Sigmoid", ["reset_sum"], ["reset"]),
        node("Add", ["update_p", "update_h"], ["update_sum"]),
        node("Sigmoid", ["update_sum"], ["update"]),
        node("Mul", ["reset", "new_h"], ["remembered"]),
        node("Add", ["new_p", "remembered"], ["new_sum"]),
        node("Tanh", ["new_sum"], ["new"]),
        node("Sub", ["hidden", "new"], ["change"]),
        node("Mul", ["update", "change"], ["kept"]),
        node("Add", ["new", "kept"], ["next_hidden"]),
        node("Gemm", ["next_hidden", "fc_w", "fc_b"], ["logits"], transB=1),
        node("ArgMax", ["logits"], ["best"], axis=1, keepdims=0),
        node("Equal", ["best", "end"], ["ends"]),
        node("Or", ["finished", "ends"], ["now_finished"]),
        node("Where", ["now_finished", "pad", "best"], ["written"]),
        node("Cast", ["now_finished"], ["as_number"], to=Int),
        node("ReduceMin", ["as_number"], ["all_finished"], keepdims=0),
        node("Equal", ["all_finished", "zero"], ["go_on"]),
    ]
    value = helper.make_tensor_value_info
    words = ["batch"]
    return helper.make_graph(
        nodes,
        "one_phoneme",
        [
            value("turn", Int, []),
            value("condition", Bool, []),
            value("last", Int, words),
            value("hidden", Float, ["batch", 256]),
            value("finished", Bool, words),
        ],
        [
            value("go_on", Bool, []),
            value("best", Int, words),
            value("next_hidden", Float, ["batch", 256]),
            value("now_finished", Bool, words),
            value("written", Int, words),
        ],
    )


def convert(weights: dict[str, NDArray[np.float32]]) -> onnx.ModelProto:
    """Return the whole model."""
    node = helper.make_node
    halves = {
        "enc_emb": weights["enc_emb"],
        "enc_w": gates_for_onnx(weights["enc_w_ih"])[None],
        "enc_r": gates_for_onnx(weights["enc_w_hh"])[None],
        "enc_b": np.concatenate([gates_for_onnx(weights["enc_b_ih"]), gates_for_onnx(weights["enc_b_hh"])])[None],
        "dec_emb": weights["dec_emb"],
        "dec_w_ih": np.ascontiguousarray(weights["dec_w_ih"].T),
        **{name: weights[name] for name in ("dec_b_ih", "dec_w_hh", "dec_b_hh", "fc_w", "fc_b")},
    }
    numbers = {
        "one": np.array([1]),
        "zero": np.array(0),
        "pad": np.array(PAD),
        "end": np.array(END),
        "start": np.array([START]),
        "longest": np.array(LONGEST),
        "nothing": np.array([0, 0]),
        "longest_list": np.array([LONGEST]),
        "yes": np.array(True),
        "no": np.array([False]),
    }
    initializers = [numpy_helper.from_array(array.astype(np.float16), f"{name}_16") for name, array in halves.items()]
    initializers += [numpy_helper.from_array(array, name) for name, array in numbers.items()]
    nodes = [node("Cast", [f"{name}_16"], [name], to=Float) for name in halves]
    nodes += [
        node("MatMul", ["dec_emb", "dec_w_ih"], ["phoneme_products"]),
        node("Add", ["phoneme_products", "dec_b_ih"], ["phoneme_gates"]),
        node("ReduceSum", ["attention_mask", "one"], ["lengths_64"], keepdims=0),
        node("Cast", ["lengths_64"], ["lengths"], to=TensorProto.INT32),
        node("Transpose", ["letters"], ["in_time"], perm=[1, 0]),
        node("Gather", ["enc_emb", "in_time"], ["embedded"]),
        node(
            "GRU",
            ["embedded", "enc_w", "enc_r", "enc_b", "lengths"],
            ["", "read"],
            hidden_size=256,
            linear_before_reset=1,
        ),
        node("Squeeze", ["read", "zero_list"], ["word"]),
        node("Shape", ["lengths"], ["batch_shape"]),
        node("Expand", ["start", "batch_shape"], ["starts"]),
        node("Expand", ["no", "batch_shape"], ["none_finished"]),
        node(
            "Loop",
            ["longest", "yes", "starts", "word", "none_finished"],
            ["_last", "_hidden", "_finished", "in_turns"],
            body=one_phoneme(),
        ),
        node("Transpose", ["in_turns"], ["written_so_far"], perm=[1, 0]),
        node("Shape", ["in_turns"], ["turns"], start=0, end=1),
        node("Sub", ["longest_list", "turns"], ["missing"]),
        node("Concat", ["nothing", "zero_list", "missing"], ["padding"], axis=0),
        node("Pad", ["written_so_far", "padding", "pad"], ["phonemes"]),
    ]
    initializers.append(numpy_helper.from_array(np.array([0]), "zero_list"))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g2p_en",
        [value("letters", Int, ["batch", "length"]), value("attention_mask", Int, ["batch", "length"])],
        [value("phonemes", Int, ["batch", LONGEST])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9, producer_name="")
    onnx.checker.check_model(model, full_check=True)
    return model


if __name__ == "__main__":
    with np.load(sys.argv[1]) as stored:
        onnx.save(convert(dict(stored)), Path(__file__).with_name("g2p_en.onnx"))
