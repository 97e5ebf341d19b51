"""Numba's cache of kernels: read from any folder, saved in folders that can be written to."""

import numba
import numpy as np
import pytest
from numba.core import caching

from streaminfer._internal.loading.numba_jit import compile_exports, jit, must_keep

OF_FLOATS = {"twice": "float64(float64)"}
OF_INTEGERS = {"twice": "int64(int64)"}


def twice(number):
    return number + number


def compiled(signatures):
    """Return a kernel made as in a new process, and the numbers of signatures that it loaded and compiled."""
    kernel = jit(twice)
    compile_exports({name: (kernel, signature) for name, signature in signatures.items()})
    return kernel, sum(kernel.stats.cache_hits.values()), sum(kernel.stats.cache_misses.values())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a folder in which an earlier process saved the kernel of floats."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    assert compiled(OF_FLOATS)[1:] == (0, 1)
    return tmp_path


@pytest.fixture
def unwritable(monkeypatch):
    """Make all folders of the cache unwritable, also for root."""

    def refuse(locator):
        raise PermissionError(locator.get_cache_path())

    monkeypatch.setattr(caching._CacheLocator, "ensure_cache_path", refuse)


def test_kernel_is_loaded_from_its_folder(folder):
    kernel, loaded, missed = compiled(OF_FLOATS)

    assert (loaded, missed, kernel(2.5)) == (1, 0, 5.0)
    assert kernel.stats.cache_path.startswith(str(folder))


def test_kernel_is_loaded_from_a_read_only_folder(folder, unwritable):
    """A process that must not write loads the kernel that the build of its image saved, and compiles nothing."""
    with must_keep():
        kernel, loaded, missed = compiled(OF_FLOATS)

    assert (loaded, missed, kernel(2.5)) == (1, 0, 5.0)


def test_unsaved_kernel_serves_its_process(folder, unwritable):
    kernel, loaded, missed = compiled(OF_INTEGERS)

    assert (loaded, missed, kernel(np.int64(2))) == (0, 1, 4)


@pytest.mark.parametrize("name", ["own folder", "folder to read"])
def test_damaged_folder_is_no_error(name, folder, request):
    """A kernel whose saved file cannot be read is compiled."""
    if name == "folder to read":
        request.getfixturevalue("unwritable")
    for kept in folder.rglob("*.nbc"):
        kept.unlink()
        kept.mkdir()

    assert compiled(OF_FLOATS)[0](2.5) == 5.0


def test_unsavable_kernel_is_an_error_where_required(folder, unwritable):
    """A kernel that cannot be saved is an error only if saving it is required."""
    with must_keep(), pytest.raises(PermissionError, match="set NUMBA_CACHE_DIR to one that this user can write to"):
        compiled(OF_INTEGERS)

    assert compiled(OF_INTEGERS)[0](2) == 4
