"""The host's lease, which all users of a host see: who has it, for what, and until when.

A host is *reserved* by somebody for a time, or *held* by something that runs (a campaign, say), or both, by the same
owner. It is kept in a folder that every account of the host can write to: a lease keeps colleagues out of each other's
way, not enemies. So nothing that is done as root ever follows from what stands there.

A reservation lasts by CLOCK_BOOTTIME, which nobody can set; after a reboot by the calendar, as far as that can be
trusted. What holds the host is a process, and lasts as long as it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pwd
import stat
import time
from pathlib import Path
from typing import Any, Iterator, Mapping, NamedTuple

from payloads.json_input import parse_json
from payloads.services.layout import ServiceError, home_folder
from payloads.services.processes import Process, boot_id, is_alive

__all__ = [
    "Claim",
    "Now",
    "Record",
    "changed_record",
    "claim_from",
    "described",
    "file_lock",
    "here_and_now",
    "left_s",
    "read_record",
    "record_from_json",
    "shared_folder",
    "standing",
    "who_refuses",
]

_CLAIMS = ("reserved", "held", "keeper")
_LOCK_WAIT_S = 10.0
_LATEST_UNIX = 2.0**38  # some 8700 years: what people can be told as a date
_LONGEST_BYTES = 65536
_LONGEST_WORDS = 200


class Claim(NamedTuple):
    """Who has a host, in one of the two ways.

    Attributes:
        owner: The person and their machine, such as ann@laptop.
        purpose: What for, in their words.
        token: What tells this claim from any other.
        user: Their account on the host.
        since_unix: Its begin by the calendar.
        since_ns: Its begin on CLOCK_BOOTTIME.
        until_unix: Its end by the calendar; as its begin where it lasts as long as a process.
        until_ns: Its end on CLOCK_BOOTTIME; likewise.
        boot: The boot in which it began.
        pid: The process that holds the host; 0 for a reservation.
        ticks: When that process started.
    """

    owner: str
    purpose: str
    token: str
    user: str
    since_unix: float
    since_ns: int
    until_unix: float
    until_ns: int
    boot: str
    pid: int = 0
    ticks: int = 0


class Now(NamedTuple):
    """A moment on a host: its boot, CLOCK_BOOTTIME and the calendar."""

    boot: str
    ns: int
    unix: float


class Record(NamedTuple):
    """What is known of a host's lease.

    Attributes:
        reserved: The reservation.
        held: What holds the host.
        keeper: Who puts the host back once its lease is over; a process of the owner's account.
        asked: What somebody who waits wants to have answered: whether the holder's controller lives.
        lives: The holder's answer: what was asked last, once it has heard of its controller since.
    """

    reserved: Claim | None = None
    held: Claim | None = None
    keeper: Claim | None = None
    asked: str = ""
    lives: str = ""


def here_and_now() -> Now:
    """Return this moment on this host."""
    return Now(boot_id(), time.clock_gettime_ns(time.CLOCK_BOOTTIME), time.time())


def left_s(claim: Claim, now: Now) -> float:
    """Return the seconds that a reservation still lasts; 0 or less once it has ended.

    After a reboot the calendar counts. Where a board without a battery wakes up in the past, the time that was given
    counts from that reboot. So it never lasts longer than it was given for.
    """
    if claim.boot == now.boot:
        return (claim.until_ns - now.ns) / 1e9
    if now.unix >= claim.since_unix:
        return claim.until_unix - now.unix
    return (claim.until_ns - claim.since_ns - now.ns) / 1e9


def standing(record: Record, now: Now) -> Record:
    """Return what of a record still holds."""
    reserved = record.reserved
    if reserved is not None and left_s(reserved, now) <= 0:
        reserved = None
    return record._replace(reserved=reserved, held=_living(record.held), keeper=_living(record.keeper))


def _living(claim: Claim | None) -> Claim | None:
    alive = claim is not None and is_alive(Process(claim.pid, claim.ticks, claim.boot))
    return claim if alive else None


def who_refuses(record: Record, owner: str, *, to_hold: bool) -> Claim | None:
    """Return the claim that keeps somebody from having a host, or None where nothing does.

    Args:
        record: What stands.
        owner: Who wants the host.
        to_hold: Whether to hold it, which one at a time may; else to reserve it, which may be done under one's own run.
    """
    if record.reserved is not None and record.reserved.owner != owner:
        return record.reserved
    if record.held is not None and (to_hold or record.held.owner != owner):
        return record.held
    keeper = record.keeper
    if keeper is not None and keeper.owner != owner:
        return (
            keeper  # its lease is over, or it would have been found above: it is about to put the host back
        )
    return None


def described(claim: Claim, now: Now) -> dict[str, Any]:
    """Return a claim for the controller, whose clock is another: in seconds from now."""
    same = claim.boot == now.boot
    since_s = (now.ns - claim.since_ns) / 1e9 if same else max(0.0, now.unix - claim.since_unix)
    return {
        "kind": "run" if claim.pid else "reservation",
        "owner": claim.owner,
        "purpose": claim.purpose,
        "user": claim.user,
        "since_s": round(since_s, 1),
        "left_s": None if claim.pid else round(left_s(claim, now), 1),
    }


def shared_folder() -> Path:
    """Return where the lease is kept: the same place for all users of a host, which outlives a reboot."""
    if "TESTBED_HOME" in os.environ:
        home = home_folder()
        return home.with_name(home.name + "-shared")
    return Path("/var/tmp/testbed")


def read_record() -> Record:
    """Return what is written, whether it still stands or not."""
    path = shared_folder() / "lease.json"
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)) as file:
            return record_from_json(parse_json(file.read(_LONGEST_BYTES)))
    except FileNotFoundError:
        return Record()
    except (OSError, ValueError) as error:
        raise ServiceError(f"{path} cannot be read: {error}; if nobody uses this host, remove it") from error


def record_from_json(value: Any) -> Record:
    """Return a record of what a file held.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(value, dict):
        raise ValueError("an object was expected")
    claims = [None if value.get(key) is None else _claim(value[key]) for key in _CLAIMS]
    asked, lives = value.get("asked", ""), value.get("lives", "")
    if not (isinstance(asked, str) and isinstance(lives, str)):
        raise ValueError("a text was expected")
    return Record(claims[0], claims[1], claims[2], asked, lives)


