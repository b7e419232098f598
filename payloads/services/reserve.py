"""Reserve a host for a time, give it back before, and say who has it."""

from __future__ import annotations

import time
from typing import Any, Callable, Mapping

from payloads.services.hold import HeldError, refusal
from payloads.services.keeper import ensure_keeper, open_notes, tidy
from payloads.services.layout import ServiceError
from payloads.services.power import note_power, restore_power, why_no_root
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

__all__ = ["release", "show", "take"]

_POLL_S = 0.2
_LEAVE_S = 40.0  # to end services, and to put back power mode and clocks


def show() -> dict[str, Any]:
    """Return who has this host, and what this user's leases have left that could not be put back."""
    now = here_and_now()
    record = standing(read_record(), now)
    left = [] if record.reserved or record.held or record.keeper else open_notes()
    return {**_claims(record), "left": left}


def take(
    owner: str, purpose: str, for_s: float, take_over_from: str, backend: Callable[[], Any]
) -> dict[str, Any]:
    """Reserve this host from now on; a reservation of the same owner is extended, or cut short.

    Args:
        owner: Who reserves it.
        purpose: What for.
        for_s: For how long.
        take_over_from: Whose lease, and whose run, is ended for it; nobody's where it is empty.
        backend: Makes what runs the services.

    Raises:
        HeldError: Somebody else has it.
        ServiceError: Who had it does not let go.
    """
    with changed_record() as changing:
        now = here_and_now()
        record = standing(changing[0], now)
        mine = record.reserved if record.reserved and record.reserved.owner == owner else None
        by = who_refuses(record, owner, to_hold=False)
        # A keeper's lease is over: it is waited for below.
        if by is not None and by is not record.keeper and by.owner != take_over_from:
            raise HeldError(described(by, now))
        claim = claim_from({"owner": owner, "purpose": purpose}, now, for_s)
        if mine is not None:
            claim = claim._replace(token=mine.token, purpose=purpose or mine.purpose)
        changing[0] = record._replace(reserved=claim)
    taken_from = by.owner if by is not None and by is not record.keeper else ""
    try:
        _wait_until_left(owner)
        # What an earlier lease of this account could not put back would be taken for the user's wish.
        left = restore_power([note for note in open_notes() if mine is None and note == "reservation"])
        power = note_power("reservation")
        ensure_keeper(owner, backend)
    except (ServiceError, OSError):
        if mine is None:
            _forget(claim)
        raise
    answer = {**_claims(standing(read_record(), here_and_now())), "extended": mine is not None}
    answer.update(taken_over_from=taken_from, power=power.as_json(), no_root=why_no_root())
    return {**answer, "left": left["problems"]}


def release(owner: str, backend: Callable[[], Any]) -> dict[str, Any]:
    """Give this host back: put it as it was when it was reserved, then let others have it.

    Args:
        owner: Who reserved it.
        backend: Makes what runs the services.

    Raises:
        HeldError: It is somebody else's, or a run of the same owner goes on there.
    """
    now = here_and_now()
    record = standing(read_record(), now)
    reserved, held = record.reserved, record.held
    for claim in (reserved, held):
        if claim is not None and claim.owner != owner:
            raise HeldError(described(claim, now))
    if held is not None:
        raise HeldError(described(held, now))
    if reserved is None:
        left = restore_power(open_notes())
        tidy()
        return {"released": False, **left}
    services = backend()
    running = [each["name"] for each in services.status() if each["state"] == "running"]
    stopped = services.stop_all("the host was given back") if running else []
    put_back = restore_power(open_notes())
    _forget(reserved)
    _see_keeper_off()
    tidy()
    return {"released": True, "stopped": stopped, **put_back}


def _claims(record: Record) -> dict[str, Any]:
    now = here_and_now()
    shown: Mapping[str, Claim | None] = {
        "reserved": record.reserved,
        "held": record.held,
        "keeper": record.keeper,
    }
    return {key: claim and described(claim, now) for key, claim in shown.items()}


def _wait_until_left(owner: str) -> None:
    """Wait until nothing of somebody else is at work here any more.

    Raises:
        ServiceError: It does not end.
    """
    deadline = time.monotonic() + _LEAVE_S
    while True:
        now = here_and_now()
        record = standing(read_record(), now)
        others = [one for one in (record.held, record.keeper) if one is not None and one.owner != owner]
        if not others:
            return
        if time.monotonic() > deadline:
            claim = others[0]
            raise ServiceError(
                f"{refusal(described(claim, now))}; its process {claim.pid} (user {claim.user}) does not let go"
            )
        time.sleep(_POLL_S)


def _see_keeper_off() -> None:
    """Wait until the keeper has seen that nothing is left to do: who looks next is to find the host free."""
    keeper = standing(read_record(), here_and_now()).keeper
    deadline = time.monotonic() + _LEAVE_S
    while keeper is not None and time.monotonic() < deadline:
        time.sleep(_POLL_S)
        if standing(read_record(), here_and_now()).keeper != keeper:
            return


def _forget(claim: Claim) -> None:
    with changed_record() as changing:
        reserved = changing[0].reserved
        if reserved is not None and reserved.token == claim.token:
            changing[0] = standing(changing[0]._replace(reserved=None), here_and_now())
