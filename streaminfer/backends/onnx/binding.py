"""Runs of a session with inputs and outputs bound to reused memory.

Idea: for every input, ``InferenceSession.run`` allocates memory on the device and copies from memory that the GPU's
copy engine cannot read, so that the driver copies once more, through a small buffer. For every output it allocates
memory again. Here each batch shape has a *slot*: memory on the device for its inputs and outputs, and
*pinned* (page-locked) memory on the host, which the copy engine reads at the full speed of the bus.

CUDA graphs: a slot's addresses stay the same, so the work of a batch can be recorded and replayed by later batches of
that shape. Each slot has one graph with a unique number, ``gpu_graph_id``. It is recorded in a warm-up run and never in
a live one, because recording takes several runs. onnxruntime stores graphs by thread: a new thread must record again,
and only one thread may run a session with graphs.

Lifetime: the next batch of a shape overwrites the slot's memory, so results are copied out of it. On a GPU that is the
copy to the host, which is needed in any case; on the CPU it is an additional copy. Arrays that a caller holds never
change later.

Outputs are bound to reused memory if the model declares their shape: each size is a number, the batch size, or the name
of a size of an input. Otherwise onnxruntime allocates them in each run, and they are bound again before it, because a
bound output that changes its size is an error.

Outputs that the sender keeps whole, such as the states of a recurrent model, stay on the device: onnxruntime allocates
them in each run, and when they come back as inputs, their memory is bound without a copy. Graphs remember addresses, so
with graphs such outputs are copied like the others.

onnxruntime cannot allocate pinned memory from Python (its ``OrtValue`` knows the devices ``cpu``, ``cuda`` and others,
and no ``cuda_pinned``), so this module registers its memory with the CUDA runtime that onnxruntime has loaded.
"""

import ctypes
import itertools
import mmap
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from streaminfer._internal.validation import check_choice, expected
from streaminfer.backends.onnx.model import DTYPES, Provider
from streaminfer.backends.signature import TEXT, Signature, TensorSpec
from streaminfer.errors import BackendError

__all__ = [
    "Binding",
    "BoundRuns",
    "DeviceArray",
    "check_cuda_graphs",
    "choose_binding",
    "load_cuda_runtime",
    "records_graphs",
]

Binding = Literal["off", "pageable", "pinned"]
"""``off``: plain runs; ``pageable``: bound memory; ``pinned``: also page-locked, for GPUs."""

Array = npt.NDArray[Any]
Device = tuple[str, int]
_Shapes = tuple[tuple[int, ...] | None, ...]
"""Shapes of the model's inputs, in order; ``None`` for an optional input that is left out."""

_GPU_PROVIDERS = ("CUDAExecutionProvider", "TensorrtExecutionProvider")
_MAX_SLOTS = 16  # shapes with reused memory: more than a batcher has buckets; a limit for models with free shapes
_PORTABLE = 1  # cudaHostRegisterPortable: pinned for every device
_GRAPH_ID = "gpu_graph_id"
_NO_GRAPH = -1  # onnxruntime's value for: neither record nor replay


def choose_binding(setting: object, providers: Sequence[Provider], signature: Signature) -> tuple[Binding, Device]:
    """Return how batches run, and on which device; ``None`` means pinned on a GPU, and plain runs elsewhere.

    Raises:
        ValueError: the model or the providers do not allow the setting.
        TypeError: the setting is not a string.
    """
    name, options = providers[0]
    device = ("cuda", int(options.get("device_id", 0))) if name in _GPU_PROVIDERS else ("cpu", 0)
    unbindable = next((spec for spec in (*signature.inputs, *signature.outputs) if not _is_bindable(spec)), None)
    if setting is None:
        return ("pinned" if device[0] == "cuda" and unbindable is None else "off"), device
    binding: Binding = check_choice("binding", setting, get_args(Binding))
    if binding == "pinned" and device[0] != "cuda":
        raise ValueError(expected("binding", f"'off' or 'pageable' on {name}, which has no device memory", setting))
    if binding != "off" and unbindable is not None:
        raise ValueError(
            expected("binding", f"'off', since {unbindable.name!r} is no tensor of NumPy's numbers", setting)
        )
    return binding, device


def _is_bindable(spec: TensorSpec) -> bool:
    return spec.dtype is not None and spec.dtype != TEXT and not spec.is_bfloat16


def check_cuda_graphs(session: Any, binding: Binding, signature: Signature, sessions: int) -> None:
    """Check the settings of a session with CUDA graphs, which remember memory addresses.

    Raises:
        ValueError: the session has CUDA graphs and a setting does not allow them.
    """
    if not records_graphs(session):
        return
    if binding == "off":
        raise ValueError(expected("binding", "'pinned' or 'pageable' with enable_cuda_graph", binding))
    if sessions > 1:
        raise ValueError(expected("sessions", "1 with enable_cuda_graph: one thread may run the graphs", sessions))
    shapes = [tuple(size if isinstance(size, int) else 1 for size in spec.shape) for spec in signature.inputs]
    if _output_shapes(signature, shapes) is None:
        outputs = ", ".join(map(str, signature.outputs))
        raise ValueError(f"outputs: expected those whose sizes the model states, with enable_cuda_graph, got {outputs}")


