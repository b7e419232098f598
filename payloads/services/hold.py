"""The holder of a host's lease: while somebody feeds its standard input, the host is theirs and services may run.

Its own end, whatever the reason, puts the host back: services are stopped (linkd puts the links back as it ends), then
power mode and clocks are as they were. What it needs of the payload code is loaded when it starts: it also runs where
that code is sent to it, before a host has any.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from typing import Any

from payloads.services.keeper import due_now, tidy
from payloads.services.layout import ServiceError
from payloads.services.lease import write_lease
from payloads.services.power import restore_power
from payloads.services.processes import start_ticks
from payloads.services.shared import (
    Claim,
    Record,
    changed_record,
    claim_from,
    described,
    here_and_now,
    read_record,
    standing,
    who_refuses,
)

__all__ = ["HeldError", "hold", "refusal"]

_LOOK_S = 0.5
_POLL_S = 0.2
_SURE_S = 1.5  # a byte of the controller that comes so long after the question was not on its way before


class HeldError(ServiceError):
    """The host is somebody else's.

    Attributes:
        by: Who has it, as the controller is told.
    """

    def __init__(self, by: dict[str, Any]) -> None:
        super().__init__(refusal(by))
        self.by = by


def refusal(by: dict[str, Any]) -> str:
    """Return in one line who has a host."""
    left = by["left_s"]
    until = "until it ends" if left is None else f"for {left / 60:.0f} min more"
    purpose = by["purpose"] or "nothing said"
    return f"this host is held by {by['owner']} ({purpose}), since {by['since_s'] / 60:.0f} min, {until}"


def hold(backend: Any, ttl_s: float, wait_s: float, owner: str, purpose: str) -> int:
    """Hold the host until standard input ends or falls silent, then put it back.

    Args:
        backend: What runs the services.
        ttl_s: The longest silence on standard input, in seconds.
        wait_s: How long to wait for a holder that may be gone; one that hears of its controller is not waited for.
        owner: Who holds it.
        purpose: What for.

    Returns:
        0 when the lease ended as the controller wished, 1 when it was lost, 3 when the host is somebody else's.
    """
    signals = _Signals()
    try:
        claim, reserved = _take(owner, purpose, wait_s)
    except HeldError as error:
        _say({"held": False, "refused": error.by})
        print(error, file=sys.stderr)
        return 3
    # What killed holders and keepers have left is put back first.
    left = restore_power(due_now(owner, claim))
    write_lease(ttl_s)
    backend.lease_begins()
    _say({"held": True, "ttl_s": ttl_s, **left, "reserved_s": reserved})
    reason, lost, stopped, problems = "", True, [], []
    try:
        reason, lost = _keep(backend, signals, ttl_s, claim, reserved is not None)
    except (ServiceError, OSError) as error:
        reason = str(error)
    try:
        stopped = backend.stop_all(f"the lease ended: {reason}")
    except (ServiceError, OSError) as error:
        problems = [str(error)]
    put_back = restore_power(due_now(owner, claim))
    put_back["problems"] += problems
    write_lease(0.0)
    _let_go(claim)
    _say({"held": False, "reason": reason, "stopped": stopped, **put_back})
    tidy()
    return 1 if lost else 0


class _Signals:
    """The signals that end the lease, turned into something to wait for."""

    def __init__(self) -> None:
        self.wakeup, written = os.pipe()
        os.set_blocking(written, False)
        os.set_blocking(self.wakeup, False)
        signal.set_wakeup_fd(written, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, lambda *_: None)

    def name(self) -> str:
        """Return the name of the signal that came, or an empty string."""
        try:
            came = os.read(self.wakeup, 1)
        except BlockingIOError:
            return ""
        return signal.Signals(came[0]).name


def _take(owner: str, purpose: str, wait_s: float) -> tuple[Claim, float | None]:
    """Return the claim that makes this process the only holder, and how long its reservation lasts, if there is one."""
    deadline = time.monotonic() + wait_s
    question = ""
    while True:
        with changed_record() as changing:
            now = here_and_now()
            record = standing(changing[0], now)
            by = who_refuses(record, owner, to_hold=True)
            if by is None:
                values = {"owner": owner, "purpose": purpose, "pid": os.getpid()}
                claim = claim_from({**values, "ticks": start_ticks(os.getpid()) or 0}, now, 0.0)
                changing[0] = record._replace(held=claim, asked="", lives="")
                reserved = record.reserved and described(record.reserved, now)["left_s"]
                return claim, reserved
            sure = not by.pid or (question and record.lives == question)
            if sure or time.monotonic() >= deadline:
                raise HeldError(described(by, now))
            question = record.asked if record.asked != record.lives else os.urandom(4).hex()
            changing[0] = record._replace(asked=question)
        time.sleep(_POLL_S)


def _let_go(claim: Claim) -> None:
    """Give the host free, where it is still held by that claim."""
    with contextlib.suppress(ServiceError), changed_record() as changing:
        held = changing[0].held
        if held is not None and held.token == claim.token:
            changing[0] = standing(changing[0]._replace(held=None, asked="", lives=""), here_and_now())


def _keep(
    backend: Any, signals: _Signals, ttl_s: float, claim: Claim, was_reserved: bool
) -> tuple[str, bool]:
    """Renew the lease as long as bytes come; return why it ended, and whether it was lost."""
    heard_s = renewed_s = time.monotonic()
    questions = _Questions()
    while True:
        readable, _, _ = select.select([0, signals.wakeup], [], [], min(_LOOK_S, ttl_s / 2))
        now_s = time.monotonic()
        name = signals.name()
        if name:
            return name, False
        if 0 in readable:
            if not os.read(0, 4096):
                return "end of input", False
            heard_s = now_s
            if now_s - renewed_s > min(1.0, ttl_s / 4):
                write_lease(ttl_s)
                renewed_s = now_s
        elif now_s - heard_s > ttl_s:
            return f"no sign of the controller for {ttl_s:g} s", False
        lost = backend.lost()
        if lost:
            return f"lost: {lost}", True
        with contextlib.suppress(ServiceError):  # what cannot be read is no reason to end a run
            record = standing(read_record(), here_and_now())
            was_reserved = was_reserved or record.reserved is not None
            lost = lost_to(record, claim, was_reserved=was_reserved)
            if lost:
                return lost, True
            questions.answer(record, heard_s)


def lost_to(record: Record, claim: Claim, *, was_reserved: bool) -> str:
    """Return why a host is no longer held by a claim, or an empty string.

    Args:
        record: What stands.
        claim: What held it.
        was_reserved: Whether the owner had it reserved besides.
    """
    reserved = record.reserved
    if reserved is not None and reserved.owner != claim.owner:
        return f"taken over by {reserved.owner} ({reserved.purpose or 'nothing said'})"
    if was_reserved and reserved is None:
        return f"the reservation of {claim.owner} ended"
    if record.held is None or record.held.token != claim.token:
        return "the host's lease was removed by hand"
    return ""


class _Questions:
    """Answers those who wait for the host, once it is certain that the controller lives."""

    def __init__(self) -> None:
        self._question = ""
        self._since_s = 0.0

    def answer(self, record: Record, heard_s: float) -> None:
        """Answer what is asked, if a byte came since that was not on its way before.

        Args:
            record: What stands.
            heard_s: When the last byte came.
        """
        if not record.asked or record.asked == record.lives:
            return
        if record.asked != self._question:
            self._question, self._since_s = record.asked, time.monotonic()
        elif heard_s > self._since_s + _SURE_S:
            with changed_record() as changing:
                if changing[0].asked == self._question:
                    changing[0] = changing[0]._replace(lives=self._question)


def _say(message: Any) -> None:
    try:
        print(json.dumps(message), flush=True)
    except BrokenPipeError:
        # The connection is gone, which is one of the ways a lease ends; what follows does not need it. The
        # descriptor is pointed elsewhere so that the interpreter does not stumble over it on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
