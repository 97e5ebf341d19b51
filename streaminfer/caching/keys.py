"""Keys of responses: `content_key` covers everything that a response depends on.

There are two hash functions, for two kinds of callers:

* xxh3-128, the default: as fast as memory. Accidental collisions do not happen in practice (2⁻¹²⁸ for each pair), but a
  caller that chooses the inputs can construct two that collide. Use it for trusted callers.
* BLAKE3 keyed with a ``secret``: without the secret, a caller can neither construct two inputs with one key nor derive
  the inputs from a key. Use it for tenants that do not trust each other, and for a tier that others can read. It is
  four to eight times slower.

The encoding is in ``_keys_cy``. It never uses Python's ``hash``, which differs between processes for strings.
Processes and machines can therefore share keys, also after restarts.
"""

import functools
from typing import Any

from streaminfer._internal.loading.extras import require
from streaminfer._internal.validation import check_instance, check_secret
from streaminfer.caching._keys_cy import KeyMaker

__all__ = ["content_key", "key_maker"]

_ENCODING = b"streaminfer key 2"  # changes with the encoding, so that keys of different encodings never match
_CONTEXT = "streaminfer 2025 content_key"


def content_key(
    inputs: Any,
    *,
    model: str = "",
    version: str = "",
    preprocessing: str = "",
    tenant: str | None = "",
    secret: bytes | None = None,
) -> bytes:
    """Return the key of inputs to a model: the same contents give the same key, in any process and on any machine.

    Args:
        inputs: arrays of any layout, numbers, strings, bytes, ``None``, and mappings (in any order), lists, tuples and
            sets of these; also objects with a ``fingerprint``, which count by class and fingerprint.
        model: name of the model, or its fingerprint.
        version: of the model.
        preprocessing: version of the code that prepares the inputs from what the caller sent.
        tenant: the tenant that sends the request; tenants never share a key. ``None`` and ``""`` are the same.
        secret: at least 16 random bytes, for a keyed hash; without them, a caller cannot forge collisions.

    Returns:
        16 bytes, or 32 with a ``secret``.

    Raises:
        InvalidInput: something among the inputs cannot be keyed.
        TypeError, ValueError: another argument is wrong.
        MissingExtra: ``xxhash``, or ``blake3`` for a secret, is not installed (``streaminfer[cache]``).

    Dtype, byte order and shape are part of the key; the layout in memory is not. Floats count by their bits: -0.0
    differs from 0.0, and NaNs with the same bits are equal. 1, 1.0 and ``True`` differ. So do a list and a tuple, a
    named tuple and a tuple, and an ``IntEnum`` and its number.

    Thread-safe.

    Example:
        >>> import numpy as np
        >>> image = np.zeros((2, 3), np.float32)
        >>> content_key(image, model="faces") == content_key(image.copy(order="F"), model="faces")
        True
        >>> content_key(image, model="faces") == content_key(image.T, model="faces")
        False
    """
    if tenant is not None and type(tenant) is not str:
        check_instance("tenant", tenant, str, "a string or None")
    try:
        maker = key_maker(model, version, preprocessing, secret)
    except TypeError:
        _check(model, version, preprocessing, secret)  # names the wrong argument
        raise
    return maker.key(inputs, tenant)


@functools.lru_cache(maxsize=256)
def key_maker(model: str, version: str = "", preprocessing: str = "", secret: bytes | None = None) -> KeyMaker:
    """Return the `KeyMaker` of one model; arguments and errors are those of :func:`content_key`."""
    _check(model, version, preprocessing, secret)
    prefix = b"".join(
        len(part).to_bytes(8, "little") + part
        for part in (_ENCODING, *(text.encode("utf-8", "surrogatepass") for text in (model, version, preprocessing)))
    )
    return KeyMaker(_digest_by(secret), prefix)


def _digest_by(secret: bytes | None) -> Any:
    if secret is None:
        return require("xxhash", extra="cache", purpose="a content key").xxh3_128_digest
    blake3 = require("blake3", extra="cache", purpose="a content key with a secret").blake3
    key = blake3(secret, derive_key_context=_CONTEXT).digest()
    return lambda content: blake3(content, key=key).digest()


def _check(model: Any, version: Any, preprocessing: Any, secret: Any) -> None:
    for name, value in (("model", model), ("version", version), ("preprocessing", preprocessing)):
        check_instance(name, value, str, "a string")
    if secret is not None:
        check_secret("secret", secret)