def records_graphs(session: Any) -> bool:
    """Return whether a session makes CUDA graphs."""
    options = session.get_provider_options().get("CUDAExecutionProvider", {})
    return str(options.get("enable_cuda_graph")).lower() in {"1", "true"}


def load_cuda_runtime() -> Any:
    """Return the CUDA runtime that onnxruntime's CUDA provider has loaded.

    Raises:
        ValueError: no CUDA runtime was found.
    """
    names = [f"cudart64_{one}.dll" if sys.platform == "win32" else f"libcudart.so.{one}" for one in (13, 12)]
    for name in names:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        library.cudaHostRegister.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint]
        library.cudaHostUnregister.argtypes = [ctypes.c_void_p]
        library.cudaGetErrorString.argtypes = [ctypes.c_int]
        library.cudaGetErrorString.restype = ctypes.c_char_p
        return library
    raise ValueError(expected("binding", f"'off' or 'pageable', since none of {', '.join(names)} is found", "pinned"))


class BoundRuns:
    """Runs of one session on reused memory; thread-safe, one run at a time.

    Args:
        runtime: the module ``onnxruntime``.
        session: the ``InferenceSession``.
        signature: the model's inputs and outputs.
        device: the device of the inputs and outputs.
        cuda: the CUDA runtime, for pinned memory; ``None``: pageable memory.
    """

    def __init__(self, runtime: ModuleType, session: Any, signature: Signature, device: Device, cuda: Any) -> None:
        self._graph_ids: Iterator[int] | None = itertools.count(1) if records_graphs(session) else None
        self._options: Any = None
        self.runtime = runtime
        self.session = session
        self.signature = signature
        self.device = device
        self.cuda = cuda
        self._slots: OrderedDict[_Shapes, _Slot] = OrderedDict()
        self._lock = threading.Lock()  # a warm-up may run in any thread during a batch

    def run(
        self,
        feed: Mapping[str, Any],
        options: Any,
        *,
        record: bool = False,
        device_outputs: frozenset[str] = frozenset(),
    ) -> list[Any]:
        """Run the model and return its outputs, in the model's order; the caller owns them.

        Args:
            feed: the inputs of the model, by name; optional ones may be left out.
            options: the ``RunOptions``.
            record: whether this is a warm-up run, which records a CUDA graph for this shape, if the session has graphs.
            device_outputs: names of outputs that stay on the device, each as a :class:`DeviceArray` that can be fed
                again.

        Raises:
            BackendError: memory cannot be pinned.
        """
        shapes = tuple(feed[spec.name].shape if spec.name in feed else None for spec in self.signature.inputs)
        with self._lock:
            slot = self._slots.get(shapes)
            if slot is None:
                self._make_room()
                slot = self._slots[shapes] = _Slot(self, shapes)
            self._slots.move_to_end(shapes)
            if self._graph_ids is None:
                return slot.run(feed, options, device_outputs)
            if record and slot.graph_id == _NO_GRAPH:
                slot.graph_id = next(self._graph_ids)
            self._set_graph(options, slot.graph_id)
            return slot.run(feed, options)

    def record_again(self, new_options: Callable[[], Any]) -> None:
        """Record all graphs again if this thread is a new one; in the same thread they are replayed."""
        with self._lock:
            for slot in self._slots.values():
                if slot.graph_id != _NO_GRAPH:
                    options = new_options()
                    self._set_graph(options, slot.graph_id)
                    slot.run_bound(options)

    def renew(self) -> "BoundRuns":
        """Return runs with new memory and without graphs, because a hung run may still write to the old memory."""
        renewed = BoundRuns(self.runtime, self.session, self.signature, self.device, self.cuda)
        if self._graph_ids is not None:
            renewed._graph_ids = itertools.repeat(_NO_GRAPH)
        return renewed

    def _make_room(self) -> None:
        """Drop the least recently used memory; slots with graphs stay, because graphs remember their addresses."""
        without_graph = [shapes for shapes, slot in self._slots.items() if slot.graph_id == _NO_GRAPH]
        for shapes in without_graph[: max(len(without_graph) - _MAX_SLOTS + 1, 0)]:
            del self._slots[shapes]

    def _set_graph(self, options: Any, graph_id: int) -> None:
        if options is not self._options:  # the same options mean a further run of one batch; a second entry would warn
            options.add_run_config_entry(_GRAPH_ID, str(graph_id))
            self._options = options


class DeviceArray:
    """An output that stayed on the device; NumPy copies it to the host when it needs the values.

    Args:
        value: the ``OrtValue``.

    Attributes:
        value: the ``OrtValue``.
        device: the name of the device.
        shape: the shape of the array.
        dtype: the dtype of the array.
    """

    def __init__(self, value: Any) -> None:
        self.value = value
        self.device: str = value.device_name().lower()
        self.shape: tuple[int, ...] = tuple(value.shape())
        self.dtype = DTYPES[value.data_type()]
        self._host: Array | None = None

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if self._host is None:
            self._host = self.value.numpy()
        host = self._host if dtype is None or dtype == self.dtype else self._host.astype(dtype)
        return host.copy() if copy else host


