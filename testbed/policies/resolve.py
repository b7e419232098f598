"""Where the policies of a campaign come from: testbed's own kinds, a class in a file, or an installed entry point."""

from __future__ import annotations

import difflib
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path

from payloads.wdmoe.gating import SELECTOR_KINDS
from payloads.wdmoe.user_policy import UserPolicyError, is_user_kind, split_kind

__all__ = ["ENTRY_POINTS", "resolve_kind"]

ENTRY_POINTS = "testbed.policies"
"""The group of entry points in which packages offer their policies."""


def resolve_kind(kind: str, base: Path) -> str:
    """Return a kind of expert selection as the policies know it: one of testbed's, or ``FILE:CLASS`` with a whole path.

    Args:
        kind: As a campaign names it: a kind of testbed's, ``FILE:CLASS``, or ``:NAME`` of an installed entry point.
        base: The folder where relative paths start.

    Raises:
        UserPolicyError: There is no such kind or entry point, or it names no class in a file.
    """
    if not is_user_kind(kind):
        if kind in SELECTOR_KINDS:
            return kind
        close = difflib.get_close_matches(kind, SELECTOR_KINDS, n=1)
        there = f"did you mean {close[0]}?" if close else f"there are: {', '.join(sorted(SELECTOR_KINDS))};"
        raise UserPolicyError(f"unknown policy kind {kind!r}; {there} FILE:CLASS names one of your own")
    if kind.startswith(":"):
        return _installed(kind[1:])
    file, name = split_kind(kind)
    return f"{(base / file).resolve()}:{name}"


def _installed(name: str) -> str:
    found = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name not in found:
        there = f"there are: {', '.join(sorted(found))}" if found else "none is installed"
        raise UserPolicyError(f"no entry point {name!r} of the group {ENTRY_POINTS}; {there}")
    point: EntryPoint = found[name]
    try:
        spec = find_spec(point.module)
    except ImportError as error:
        raise UserPolicyError(f"the entry point {name} ({point.value}) cannot be found: {error}") from error
    if spec is None or not spec.origin or not spec.origin.endswith(".py") or not point.attr:
        raise UserPolicyError(f"the entry point {name} ({point.value}) names no class in a Python file")
    return f"{spec.origin}:{point.attr}"
