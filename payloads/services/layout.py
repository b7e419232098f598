"""Where the services of a host keep their files, and how they are written whole."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from pathlib import Path
from typing import Any, Iterator

__all__ = [
    "ServiceError",
    "check_name",
    "code_folder",
    "home_folder",
    "locked",
    "read_json",
    "service_folder",
    "service_names",
    "services_folder",
    "write_whole",
]

# Taken when this module is loaded: the link that it was loaded through can point elsewhere later.
_CODE = str(Path(__file__).resolve().parent.parent.parent)
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")


class ServiceError(Exception):
    """What went wrong with a service, in one line for people."""


def home_folder() -> Path:
    """Return the testbed's folder of this host: ``TESTBED_HOME`` where set, else ``~/.testbed``."""
    override = os.environ.get("TESTBED_HOME")
    return Path(override).absolute() if override else Path.home() / ".testbed"


def services_folder(*, make: bool = True) -> Path:
    """Return the folder of all services.

    Args:
        make: Whether it is made when it is not there; who only looks leaves nothing behind.
    """
    folder = home_folder() / "services"
    if make:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def service_folder(name: str) -> Path:
    """Return the folder of one service, made when it is not there."""
    folder = services_folder() / check_name(name)
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def service_names() -> list[str]:
    """Return the names of all services that this host has ever been given, sorted."""
    return sorted(entry.parent.name for entry in services_folder(make=False).glob("*/spec.json"))


def check_name(name: str) -> str:
    """Return ``name``, or raise where it cannot name a service (and a folder, and a systemd unit)."""
    if not _NAME.fullmatch(name):
        raise ServiceError(f"{name!r} names no service: small letters, digits, - and _, at most 40")
    return name


def code_folder() -> str:
    """Return the real path of the folder that holds ``payloads``: it differs when the code does."""
    return _CODE


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old text or the new one, never a part."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    part.replace(path)


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file, or None where there is no such file or no object in it."""
    try:
        value = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return value if isinstance(value, dict) else None


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; it is released by the kernel whatever becomes of the holder."""
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
