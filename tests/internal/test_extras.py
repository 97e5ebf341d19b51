"""Optional dependencies that are installed and cannot be loaded."""

import builtins
import errno

import pytest

import streaminfer as si
from streaminfer._internal.loading.extras import require


def test_dependency_with_unreadable_files_is_retried(tmp_path, monkeypatch):
    """A dependency that cannot be loaded at the limit of open files is an error, and is loaded when this has passed."""
    (tmp_path / "unreadable_dependency.py").write_text("import builtins\nbuiltins.load_dependency()\n")
    monkeypatch.syspath_prepend(tmp_path)
    failures = [OSError(errno.EMFILE, "Too many open files")]

    def load():
        if failures:
            raise failures.pop()

    monkeypatch.setattr(builtins, "load_dependency", load, raising=False)

    with pytest.raises(
        si.BackendError, match=r"the test needs unreadable_dependency, .* Too many open files"
    ) as failed:
        require("unreadable_dependency", extra="test", purpose="the test")

    assert isinstance(failed.value.__cause__, OSError)
    assert require("unreadable_dependency", extra="test", purpose="the test").__name__ == "unreadable_dependency"
