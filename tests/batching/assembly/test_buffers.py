"""`BufferPool`: a buffer is reused only when nothing refers to it, so a view never changes."""

import ctypes
import gc
import pickle
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from streaminfer.batching.assembly.buffers import BufferPool

F4 = np.dtype(np.float32)
PLENTY = 1 << 30


def address(array):
    return array.__array_interface__["data"][0]


def test_memory_is_reused_after_the_array_is_freed():
    pool = BufferPool(PLENTY)
    array = pool.take((3, 100), F4)
    assert array.shape == (3, 100)
    assert array.dtype == F4
    assert array.flags.c_contiguous
    assert array.flags.writeable
    first = address(array)
    del array
    assert address(pool.take((2, 150), F4)) == first  # another shape of the same size class
    assert pool.held_bytes == 2048


HOLDERS = {
    "itself": lambda a: a,
    "view": lambda a: a[3],
    "element view": lambda a: a[3, 5:6],
    "view of a view of a view": lambda a: a[1:][2].reshape(10, 10)[:, 1:].T,
    "other dtype": lambda a: a.view(np.uint8)[7:9],
    "rows of list()": lambda a: list(a)[-1],
    "iterator": iter,
    "flat": lambda a: a.flat,
    "ctypes": np.ctypeslib.as_ctypes,
    "ctypes pointer": lambda a: a.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
    "memoryview": memoryview,
    "memoryview slice": lambda a: memoryview(a)[2:4],
    "cast memoryview": lambda a: memoryview(a).cast("B")[5:6],
    "dlpack": lambda a: np.from_dlpack(a)[1],
    "pickle buffer": pickle.PickleBuffer,
    "frombuffer": lambda a: np.frombuffer(a, np.uint8)[1:],
    "subclass": lambda a: a.view(np.recarray)[1],
    "masked": lambda a: np.ma.masked_array(a)[1],
    "broadcast": lambda a: np.broadcast_to(a[0], (4, 100)),
    "exception": lambda a: ValueError("kept", a[2]),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_memory_is_not_reused_while_referenced(holder):
    pool = BufferPool(PLENTY)
    array = pool.take((10, 100), F4)
    array[...] = 1.0
    first = address(array)
    kept = HOLDERS[holder](array)
    del array
    others = [pool.take((10, 100), F4) for _ in range(4)]
    assert first not in map(address, others)
    del kept
    gc.collect()  # some holders are cycles
    assert address(pool.take((10, 100), F4)) == first


def test_ort_values_and_returned_inputs_keep_memory():
    """A buffer is not reused while an OrtValue or an output of a model that returns its input refers to it."""
    import onnx
    import onnxruntime as ort

    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    infos = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 1000]) for name in "xy"]
    graph = onnx.helper.make_graph([node], "identity", infos[:1], infos[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

    pool = BufferPool(PLENTY)
    kept = []
    for number in range(6):
        array = pool.take((4, 1000), F4)
        array[...] = number
        value = ort.OrtValue.ortvalue_from_numpy(array)
        kept.append((number, session.run(None, {"x": array})[0][1], session.run_with_ort_values(None, {"x": value})[0]))
        if number % 2:
            kept.append((number, value.numpy()[2], value))
        del array, value
    for number, row, value in kept:
        assert (row == number).all()
        assert (value.numpy() == number).all()


def test_buffer_read_by_a_finalizer_is_not_reused():
    """A buffer that a finalizer still reads is not reused during garbage collection."""
    pool = BufferPool(PLENTY)
    seen = []

    class Cyclic:
        def __init__(self, array):
            self.array = array
            self.me = self

        def __del__(self):
            other = pool.take((1000,), F4)
            other[...] = 2.0
            seen.append(self.array.copy())

    array = pool.take((1000,), F4)
    array[...] = 1.0
    Cyclic(array)
    del array
    gc.collect()
    assert (seen[0] == 1.0).all()


def test_lent_and_idle_memory_is_bounded():
    pool = BufferPool(4096)
    kept = [pool.take((256,), F4) for _ in range(4)]  # 1 KB each
    assert pool.held_bytes == 4096
    beyond = pool.take((256,), F4)
    assert beyond.flags.owndata
    assert pool.held_bytes == 4096
    assert pool.take((2048,), F4).flags.owndata  # never fits
    addresses = {address(array) for array in kept}
    del beyond, kept[:]
    assert {address(array) for array in [pool.take((256,), F4) for _ in range(4)]} == addresses


def test_longest_unused_idle_memory_is_freed_first():
    """Idle memory makes room for new buffers, the least recently used first."""
    pool = BufferPool(4096)
    first, second, third = (pool.take((256,), F4) for _ in range(3))
    left = {address(second), address(third)}
    del first, second, third
    larger = pool.take((512,), F4)  # 1 KB is free, so the pool frees one idle buffer
    assert not larger.flags.owndata
    assert pool.held_bytes == 4096
    small = [pool.take((256,), F4), pool.take((256,), F4)]
    assert {address(array) for array in small} == left
    del small
    assert pool.take((1024,), F4).flags.owndata  # the lent buffers leave no room for it
    assert pool.held_bytes == 4096


def test_smaller_arrays_reuse_memory_of_larger_ones():
    """Smaller arrays reuse the memory of larger ones, never the other way round."""
    pool = BufferPool(PLENTY)
    large = pool.take((1000,), F4)
    where = address(large)
    del large
    small = pool.take((10,), F4)
    assert address(small) == where
    del small
    assert address(pool.take((1025,), F4)) != where


def test_arrays_outlive_a_freed_pool():
    pool = BufferPool(PLENTY)
    array = pool.take((1000,), F4)
    array[...] = 3.0
    row = array[5:]
    del pool, array
    gc.collect()
    assert (row == 3.0).all()


def test_take_allocates_if_the_pool_is_locked():
    pool = BufferPool(PLENTY)
    with pool._lock:
        assert pool.take((1000,), F4).flags.owndata
    assert not pool.take((1000,), F4).flags.owndata


def test_a_failed_allocation_is_not_counted():
    pool = BufferPool(1 << 62)
    with pytest.raises(MemoryError):
        pool.take((1 << 55,), np.dtype(np.uint8))
    assert pool.held_bytes == 0
    assert not pool.take((8,), F4).flags.owndata


@pytest.mark.parametrize("dtype", ["?", "<U3", "S5", "M8[s]", "c16", [("a", "i4"), ("b", "f8")], "U0"])
def test_any_dtype_without_objects(dtype):
    array = BufferPool(PLENTY).take((4, 3), np.dtype(dtype))
    assert array.dtype == np.dtype(dtype)
    assert array.shape == (4, 3)


def test_threads_never_share_a_buffer():
    pool = BufferPool(1 << 16)
    wrong = []

    def work(seed):
        rng = np.random.default_rng(seed)
        kept = []
        for number in range(400):
            array = pool.take((int(rng.integers(1, 9)), 64), np.dtype(np.int64))
            array[...] = seed * 1000 + number
            kept.append((seed * 1000 + number, array[-1]))
            del array
            while len(kept) > rng.integers(0, 12):
                expected, row = kept.pop(int(rng.integers(len(kept))))
                if not (row == expected).all():
                    wrong.append((expected, row))
        assert pool.held_bytes <= 1 << 16

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert pool.held_bytes <= 1 << 16


class Holding(RuleBasedStateMachine):
    """Arrays, their views and views of views, taken and dropped in any order; each keeps its values."""

    def __init__(self):
        super().__init__()
        self.pool = BufferPool(1 << 14)
        self.held = []
        self.number = 0

    @rule(rows=st.integers(1, 20), width=st.integers(1, 40))
    def take(self, rows, width):
        self.number += 1
        array = self.pool.take((rows, width), np.dtype(np.int64))
        array[...] = self.number
        self.held.append((self.number, array))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def keep_a_view_alone(self, data):
        position = data.draw(st.integers(0, len(self.held) - 1))
        number, array = self.held[position]
        self.held[position] = (number, array[:1] if array.ndim == 1 else array[-1])

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def drop(self, data):
        self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))

    @invariant()
    def everyone_has_what_was_written(self):
        assert all((array == number).all() for number, array in self.held)
        assert self.pool.held_bytes <= 1 << 14


TestHolding = Holding.TestCase
TestHolding.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


@given(st.integers(0, 5000))
def test_buffer_sizes_are_powers_of_two(length):
    pool = BufferPool(PLENTY)
    pool.take((length,), np.dtype(np.uint8))
    assert pool.held_bytes >= max(length, 1)
    assert pool.held_bytes < max(2 * length, 2)
    assert pool.held_bytes.bit_count() == 1
