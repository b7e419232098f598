"""Files to and from a host over SFTP: to a ``.part`` beside the target first, then renamed."""

from __future__ import annotations

import io
import posixpath
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import paramiko

from testbed.errors import ConnectError, DeadlineError, HostError
from testbed.hosts.deadline import Deadline
from testbed.hosts.steps import Fetch, Put

__all__ = ["SftpFiles"]

CHUNK_BYTES = 1 << 15  # what every SFTP server takes in one request
STALL_TIMEOUT_S = 30.0
CLEAN_UP_TIMEOUT_S = 2.0
NEW_FOLDER_MODE = 0o755


class SftpFiles:
    """The SFTP session of one connection; not for two threads at once.

    Args:
        host: The host's name, for errors.
        channel: A channel in which the server's SFTP runs.
    """

    def __init__(self, host: str, channel: paramiko.Channel) -> None:
        self._host = host
        self._channel = channel
        channel.settimeout(STALL_TIMEOUT_S)
        try:
            self._sftp = paramiko.SFTPClient(channel)
        except paramiko.SFTPError as error:
            channel.close()
            raise HostError(
                host,
                f"its SFTP server does not answer as one: {error}",
                hint="a login script of the user, such as ~/.bashrc, must print nothing: `ssh HOST true` shows it",
            ) from error
        self._home = self._sftp.normalize(".")

    def close(self) -> None:
        """End the session."""
        self._channel.close()

    def put(self, put: Put, deadline: Deadline) -> None:
        """Write one file by a deadline, whole or not at all."""
        target = self._path(put.target)
        part = target + ".part"
        with self._errors(f"cannot write {put.target}", deadline):
            self._make_folder(posixpath.dirname(target))
            with suppress(FileNotFoundError):
                self._sftp.remove(part)
            try:
                self._write(part, put, deadline)
                self._sftp.posix_rename(part, target)
            except BaseException:
                with suppress(OSError, EOFError, paramiko.SSHException):
                    self._channel.settimeout(CLEAN_UP_TIMEOUT_S)
                    self._sftp.remove(part)
                raise

    def _write(self, part: str, put: Put, deadline: Deadline) -> None:
        # Made by us alone ("x") and with its mode before its content: nobody else can hold it open.
        with _opened(put.content) as source, self._sftp.open(part, "wx") as file:
            file.chmod(put.mode)
            file.set_pipelined(True)
            sent = 0
            while chunk := source.read(CHUNK_BYTES):
                self._mind(deadline)
                file.write(chunk)
                sent += len(chunk)
        there = self._sftp.stat(part).st_size
        if there != sent:
            raise OSError(f"{there} of {sent} bytes arrived")

    def fetch(self, fetch: Fetch, deadline: Deadline) -> None:
        """Copy a file, or the files of a folder, by a deadline; each file whole or not at all."""
        source = self._path(fetch.source)
        with self._errors(f"cannot fetch {fetch.source}", deadline):
            try:
                mode = self._sftp.stat(source).st_mode or 0
            except FileNotFoundError:
                if fetch.optional:
                    return
                raise
            if stat.S_ISDIR(mode):
                self._fetch_folder(source, fetch.target, deadline)
            else:
                self._fetch_file(source, fetch.target, deadline)

    def _fetch_folder(self, source: str, target: Path, deadline: Deadline) -> None:
        target.mkdir(parents=True, exist_ok=True)
        for entry in self._sftp.listdir_attr(source):
            if entry.filename in {"", ".", ".."} or "/" in entry.filename:
                raise OSError(f"the host names a file {entry.filename!r}")
            path = posixpath.join(source, entry.filename)
            # A link is followed for a file, but not for a folder: it could lead back.
            mode = entry.st_mode or 0
            if stat.S_ISDIR(mode):
                self._fetch_folder(path, target / entry.filename, deadline)
            elif stat.S_ISREG(mode) or (stat.S_ISLNK(mode) and self._is_file(path)):
                self._fetch_file(path, target / entry.filename, deadline)

    def _is_file(self, path: str) -> bool:
        try:
            return stat.S_ISREG(self._sftp.stat(path).st_mode or 0)
        except FileNotFoundError:
            return False

    def _fetch_file(self, source: str, target: Path, deadline: Deadline) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(target.name + ".part")
        try:
            with part.open("wb") as file:
                self._mind(deadline)
                self._sftp.getfo(source, file, callback=lambda _done, _all: self._mind(deadline))
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)

    def _mind(self, deadline: Deadline) -> None:
        """Wait no longer for the next answer than the deadline allows."""
        if deadline.passed:
            raise TimeoutError
        self._channel.settimeout(deadline.timeout_s(STALL_TIMEOUT_S))

    def _path(self, path: str) -> str:
        if path == "~":
            return self._home
        return posixpath.join(self._home, path[2:]) if path.startswith("~/") else path

    def _make_folder(self, folder: str) -> None:
        missing = []
        while folder not in {"", "/"}:
            try:
                self._sftp.stat(folder)
                break
            except FileNotFoundError:
                missing.append(folder)
                folder = posixpath.dirname(folder)
        for path in reversed(missing):
            try:
                self._sftp.mkdir(path, NEW_FOLDER_MODE)
            except OSError:
                # Another connection may have made it in between.
                if not stat.S_ISDIR(self._sftp.stat(path).st_mode or 0):
                    raise

    @contextmanager
    def _errors(self, what: str, deadline: Deadline) -> Iterator[None]:
        try:
            self._mind(deadline)
            yield
        except TimeoutError as error:
            why = f"no progress for {STALL_TIMEOUT_S:g} s"
            if deadline.passed:
                why = f"it took longer than {deadline} and was ended"
            raise DeadlineError(self._host, f"{what}: {why}") from error
        except (EOFError, paramiko.SSHException, paramiko.SFTPError) as error:
            raise ConnectError(self._host, f"{what}: the connection was lost") from error
        except OSError as error:
            if isinstance(error, HostError):
                raise
            if str(error) == "Socket is closed":
                raise ConnectError(self._host, f"{what}: the connection was lost") from error
            reason = error.strerror or str(error) or type(error).__name__
            hint = "is the disk full?" if reason == "Failure" else ""
            raise HostError(self._host, f"{what}: {reason}", hint=hint) from error


def _opened(content: bytes | Path) -> IO[bytes]:
    return io.BytesIO(content) if isinstance(content, bytes) else content.open("rb")
