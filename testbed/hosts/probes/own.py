"""What testbed has put there: its folders, payload code, and the record of what it changed."""

import glob
import hashlib
import json
import os
from typing import Any, Dict, List


def code(home: str) -> Dict[str, Any]:
    """Return the payload code folders by name (the right digest), and which one is current.

    Only that one's digest is computed: the others are empty here. They grow in number, and to read them takes a while.
    """
    folders: Dict[str, str] = {}
    current = os.path.join(home, "current")
    used = os.path.basename(os.readlink(current)) if os.path.islink(current) else ""
    for folder in glob.glob(os.path.join(glob.escape(home), "code", "*")):
        if not os.path.isdir(folder):
            continue
        if os.path.basename(folder) != used:
            folders[os.path.basename(folder)] = ""
            continue
        names = glob.glob(os.path.join(glob.escape(folder), "**", "*.py"), recursive=True)
        digest = hashlib.sha256()
        for name in sorted(os.path.relpath(path, folder).replace(os.sep, "/") for path in names):
            with open(os.path.join(folder, name), "rb") as file:
                digest.update(("%s\0%s\n" % (name, hashlib.sha256(file.read()).hexdigest())).encode())
        folders[os.path.basename(folder)] = digest.hexdigest()[:16]
    return {"folders": folders, "current": used or None}


def record(home: str) -> List[Dict[str, Any]]:
    """Return what was noted before each change, oldest first. A line that was cut off stands for no change."""
    entries: List[Dict[str, Any]] = []
    try:
        with open(os.path.join(home, "provision.jsonl"), errors="replace") as file:
            lines = file.read().splitlines()
    except OSError:
        return entries
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("recorded"), dict) and "item" in entry:
            entries.append(entry)
    return entries


def own_facts(asked: Dict[str, Any]) -> Dict[str, Any]:
    """Return what there is of testbed."""
    home = os.path.expanduser("~/.testbed")
    folders: Dict[str, int] = {}
    for path in [home] + glob.glob(os.path.join(glob.escape(home), "*")):
        if os.path.isdir(path):
            folders[os.path.relpath(path, home)] = os.stat(path).st_mode & 0o777
    # Where an undoing was cut off, what is left of the folder.
    left = os.path.isdir(home + ".undone")
    return {"folders": folders, "code": code(home), "record": record(home), "left": left}
