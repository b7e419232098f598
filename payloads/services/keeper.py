"""A process that outlives whoever has the host: when their lease is over, it puts the host back.

It is started with what changes a board: a reservation, which notes how the board is set, and the power settings of a
run. Nothing of theirs has to live for it: it looks at the host's lease once a second, and when that is over it stops
services that still run and puts power mode and clocks back. It ends when there is nothing left to put back. A reboot
ends it too: where provisioning has made a unit of systemd for that, it goes on at boot.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Callable

from payloads.services.layout import ServiceError, home_folder
from payloads.services.power import NOTES, kept_folder, restore_power, run_as_root
from payloads.services.processes import start_ticks
from payloads.services.shared import (
    Claim,
    Record,
    changed_record,
    claim_from,
    file_lock,
    here_and_now,
    read_record,
    standing,
)

__all__ = [
    "due_notes",
    "due_now",
    "ensure_keeper",
    "keep",
    "keep_after_boot",
    "open_notes",
    "owner_after_boot",
    "tidy",
]

_LOOK_S = 1.0
_TRIES = 3
_LEAVING_S = 3.0  # another keeper may be about to end


def open_notes() -> list[str]:
    """Return which notes there are to put the board back to."""
    return [note for note in NOTES if (kept_folder() / f"power-{note}.json").exists()]


def due_now(owner: str, holder: Claim | None = None) -> list[str]:
    """Return which notes' time has come; where the host's lease cannot be read, those of its holder alone.

    Args:
        owner: Whose notes they are.
        holder: What holds the host for them and is about to put back what is due.
    """
    try:
        record = standing(read_record(), here_and_now())
    except ServiceError:
        return [] if holder is None else ["run"]
    if holder is not None and record.held is not None and record.held.token == holder.token:
        record = record._replace(held=None)
    return due_notes(open_notes(), record, owner)


def due_notes(notes: list[str], record: Record, owner: str) -> list[str]:
    """Return which notes' time has come.

    Args:
        notes: Those that there are.
        record: What stands of the host's lease.
        owner: Whose notes they are.
    """
    if record.held is not None and record.held.owner == owner:
        return []  # it puts back what is its own as it ends
    if record.reserved is not None and record.reserved.owner == owner:
        return [note for note in notes if note != "reservation"]
    return notes


def ensure_keeper(owner: str, backend: Callable[[], Any]) -> None:
    """See to it that the keeper runs, and that it outlives this process and its session.

    Args:
        owner: Whose lease it looks after.
        backend: Makes what runs the services.
    """
    until_apart, apart = os.pipe()
    child = os.fork()
    if child:
        os.close(apart)
        os.waitpid(child, 0)
        with open(until_apart, "rb") as pipe:
            pipe.read()  # it closes its end as it becomes a daemon
        return
    try:
        os.setsid()
        if os.fork() == 0:
            _become_daemon()
            keep(lambda _: owner, backend)
    except BaseException:
        traceback.print_exc()  # to keeper.log, or to whoever starts it
    finally:
        os._exit(0)


def keep(owner_of: Callable[[Record], str | None], backend: Callable[[], Any]) -> None:
    """Be the keeper, where there is none yet, until nothing is left to put back.

    Args:
        owner_of: Tells from what stands of the host's lease whose it looks after; None where it has no place here.
        backend: Makes what runs the services.
    """
    kept_folder().mkdir(mode=0o700, exist_ok=True)
    lock = kept_folder() / "keeper.lock"
    try:
        with file_lock(lock, wait_s=_LEAVING_S):
            owner = _register(owner_of)
            try:
                while owner is not None and not _looked_after(owner, backend):
                    time.sleep(_LOOK_S)
            finally:
                _register(lambda _: None)
                lock.unlink()
    except ServiceError as error:
        if "locked by another process" not in str(error):
            print(error, file=sys.stderr, flush=True)
        return
    tidy()


def keep_after_boot(backend: Callable[[], Any]) -> None:
    """Be the keeper of what leases from before a boot have left: the one of then is gone.

    Where another account has the host by now, it is left as it is: the next with this account puts it back.
    """
    if open_notes():
        keep(owner_after_boot, backend)


def owner_after_boot(record: Record) -> str | None:
    """Return whose lease this account's keeper looks after; None where the host is another account's."""
    user = pwd.getpwuid(os.geteuid()).pw_name
    claim = record.reserved or record.held or record.keeper
    if claim is None:
        return user
    return claim.owner if claim.user == user else None


def _looked_after(owner: str, backend: Callable[[], Any], tries: int = _TRIES) -> bool:
    """Put back what is due; return whether nothing is left to wait for."""
    due = due_now(owner)
    given_up: list[str] = []
    if due:
        _stop_services(backend)
        for _ in range(tries):
            said = restore_power(due, lambda note: note in due_now(owner))
            given_up = due if said["problems"] else []
            if not given_up:
                break
            print("; ".join(said["problems"]), file=sys.stderr, flush=True)
            time.sleep(_LOOK_S)
    return not set(open_notes()) - set(given_up)


def _stop_services(backend: Callable[[], Any]) -> None:
    """End services that run though nobody holds the host; where that fails the board is put back all the same."""
    try:
        services = backend()
        runs = any(each["state"] == "running" for each in services.status())
        if runs and standing(read_record(), here_and_now()).held is None:
            services.stop_all("the lease ended")
    except (ServiceError, OSError) as error:
        print(error, file=sys.stderr, flush=True)


def _register(owner_of: Callable[[Record], str | None]) -> str | None:
    """Say in the host's lease that a keeper is at work, so that the next user waits for it; or no longer.

    Whose it is, is decided under the lock on the lease: nobody else gets the host in between.
    """
    with changed_record() as changing:
        now = here_and_now()
        record = standing(changing[0], now)
        owner = owner_of(record)
        if owner is not None:
            pid = os.getpid()
            values = {
                "owner": owner,
                "purpose": "puts the host back",
                "pid": pid,
                "ticks": start_ticks(pid) or 0,
            }
            record = record._replace(keeper=claim_from(values, now, 0.0))
        elif record.keeper is not None and record.keeper.pid == os.getpid():
            record = record._replace(keeper=None)
        changing[0] = record
    return owner


def _become_daemon() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN if number == signal.SIGHUP else signal.SIG_DFL)
    os.chdir("/")
    kept_folder().mkdir(mode=0o700, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    output = os.open(kept_folder() / "keeper.log", flags, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    _leave_session()
    for descriptor in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
        if descriptor > 2:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def _leave_session() -> None:
    """Become a unit of our own where systemd runs: it may end all that a session began when that ends."""
    if not Path("/run/systemd/system").is_dir():
        return
    pid = str(os.getpid())
    manager = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")
    words = ("StartTransientUnit", "ssa(sv)a(sa(sv))", f"testbed-keeper-{pid}.scope", "fail")
    try:
        run_as_root(["busctl", "call", *manager, *words, "1", "PIDs", "au", "1", pid, "0"])
    except ServiceError as error:
        print(f"it ends with its session where systemd ends those: {error}", file=sys.stderr, flush=True)


def tidy() -> None:
    """Remove what leases alone have made: on a host that testbed was never put on, nothing of it stays."""
    kept = kept_folder()
    lock = kept / "keeper.lock"
    if kept.exists() and not open_notes():
        # Where a keeper lives it is as it should be; one that was killed has left this.
        with contextlib.suppress(OSError, ServiceError), file_lock(lock, wait_s=0.0):
            lock.unlink()
            (kept / "keeper.log").unlink()
        with contextlib.suppress(OSError):
            kept.rmdir()
    with contextlib.suppress(ServiceError), changed_record() as changing:
        if standing(changing[0], here_and_now()).held is None:  # else it is in use again
            _tidy_home()


def _tidy_home() -> None:
    home = home_folder()
    services = home / "services"
    if (home / "code").exists() or any(services.glob("*/spec.json")):
        return
    for name in ("lease.json", ".start.lock"):
        with contextlib.suppress(OSError):
            (services / name).unlink()
    for folder in (services, home):
        with contextlib.suppress(OSError):
            folder.rmdir()
