"""Folder of an nginx ``proxy_cache``, for a proof: finds files that must not be there."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from streaminfer._internal.validation import check_duration, check_path
from streaminfer.compliance.every_file import every_file
from streaminfer.errors import BackendError
from streaminfer.http_edge.http_dates import parse_http_date

__all__ = ["NginxFolder"]

_HEAD = 64 * 1024
_DATES = re.compile(rb"\r\n(date|last-modified):([^\r]+)", re.IGNORECASE)
_AGE = re.compile(rb"\r\nage:[ \t]*([0-9]{1,12})", re.IGNORECASE)
_PRIVATE = re.compile(rb"\r\ncache-control:[^\r]*(?<![\w-])(?:private|no-store)(?![\w-])", re.IGNORECASE)


class NginxFolder:
    """Folder of a ``proxy_cache_path``. A file has a binary head, the key, the header fields, and the body.

    Responses with a subject, and to tenants that do not share, are ``private`` or ``no-store``: none may be there.
    Others may be as old as the retention policy allows, plus the time that nginx takes to remove them. The age of a
    response follows from its ``Date`` and ``Age``, or its ``Last-Modified``, the instant of its computation.

    Args:
        path: of the folder.
        purge_bound_s: nginx's ``inactive``, after which it removes unused files; 600 s unless configured.

    Raises:
        TypeError, ValueError: ``path`` is not a path, or the bound is not a duration.
    """

    def __init__(self, path: str | os.PathLike[str], *, purge_bound_s: float = 600.0) -> None:
        self.path = check_path("path", path)
        self.purge_bound_s = check_duration("purge_bound_s", purge_bound_s)

    def remains(self, now_s: float, max_age_s: float) -> Iterator[tuple[str, str]]:
        """Yield the names of files that must not be there, and why.

        Args:
            now_s: the current time of the wall clock, seconds since 1970.
            max_age_s: maximum age in the retention policy, seconds.

        Raises:
            BackendError: the folder is missing, or something in it cannot be read.
        """
        try:
            for path in every_file(self.path):
                yield from self._judge(path, now_s, max_age_s)
        except OSError as error:
            raise BackendError(f"the HTTP cache in {self.path} cannot be read: {error}") from error

    def _judge(self, path: Path, now_s: float, max_age_s: float) -> Iterator[tuple[str, str]]:
        try:
            with path.open("rb") as file:
                head = file.read(_HEAD)
                modified_s = os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:  # nginx removed it meanwhile
            return
        fields = head.partition(b"\r\n\r\n")[0]
        computed_s = _computed_s(fields, now_s)
        if _PRIVATE.search(fields):
            yield path.name, "it holds an answer that no shared cache may keep"
        elif now_s - (modified_s if computed_s is None else computed_s) > max_age_s + self.purge_bound_s:
            yield path.name, "it has expired, and the time to remove it has passed"

    def __repr__(self) -> str:
        return f"<NginxFolder({str(self.path)!r})>"


def _computed_s(fields: bytes, now_s: float) -> int | None:
    """Return the earliest instant of a response in its header fields; ``None`` if they contain none."""
    instants: dict[bytes, int] = {}
    for name, text in _DATES.findall(fields):
        instant = parse_http_date(text.decode("latin-1").strip(), int(now_s))
        if instant is not None:
            instants[name.lower()] = instant
    age = _AGE.search(fields)
    if age is not None and b"date" in instants:
        instants[b"date"] -= int(age[1])
    return min(instants.values(), default=None)
