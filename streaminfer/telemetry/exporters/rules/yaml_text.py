"""Writer for YAML in block style: mappings, lists, strings, numbers and booleans."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["to_yaml"]

_UNREADABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff\ufffe\uffff]")
"""Characters that YAML forbids or folds in quoted text, and JSON does not escape."""


def to_yaml(data: Mapping[str, Any]) -> str:
    """Return a YAML document; strings are quoted as in JSON, with escapes for further characters that YAML needs."""
    return "\n".join(_lines(data)) + "\n"


def _lines(data: Any) -> list[str]:
    if not _is_nested(data):
        # not ASCII only, because JSON escapes a character beyond 16 bits as two surrogates, which YAML does not join
        quoted = json.dumps(data, ensure_ascii=False)
        return [_UNREADABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", quoted)]
    lines: list[str] = []
    if isinstance(data, Mapping):
        for key, value in data.items():
            nested = _lines(value)
            if _is_nested(value):
                lines += [f"{key}:", *(f"  {line}" for line in nested)]
            else:
                lines.append(f"{key}: {nested[0]}")
    else:
        for value in data:
            first, *rest = _lines(value)
            lines += [f"- {first}", *(f"  {line}" for line in rest)]
    return lines


def _is_nested(value: Any) -> bool:
    return isinstance(value, (Mapping, Sequence)) and not isinstance(value, str) and bool(value)