def _claim(value: Any) -> Claim:
    kinds: dict[str, type] = dict.fromkeys(("owner", "purpose", "token", "user", "boot"), str)
    kinds.update((key, int) for key in ("since_ns", "until_ns", "pid", "ticks"))
    if not isinstance(value, dict) or value.keys() != set(Claim._fields):
        raise ValueError("a claim was expected")
    for key, kind in kinds.items():
        if type(value[key]) is not kind:
            raise ValueError(f"{key}: {kind.__name__} was expected")
        if kind is int and not 0 <= value[key] < 2**63:
            raise ValueError(f"{key}: a number of 63 bits was expected")
    for key in ("since_unix", "until_unix"):
        if type(value[key]) not in (int, float) or not 0 <= value[key] < _LATEST_UNIX:
            raise ValueError(f"{key}: a time was expected")
    return Claim(**value)


@contextlib.contextmanager
def changed_record() -> Iterator[list[Record]]:
    """Hold the lock on the lease, and write back what the only element of the list is at the end.

    A record of nothing leaves no file and no folder behind.

    Raises:
        ServiceError: Another process keeps the lock, or this user may not write there.
    """
    folder = shared_folder()
    try:
        with file_lock(folder / "lock", open_to_all=True):
            before = read_record()
            changing = [before]
            yield changing
            after = changing[0]
            path = folder / "lease.json"
            if not any(getattr(after, key) for key in _CLAIMS):
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
                (folder / "lock").unlink()
            elif after != before:
                _write_for_all(path, after)
    except PermissionError as error:
        raise ServiceError(f"{error.filename or folder} cannot be written: {error.strerror}") from error
    with contextlib.suppress(OSError):
        folder.rmdir()  # it stays where somebody else comes in just now, or where it is another user's


def _write_for_all(path: Path, record: Record) -> None:
    value: dict[str, Any] = record._asdict()
    for key in _CLAIMS:
        value[key] = None if value[key] is None else value[key]._asdict()
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with contextlib.suppress(FileNotFoundError):
        part.unlink()
    with open(os.open(part, flags, 0o600), "w") as file:
        os.fchmod(file.fileno(), 0o644)  # whoever may not read it could not know who has the host
        file.write(json.dumps(value))
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


@contextlib.contextmanager
def file_lock(path: Path, *, open_to_all: bool = False, wait_s: float = _LOCK_WAIT_S) -> Iterator[None]:
    """Hold an exclusive lock on a file, made where it is missing, that its holder may remove.

    Args:
        path: The file.
        open_to_all: Whether every user of the host takes part; else this one alone.
        wait_s: How long to wait for another holder.

    Raises:
        ServiceError: Another process keeps it, or the folder is none of ours.
        PermissionError: This user may not write there.
    """
    deadline = time.monotonic() + wait_s
    while True:
        descriptor = _opened(path, open_to_all=open_to_all)
        try:
            while not _locked(descriptor):
                if time.monotonic() >= deadline:
                    raise ServiceError(f"{path} has been locked by another process for {wait_s:g} s")
                time.sleep(0.02)
            if _is_at(descriptor, path):
                yield
                return
        finally:
            os.close(descriptor)


def _opened(path: Path, *, open_to_all: bool) -> int:
    folder, mode = path.parent, 0o666 if open_to_all else 0o600
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(0o700)
        try:
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode):
                raise ServiceError(f"{folder} is no folder: remove it")
            if open_to_all and found.st_uid == os.geteuid():
                folder.chmod(0o777)
            descriptor = os.open(path, flags, mode)
        except FileNotFoundError:
            continue  # the folder was removed just now by its last user
        if open_to_all:
            with contextlib.suppress(PermissionError):  # it is another user's, who has seen to that
                os.fchmod(descriptor, mode)
        return descriptor


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Tell whether a file that was opened is still the one of that name: its last holder may have removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def claim_from(values: Mapping[str, Any], now: Now, for_s: float) -> Claim:
    """Return a claim that begins now.

    Args:
        values: Its owner and purpose, and for a process its number and when it started.
        now: This moment.
        for_s: How long it lasts.
    """
    cut: dict[str, Any] = dict(values)
    cut.update((key, word[:_LONGEST_WORDS]) for key, word in values.items() if isinstance(word, str))
    return Claim(
        user=pwd.getpwuid(os.geteuid()).pw_name,
        token=os.urandom(8).hex(),
        since_unix=now.unix,
        since_ns=now.ns,
        until_unix=now.unix + for_s,
        until_ns=now.ns + int(for_s * 1e9),
        boot=now.boot,
        **cut,
    )
