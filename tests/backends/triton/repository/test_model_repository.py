"""Model repositories for Triton: each config is parsed with Triton's schema, and a real Triton loads some of them."""

import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto as Tensor
from onnx import helper
from tritonclient.grpc import model_config_pb2

from streaminfer.backends.triton.repository import model_repository as module
from streaminfer.backends.triton.repository.model_repository import write_model_repository

F32 = np.float32


def config_of(folder):
    return text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*"))


@pytest.fixture
def write(tmp_path):
    """Return a function that writes into a repository and returns the config; check that no other file is left."""
    repository = tmp_path / "volume" / "models"

    def make(source, **options):
        folder = write_model_repository(repository, "m", source, **{"max_batch_size": 8, **options})
        return config_of(folder)

    yield make
    assert tree(tmp_path / "volume") == [] or [one.name for one in (tmp_path / "volume").iterdir()] == ["models"]
    assert not [name for name in tree(tmp_path) if "/." in name]


@pytest.fixture
def images(build_model):
    """Return a model of x [n, 3, 4, 4] and a mask [n] of booleans, with the output y [n, 3, 4, 4]."""
    return build_model(
        [
            helper.make_node("Cast", ["mask"], ["number"], to=Tensor.FLOAT),
            helper.make_node("Reshape", ["number", "column"], ["wide"]),
            helper.make_node("Mul", ["x", "wide"], ["y"]),
        ],
        [("x", Tensor.FLOAT, ["n", 3, 4, 4]), ("mask", Tensor.BOOL, ["n"])],
        [("y", Tensor.FLOAT, ["n", 3, 4, 4])],
        initializers=[helper.make_tensor("column", Tensor.INT64, [4], [-1, 1, 1, 1])],
    )


# ---------------------------------------------------------------------------------------------- written files


def test_onnx_config_declares_the_shapes_of_requests(write, images, tmp_path):
    config = write(images, instances=2, warmup=(1, 8))
    assert (config.name, config.backend, config.platform, config.max_batch_size) == ("m", "onnxruntime", "", 8)
    assert [(one.name, one.data_type, list(one.dims)) for one in config.input] == [
        ("x", model_config_pb2.TYPE_FP32, [3, 4, 4]),
        ("mask", model_config_pb2.TYPE_BOOL, [1]),
    ]
    assert not config.input[0].HasField("reshape")
    assert config.input[1].HasField("reshape")
    assert list(config.input[1].reshape.shape) == []
    assert [(one.name, one.data_type, list(one.dims)) for one in config.output] == [
        ("y", model_config_pb2.TYPE_FP32, [3, 4, 4])
    ]
    (group,) = config.instance_group
    assert (group.kind, group.count, list(group.gpus)) == (model_config_pb2.ModelInstanceGroup.KIND_GPU, 2, [])
    assert config.WhichOneof("scheduling_choice") is None
    assert not config.HasField("optimization")
    assert config.HasField("response_cache")
    assert not config.response_cache.enable
    assert [(one.name, one.batch_size) for one in config.model_warmup] == [("1 rows", 1), ("8 rows", 8)]
    warm = config.model_warmup[1].inputs
    assert (list(warm["x"].dims), warm["x"].data_type, warm["x"].zero_data) == (
        [3, 4, 4],
        model_config_pb2.TYPE_FP32,
        True,
    )
    assert list(warm["mask"].dims) == [1]
    assert tree(tmp_path / "volume") == [
        "models",
        "models/m",
        "models/m/1",
        "models/m/1/model.onnx",
        "models/m/config.pbtxt",
    ]
    assert (tmp_path / "volume/models/m/1/model.onnx").read_bytes() == images


def test_free_sizes_are_those_of_the_example(write, doubling):
    config = write(doubling, warmup=[4], example=np.zeros(7, F32))
    assert list(config.input[0].dims) == [-1]
    assert list(config.model_warmup[0].inputs["x"].dims) == [7]


def test_onnxruntime_tensorrt_gets_cache_and_profile(write, images):
    """TensorRT in onnxruntime gets its engine cache, and one profile for all batch sizes."""
    config = write(
        images,
        platform="onnxruntime-tensorrt",
        precision="fp16",
        engine_cache='/var/cache/a "b"',
        gpus=[1, 3],
        warmup=[8],
    )
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "tensorrt"
    assert dict(accelerator.parameters) == {
        "precision_mode": "FP16",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": '/var/cache/a "b"',
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": '/var/cache/a "b"',
        "trt_profile_min_shapes": "x:1x3x4x4,mask:1",
        "trt_profile_opt_shapes": "x:8x3x4x4,mask:8",
        "trt_profile_max_shapes": "x:8x3x4x4,mask:8",
    }
    assert list(config.instance_group[0].gpus) == [1, 3]
    assert config.WhichOneof("scheduling_choice") is None


