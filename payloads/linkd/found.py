"""The queueing discipline that was there before, and whether it can be put back exactly. Pure.

What the kernel attaches by itself has the handle 0 and comes back by itself when ours is deleted. What
somebody set has a handle, and is made again from its recorded options, byte for byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, Mapping, Optional, Tuple

from payloads.linkd.plan import ROOT_HANDLE

__all__ = ["TC_ROOT", "Found", "FoundQdisc", "handle_text", "must_be_tried", "refusal", "same_as_found"]

TC_ROOT = 0xFFFFFFFF
TC_INGRESS = 0xFFFFFFF1

#: Classless disciplines whose dumped options hold all of them. netem (its delay table is not dumped), red and
#: choke (their scaling table is not) and all classful ones cannot be made again from what the kernel tells.
_CAN_BE_MADE = {
    "bfifo", "cake", "codel", "fq", "fq_codel", "fq_pie", "noqueue", "pfifo", "pfifo_fast",
    "pie", "sfq", "tbf",
}  # fmt: skip


@dataclass(frozen=True)
class FoundQdisc:
    """One queueing discipline as the kernel tells of it.

    Attributes:
        kind: Its name.
        handle: Its handle; 0 where the kernel attached it by itself.
        parent: What it hangs below.
        options: Its options, raw, in hexadecimal.
        extras: What else was told that is not part of the options and cannot be made again.
    """

    kind: str
    handle: int
    parent: int
    options: str
    extras: Tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """All that was found on an interface.

    Attributes:
        interface: Its name.
        qdiscs: Its queueing disciplines, as the kernel lists them.
        filters: How many filters hang below its root.
    """

    interface: str
    qdiscs: Tuple[FoundQdisc, ...]
    filters: int = 0

    @property
    def root(self) -> Optional[FoundQdisc]:
        """The root, where there is one."""
        return next((qdisc for qdisc in self.qdiscs if qdisc.parent == TC_ROOT), None)

    def as_json(self) -> Dict[str, Any]:
        """Return it as plain data."""
        qdiscs = [
            {
                "kind": q.kind,
                "handle": handle_text(q.handle),
                "parent": handle_text(q.parent),
                "options": q.options,
            }
            for q in self.qdiscs
        ]
        return {"interface": self.interface, "qdiscs": qdiscs}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Found:
        """Return what :meth:`as_json` gave; ValueError, KeyError or TypeError where it is something else."""
        qdiscs = tuple(
            FoundQdisc(
                str(q["kind"]), _handle(q["handle"]), _handle(q["parent"]), bytes.fromhex(q["options"]).hex()
            )
            for q in value["qdiscs"]
        )
        return cls(str(value["interface"]), qdiscs)


def handle_text(handle: int) -> str:
    """Return a handle as tc writes it."""
    if handle == TC_ROOT:
        return "root"
    minor = f"{handle & 0xFFFF:x}" if handle & 0xFFFF else ""
    return f"{handle >> 16:x}:{minor}"


def _handle(text: str) -> int:
    if text == "root":
        return TC_ROOT
    major, _, minor = text.partition(":")
    return int(major, 16) << 16 | int(minor or "0", 16)


def refusal(found: Found) -> Optional[str]:
    """Return why an interface must not be touched, or None where what it has can be put back."""
    where = f"{found.interface} has"
    root = found.root
    if root is None:
        return f"{where} no queueing discipline at all"
    if root.handle == ROOT_HANDLE:
        return f"{where} linkd's own htb and there is no state file: tc qdisc del dev {found.interface} root"
    for qdisc in found.qdiscs:
        name = f"{qdisc.kind} {handle_text(qdisc.handle)}"
        if qdisc.extras:
            return f"{where} a {name} with a {qdisc.extras[0]}, which could not be put back"
        if qdisc.parent == TC_INGRESS:
            return f"{where} an {qdisc.kind} hook of somebody else, which could not be put back"
        if qdisc is root:
            if qdisc.kind == "noop":
                return f"{found.interface} is down"
            if qdisc.handle and qdisc.kind not in {"mq", *_CAN_BE_MADE}:
                return f"{where} a {name} as its root, which could not be put back exactly"
        elif root.kind != "mq" or qdisc.handle:
            top = f"{root.kind} {handle_text(root.handle)}"
            return f"{where} a {name} below its root {top}, which could not be put back"
    if found.filters:
        return f"{where} filters below its root, which could not be put back"
    return None


def must_be_tried(found: Found) -> bool:
    """Return whether the root was set by somebody, so that making it again should be tried out beforehand."""
    root = found.root
    return root is not None and root.handle != 0 and root.kind != "mq"


def same_as_found(found: Found, now: Found) -> bool:
    """Return whether an interface is again as it was found."""

    def view(side: Found) -> Tuple[Any, ...]:
        return tuple(sorted((q.parent, q.handle, q.kind, q.options, q.extras) for q in side.qdiscs))

    return view(found) == view(now)
