"""Removing objects that nobody needs: by age and by space, and nothing that is in use."""

from __future__ import annotations

import contextlib
import time
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence

from payloads.artifacts import marks
from payloads.artifacts.store import ArtifactError, Held, Store
from payloads.artifacts.wanted import read_wanted
from payloads.services.layout import ServiceError, home_folder

__all__ = ["Removal", "choose", "collect", "describe", "in_use", "is_claimed", "verify"]

_PART_IS_OLD_S = 86400.0


class Removal(NamedTuple):
    """An object that is to go.

    Attributes:
        digest: Its sha256, in hexadecimal.
        size_bytes: Its size.
        reason: ``age`` or ``space``.
    """

    digest: str
    size_bytes: int
    reason: str


def choose(
    held: Sequence[Held],
    needed: Mapping[str, str],
    now_unix: float,
    *,
    older_than_s: Optional[float] = None,
    keep_bytes: Optional[int] = None,
) -> List[Removal]:
    """Return what is to go: what was not used for too long, then the longest unused until the rest is small enough.

    Args:
        held: The objects that are here.
        needed: Those in use, by digest; none of them is ever chosen.
        now_unix: The time.
        older_than_s: How long an object may lie unused; for ever where it is left out.
        keep_bytes: How much all objects together may take, those in use too; anything where it is left out.
    """
    removals: List[Removal] = []
    left = sum(each.size_bytes for each in held)
    for each in sorted(held, key=lambda each: (each.used_unix, each.digest)):
        if each.digest in needed:
            continue
        if older_than_s is not None and now_unix - each.used_unix > older_than_s:
            removals.append(Removal(each.digest, each.size_bytes, "age"))
        elif keep_bytes is not None and left > keep_bytes:
            removals.append(Removal(each.digest, each.size_bytes, "space"))
        else:
            continue
        left -= each.size_bytes
    return removals


def in_use(marked: Mapping[str, str], *, claimed: bool) -> Dict[str, str]:
    """Return what needs which object, by digest.

    Args:
        marked: What living processes have marked.
        claimed: Whether somebody has this host. Then all that its lists name is in use: a service that failed
            may be started again, and a device may still have to pull.
    """
    needed = dict(marked)
    if claimed:
        for path in sorted(home_folder().glob("*.json")):
            with contextlib.suppress(ArtifactError):  # a file of another kind
                for wanted in read_wanted(path):
                    needed.setdefault(wanted.digest, path.stem)
    return needed


def is_claimed() -> bool:
    """Tell whether somebody has this host: by a reservation, a run that goes on, or services that run."""
    from payloads.services.lease import GRACE_S, INITIAL_S, read_lease
    from payloads.services.shared import here_and_now, read_record, standing

    lease = read_lease()
    if lease is not None and lease.left_s() > -GRACE_S:
        return True
    try:
        stands = standing(read_record(), here_and_now())
    except ServiceError:
        return True  # nobody can tell: then nothing is removed that a list names
    if any(claim is not None for claim in (stands.reserved, stands.held, stands.keeper)):
        return True
    # Lists that came a moment ago: whoever sent them is about to take the lease, or to start services without one.
    newest = max((path.stat().st_mtime for path in home_folder().glob("*.json")), default=0.0)
    return time.time() - newest < INITIAL_S


def collect(
    store: Store,
    *,
    older_than_s: Optional[float] = None,
    keep_bytes: Optional[int] = None,
    dry_run: bool = False,
) -> Dict[str, Any]:
    """Remove what nobody needs, and beginnings of objects that nobody went on with for a day.

    Returns:
        What is to be said of it: what was removed and why, what was kept and what is in use, in objects and bytes.

    Raises:
        ArtifactError: Objects are coming in just now.
    """
    now = time.time()
    with store.changing(wait=False), marks.guarded(store.folder) as folder:
        held = store.held()
        needed = in_use(marks.marked(folder), claimed=is_claimed())
        chosen = choose(held, needed, now, older_than_s=older_than_s, keep_bytes=keep_bytes)
        parts = [path for path in store.parts() if now - path.stat().st_mtime > _PART_IS_OLD_S]
        begun_bytes = sum(path.stat().st_size for path in parts)
        if not dry_run:
            for removal in chosen:
                store.discard(removal.digest)
            for path in parts:
                path.unlink()
    gone_bytes = sum(removal.size_bytes for removal in chosen)
    used = [each.size_bytes for each in held if each.digest in needed]
    return {
        "removed": [removal._asdict() for removal in chosen],
        "removed_bytes": gone_bytes,
        "parts": len(parts),
        "parts_bytes": begun_bytes,
        "kept": len(held) - len(chosen),
        "kept_bytes": sum(each.size_bytes for each in held) - gone_bytes,
        "in_use": len(used),
        "in_use_bytes": sum(used),
        "dry_run": dry_run,
    }


def describe(store: Store) -> Dict[str, Any]:
    """Return what this host holds: objects, bytes, what of it is in use, and the room that is left."""
    held = store.held()
    with marks.guarded(store.folder) as folder:
        needed = in_use(marks.marked(folder), claimed=is_claimed())
    used = [each.size_bytes for each in held if each.digest in needed]
    oldest = min((each.used_unix for each in held), default=None)
    return {
        "objects": len(held),
        "bytes": sum(each.size_bytes for each in held),
        "in_use": len(used),
        "in_use_bytes": sum(used),
        "parts": len(store.parts()),
        "unused_s": None if oldest is None else round(max(0.0, time.time() - oldest), 1),
        "free_bytes": store.free_bytes(),
    }


def verify(store: Store, *, dry_run: bool = False) -> Dict[str, Any]:
    """Read all objects and remove the damaged ones; whoever wants them pulls them anew.

    Raises:
        ArtifactError: Objects are coming in just now.
    """
    with store.changing(wait=False):
        held = store.held()
        damaged = [each for each in held if store.is_damaged(each.digest)]
        if not dry_run:
            for each in damaged:
                store.discard(each.digest)
    return {
        "objects": len(held),
        "bytes": sum(each.size_bytes for each in held),
        "damaged": [each.digest for each in damaged],
        "dry_run": dry_run,
    }
