"""The list of objects that a host must hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from payloads.artifacts.store import DIGEST, ArtifactError

__all__ = ["Wanted", "parse_wanted", "read_wanted"]

_KEYS = ("experts", "base_station", "objects")


class Wanted(NamedTuple):
    """One object that a host must hold.

    Attributes:
        digest: Its sha256, in hexadecimal.
        size_bytes: Its size.
    """

    digest: str
    size_bytes: int


def read_wanted(path: Path) -> list[Wanted]:
    """Return the objects that a list file names, each once."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: no such list of wanted objects") from error
    except ValueError as error:
        raise ArtifactError(f"{path}: not JSON: {error}") from error
    try:
        return parse_wanted(value)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from error


def parse_wanted(value: Any) -> list[Wanted]:
    """Return the objects of a list: those of each of :data:`_KEYS` that it has, each object once."""
    if not isinstance(value, dict) or not any(key in value for key in _KEYS):
        raise ArtifactError(f"expected an object with the key {_KEYS[0]}, {_KEYS[1]} or {_KEYS[2]}")
    sizes: dict[str, int] = {}
    for key in _KEYS:
        entries = value.get(key, [])
        if not isinstance(entries, list):
            raise ArtifactError(f"{key}: expected a list")
        for index, entry in enumerate(entries):
            wanted = _entry(entry, f"{key}[{index}]")
            if sizes.setdefault(wanted.digest, wanted.size_bytes) != wanted.size_bytes:
                raise ArtifactError(f"{key}[{index}]: {wanted.digest[:16]}... is listed with two sizes")
    return [Wanted(digest, size) for digest, size in sizes.items()]


def _entry(entry: Any, where: str) -> Wanted:
    if not isinstance(entry, dict):
        raise ArtifactError(f"{where}: expected an object")
    digest, size = entry.get("object"), entry.get("bytes")
    if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
        raise ArtifactError(f"{where}: object: expected a sha256 in hexadecimal")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ArtifactError(f"{where}: bytes: expected a size in bytes")
    return Wanted(digest, size)
