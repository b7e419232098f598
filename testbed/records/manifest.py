"""The manifest of a run: what it was, on what, and how it ended. One JSON file, replaced as a whole."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from testbed.errors import InputError

__all__ = ["LOCK_NAME", "MANIFEST_NAME", "devices_of", "read_manifest", "write_manifest"]

MANIFEST_NAME = "manifest.json"
LOCK_NAME = "lock"  # locked by the controller that runs the run
REQUIRED = ("run", "started_unix", "state")


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> Path:
    """Write a run's manifest, in place of an earlier one: the old or the new is there, never a half.

    Args:
        folder: The run's folder.
        manifest: What to write; it must be JSON.
    """
    missing = [key for key in REQUIRED if key not in manifest]
    if missing:
        raise InputError(f"{folder / MANIFEST_NAME}: missing: {', '.join(missing)}")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / MANIFEST_NAME
    unfinished = target.with_name(f"{MANIFEST_NAME}.part")
    with unfinished.open("w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(target)
    return target


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return a run's manifest.

    Raises:
        InputError: There is none, or it cannot be read.
    """
    path = folder / MANIFEST_NAME
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        hint = "`testbed runs` lists the runs that there are"
        raise InputError(f"{folder}: this is no run: it has no {MANIFEST_NAME}", hint=hint) from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    if not isinstance(manifest, dict) or any(key not in manifest for key in REQUIRED):
        raise InputError(f"{path}: expected a JSON object with {', '.join(REQUIRED)}")
    started = manifest["started_unix"]
    if isinstance(started, bool) or not isinstance(started, int | float) or not math.isfinite(started):
        raise InputError(f"{path}: started_unix: expected unix seconds, found {started!r}")
    for key in ("inventory", "facts", "power_total"):
        if not isinstance(manifest.get(key) or {}, dict):
            raise InputError(f"{path}: {key}: expected a JSON object")
    return manifest


def devices_of(manifest: Mapping[str, Any]) -> list[str]:
    """Return the names of the run's devices in inventory order, or an empty list where none are recorded."""
    hosts = (manifest.get("inventory") or {}).get("hosts") or {}
    return [name for name, host in hosts.items() if host.get("role") == "device"]