def test_a_profile_is_not_guessed(write, doubling, tmp_path):
    config = write(doubling, platform="onnxruntime-tensorrt")
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert dict(accelerator.parameters) == {"precision_mode": "FP32"}
    folder = write_model_repository(
        tmp_path / "volume/models",
        "other",
        doubling,
        max_batch_size=4,
        platform="onnxruntime-tensorrt",
        example={"x": np.zeros(5, F32)},
    )
    (accelerator,) = config_of(folder).optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.parameters["trt_profile_max_shapes"] == "x:4x5"


def test_tensorrt_plan_takes_inputs_from_onnx_model(write, images, tmp_path):
    """The config of a TensorRT plan lists the inputs and outputs if its ONNX model is given."""
    config = write(b"a plan", platform="tensorrt-plan")
    assert (config.backend, len(config.input), len(config.output)) == ("tensorrt", 0, 0)
    assert (tmp_path / "volume/models/m/1/model.plan").read_bytes() == b"a plan"
    shutil.rmtree(tmp_path / "volume/models/m")
    config = write(b"a plan", platform="tensorrt-plan", onnx=images, warmup=[2])
    assert [one.name for one in config.input] == ["x", "mask"]
    assert config.model_warmup[0].batch_size == 2
    assert tree(tmp_path / "volume/models/m") == ["1", "1/model.plan", "config.pbtxt"]


def test_recurrent_model_has_no_batch_axis_for_triton(write, assets):
    """A recurrent model with different batch axes is written without a batch axis for Triton."""
    config = write(
        assets / "silero_vad_16k_op15.onnx",
        max_batch_size=0,
        batch_axes={"state": 1, "stateN": 1},
        shared_inputs={"sr": np.array(16000)},
        warmup=[2],
        example={"input": np.zeros(576, F32), "state": np.zeros((2, 128), F32)},
    )
    assert [(one.name, list(one.dims), one.HasField("reshape")) for one in (*config.input, *config.output)] == [
        ("input", [-1, -1], False),
        ("state", [2, -1, 128], False),
        ("sr", [1], False),
        ("output", [-1, 1], False),
        ("stateN", [-1, -1, -1], False),
    ]
    (warm,) = config.model_warmup
    assert warm.batch_size == 0
    assert {name: list(one.dims) for name, one in warm.inputs.items()} == {
        "input": [2, 576],
        "state": [2, 2, 128],
        "sr": [1],
    }


def test_priority_queue_has_no_delay(write, doubling):
    batching = write(doubling, priority_levels=3).dynamic_batching
    assert (batching.priority_levels, batching.default_priority_level) == (3, 2)
    assert (batching.max_queue_delay_microseconds, batching.preserve_ordering) == (0, False)


def test_external_weight_files_are_copied(write, build_model, tmp_path):
    import onnx

    source = tmp_path / "weights"
    source.mkdir()
    model = onnx.load_from_string(
        build_model(
            [helper.make_node("Add", ["x", "w"], ["y"])],
            [("x", Tensor.FLOAT, ["n", 2000])],
            [("y", Tensor.FLOAT, ["n", 2000])],
            initializers=[helper.make_tensor("w", Tensor.FLOAT, [2000], np.ones(2000, F32).tobytes(), raw=True)],
        )
    )
    onnx.save(model, source / "model.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    with pytest.raises(ValueError, match="path_or_bytes: expected an ONNX model that onnxruntime loads"):
        write(source / "model.onnx")
    write(source)
    assert tree(tmp_path / "volume/models/m/1") == ["model.onnx", "model.onnx/model.onnx", "model.onnx/w.bin"]
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FileNotFoundError, match=r"source: expected a folder with model\.onnx in it"):
        write(empty)


@given(st.text())
def test_quoted_strings_round_trip(text):
    line = f"name: {module._quote(text)}"
    if "\x00" in text:
        assert r"\000" in line
    assert text_format.Parse(line, model_config_pb2.ModelConfig()).name == text
    assert line.isascii()
    assert line.isprintable()


# ---------------------------------------------------------------------------------------------- complete models only


