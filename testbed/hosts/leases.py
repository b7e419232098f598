"""The controller's hold on its hosts: while it lives, it writes a byte a second to each host's lease.

A host whose lease ends, because the controller let go, died or can no longer be reached, stops its services and puts
back what a run had set; the link daemon is one of the services and puts the links back. A host is held before anything
is changed there: who comes second changes nothing.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from testbed.config.inventory import Host
from testbed.errors import CommandError, HeldError, HostError, RefusedError, TestbedError
from testbed.hosts.deadline import Deadline
from testbed.hosts.fleet import Fleet
from testbed.hosts.lease_words import clock_words, plain
from testbed.hosts.owner import this_owner
from testbed.hosts.sent import sent_command
from testbed.hosts.steps import Command
from testbed.hosts.transport import Stream, Transport

__all__ = [
    "LEASE_TTL_S",
    "Leases",
    "held_error",
    "holding_command",
    "in_words",
    "lease_command",
    "refuse_others",
    "together",
]

BEAT_S = 1.0
RELEASE_S = 20.0  # services are ended within seconds; power mode and clocks may take longer on a board
LEASE_TTL_S = 8.0


def holding_command(host: Host, purpose: str, owner: str = "") -> Command:
    """Return what holds a host as long as it is fed.

    Args:
        host: The host. It needs a Python, and none of our code.
        purpose: What for.
        owner: Who holds it; the operator where left out.
    """
    words = ["hold", "--ttl", f"{LEASE_TTL_S:g}", "--owner", owner or this_owner(), "--purpose", purpose]
    return sent_command(host, *words, title="hold")


def lease_command(host: Host, action: str, *args: str, timeout_s: float = 60.0) -> Command:
    """Return what asks a host for its lease (``show``), reserves it (``take``), or gives it back (``release``)."""
    return sent_command(host, "lease", action, *args, title=f"lease {action}", timeout_s=timeout_s)


def refuse_others(host: Host, said: Mapping[str, Any], owner: str = "") -> None:
    """Raise where a host said that somebody else has it.

    Args:
        host: The host.
        said: What it said when it was asked for its lease, by :func:`ask_lease`.
        owner: Who is no other; the operator where left out.

    Raises:
        HeldError: Somebody else has it.
    """
    for by in (said.get("reserved"), said.get("held")):
        if isinstance(by, dict) and by.get("owner") != (owner or this_owner()):
            raise held_error(host.name, by)


def ask_lease(host: Host, transport: Transport, command: Command) -> dict[str, Any]:
    """Ask a host for its lease, or change it; return what it says.

    Args:
        host: The host.
        transport: The way to it.
        command: What is asked, by :func:`lease_command`.

    Raises:
        HeldError: Somebody else has it.
        HostError: It could not be asked, or failed.
    """
    try:
        done = transport.run(command)
    except CommandError as error:
        by = _object(error.stdout.strip().rpartition("\n")[2]).get("refused")
        if error.exit_status == HeldError.exit_code and isinstance(by, dict):
            raise held_error(host.name, by) from None
        raise
    said = _object(done.stdout.strip().rpartition("\n")[2])
    if not said:
        raise HostError(
            host.name, f"`{command.shell}` answered what was not expected: {done.stdout[-200:]!r}"
        )
    return said


class Leases:
    """Opens the leases, keeps them alive from a thread of its own, and lets them go.

    Attributes:
        taken: The hosts that were held at some time.
        told: What people should know: what an earlier, broken run had left and what was made of it.
    """

    def __init__(self, fleet: Fleet) -> None:
        self.taken: set[str] = set()
        self.told: list[str] = []
        self._fleet = fleet
        self._commands: dict[str, Command] = {}
        self._streams: dict[str, Stream] = {}
        self._lost: dict[str, str] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="leases", daemon=True)

    def take(self, command: Command) -> None:
        """Take one host's lease and wait until the host says that it is held.

        Raises:
            HeldError: Somebody else has the host.
            HostError: The host refused for another reason.
        """
        stream = self._fleet.transport(command.host).stream(command)
        first = ""
        said: dict[str, Any] = {}
        try:
            for first in stream.lines(command.timeout_s):
                if said := _object(first):  # a login script of the host may say something before
                    break
        except HostError:
            stream.close()
            raise
        if said.get("held") is not True:
            answer = stream.stderr.strip() or first or "no answer"
            stream.close()
            if isinstance(said.get("refused"), dict):
                raise held_error(command.host, said["refused"])
            raise HostError(command.host, f"the lease was refused: {answer}")
        with self._lock:
            self._streams[command.host] = stream
            self._commands[command.host] = command
            self._lost.pop(command.host, None)
            self.taken.add(command.host)
            self.told += told_of(command.host, said)
            if not self._thread.is_alive():
                self._thread.start()

    def retake(self, host: str) -> None:
        """Take a host's lease again that ended with its connection, as at a reboot.

        Raises:
            HostError: As :meth:`take`.
        """
        with self._lock:
            stream = self._streams.pop(host, None)
        if stream is not None:
            stream.close()
        self.take(self._commands[host])

    def check(self) -> None:
        """Raise for a host whose lease was lost.

        Raises:
            HostError: A host can no longer be reached, or was taken away; its services stop by themselves.
        """
        for host, why in list(self._lost.items()):  # the beat may add one meanwhile
            raise HostError(host, f"the lease was lost: {why}", hint="`testbed lease list` says who has it")

    def release(self) -> None:
        """Let every host go, and wait until each has put back what a run had changed there."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        streams = dict(self._streams)
        self._streams.clear()
        for stream in streams.values():
            with contextlib.suppress(OSError, HostError):
                stream.end_input()
        deadline = Deadline(RELEASE_S)  # for all of them: a host that is out of reach lets go by itself
        for host, stream in streams.items():
            if host not in self._lost:
                said = _last_words(stream, deadline.remaining_s)
                self.told += [f"{host}: {problem}" for problem in said.get("problems", [])]
            with contextlib.suppress(OSError, HostError):
                stream.exit_status(deadline.remaining_s)
            stream.close()

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            for host, stream in self._alive():
                try:
                    stream.write(b".")
                except (OSError, HostError) as error:
                    self._lost[host] = str(_last_words(stream, 1.0).get("reason") or error)

    def _alive(self) -> Iterable[tuple[str, Stream]]:
        with self._lock:
            return [(host, stream) for host, stream in self._streams.items() if host not in self._lost]


