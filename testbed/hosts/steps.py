"""What can be done to a host: run a command, put a file, fetch one. Plain data, so that it can be planned.

``line()`` is a step's one spelling: the dry run prints it and the journal of a run records it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Command", "Completed", "Fetch", "Put", "Step"]

FILES_TIMEOUT_S = 3600.0  # packages of some GB over a slow link; that it stands still is noticed much sooner


@dataclass(frozen=True)
class Command:
    """One shell command on one host.

    Attributes:
        host: The host's name in the inventory.
        shell: The command line, arguments already quoted.
        title: A few words for people.
        timeout_s: The most seconds it may take, the connect included.
        stdin: Bytes for its standard input; never part of :meth:`line`.
        become: Run as root, through ``sudo`` where the user is not root.
        reboots: Whether the host may go down in it: a connection that is lost is no failure.
    """

    host: str
    shell: str
    title: str = ""
    timeout_s: float = 60.0
    stdin: bytes = field(default=b"", repr=False)
    become: bool = False
    reboots: bool = False

    def line(self) -> str:
        """Return the step as one line."""
        return f"{self.host}: {'(root) ' if self.become else ''}{self.shell}"


@dataclass(frozen=True)
class Put:
    """Write one file on a host: to a ``.part`` beside it, then renamed.

    Attributes:
        host: The host's name in the inventory.
        content: The bytes, or the local file that holds them.
        target: The remote path; a leading ``~/`` is the user's home.
        title: A few words for people.
        mode: The file's permission bits.
        secret: Leave the digest out of :meth:`line`.
        timeout_s: The most seconds it may take, the connect included.
    """

    host: str
    content: bytes | Path = field(repr=False)
    target: str
    title: str = ""
    mode: int = 0o644
    secret: bool = False
    timeout_s: float = FILES_TIMEOUT_S

    def line(self) -> str:
        """Return the step as one line."""
        digest = "secret" if self.secret else f"sha256:{self.digest()[:12]}"
        return f"{self.host}: put {digest} {self.mode:04o} {self.target}"

    def digest(self) -> str:
        """Return the sha256 of the content, in hexadecimal."""
        if isinstance(self.content, bytes):
            return hashlib.sha256(self.content).hexdigest()
        with self.content.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Fetch:
    """Copy one file, or the files of one folder, from a host.

    Attributes:
        host: The host's name in the inventory.
        source: The remote file or folder; a leading ``~/`` is the user's home.
        target: The local path of the file or folder.
        title: A few words for people.
        optional: Whether the source may be missing.
        timeout_s: The most seconds it may take, the connect included.
    """

    host: str
    source: str
    target: Path
    title: str = ""
    optional: bool = False
    timeout_s: float = FILES_TIMEOUT_S

    def line(self) -> str:
        """Return the step as one line."""
        return f"{self.host}: fetch {self.source}"


Step = Command | Put | Fetch


@dataclass(frozen=True)
class Completed:
    """What a command answered.

    Attributes:
        command: The command.
        exit_status: Its exit status.
        stdout: Its whole standard output.
        stderr: Its whole standard error.
        seconds: How long it took.
    """

    command: Command
    exit_status: int
    stdout: str
    stderr: str
    seconds: float
