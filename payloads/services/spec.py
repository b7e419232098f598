"""What a service is asked to be."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple, Tuple

from payloads.services.layout import code_folder, read_json

__all__ = ["Spec", "inherited_environment", "read_spec"]

# What an SSH session sets for itself: it differs with every connection and means nothing to a service.
_SESSION_ONLY = ("SSH_", "TESTBED_READY", "TESTBED_SERVICE", "XDG_SESSION_ID", "OLDPWD", "SHLVL", "_")
# The weights that a token touches lie all over the memory: with pages of 2 MiB they are found faster. A C library that
# does not know the setting (glibc before 2.35) leaves it alone.
_LARGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


class Spec(NamedTuple):
    """A service as it was asked for.

    Attributes:
        name: The service's name.
        argv: The program and its arguments.
        restart: Start it again when it fails.
        awaits_ready: It makes its ready file itself; else it counts as ready once it runs.
        directory: Its working directory.
        code: Where the payload code lay when it was started; new code makes another service of it.
    """

    name: str
    argv: Tuple[str, ...]
    restart: bool
    awaits_ready: bool
    directory: str
    code: str

    @classmethod
    def here(cls, name: str, argv: tuple[str, ...], *, restart: bool, awaits_ready: bool) -> Spec:
        """Return the spec of a service that is asked for by this process; the program may begin with ``~/``."""
        if argv[0].startswith("~/"):
            argv = (str(Path(argv[0]).expanduser()), *argv[1:])
        return cls(name, argv, restart, awaits_ready, str(Path.cwd()), code_folder())

    def same_service(self, other: Spec) -> bool:
        """Tell whether ``other`` asks for what this one already is."""
        return self._replace(directory="") == other._replace(directory="")

    def to_json(self) -> str:
        """Return the spec as JSON."""
        return json.dumps(self._asdict())


def read_spec(folder: Path) -> Spec | None:
    """Return the spec in a service's folder, or None where there is none."""
    value = read_json(folder / "spec.json")
    if value is None:
        return None
    return Spec(**dict(value, argv=tuple(value["argv"])))


def inherited_environment() -> dict[str, str]:
    """Return this process's environment as a service inherits it, and large pages where it says nothing of them."""
    return {**_LARGE_PAGES, **{key: value for key, value in os.environ.items() if not _is_session_only(key)}}


def _is_session_only(key: str) -> bool:
    return any(
        key == name or (name.endswith("_") and len(name) > 1 and key.startswith(name))
        for name in _SESSION_ONLY
    )
