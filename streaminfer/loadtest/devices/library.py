"""Library of device profiles, and profiles from TOML and JSON files."""

import functools
import json
import tomllib
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from streaminfer._internal.validation import check_instance, expected
from streaminfer.loadtest.devices.profile import DeviceProfile, profile_from_dict

__all__ = ["device_names", "device_profile", "list_profiles", "load_profile"]

T = TypeVar("T")
_PARSERS: dict[str, Callable[[str], Any]] = {".json": json.loads, ".toml": tomllib.loads}


def list_profiles(package: str, folder: str) -> tuple[str, ...]:
    """Return the names of the TOML files in a folder of package data."""
    files = resources.files(package).joinpath(folder).iterdir()
    return tuple(sorted(Path(file.name).stem for file in files if file.name.endswith(".toml")))


def load_profile(
    source: str | Path, package: str, folder: str, parse: Callable[[Mapping[str, Any]], T], argument: str
) -> T:
    """Return a profile by its name in the package data, or from a TOML or JSON file.

    Raises:
        ValueError: no profile has this name, or the file holds an invalid one.
        OSError: the file cannot be read.
    """
    check_instance(argument, source, str | Path, "the name of a profile, or a path")
    path = Path(source)
    if path.suffix in _PARSERS:
        content = path.read_bytes()
        try:
            stored = _PARSERS[path.suffix](content.decode())
            check_instance("profile", stored, Mapping, "a table")
            return parse(stored)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{argument}: {path}: {error}") from error
    names = list_profiles(package, folder)
    if source not in names:
        raise ValueError(expected(argument, "a .toml or .json file, or one of " + ", ".join(names), source))
    text = resources.files(package).joinpath(folder).joinpath(f"{source}.toml").read_text(encoding="utf-8")
    return parse(tomllib.loads(text))


@functools.cache
def device_names() -> tuple[str, ...]:
    """Return the names of the profiles in the library."""
    return list_profiles(__package__, "profiles")


def device_profile(source: str | Path | DeviceProfile) -> DeviceProfile:
    """Return a profile from the library or from a TOML or JSON file; a profile is returned unchanged.

    Args:
        source: a name such as ``"phone"``; a path that ends in ``.toml`` or ``.json``; or a profile.

    Raises:
        ValueError: no profile has this name, or the file holds an invalid one.
        OSError: the file cannot be read.
    """
    if isinstance(source, DeviceProfile):
        return source
    return load_profile(source, __package__, "profiles", profile_from_dict, "device")