class _Slot:
    """Bound memory for batches of one shape."""

    def __init__(self, runs: BoundRuns, shapes: _Shapes) -> None:
        signature = runs.signature
        self.graph_id = _NO_GRAPH
        self._session = runs.session
        self._device = runs.device
        self._binding = runs.session.io_binding()
        self._names = signature.output_names
        self._hosts: dict[str, Array] = {}
        self._inputs: dict[str, Any] = {}
        for spec, shape in zip(signature.inputs, shapes, strict=True):
            assert spec.dtype is not None  # noqa: S101 - read_specs rejects other inputs
            if shape is None:
                continue
            host = _host_memory(shape, spec.dtype, runs.cuda)
            self._hosts[spec.name] = host
            self._inputs[spec.name] = _value_of(runs, host)
        output_shapes = _output_shapes(signature, shapes)
        self._outputs: list[tuple[Any, Array | None]] | None = None
        if output_shapes is not None:
            memories = map(np.empty, output_shapes, [spec.dtype for spec in signature.outputs])
            on_cpu = self._device[0] == "cpu"
            self._outputs = [(_value_of(runs, memory), memory if on_cpu else None) for memory in memories]

    def run(self, feed: Mapping[str, Any], options: Any, device_outputs: frozenset[str] = frozenset()) -> list[Any]:
        for name, host in self._hosts.items():
            value, bound_value = feed[name], self._inputs[name]
            if device_outputs and isinstance(value, DeviceArray) and value.device == self._device[0]:
                bound_value = value.value
            else:
                np.copyto(host, value)
                if self._device[0] != "cpu":
                    bound_value.update_inplace(host)
            self._binding.bind_ortvalue_input(name, bound_value)
        outputs = None if device_outputs else self._outputs
        for position, name in enumerate(self._names):
            if outputs is None:
                self._binding.bind_output(name, *self._device)
            else:
                self._binding.bind_ortvalue_output(name, outputs[position][0])
        self.run_bound(options)
        if outputs is not None:
            # numpy() copies values from a device to the host
            return [value.numpy() if memory is None else memory.copy() for value, memory in outputs]
        if device_outputs:
            new = zip(self._names, self._binding.get_outputs(), strict=True)
            return [DeviceArray(value) if name in device_outputs else value.numpy() for name, value in new]
        copies: list[Array] = self._binding.copy_outputs_to_cpu()
        return copies

    def run_bound(self, options: Any) -> None:
        """Run the model on the inputs in the slot's memory."""
        self._session.run_with_iobinding(self._binding, options)


def _output_shapes(signature: Signature, shapes: Sequence[tuple[int, ...] | None]) -> list[tuple[int, ...]] | None:
    """Return the shapes of all outputs, or ``None`` if the model does not declare one of them."""
    sizes: dict[object, int] = {}
    rows = 1
    for spec, shape in zip(signature.inputs, shapes, strict=True):
        if shape is None:
            continue
        sizes.update((name, size) for name, size in zip(spec.shape, shape, strict=True) if isinstance(name, str))
        if spec.batch_axis is not None:
            rows = shape[spec.batch_axis]
    output_shapes: list[tuple[Any, ...]] = [
        tuple(rows if axis == spec.batch_axis else sizes.get(size, size) for axis, size in enumerate(spec.shape))
        for spec in signature.outputs
    ]
    # an empty shape is undeclared or a scalar's: the model does not distinguish them
    are_known = all(shape and all(isinstance(size, int) for size in shape) for shape in output_shapes)
    return output_shapes if are_known else None


def _value_of(runs: BoundRuns, memory: Array) -> Any:
    """Return an onnxruntime value with this memory, or with memory of the same shape on the device."""
    values = runs.runtime.OrtValue
    if runs.device[0] == "cpu":
        return values.ortvalue_from_numpy(memory)
    return values.ortvalue_from_shape_and_type(memory.shape, memory.dtype.type, *runs.device)


def _host_memory(shape: tuple[int, ...], dtype: np.dtype[Any], cuda: Any) -> Array:
    count = int(np.prod(shape, dtype=int))
    size = count * dtype.itemsize
    if cuda is None or not size:
        return np.empty(shape, dtype)
    memory = mmap.mmap(-1, size)  # separate pages, because whole pages are pinned
    array = np.frombuffer(memory, dtype, count)
    address = array.ctypes.data
    error = cuda.cudaHostRegister(address, size, _PORTABLE)
    if error:
        reason = cuda.cudaGetErrorString(error).decode()
        raise BackendError(f"cannot pin {size} bytes: {reason}; binding='pageable' does without")
    weakref.finalize(array, cuda.cudaHostUnregister, address)  # runs before the memory below the array is freed
    return array.reshape(shape)
