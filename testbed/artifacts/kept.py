"""What hosts say of the objects that they keep, as tables; and what a collection is asked for. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from testbed.errors import InputError

__all__ = [
    "Answers",
    "Rows",
    "age_seconds",
    "collected_rows",
    "gc_arguments",
    "in_bytes",
    "shown_rows",
    "size_bytes",
    "verified_rows",
]

Answers = Mapping[str, Mapping[str, Any]]
Rows = list[tuple[str, ...]]

_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_UNIT_BYTES = {
    "": 1,
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_NUMBER = r"([0-9]{1,15}(?:\.[0-9]{1,6})?)"
_AGE = re.compile(_NUMBER + "([smhdw])")
_SIZE = re.compile(_NUMBER + " ?(|B|kB|MB|GB|TB|KiB|MiB|GiB|TiB)")


def age_seconds(text: str) -> float:
    """Return a time such as ``30d`` in seconds.

    Raises:
        InputError: It is none.
    """
    match = _AGE.fullmatch(text)
    seconds = float(match[1]) * _UNIT_S[match[2]] if match else 0.0
    if not seconds:
        raise InputError(f"--older-than: a time such as 12h, 30d or 4w was expected, not {text!r}")
    return seconds


def size_bytes(text: str) -> int:
    """Return a size such as ``20GB`` in bytes.

    Raises:
        InputError: It is none.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise InputError(f"--keep-bytes: a size such as 20GB, 500MB or 0 was expected, not {text!r}")
    return round(float(match[1]) * _UNIT_BYTES[match[2]])


def gc_arguments(older_than: str | None, keep_bytes: str | None) -> list[str]:
    """Return the options of a host's collection.

    Raises:
        InputError: Neither is given, or one is wrong.
    """
    if older_than is None and keep_bytes is None:
        raise InputError(
            "it was not said what may go",
            hint="give --older-than, such as 30d, or --keep-bytes, such as 20GB, or both",
        )
    age = [] if older_than is None else ["--older-than", f"{age_seconds(older_than):g}"]
    return age + ([] if keep_bytes is None else ["--keep-bytes", str(size_bytes(keep_bytes))])


def in_bytes(count: float) -> str:
    """Return bytes for people."""
    for unit in ("GB", "MB", "kB"):
        if count >= _UNIT_BYTES[unit]:
            return f"{count / _UNIT_BYTES[unit]:.1f} {unit}"
    return f"{count:.0f} B"


def shown_rows(answers: Answers) -> Rows:
    """Return what the hosts hold."""
    rows: Rows = [("host", "objects", "size", "in use", "begun", "longest unused", "free")]
    for host, said in answers.items():
        unused = "-" if said["unused_s"] is None else _in_time(said["unused_s"])
        used = f"{said['in_use']} ({in_bytes(said['in_use_bytes'])})"
        row = (host, str(said["objects"]), in_bytes(said["bytes"]), used, str(said["parts"]), unused)
        rows.append((*row, in_bytes(said["free_bytes"])))
    return rows


def verified_rows(answers: Answers) -> Rows:
    """Return what was read, and what of it is damaged."""
    rows: Rows = [("host", "objects", "size", "damaged")]
    for host, said in answers.items():
        done = "" if said["dry_run"] else " removed"
        damaged = "".join(f" {digest[:16]}..." for digest in said["damaged"])
        count = f"{len(said['damaged'])}{done}:{damaged}" if damaged else "none"
        rows.append((host, str(said["objects"]), in_bytes(said["bytes"]), count))
    return rows


def collected_rows(answers: Answers) -> Rows:
    """Return what went, or would go, and what stays."""
    went = "would go" if any(said["dry_run"] for said in answers.values()) else "removed"
    rows: Rows = [("host", went, "for age", "for space", "begun", "stays", "of it in use")]
    for host, said in answers.items():
        by = {reason: sum(one["reason"] == reason for one in said["removed"]) for reason in ("age", "space")}
        removed = f"{len(said['removed'])} ({in_bytes(said['removed_bytes'])})"
        begun = f"{said['parts']} ({in_bytes(said['parts_bytes'])})"
        stays = f"{said['kept']} ({in_bytes(said['kept_bytes'])})"
        used = f"{said['in_use']} ({in_bytes(said['in_use_bytes'])})"
        rows.append((host, removed, str(by["age"]), str(by["space"]), begun, stays, used))
    return rows


def _in_time(seconds: float) -> str:
    for unit in ("d", "h", "m"):
        if seconds >= _UNIT_S[unit]:
            return f"{seconds / _UNIT_S[unit]:.0f} {unit}"
    return f"{seconds:.0f} s"
