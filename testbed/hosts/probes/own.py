"""What testbed has put there: its folders, payload code, and the record of what it changed."""

import os
from typing import Any, Dict, Iterator, List, Tuple

from testbed.hosts.probes.start import names_in, read, sha256


def sources(folder: str, within: str = "") -> Iterator[Tuple[str, os.stat_result]]:
    """Yield each Python file below a folder, as a path in there, and what is known of it without reading it."""
    with os.scandir(os.path.join(folder, within)) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.name.endswith(".py"):
                yield within + entry.name, entry.stat()
            elif entry.is_dir():
                yield from sources(folder, within + entry.name + "/")


def digest_of(folder: str, names: List[str]) -> str:
    """Return the digest over the names and contents of files in a folder."""
    import hashlib

    digest = hashlib.sha256()
    for name in names:
        with open(os.path.join(folder, name), "rb") as file:
            digest.update(("%s\0%s\n" % (name, hashlib.sha256(file.read()).hexdigest())).encode())
    return digest.hexdigest()[:16]


def code(home: str, known: Dict[str, str]) -> Dict[str, Any]:
    """Return the payload code folders by name (the right digest), and which one is current.

    Only that one's digest is computed: the others are empty here. They grow in number, and to read them takes a while.

    Args:
        home: Testbed's folder.
        known: What was returned the last time as ``seen``, a mark and the digest that goes with it. Where no file has
            come, gone or changed by what the file system says of it (also of the moment of its last change, which
            nobody can set back), none is read.
    """
    folders: Dict[str, str] = {}
    current = os.path.join(home, "current")
    used = os.path.basename(os.readlink(current)) if os.path.islink(current) else ""
    seen: Dict[str, str] = {}
    for name in names_in(os.path.join(home, "code")):
        folder = os.path.join(home, "code", name)
        if not os.path.isdir(folder):
            continue
        folders[name] = ""
        if name == used:
            found = dict(sources(folder))
            about = [
                "%s %d %d %d %d" % (path, of.st_size, of.st_mtime_ns, of.st_ctime_ns, of.st_ino)
                for path, of in sorted(found.items())
            ]
            mark = sha256("\n".join([folder] + about))
            folders[name] = known["digest"] if known.get("mark") == mark else digest_of(folder, sorted(found))
            seen = {"mark": mark, "digest": folders[name]}
    return {"folders": folders, "current": used or None, "seen": seen}


def record(home: str) -> List[str]:
    """Return the lines of what was noted before each change, oldest first."""
    return (read(os.path.join(home, "provision.jsonl")) or "").splitlines()


def own_facts(asked: Dict[str, Any]) -> Dict[str, Any]:
    """Return what there is of testbed."""
    home = os.path.expanduser("~/.testbed")
    folders: Dict[str, int] = {}
    for name in ["."] + names_in(home):
        path = os.path.join(home, name)
        if os.path.isdir(path):
            folders[name] = os.stat(path).st_mode & 0o777
    # Where an undoing was cut off, what is left of the folder.
    left = os.path.isdir(home + ".undone")
    found = code(home, asked.get("known_code", {}))
    return {"folders": folders, "code": found, "record": record(home), "left": left}
