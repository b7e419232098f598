"""Tries out what an emulated lab asks of the kernel, in namespaces that end with this process.

    python -m testbed.doctor.trial FOLDER

Names and versions of kernels tell too little: containers hide some of it, modules may be missing. Prints one line of
JSON: for each thing None, or why it cannot be had. Needs root; nothing is left behind but the empty folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from testbed.emulation import namespaces

__all__ = ["main"]

_KINDS = {
    "mount": namespaces.CLONE_NEWNS,
    "network": namespaces.CLONE_NEWNET,
    "host name": namespaces.CLONE_NEWUTS,
    "ipc": namespaces.CLONE_NEWIPC,
    "cgroup": namespaces.CLONE_NEWCGROUP,
    # The last one: it holds for children to come, and there is one child only to have.
    "process": namespaces.CLONE_NEWPID,
}
_INTERFACES = {
    "bridge": ("tbdoctor0", "type", "bridge"),
    "veth": ("tbdoctor1", "type", "veth", "peer", "name", "tbdoctor2"),
}


def main(arguments: list[str]) -> int:
    """Try everything and print what came of it."""
    found = {
        kind: _tried(lambda flag=flag: namespaces.unshare(flag))  # type: ignore[misc]
        for kind, flag in _KINDS.items()
        if kind != "process"
    }
    own_mounts, own_network = found["mount"] is None, found["network"] is None
    # Without the namespace it would be this machine's own; that it is missing is said.
    overlay = _tried(lambda: _overlay(Path(arguments[0]))) if own_mounts else None
    interfaces: dict[str, str | None] = {}
    if own_network:
        interfaces = {kind: _interface(words) for kind, words in _INTERFACES.items()}
    found["process"] = _tried(lambda: namespaces.unshare(_KINDS["process"]))
    print(json.dumps({"namespaces": found, "overlay": overlay or "", "interfaces": interfaces}))
    return 0


def _tried(trial: Callable[[], None]) -> str | None:
    try:
        trial()
    except OSError as error:
        return os.strerror(error.errno) if error.errno else str(error)
    return None


def _overlay(folder: Path) -> None:
    """Mount an overlay; the mounts go with the namespace."""
    namespaces.mount("none", "/", flags=namespaces.MS_PRIVATE | namespaces.MS_REC)
    namespaces.mount("tmpfs", folder, "tmpfs")
    for name in ("lower", "upper", "work", "merged"):
        (folder / name).mkdir()
    options = f"lowerdir={folder}/lower,upperdir={folder}/upper,workdir={folder}/work"
    namespaces.mount("overlay", folder / "merged", "overlay", options=options)


def _interface(words: tuple[str, ...]) -> str | None:
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    try:
        done = subprocess.run(
            ["ip", "link", "add", *words],
            env={"PATH": path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        return f"ip: {error.strerror}"
    said = done.stderr.strip().splitlines() or ["no message"]
    return said[-1] if done.returncode else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
