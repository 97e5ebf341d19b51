"""Arrays of recorded runs, in ``.npz`` files."""

import os
from typing import Any
from zipfile import BadZipFile

from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from streaminfer._internal.validation import check_count, check_path, expected

__all__ = ["load_arrays"]


def load_arrays(
    path: str | os.PathLike[str], *keys: str, run: int | None = None, offsets: str = "offsets"
) -> list[NDArray[Any]]:
    """Return arrays of a file, or one run of them.

    Args:
        path: the file.
        keys: names of the arrays.
        run: number of the run; ``None``: the whole arrays.
        offsets: name of the array of positions at which the runs begin, and at which the last one ends; a file without
            it has one run.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file has no such array or run.
    """
    with check_path("path", path).open("rb") as file:
        try:
            stored = NpzFile(file)
        except BadZipFile as error:
            raise ValueError(f"path: expected an .npz file, got {os.fspath(path)!r}: {error}") from error
        for key in keys:
            if key not in stored.files:
                raise ValueError(expected("key", f"one of {', '.join(map(repr, stored.files))}", key))
        arrays = [stored[key] for key in keys]
        bounds = stored[offsets].tolist() if offsets in stored.files else [0, arrays[0].size]
    if run is None:
        return arrays
    run = check_count("run", run, at_least=0, at_most=len(bounds) - 2)
    return [array[bounds[run] : bounds[run + 1]] for array in arrays]
