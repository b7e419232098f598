"""The releases of Linux for Tegra: which JetPack, Ubuntu, Python and kernel each comes with."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import Field, RootModel

from testbed.boards.model import Release
from testbed.config.model import Model, load_model

__all__ = ["RELEASES_FILE", "jetpack_of", "read_releases", "release_of", "releases"]

RELEASES_FILE = Path(__file__).parent / "data/releases.yaml"


def _pattern(pattern: str, expected: str) -> Any:
    return Field(pattern=pattern, json_schema_extra={"expected": expected})


L4tVersion = Annotated[
    str,
    _pattern(
        r"^[0-9]+\.[0-9]+(\.[0-9]+)?$", 'a release of Linux for Tegra in quotes, such as "36.4" or "36.4.3"'
    ),
]
"""A version of Linux for Tegra."""


class ReleaseEntry(Model):
    """One release in the file."""

    jetpack: Annotated[str, _pattern(r"^[0-9]+$", 'a major release of JetPack in quotes, such as "6"')]
    ubuntu: Annotated[str, _pattern(r"^[0-9]+\.[0-9]+$", 'a release in quotes, such as "22.04"')]
    codename: Annotated[str, Field(min_length=1)]
    kernel: Annotated[str, _pattern(r"^[0-9]+\.[0-9]+$", 'a version in quotes, such as "5.15"')]
    python: Annotated[str, _pattern(r"^3\.[0-9]+$", 'a version in quotes, such as "3.10"')]
    missing: tuple[str, ...]
    versions: dict[L4tVersion, str] = Field(default={})


class ReleaseFile(RootModel[dict[Annotated[str, Field(pattern=r"^[0-9]+$")], ReleaseEntry]]):
    """The file: releases by their major number."""


def read_releases(path: Path) -> Mapping[int, Release]:
    """Return the releases that a file lists, by their major number.

    Args:
        path: The file.

    Raises:
        InputError: The file holds a mistake; one line for each.
    """
    entries = load_model(path, ReleaseFile).root
    return MappingProxyType({int(key): Release(int(key), **dict(entry)) for key, entry in entries.items()})


@cache
def releases() -> Mapping[int, Release]:
    """Return the releases by their major number."""
    return read_releases(RELEASES_FILE)


def release_of(l4t: str) -> Release | None:
    """Return the release that a version such as ``36.4.3`` belongs to, or None where it is unknown."""
    major = l4t.partition(".")[0]
    return releases().get(int(major)) if major.isdecimal() else None


def jetpack_of(l4t: str | None) -> str | None:
    """Return the JetPack that a version of Linux for Tegra belongs to; its major version where in doubt."""
    release = None if l4t is None else release_of(l4t)
    return None if l4t is None or release is None else release.jetpack_of(l4t)