def told_of(host: str, said: Mapping[str, Any]) -> list[str]:
    """Return what people should know of a host's answer."""
    notes = [
        f"{host}: {what} was put back, which an earlier run had left" for what in said.get("restored", [])
    ]
    notes += [f"{host}: {problem}" for problem in said.get("problems", [])]
    left_s = said.get("reserved_s")
    if left_s is not None:
        notes.append(f"{host}: reserved for you until {clock_words(left_s)}; what runs then is ended")
    return notes


def held_error(host: str, by: Mapping[str, Any]) -> HeldError:
    """Return the error for a host that somebody else has.

    Args:
        host: The host's name.
        by: Who has it, as the host says.
    """
    owner = plain(str(by.get("owner", "somebody")))
    mine = owner == this_owner() and by.get("kind") == "run"
    hint = (
        "it is a run of your own: wait for its end, or stop it"
        if mine
        else f"ask them, or take it over by name: testbed lease take --limit {host} --take-over-from {owner}"
    )
    return HeldError(host, owner, in_words(by), hint=hint)


def in_words(by: Mapping[str, Any], now_unix: float | None = None) -> str:
    """Return who has a host, for what, since when and until when.

    Args:
        by: What the host says.
        now_unix: Our clock, by which the times are told; a host's may be wrong.
    """
    left_s = by.get("left_s")
    until = "until it ends" if left_s is None else f"until {clock_words(float(left_s), now_unix)}"
    purpose = str(by.get("purpose") or "nothing said")
    since = clock_words(-float(by.get("since_s", 0.0)), now_unix)
    return f"{plain(str(by.get('owner', 'somebody')))} ({plain(purpose)}), since {since}, {until}"


def together(errors: Sequence[HeldError]) -> TestbedError:
    """Return one error for hosts that somebody else has, those of one owner and purpose on one line."""
    if len(errors) == 1:
        return errors[0]
    by_words: dict[str, list[HeldError]] = {}
    for error in errors:
        by_words.setdefault(error.why, []).append(error)
    lines = [f"{', '.join(error.host for error in same)}: held by {why}" for why, same in by_words.items()]
    owners = list(dict.fromkeys(error.owner for error in errors))
    words = [f"testbed lease take --take-over-from {owner}" for owner in owners if owner != this_owner()]
    hint = f"ask them, or take hosts over by name: {'; '.join(words)}" if words else errors[0].hint
    return RefusedError("\n".join(lines), hint=hint)


def _object(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _last_words(stream: Stream, timeout_s: float) -> dict[str, Any]:
    """Return what a holder said at its end."""
    last: dict[str, Any] = {}
    with contextlib.suppress(OSError, HostError):
        for line in stream.lines(timeout_s):
            last = _object(line) or last
    return last