def test_version_is_added_only_with_the_same_config(write, doubling, identity, tmp_path):
    """A new version is added to a model only if its config stays the same, and no version is overwritten."""
    write(doubling)
    folder = tmp_path / "volume/models/m"
    before = (folder / "config.pbtxt").read_bytes()
    with pytest.raises(FileExistsError, match="m/1: it is there: choose another version"):
        write(doubling)
    write(identity(Tensor.FLOAT, ["batch", "n"]), version=2)
    with pytest.raises(FileExistsError, match="m: it is there, with another config"):
        write(doubling, version=3, instances=2)
    assert tree(folder) == ["1", "1/model.onnx", "2", "2/model.onnx", "config.pbtxt"]
    assert (folder / "config.pbtxt").read_bytes() == before
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE((tmp_path / "volume").stat().st_mode)


def test_files_are_synced_before_they_become_visible(write, doubling, tmp_path, monkeypatch):
    on_disk = []

    def record(descriptor):
        on_disk.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        assert not (tmp_path / "volume/models/m").exists()

    monkeypatch.setattr(module.os, "fsync", record)
    write(doubling)
    assert sorted(on_disk) == ["config.pbtxt", "model.onnx"]


@pytest.mark.parametrize("volume", [False, True])
def test_a_polling_server_sees_a_whole_model_or_none(write, doubling, tmp_path, monkeypatch, volume):
    """A polling server sees a complete model or none at each step of a write, even if the write fails.

    This also holds if nothing can be written beside the repository.
    """
    repository = tmp_path / "volume" / "models"
    seen = []

    def look(folder):
        assert (folder.parent.parent == repository) == volume
        # what Triton takes for a model: a folder of the repository with a numbered folder in it
        seen.append([one.name for one in repository.iterdir() if any(part.name.isdigit() for part in one.iterdir())])
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_sync", look)
    if volume:
        monkeypatch.setattr(module.os, "access", lambda path, mode: False)
    with pytest.raises(KeyboardInterrupt):
        write(doubling)
    assert seen == [[]]
    assert tree(tmp_path / "volume") == ["models"]
    monkeypatch.setattr(module, "_sync", lambda folder: None)
    write(doubling)
    assert tree(repository) == ["m", "m/1", "m/1/model.onnx", "m/config.pbtxt"]


# ----------------------------------------------------------------------------------- rejected arguments and models


@pytest.mark.parametrize(
    ("options", "error", "what"),
    [
        ({"name": "../m"}, ValueError, "name: expected letters"),
        ({"name": ".m"}, ValueError, "name: expected letters"),
        ({"name": 3}, TypeError, "name: expected a string"),
        ({"max_batch_size": -1}, ValueError, "max_batch_size"),
        ({"max_batch_size": 2.0}, TypeError, "max_batch_size"),
        ({"platform": "tensorflow"}, ValueError, "platform: expected one of 'onnxruntime', "),
        ({"device": "cpu", "platform": "onnxruntime-tensorrt"}, ValueError, "device: expected 'gpu' for platform"),
        ({"device": "cpu", "platform": "tensorrt-plan"}, ValueError, "device: expected 'gpu' for platform"),
        ({"device": "cpu", "gpus": [0]}, ValueError, "gpus: expected none for device 'cpu'"),
        ({"precision": "fp16"}, ValueError, "precision: expected 'fp32' for platform 'onnxruntime'"),
        ({"engine_cache": "/x"}, ValueError, "engine_cache: expected None for platform 'onnxruntime'"),
        ({"onnx": b""}, ValueError, "onnx: expected None for platform 'onnxruntime'"),
        ({"platform": "tensorrt-plan", "warmup": [1]}, ValueError, "onnx: expected the model that the plan"),
        ({"warmup": [9]}, ValueError, "warmup: expected sizes up to max_batch_size, 8"),
        ({"instances": 0}, ValueError, "instances"),
        ({"priority_levels": -1}, ValueError, "priority_levels"),
        ({"version": 0}, ValueError, "version"),
        ({"warmup": [1], "example": np.zeros(3)}, ValueError, "example: input 'x': expected float32"),
        (
            {"batch_axes": {"x": 1, "y": 1}},
            ValueError,
            "max_batch_size: expected 0, since input 'x' is stacked on axis 1",
        ),
    ],
)
def test_arguments_are_checked_and_nothing_is_written(doubling, tmp_path, options, error, what):
    with pytest.raises(error, match=what):
        write_model_repository(
            **{"folder": tmp_path / "r", "name": "m", "source": doubling, "max_batch_size": 8, **options}
        )
    assert tree(tmp_path) in ([], ["r"])


