"""A host whose clock is off: its programs are told another time of day by libfaketime, a library of Debian's.

No namespace shifts the clock that tells the time of day. So everything that a host starts over SSH, by sudo, as a
service of a systemd or as its jtop service has the library loaded before it; the clock that only counts (monotonic) is
left alone, and the SSH server keeps this machine's time. Programs there cannot set such a clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

__all__ = ["clock_environment", "clock_files", "find_library", "without_sleep"]

_SLEEP = b"\0clock_nanosleep\0"


def find_library(root: Path = Path("/usr/lib")) -> str | None:
    """Return the library's path, or None where the package ``faketime`` is not installed.

    Args:
        root: Where libraries are.
    """
    found = sorted(root.glob("*/faketime/libfaketimeMT.so.1"))
    return str(found[0]) if found else None


def without_sleep(library: bytes) -> bytes:
    """Return the library without its own ``clock_nanosleep``: under another name nobody finds it, and libc's is taken.

    That of version 0.9.10, Debian 12's, takes every moment of the monotonic clock for one of the clock that is off. It
    refuses to wait for it, so that each ``time.sleep`` of Python 3.11 and newer fails (EINVAL).

    Args:
        library: The file's content.
    """
    # The first place is the table of exported names; the other is what the library itself looks up in libc.
    return library.replace(_SLEEP, _SLEEP[:-2] + b"_\0", 1) if library.count(_SLEEP) == 2 else library


def clock_environment(offset_s: float, library: str | None) -> dict[str, str]:
    """Return the environment of programs that see another time of day; nothing for an offset of 0."""
    if not offset_s or library is None:
        return {}
    return {
        "LD_PRELOAD": library,
        "FAKETIME": f"{offset_s:+f}s",
        # Two names for the same, of which each version of the library knows one.
        "DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


def clock_files(environment: Mapping[str, str]) -> dict[str, tuple[str, int]]:
    """Return the files with their modes that let sudo and systemd hand an environment on; none for an empty one."""
    if not environment:
        return {}
    text = "".join(f"{key}={value}\n" for key, value in environment.items())
    pairs = " ".join(f'"{key}={value}"' for key, value in environment.items())
    return {
        "/etc/testbed-clock.env": (text, 0o644),
        "/etc/sudoers.d/80-clock": (
            f'Defaults env_keep += "{" ".join(environment)}"\nDefaults env_file=/etc/testbed-clock.env\n',
            0o440,
        ),
        "/etc/systemd/system.conf.d/clock.conf": (f"[Manager]\nDefaultEnvironment={pairs}\n", 0o644),
    }
