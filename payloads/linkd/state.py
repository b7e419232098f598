"""The state file: what has to be put back, written and flushed to the disk before the first change."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, Mapping, Optional

from payloads.linkd.errors import LinkdError
from payloads.linkd.found import Found

__all__ = ["State", "StateFile", "boot_id"]

_VERSION = 1
_LOCK_WAIT_S = 10.0


def boot_id() -> str:
    """Return what names the present boot of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@dataclass(frozen=True)
class State:
    """What a daemon changed, or was about to change.

    Attributes:
        found: What the interface had before.
        ifb: The name of the ifb that was added.
        boot: The boot in which it was changed: a reboot undoes everything by itself.
        line: What has to be known to take the user-space line away, where one is used.
    """

    found: Found
    ifb: str
    boot: str
    line: Optional[Mapping[str, Any]] = None


class StateFile:
    """The state file of one host, and the lock beside it.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, state: State) -> None:
        """Write the file whole and flush it, and its folder, to the disk."""
        value: Dict[str, Any] = {
            "version": _VERSION,
            "boot": state.boot,
            "ifb": state.ifb,
            **state.found.as_json(),
        }
        if state.line is not None:
            value["line"] = dict(state.line)
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(json.dumps(value, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.path)
        self._flush_folder()

    def read(self) -> Optional[State]:
        """Return what the file holds, or None where there is no file.

        Raises:
            LinkdError: It cannot be read, or holds something else.
        """
        try:
            value = json.loads(self.path.read_text())
            if value["version"] != _VERSION:
                raise ValueError(f"version {value['version']}")
            line = value.get("line")
            if not isinstance(line, (dict, type(None))):
                raise TypeError("line")
            return State(Found.from_json(value), str(value["ifb"]), str(value["boot"]), line)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LinkdError(f"the state file {self.path} cannot be used: {error}") from error

    def remove(self) -> None:
        """Remove the file: everything is as it was."""
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
            self._flush_folder()

    def _flush_folder(self) -> None:
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    @contextlib.contextmanager
    def lock(self, wait_s: float = _LOCK_WAIT_S) -> Iterator[None]:
        """Hold the lock; the kernel lets go of it whatever becomes of the holder.

        Args:
            wait_s: How long to wait for another holder.

        Raises:
            LinkdError: Another process holds it, or it is another user's.
        """
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.path.with_name(self.path.name + ".lock")
        try:
            # For its owner alone: whoever can open it can hold it, and then nothing is put back.
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise LinkdError(f"the lock {path} cannot be opened: {error.strerror}") from error
        with open(descriptor, "r+") as file:
            deadline = time.monotonic() + wait_s
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise LinkdError(f"another linkd uses the state file {self.path}") from None
                    time.sleep(0.05)
            yield
