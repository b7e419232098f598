"""Begins the probe: what its other parts use.

To import ``re``, ``json``, ``subprocess`` or ``shutil`` takes a host longer than all that the probe has to do as a
rule. So the parts do without, and import such a module where something rare asks for it.
"""

import os
import select
import time
from typing import Any, List, Optional

try:
    from _json import encode_basestring_ascii as quoted
except ImportError:  # another Python than CPython
    from json.encoder import encode_basestring_ascii as quoted

SIGKILL, SIGPIPE = 9, 13
CHUNK_BYTES = 1 << 16


def sha256(text: str) -> str:
    """Return the digest of a text; OpenSSL's, which the module hashlib brings, would take longer to load."""
    try:
        from _sha256 import sha256 as begin  # type: ignore[import-not-found]
    except ImportError:
        from hashlib import sha256 as begin
    return str(begin(text.encode(errors="surrogateescape")).hexdigest())


def read(path: str) -> Optional[str]:
    """Return the text of a file, or None where it cannot be read."""
    try:
        with open(path, errors="replace") as file:
            return file.read().strip("\0\n ")
    except OSError:
        return None


def names_in(folder: str) -> List[str]:
    """Return the sorted names in a folder that are not hidden; none where it cannot be read."""
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError:
        return []


def which(program: str) -> Optional[str]:
    """Return the path of a program, as a shell finds it; None where there is none."""
    folders = os.environ.get("PATH", os.defpath).split(":") if "/" not in program else [""]
    for folder in folders:
        path = os.path.join(folder, program)
        if os.access(path, os.X_OK) and os.path.isfile(path):
            return path
    return None


def output(argv: List[str], timeout_s: float = 10) -> Optional[str]:
    """Return what a program prints, or None where it is missing, fails or hangs."""
    if not hasattr(os, "posix_spawn"):  # a Python older than 3.8
        return output_of_old(argv, timeout_s)
    path = which(argv[0])
    if path is None:
        return None
    reader, writer = os.pipe()
    nothing = os.open(os.devnull, os.O_RDWR)
    places = [(os.POSIX_SPAWN_DUP2, one, at) for one, at in ((nothing, 0), (writer, 1), (nothing, 2))]
    try:
        # Python ignores SIGPIPE; a program expects that nobody does.
        child = os.posix_spawn(path, argv, os.environ, file_actions=places, setsigdef=[SIGPIPE])
    except OSError:
        os.close(reader)
        return None
    finally:
        os.close(writer)
        os.close(nothing)
    end = time.monotonic() + timeout_s
    said = all_of(reader, end)
    while said is not None and time.monotonic() < end:  # what has closed its output may not end
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return said.decode(errors="replace") if status == 0 else None
        time.sleep(0.0002)
    os.kill(child, SIGKILL)
    os.waitpid(child, 0)
    return None


def output_of_old(argv: List[str], timeout_s: float) -> Optional[str]:
    """Return the same as :func:`output`, slowly."""
    import subprocess

    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=timeout_s,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def all_of(reader: int, end: float) -> Optional[bytes]:
    """Return all that comes out of a pipe, and close it; None where that goes on at a moment of the monotonic clock."""
    said = b""
    try:
        while select.select([reader], [], [], max(0.0, end - time.monotonic()))[0]:
            more = os.read(reader, CHUNK_BYTES)
            if not more:
                return said
            said += more
        return None
    finally:
        os.close(reader)


def number_in(folder: str, *names: str) -> Optional[int]:
    """Return the number in the first of some files that holds one."""
    texts = [str(read(os.path.join(folder, name))) for name in names]
    return next((int(text) for text in texts if text.isdigit()), None)


def number_of(text: str, digits: int = 20) -> Optional[int]:
    """Return the number that a text is, of at most so many digits; None where it is none."""
    return int(text) if len(text) <= digits and text.isdecimal() else None


def told(value: Any) -> str:
    """Return plain data as JSON."""
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, dict):
        return "{%s}" % ", ".join([quoted(str(name)) + ": " + told(one) for name, one in value.items()])
    if isinstance(value, (list, tuple)):
        return "[%s]" % ", ".join([told(one) for one in value])
    if value is None:
        return "null"
    return repr(value).lower()  # true, false, or a number
