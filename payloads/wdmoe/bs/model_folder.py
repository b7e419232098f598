"""The base station's part of a model, laid out as transformers reads it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Mapping, NamedTuple

from payloads.artifacts.store import hash_file
from payloads.wdmoe.families import FAMILIES

__all__ = ["ModelFolder", "StationError", "lay_out_model"]


class StationError(Exception):
    """The model, a prompt or a text cannot be used."""


class ModelFolder(NamedTuple):
    """The base station's part of a model, as transformers reads it.

    Attributes:
        path: The folder.
        manifest: The manifest.
        digest: The manifest's sha256.
    """

    path: Path
    manifest: Mapping[str, Any]
    digest: str


def lay_out_model(manifest_path: Path) -> ModelFolder:
    """Make a folder of links to the objects of the base station's part, beside the manifest.

    Raises:
        StationError: The manifest cannot be read, or an object is missing or damaged.
    """
    try:
        data = manifest_path.read_bytes()
        manifest = json.loads(data.decode())
        entries = [(str(e["name"]), str(e["object"]), int(e["bytes"])) for e in manifest["base_station"]]
        family = str(manifest["family"])
    except OSError as error:
        raise StationError(f"cannot read the manifest {manifest_path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise StationError(f"the manifest {manifest_path} is damaged: {error!r}") from error
    if family not in FAMILIES:
        raise StationError(f"the family {family} is not known; known: {', '.join(FAMILIES)}")
    digest = hashlib.sha256(data).hexdigest()
    home = manifest_path.resolve().parent
    folder = home / "models" / digest[:16]
    folder.mkdir(parents=True, exist_ok=True)
    for name, sha256, size in entries:
        target = home / "objects" / sha256
        if not target.is_file() or target.stat().st_size != size:
            raise StationError(f"the object of {name} is missing or not whole: {target}; deploy again")
        if hash_file(target).hexdigest() != sha256:
            raise StationError(
                f"the object of {name} is damaged: {target} is not what its name says; "
                "`testbed artifacts verify` removes it, then deploy again"
            )
        link = folder / Path(name).name
        if not (link.is_symlink() and link.resolve() == target):
            link.unlink(missing_ok=True)
            link.symlink_to(target)
    return ModelFolder(folder, manifest, digest)
