"""Leases as the controller sees them: times, words, who is refused, and a host that was lost."""

from __future__ import annotations

import json
import os
import shlex
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.errors import CommandError, HeldError, HostError, InputError, RefusedError
from testbed.hosts.fake import Answer, FakeTransport
from testbed.hosts.lease_words import clock_words, lease_row, released_words, reserved_words, seconds_of
from testbed.hosts.leases import Leases, ask_lease, held_error, lease_command, refuse_others, together
from testbed.hosts.owner import check_owner, check_purpose, this_owner
from testbed.hosts.steps import Command

NOON = 1_800_014_400.0
RUN = {"kind": "run", "owner": "ann@laptop", "purpose": "run x-0001", "user": "jetson", "since_s": 60.0}
RUN["left_s"] = None
RESERVED = RUN | {"kind": "reservation", "purpose": "energy", "left_s": 7200.0}
POWER = {"mode": "15W", "jetson_clocks": False}
TAKE = Command("left", "services hold")


@pytest.fixture(autouse=True)
def bob(monkeypatch):
    monkeypatch.setenv("TESTBED_OWNER", "bob@desk")


@pytest.fixture
def one_host(inventory):
    return next(iter(inventory.hosts.values()))


@given(st.integers(0, 6), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_a_time_is_read_as_it_is_written(days, hours, minutes, seconds):
    parts = zip((days, hours, minutes, seconds), "dhms", strict=True)
    text = "".join(f"{number}{unit}" for number, unit in parts if number)
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if total:
        assert seconds_of(text, "--for") == total
    else:
        with pytest.raises(InputError):
            seconds_of(text, "--for")


@pytest.mark.parametrize(
    "text", ["", "2", "h", "2x", "-1h", "0m", "8d", "1m1h", "1 h", "9" * 30 + "s", "\u0661h"]
)
def test_what_is_no_time_is_refused_with_what_was_expected(text):
    with pytest.raises(InputError, match="--for: a time such as 30m, 2h or 1h30m was expected") as error:
        seconds_of(text, "--for")
    assert error.value.exit_code == 2


def test_the_operator_is_named_by_the_environment_or_by_login_and_machine(monkeypatch):
    assert this_owner() == "bob@desk"
    monkeypatch.delenv("TESTBED_OWNER")
    monkeypatch.setenv("SUDO_USER", "ann")  # who became root is still themselves
    assert this_owner().startswith("ann@")
    for wrong in ("ann", "ann@", "a b@c", "a@b@c", "x" * 70 + "@y"):
        with pytest.raises(InputError, match="user@machine was expected"):
            check_owner(wrong, "TESTBED_OWNER")


@pytest.mark.parametrize("account", ["ann@corp.example", "CORP\\ann", "ann lee", "x" * 80])
def test_whoever_the_operator_is_can_be_named(monkeypatch, account):
    monkeypatch.delenv("TESTBED_OWNER")
    monkeypatch.setenv("SUDO_USER", account)
    owner = this_owner()
    assert check_owner(owner, "--take-over-from") == owner
    assert shlex.split(owner) == [owner]  # as a remedy has it, to be pasted


def test_an_account_without_a_name_is_an_operator_too(monkeypatch):
    for name in ("TESTBED_OWNER", "SUDO_USER", "LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    assert this_owner().startswith(f"uid{os.getuid()}@")


@pytest.mark.parametrize("wrong", ["two\nlines", "x" * 201, "\x1b[2J"])
def test_a_purpose_is_one_line(wrong):
    assert check_purpose("energy at 15 W", "--purpose") == "energy at 15 W"
    with pytest.raises(InputError, match="--purpose: one line of at most 200 characters was expected"):
        check_purpose(wrong, "--purpose")


def test_a_host_s_row_says_who_what_since_when_and_until_when():
    since, until = clock_words(-60, NOON), clock_words(7200, NOON)
    assert lease_row("bs", {"reserved": None, "held": None}, NOON) == ("bs", "-", "", "", "")
    assert lease_row("bs", {"held": RUN}, NOON) == ("bs", "ann@laptop", "run x-0001", since, "it ends")
    assert lease_row("bs", {"reserved": RESERVED}, NOON)[2:] == ("energy", since, until)
    both = {"held": RUN, "reserved": RESERVED}
    assert lease_row("bs", both, NOON)[2:] == ("run x-0001 (energy)", since, until)
    assert len(clock_words(86400, NOON)) == len("2027-01-16 12:00")  # another day is named


def test_words_of_others_are_no_more_than_words():
    """A lease can be written by anybody with an account on the host."""
    odd = RUN | {"owner": "\x1b[2Jann", "purpose": "a\nb" + "x" * 300}
    row = lease_row("bs", {"held": odd}, NOON)
    assert all(cell.isprintable() and len(cell) <= 200 for cell in row)
    assert str(held_error("bs", odd)).isprintable()


def test_what_is_said_of_a_host_that_was_taken_and_given_back():
    taken = {"reserved": RESERVED, "taken_over_from": "ann@laptop", "power": POWER, "no_root": ""}
    plainly = taken | {"taken_over_from": "", "power": {"mode": None, "jetson_clocks": None}}
    unknown = plainly | {"power": {"mode": "15W", "jetson_clocks": None}}
    powerless = taken | {"no_root": "no sudo"}
    answers = {"a": taken, "b": plainly, "c": unknown, "d": powerless}
    first, second, third, fourth = reserved_words(answers, "bob@desk")
    assert ", taken over from ann@laptop; then back to power mode 15W, jetson_clocks off" in first
    assert second.startswith("b: bob@desk until ")
    assert "power" not in second
    assert third.endswith("its clocks cannot be read, so they are not put back")
    assert fourth.endswith("; power mode and clocks will not be put back: no sudo")
    back = {"released": True, "stopped": ["worker"], "restored": ["clocks"]}
    assert released_words({"a": back, "b": {"released": False, "restored": []}}) == [
        "a: given back (worker stopped; put back: clocks)",
        "b: was not taken",
    ]


def refused(by):
    return Answer(json.dumps({"refused": by}), stderr="this host is held", exit_status=3)


def test_an_answer_of_refusal_names_who_has_the_host(one_host):
    command = lease_command(one_host, "take")
    with pytest.raises(HeldError, match=r"held by ann@laptop \(energy\), since ") as error:
        ask_lease(one_host, FakeTransport(one_host.name, [("lease take", refused(RESERVED))]), command)
    assert (error.value.exit_code, error.value.owner) == (3, "ann@laptop")
    # Another failure of the same status is none.
    with pytest.raises(CommandError):
        ask_lease(one_host, FakeTransport(one_host.name, [("", Answer("?", "no", exit_status=3))]), command)
    with pytest.raises(HostError, match="answered what was not expected"):
        ask_lease(one_host, FakeTransport(one_host.name, [("", "nonsense")]), command)


def test_what_one_s_own_is_refuses_nobody(one_host):
    refuse_others(one_host, {"held": RUN | {"owner": "bob@desk"}, "reserved": None})
    for key in ("held", "reserved"):
        with pytest.raises(HeldError):
            refuse_others(one_host, {key: RESERVED})


def test_several_refusals_are_one():
    assert together([held_error("a", RUN)]).exit_code == 3
    several = together([held_error("a", RUN), held_error("b", RUN), held_error("c", RESERVED)])
    assert isinstance(several, RefusedError)
    assert [line.partition(":")[0] for line in str(several).splitlines()] == ["a, b", "c"]
    assert "testbed lease take --take-over-from ann@laptop" in several.hint
    mine = held_error("a", RUN | {"owner": "bob@desk"})
    assert "a run of your own" in together([mine, held_error("b", RUN | {"owner": "bob@desk"})]).hint


class Stream:
    """A holder that goes on until it is told to end."""

    stderr = ""

    def __init__(self):
        self.said = ['{"held": true, "restored": ["clocks"], "problems": [], "reserved_s": 60}']
        self.gone = threading.Event()
        self.refused = threading.Event()

    def write(self, data):
        if self.gone.is_set():
            self.refused.set()
            raise HostError("left", "the command has ended")

    def lines(self, timeout_s=None):
        yield from self.said

    def end_input(self):
        self.said = ['{"held": false, "problems": ["its power mode needs a reboot"]}']

    def exit_status(self, timeout_s=0.0):
        return 0

    def close(self):
        pass


class Way:
    """A fleet of one host."""

    def __init__(self):
        self.streams = []

    def transport(self, name):
        return self

    def stream(self, command):
        self.streams.append(Stream())
        return self.streams[-1]


def test_a_lease_says_what_was_left_and_what_could_not_be_put_back():
    leases = Leases(Way())
    leases.take(TAKE)
    leases.check()
    assert leases.told[0] == "left: clocks was put back, which an earlier run had left"
    assert leases.told[1].startswith("left: reserved for you until ")
    leases.release()
    assert leases.told[-1] == "left: its power mode needs a reboot"


def test_a_host_that_was_taken_over_is_lost_and_can_be_taken_again():
    way = Way()
    leases = Leases(way)
    leases.take(TAKE)
    stream = way.streams[0]
    stream.said = ['{"held": false, "reason": "taken over by eve@desk (mine now)"}']
    stream.gone.set()
    assert stream.refused.wait(30)

    def lost():
        with pytest.raises(HostError, match=r"left: the lease was lost: taken over by eve@desk \(mine now\)"):
            leases.check()

    for _ in range(100):  # the beat notes it right after
        if leases._lost:
            break
        threading.Event().wait(0.05)
    lost()
    leases.retake("left")
    leases.check()
    leases.release()


def test_what_a_login_script_says_is_no_answer():
    way = Way()
    leases = Leases(way)
    stream = way.stream(TAKE)
    stream.said = ["Welcome to the rack", "", *stream.said]
    way.stream = lambda command: stream
    leases.take(TAKE)
    assert leases.taken == {"left"}
    leases.release()
