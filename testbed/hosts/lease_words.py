"""What people say and are told about leases: times, and lines for each host. Pure."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from testbed.errors import InputError

__all__ = ["clock_words", "lease_row", "plain", "released_words", "reserved_words", "seconds_of"]

_UNITS_S = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_TIME = re.compile(r"(?:([0-9]+)d)?(?:([0-9]+)h)?(?:([0-9]+)m)?(?:([0-9]+)s)?")
LONGEST_S = 7 * 86400


def seconds_of(text: str, where: str) -> int:
    """Return a time such as 1h30m in seconds.

    Args:
        text: The time.
        where: Where it stands, for the error.

    Raises:
        InputError: It is no time, nothing, or more than seven days.
    """
    match = _TIME.fullmatch(text)
    numbers = zip(match.groups(), _UNITS_S.values(), strict=True) if match and len(text) <= 20 else ()
    seconds = sum(int(number) * unit for number, unit in numbers if number)
    if not 0 < seconds <= LONGEST_S:
        raise InputError(f"{where}: a time such as 30m, 2h or 1h30m was expected, at most 7d, not {text!r}")
    return seconds


def clock_words(from_now_s: float, now_unix: float | None = None) -> str:
    """Return a moment as the time of the day, with the date where that is another.

    Args:
        from_now_s: The moment, in seconds from now.
        now_unix: Our clock.
    """
    now = time.time() if now_unix is None else now_unix
    then, today = time.localtime(now + from_now_s), time.localtime(now)
    return time.strftime("%H:%M" if then[:3] == today[:3] else "%Y-%m-%d %H:%M", then)


def plain(text: str) -> str:
    """Return what others have written, without what a terminal would take for more than text."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:200]


def lease_row(host: str, said: Mapping[str, Any], now_unix: float | None = None) -> tuple[str, ...]:
    """Return a host's row of the table of leases: the host, who has it, for what, since when, until when.

    Args:
        host: The host's name.
        said: What it answered.
        now_unix: Our clock.
    """
    held, reserved = said.get("held"), said.get("reserved")
    by = held or reserved or said.get("keeper")
    if not by:
        return (host, "-", "", "", "")
    purpose = plain(str(by["purpose"]))
    if held and reserved and reserved["purpose"]:
        purpose += f" ({plain(str(reserved['purpose']))})"
    left_s = (reserved or by)["left_s"]
    until = "it ends" if left_s is None else clock_words(left_s, now_unix)
    return (host, plain(str(by["owner"])), purpose, clock_words(-by["since_s"], now_unix), until)


def reserved_words(answers: Mapping[str, Mapping[str, Any]], owner: str) -> Sequence[str]:
    """Return what is said once hosts are reserved: each host's end, and what it will be put back to.

    Args:
        answers: What each host answered.
        owner: Who has them now.
    """
    lines = []
    for host, said in answers.items():
        until = clock_words(said["reserved"]["left_s"])
        what = f"{host}: {owner} until {until}"
        if said["taken_over_from"]:
            what += f", taken over from {plain(said['taken_over_from'])}"
        lines.append(what + _kept(said["power"], said["no_root"]))
    return lines


def _kept(power: Mapping[str, Any], no_root: str) -> str:
    if power["mode"] is None:
        return ""
    if no_root:
        return f"; power mode and clocks will not be put back: {no_root}"
    clocks = power["jetson_clocks"]
    if clocks is None:
        return (
            f"; then back to power mode {power['mode']}; its clocks cannot be read, so they are not put back"
        )
    return f"; then back to power mode {power['mode']}, jetson_clocks {'on' if clocks else 'off'}"


def released_words(answers: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    """Return what is said once hosts are given back.

    Args:
        answers: What each host answered.
    """
    lines = []
    for host, said in answers.items():
        done = [f"{name} stopped" for name in said.get("stopped", [])]
        done += [f"put back: {what}" for what in said["restored"]]
        what = "given back" if said["released"] else "was not taken"
        lines.append(f"{host}: {what}" + (f" ({'; '.join(done)})" if done else ""))
    return lines
