"""Files of a folder, for a proof: a folder that cannot be looked into is an error, and not an empty one."""

import os
from pathlib import Path

__all__ = ["every_file"]


def every_file(folder: Path) -> list[Path]:
    """Return the files in a folder and below it, in order.

    Raises:
        OSError: the folder is missing, or it, or one in it, cannot be read; ``Path.rglob`` would leave those out.
    """

    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError) or Path(error.filename) == folder:
            raise error  # else a folder that was removed meanwhile

    found = (Path(place, name) for place, _, names in os.walk(folder, onerror=fail) for name in names)
    return sorted(path for path in found if path.is_file())
