"""Make a bundle: fetch what a fleet needs with pip and over HTTP, and write down what is there."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from testbed.errors import CommandError, HostError, InputError, TestbedError
from testbed.hosts.steps import Command
from testbed.hosts.transport import Transport
from testbed.provision.bundle import MANIFEST, DebSet, FileEntry, Manifest, WheelSet
from testbed.provision.bundle_plan import Deb, Download, debs_in, pip_arguments, python_of

__all__ = ["BundleMaker", "ask_for_debs"]

STARTED = ".bundle"
"""Is there while a bundle is made: one that was cut off is gone on with."""
PIP_TIMEOUT_S = 3600.0
FETCH_TIMEOUT_S = 60.0
CHUNK_BYTES = 1 << 20

# Runs pip for another Python than the one it runs in: that one's markers decide what a package needs there.
_PIP = r"""
import json, sys
import pip._vendor.packaging.markers as markers
there = json.loads(sys.argv[1])
markers.default_environment = lambda: dict(there)
from pip._internal.cli.main import main
sys.exit(main(sys.argv[2:]))
"""

RunPip = Callable[[Mapping[str, str], Sequence[str]], None]


class BundleMaker:
    """The bundle in a folder while it is made.

    Args:
        folder: Where it is made; whatever an earlier bundle there held and this one does not need is removed.
        run_pip: Runs pip with the markers of another Python.

    Raises:
        InputError: The folder holds something else than a bundle.
    """

    def __init__(self, folder: Path, run_pip: RunPip | None = None) -> None:
        self._folder = folder
        self._run_pip = run_pip or _run_pip
        self._files: dict[str, FileEntry] = {}
        self._wheels: list[WheelSet] = []
        self._debs: dict[str, dict[str, None]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) and not ((folder / MANIFEST).exists() or (folder / STARTED).exists()):
            raise InputError(
                f"{folder} holds something else than a bundle", hint="name a new or an empty folder"
            )
        (folder / STARTED).touch()

    def add_wheels(self, download: Download) -> WheelSet:
        """Fetch a set of wheels.

        Raises:
            TestbedError: pip could not: the message is pip's.
        """
        python = python_of(download.target)
        with tempfile.TemporaryDirectory(dir=self._folder, prefix=".pip-") as place:
            if download.first:
                arguments = pip_arguments(python, download.first, download.first_options, place, deps=False)
                self._run_pip(python.markers(), arguments)
            # Exactly those that are there, and what they need: no other build of the same name is looked at.
            fetched = [str(path) for path in sorted(Path(place).glob("*.whl"))]
            wanted = [*fetched, *download.rest]
            if wanted:
                arguments = pip_arguments(python, wanted, download.options, place, deps=True)
                self._run_pip(python.markers(), arguments)
            found = sorted(Path(place).glob("*.whl"))
            digests = tuple(self._keep(path, "wheels").sha256 for path in found)
        made = WheelSet(target=download.target, requirements=download.requirements, files=digests)
        self._wheels.append(made)
        return made

    def add_debs(self, target: str, debs: Iterable[Deb]) -> int:
        """Fetch the Debian packages for one kind of host; return how many there are.

        Raises:
            TestbedError: One cannot be fetched, or is not what apt said.
        """
        kept = self._debs.setdefault(target, {})
        for deb in debs:
            with tempfile.TemporaryDirectory(dir=self._folder, prefix=".deb-") as place:
                path = Path(place) / deb.name
                _fetch(deb, path)
                kept[self._keep(path, "debs").sha256] = None
        return len(kept)

    def finish(self) -> Manifest:
        """Write the indexes and the manifest, and take away what no longer belongs to the bundle."""
        sets = []
        for target, digests in sorted(self._debs.items()):
            if not digests:
                continue
            index = self._folder / ".Packages"
            index.write_text("".join(self._paragraph(digest) for digest in digests), encoding="utf-8")
            entry = self._keep(index, "debs", name="Packages")
            sets.append(DebSet(target=target, files=(*digests, entry.sha256)))
        manifest = Manifest(
            files=tuple(self._files[digest] for digest in sorted(self._files)),
            wheels=tuple(self._wheels),
            debs=tuple(sets),
        )
        part = self._folder / f"{MANIFEST}.part"
        part.write_text(json.dumps(manifest.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")
        part.replace(self._folder / MANIFEST)
        (self._folder / STARTED).unlink()
        known = {self._folder / entry.path for entry in manifest.files}
        for kind in ("wheels", "debs"):
            for path in (self._folder / kind).glob("*/*"):
                if path not in known:
                    shutil.rmtree(path.parent)
        return manifest

    def _keep(self, path: Path, kind: str, name: str = "") -> FileEntry:
        """Move a file to its place in the bundle, which its digest names: two builds may have one name."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        name = name or path.name
        target = self._folder / kind / digest[:16] / name
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
        entry = FileEntry(
            path=f"{kind}/{digest[:16]}/{name}", name=name, bytes=target.stat().st_size, sha256=digest
        )
        self._files[digest] = entry
        return entry

    def _paragraph(self, digest: str) -> str:
        """Return what the index of a flat repository says of one package."""
        entry = self._files[digest]
        done = subprocess.run(
            ["dpkg-deb", "--field", str(self._folder / entry.path)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise TestbedError(f"{entry.name} is no Debian package: {done.stderr.strip()}")
        return f"{done.stdout.rstrip()}\nFilename: ./{entry.name}\nSize: {entry.bytes}\nSHA256: {digest}\n\n"


def ask_for_debs(host: str, transport: Transport, names: Sequence[str]) -> list[Deb]:
    """Ask a host which packages it would fetch to have those of some names. Nothing is changed there.

    Raises:
        HostError: apt knows no such package.
    """
    if not names:
        return []
    words = " ".join(map(shlex.quote, names))
    shell = (
        "LC_ALL=C apt-get -qq -y -o Debug::NoLocking=1 -o Acquire::ForceHash=SHA256 "
        f"--no-install-recommends --no-upgrade --print-uris install {words}"
    )
    try:
        return debs_in(transport.run(Command(host, shell, "ask apt", 120.0)).stdout)
    except CommandError as error:
        hint = f"on the host, once with the internet: sudo apt-get update; or see its `packages` ({words})"
        lines = [line for line in error.stderr.splitlines() if line.startswith("E: ")] or [str(error)]
        raise HostError(host, f"apt: {lines[0].removeprefix('E: ')}", hint=hint) from error


def _run_pip(markers: Mapping[str, str], arguments: Sequence[str]) -> None:
    command = [sys.executable, "-c", _PIP, json.dumps(markers), *arguments]
    # What this machine is bound to for its own Python is not meant for another one.
    environment = os.environ | {"PIP_CONSTRAINT": os.devnull}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=PIP_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
            env=environment,
        )
    except subprocess.TimeoutExpired as error:
        raise TestbedError(f"pip took longer than {PIP_TIMEOUT_S:g} s") from error
    if done.returncode == 0:
        return
    lines = [line.strip() for line in done.stderr.splitlines() if line.startswith("ERROR:")]
    lines = lines or done.stderr.strip().splitlines()[-1:] or ["no message"]
    hint = "only wheels are taken: is there one for that Python, and is the source the right one?"
    raise TestbedError(f"pip: {lines[0].removeprefix('ERROR: ')}", hint=hint)


def _fetch(deb: Deb, path: Path) -> None:
    if not deb.address.startswith(("http://", "https://")):
        raise TestbedError(f"{deb.name}: only http and https can be fetched, not {deb.address}")
    request = urllib.request.Request(deb.address, headers={"User-Agent": "testbed"})
    try:
        with urllib.request.urlopen(request, timeout=FETCH_TIMEOUT_S) as answer, path.open("wb") as file:
            shutil.copyfileobj(answer, file, CHUNK_BYTES)
    except (urllib.error.URLError, OSError) as error:
        raise TestbedError(f"{deb.address}: {error}", hint="does this machine reach the internet?") from error
    kind, _, digest = deb.digest.partition(":")
    names = {"SHA256": "sha256", "SHA512": "sha512"}
    if path.stat().st_size != deb.bytes:
        raise TestbedError(f"{deb.name}: {deb.bytes} bytes were expected, not {path.stat().st_size}")
    if kind in names:
        with path.open("rb") as file:
            if hashlib.file_digest(file, names[kind]).hexdigest() != digest:
                raise TestbedError(f"{deb.name}: its {names[kind]} is not what apt says")
    else:
        raise TestbedError(
            f"{deb.name}: apt gives {f'only {kind}' if kind else 'no digest'} of it, which proves nothing",
            hint="on the host: sudo apt-get update",
        )
