"""Files of a folder, for a proof: an unreadable folder is an error, not an empty folder."""

import os
from pathlib import Path

__all__ = ["every_file"]


def every_file(folder: Path) -> list[Path]:
    """Return the files in a folder and below it, in order.

    Raises:
        OSError: the folder is missing, or the folder or one below it is unreadable; ``Path.rglob`` would skip those.
    """

    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError) or Path(error.filename) == folder:
            raise error  # otherwise a subfolder was removed meanwhile

    paths = (Path(place, name) for place, _, names in os.walk(folder, onerror=fail) for name in names)
    return sorted(path for path in paths if path.is_file())