def test_models_that_triton_cannot_batch_are_rejected(write, identity, build_model, assets, tmp_path):
    with pytest.raises(ValueError, match="expected 0, since input 'x' has a batch axis fixed at 1"):
        write(identity(Tensor.FLOAT, [1, 4]))
    scaled = build_model(
        [helper.make_node("Mul", ["x", "factor"], ["y"])],
        [("x", Tensor.FLOAT, ["n", 4]), ("factor", Tensor.FLOAT, [])],
        [("y", Tensor.FLOAT, ["n", 4])],
    )
    with pytest.raises(ValueError, match="expected 0, since input 'factor' is shared by the whole batch"):
        write(scaled, shared_inputs={"factor": np.array(2, F32)})
    strings = build_model(
        [helper.make_node("Cast", ["x"], ["y"], to=Tensor.STRING)],
        [("x", Tensor.FLOAT, ["n", 4])],
        [("y", Tensor.STRING, ["n", 4])],
    )
    with pytest.raises(ValueError, match="source: expected tensors of numbers or booleans, got output y"):
        write(strings)
    with pytest.raises(ValueError, match="source: expected sizes ≥ 1, as Triton has no empty tensors, got input x"):
        write(identity(Tensor.FLOAT, ["n", 0]))
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "nothing.onnx")


# ---------------------------------------------------------------------------------------------- a real Triton

EMPTY_MODEL = """
class TritonPythonModel:
    pass
"""
PYTHON_MODEL = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            mask = pb_utils.get_input_tensor_by_name(request, "mask").as_numpy()
            y = x * mask.reshape(-1, 1, 1, 1)
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", y.astype(np.float32))]))
        return answers
"""


@pytest.mark.parametrize("priority_levels", [0, 3])
def test_real_triton_accepts_repository_unchanged(triton, images, priority_levels):
    """A real Triton accepts a written repository and serves its model.

    This build of Triton lacks ONNX Runtime, so the test replaces only the backend in the config by Python's. The
    warm-up runs too.
    """
    import tritonclient.grpc as client_module

    name = f"written_{priority_levels}"
    folder = write_model_repository(
        triton.repository,
        name,
        images,
        max_batch_size=8,
        device="cpu",
        warmup=(1, 8),
        priority_levels=priority_levels,
    )
    try:
        written = (folder / "config.pbtxt").read_text()
        (folder / "config.pbtxt").write_text(written.replace('"onnxruntime"', '"python"'))
        (folder / "1" / "model.py").write_text(PYTHON_MODEL)
        triton.load(name)
        with client_module.InferenceServerClient(triton.grpc_url) as client:
            loaded = client.get_model_config(name).config
            assert (loaded.max_batch_size, loaded.instance_group[0].count) == (8, 1)
            assert loaded.WhichOneof("scheduling_choice") == ("dynamic_batching" if priority_levels else None)
            assert not loaded.response_cache.enable
            x, mask = np.ones((3, 3, 4, 4), F32), np.array([[True], [False], [True]])
            asked = [
                client_module.InferInput("x", x.shape, "FP32"),
                client_module.InferInput("mask", mask.shape, "BOOL"),
            ]
            asked[0].set_data_from_numpy(x)
            asked[1].set_data_from_numpy(mask)
            y = client.infer(name, asked).as_numpy("y")
            assert y[:, 0, 0, 0].tolist() == [1, 0, 1]
    finally:
        triton.unload(name)
        shutil.rmtree(folder)


def test_real_triton_accepts_input_without_dimensions(triton, assets):
    """A real Triton accepts an input without dimensions, such as Silero's sampling rate, in an unbatched model."""
    folder = write_model_repository(
        triton.repository,
        "written_recurrent",
        assets / "silero_vad_16k_op15.onnx",
        max_batch_size=0,
        batch_axes={"state": 1, "stateN": 1},
        shared_inputs={"sr": np.array(16000)},
        device="cpu",
    )
    try:
        written = (folder / "config.pbtxt").read_text()
        (folder / "config.pbtxt").write_text(written.replace('"onnxruntime"', '"python"'))
        (folder / "1" / "model.py").write_text(EMPTY_MODEL)
        triton.load("written_recurrent")
    finally:
        triton.unload("written_recurrent")
        shutil.rmtree(folder)
