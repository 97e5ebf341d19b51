"""Limits of one request, checked before memory of that size is allocated."""

import attrs

from streaminfer._internal.validation import check_count, check_duration, check_instance, field_check

__all__ = ["Limits", "checked_limits"]


@attrs.frozen(kw_only=True)
class Limits:
    """Limits of one request to a server.

    Attributes:
        max_body_bytes: size of the whole request.
        max_head_bytes: size of its JSON, or of its protobuf message without raw tensors; the Python objects take up to
            20 times as much.
        max_tensors: number of inputs, and of requested outputs.
        max_rank: number of axes of a tensor.
        max_elements: number of elements of a tensor.
        max_strings: number of elements of a ``BYTES`` tensor.
        max_rows: size of the first axis, the batch.
        body_timeout_s: seconds within which the whole body must arrive.
    """

    max_body_bytes: int = attrs.field(default=64 << 20, validator=field_check(check_count))
    max_head_bytes: int = attrs.field(default=4 << 20, validator=field_check(check_count))
    max_tensors: int = attrs.field(default=64, validator=field_check(check_count))
    max_rank: int = attrs.field(default=8, validator=field_check(check_count))
    max_elements: int = attrs.field(default=1 << 24, validator=field_check(check_count))
    max_strings: int = attrs.field(default=1 << 16, validator=field_check(check_count))
    max_rows: int = attrs.field(default=256, validator=field_check(check_count))
    body_timeout_s: float = attrs.field(default=30.0, validator=field_check(check_duration, positive=True))


def checked_limits(limits: Limits | None) -> Limits:
    """Return the limits, or the defaults for ``None``.

    Raises:
        TypeError: ``limits`` is neither.
    """
    check_instance("limits", limits, Limits | None, "Limits or None")
    return limits or Limits()
