"""Kernels compiled ahead of time: the choice of the variant, and the check of arguments before any memory access."""

import importlib
import logging

import numpy as np
import pytest

from streaminfer import _compiled_kernels
from streaminfer._compiled_kernels import MODULES, VARIANTS, X86_64_V3_FLAGS, load, load_variant, variants


@pytest.fixture(params=variants())
def variant(request):
    return load_variant(request.param)


def test_every_variant_is_built_from_current_sources():
    """Every variant has all kernels and is built from the current sources."""
    exports = {name for module in MODULES for name in importlib.import_module(module).EXPORTS}

    built = [load_variant(name) for name in VARIANTS]

    assert len(built) == len(VARIANTS)
    assert all(callable(one.checked(name)) for one in built for name in exports)
    assert {one.digest for one in built} == {_compiled_kernels.source_digest()}


def test_processor_flags_choose_the_variant():
    """If any feature is missing, the baseline is chosen, because an illegal instruction would end the process."""
    flags = ["fpu", "sse2", *X86_64_V3_FLAGS]

    assert variants(flags) == list(VARIANTS)
    for missing in X86_64_V3_FLAGS:
        assert variants([flag for flag in flags if flag != missing]) == ["baseline"]
    assert variants([]) == ["baseline"]


def test_load_takes_the_first_variant_that_runs(monkeypatch):
    monkeypatch.delenv("STREAMINFER_DISABLE_COMPILED", raising=False)
    for names in (list(VARIANTS), ["baseline"]):
        monkeypatch.setattr(_compiled_kernels, "variants", lambda names=names: names)
        assert load.__wrapped__().variant == names[0]


def test_load_skips_a_variant_that_was_not_built(monkeypatch):
    monkeypatch.delenv("STREAMINFER_DISABLE_COMPILED", raising=False)
    monkeypatch.setattr(_compiled_kernels, "variants", lambda: ["x86_64_v9", "baseline"])
    assert load.__wrapped__().variant == "baseline"


def test_kernels_of_other_sources_are_not_loaded(monkeypatch, caplog):
    monkeypatch.delenv("STREAMINFER_DISABLE_COMPILED", raising=False)
    monkeypatch.setattr(_compiled_kernels, "source_digest", lambda: "edited since")
    with caplog.at_level(logging.WARNING, "streaminfer"):
        assert load.__wrapped__() is None
    assert "compiled from other sources" in caplog.text


def test_kernels_load_without_their_sources(monkeypatch, tmp_path):
    """A package without sources, which has only bytecode, loads its kernels, because it has nothing to compare with."""
    monkeypatch.delenv("STREAMINFER_DISABLE_COMPILED", raising=False)
    monkeypatch.setattr(_compiled_kernels, "source_of", lambda name: tmp_path / name)
    assert load.__wrapped__().variant in VARIANTS


def test_compiled_kernels_can_be_disabled(monkeypatch):
    monkeypatch.setenv("STREAMINFER_DISABLE_COMPILED", "1")
    assert load.__wrapped__() is None


class TestChecked:
    DURATIONS = np.array([0, 10, 25], np.int64)

    def choose(self, variant, deadlines):
        return variant.checked("choose")(0, deadlines, self.DURATIONS, self.DURATIONS, self.DURATIONS, 5.0, True, 16)

    def test_a_read_only_array_can_be_read(self, variant):
        deadlines = np.frombuffer(np.array([12, 30], np.int64).tobytes(), np.int64)
        assert self.choose(variant, deadlines) == (0, 1)

    @pytest.mark.parametrize(
        "deadlines",
        [
            np.array([[12, 0], [30, 0]], np.int64)[:, 0],
            np.array([12, 30], np.int32),
            np.array([12, 30], ">i8"),
            [12, 30],
            np.array([12.0, 30.0]),
            np.array([[12, 30]]),
            None,
        ],
        ids=["strided", "int32", "other byte order", "list", "float64", "2-D", "None"],
    )
    def test_array_of_wrong_type_or_shape_is_a_type_error(self, variant, deadlines):
        with pytest.raises(TypeError, match="choose: argument 1: expected a C-contiguous array of int64 with 1 dim"):
            self.choose(variant, deadlines)

    def copy(self, variant, target):
        rows = np.array([0])
        variant.checked("copy_rows_int64")(np.ones(1, np.int64), rows, 1, 1, target, rows, 1, 1, 1, 1)

    @pytest.mark.parametrize("target", [np.zeros(128, np.int64)[::2], np.zeros(64, np.int32)], ids=["strided", "int32"])
    def test_wrong_output_array_is_rejected(self, variant, target):
        with pytest.raises(TypeError, match="copy_rows_int64: argument 4: expected a writable, C-contiguous array of"):
            self.copy(variant, target)
        assert not target.any()

    def test_a_read_only_array_is_not_written(self, variant):
        target = np.zeros(64, np.int64)
        target.flags.writeable = False
        with pytest.raises(TypeError, match="writable"):
            self.copy(variant, target)
        assert not target.any()


def test_kernels_keep_no_reference_to_their_arrays(variant):
    """A kernel keeps no reference to its arrays; a call that leaked one would hold every batch forever."""
    import sys

    deadlines = np.array([12, 30], np.int64)
    durations = np.array([0, 10, 25], np.int64)
    before = sys.getrefcount(deadlines), sys.getrefcount(durations)
    for _ in range(100):
        variant.checked("choose")(0, deadlines, durations, durations, durations, 5.0, True, 16)
    assert (sys.getrefcount(deadlines), sys.getrefcount(durations)) == before
