"""A bundle: a folder with the wheels and Debian packages that a rack without the internet needs. How it is read.

``bundle.json`` says what is in it. The wheels are listed in sets, one for each kind of Python and each list of
requirements that something installs from: a set holds whatever that needs in turn, so that pip never looks further.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from testbed.config.model import Model
from testbed.errors import InputError
from testbed.hosts.facts import Facts
from testbed.hosts.payload import HOME, shell_path
from testbed.hosts.steps import Put

__all__ = [
    "MANIFEST",
    "REMOTE",
    "Bundle",
    "BundleFile",
    "DebSet",
    "FileEntry",
    "Manifest",
    "WheelSet",
    "load_bundle",
    "taken_away",
    "target_of",
]

MANIFEST = "bundle.json"
REMOTE = f"{HOME}/bundle"
"""Where a bundle's files lie on a host while they are installed from."""

_WORD = r"[A-Za-z0-9_][A-Za-z0-9._+~!%-]*"
_Inside = Annotated[str, Field(pattern=rf"^{_WORD}(?:/{_WORD})*$")]


class FileEntry(Model):
    """One file of a bundle."""

    path: _Inside
    """Where it lies in the folder."""
    name: Annotated[str, Field(pattern=rf"^{_WORD}$")]
    """What it is called on a host."""
    bytes: Annotated[int, Field(ge=0)]
    """Its size."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Its digest."""


class WheelSet(Model):
    """The wheels that a list of requirements needs on one kind of Python."""

    target: str
    """The kind of Python, such as `cp310-aarch64-glibc2.35`."""
    requirements: tuple[str, ...]
    """What is installed, as pip takes it."""
    files: tuple[str, ...]
    """The digests of the wheels."""


class DebSet(Model):
    """The Debian packages that the hosts of one kind lack, and their index."""

    target: str
    """The kind of host, by its Python."""
    files: tuple[str, ...]
    """The digests of the packages, and of the index."""


class Manifest(Model):
    """What is in a bundle."""

    version: Annotated[int, Field(ge=1, le=1)] = 1
    """The version of this form."""
    files: tuple[FileEntry, ...] = ()
    """All files."""
    wheels: tuple[WheelSet, ...] = ()
    """The sets of wheels."""
    debs: tuple[DebSet, ...] = ()
    """The sets of Debian packages."""


@dataclass(frozen=True)
class BundleFile:
    """One file of a bundle.

    Attributes:
        path: Where it lies here.
        name: What it is called on a host.
        bytes: Its size.
        sha256: Its digest, in hexadecimal.
    """

    path: Path
    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Bundle:
    """A bundle on this machine.

    Attributes:
        folder: Where it lies.
        manifest: What is in it.
    """

    folder: Path
    manifest: Manifest = field(repr=False)

    def wheels_for(self, facts: Facts, requirements: Iterable[str]) -> tuple[BundleFile, ...] | None:
        """Return the wheels that a host needs for some requirements, or None where they are not in the bundle."""
        target, wanted = target_of(facts), sorted(requirements)
        if not wanted:
            return ()
        for each in self.manifest.wheels:
            if each.target == target and sorted(each.requirements) == wanted:
                return self._files(each.files)
        return None

    def debs_for(self, facts: Facts) -> tuple[BundleFile, ...]:
        """Return the Debian packages for a host's kind, and their index, which is called ``Packages``."""
        target = target_of(facts)
        found = (self._files(each.files) for each in self.manifest.debs if each.target == target)
        return next(found, ())

    def puts(self, host: str, files: Sequence[BundleFile], folder: str) -> list[Put]:
        """Return the steps that bring files to a folder of a host."""
        return [Put(host, file.path, f"{folder}/{file.name}", f"send {file.name}") for file in files]

    def _files(self, digests: Sequence[str]) -> tuple[BundleFile, ...]:
        by_digest = {entry.sha256: entry for entry in self.manifest.files}
        return tuple(
            BundleFile(self.folder / entry.path, entry.name, entry.bytes, entry.sha256)
            for entry in (by_digest[digest] for digest in digests)
        )


def target_of(facts: Facts) -> str | None:
    """Return the kind of Python that a host installs for; None where it is not known."""
    environment = facts.environment
    version = environment.base_version or environment.version
    if not version or not facts.machine:
        return None
    major, minor = version.split(".")[:2]
    return f"cp{major}{minor}-{facts.machine}-glibc{environment.glibc or '2.17'}"


def taken_away(folder: str) -> str:
    """Return the command that takes a bundle's files away from a folder of a host."""
    remote = shell_path(REMOTE)
    tidy = f"if [ -d {remote} ]; then rmdir --ignore-fail-on-non-empty {remote}; fi"
    return f"rm -rf {shell_path(folder)} && {tidy}"


def load_bundle(folder: Path) -> Bundle:
    """Read a bundle and check each of its files against its digest.

    Args:
        folder: The folder that ``testbed bundle`` made.

    Raises:
        InputError: It is no bundle, or a file of it is missing or damaged.
    """
    place = folder / MANIFEST
    try:
        manifest = Manifest.model_validate_json(place.read_bytes())
    except OSError as error:
        hint = f"`testbed bundle {folder}` makes one"
        raise InputError(f"{place}: {error.strerror}: no bundle is there", hint=hint) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError.at(place, None, key, first["msg"]) from error
    listed = {entry.sha256 for entry in manifest.files}
    sets: list[WheelSet | DebSet] = [*manifest.wheels, *manifest.debs]
    for one in sets:
        if missing := set(one.files) - listed:
            raise InputError.at(
                place, None, "files", f"{sorted(missing)[0]} is named in a set and not listed"
            )
    bad = [entry.path for entry in manifest.files if not _is_whole(folder, entry)]
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise InputError(
            f"{folder / bad[0]}{more}: missing, or not what {MANIFEST} says", hint="make the bundle anew"
        )
    return Bundle(folder, manifest)


def _is_whole(folder: Path, entry: FileEntry) -> bool:
    path = folder / entry.path
    if not path.is_file() or path.stat().st_size != entry.bytes:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256
