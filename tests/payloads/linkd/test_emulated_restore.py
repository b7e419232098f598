"""Whatever ends the daemon, the interface goes back to what it was; what could not go back is not touched."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest

from tests.payloads.linkd.conftest import children_of, kill_with

pytestmark = pytest.mark.emulated

FOUND = {
    "the kernel's own": [],
    "a pfifo": ["qdisc", "replace", "dev", "eth0", "root", "handle", "11:", "pfifo", "limit", "77"],
    "a tbf": ["qdisc", "replace", "dev", "eth0", "root", "handle", "12:", "tbf", "rate", "50mbit",
              "burst", "9k", "latency", "40ms"],
    "a pfifo_fast": ["qdisc", "replace", "dev", "eth0", "root", "handle", "13:", "pfifo_fast"],
    "a noqueue": ["qdisc", "replace", "dev", "eth0", "root", "handle", "14:", "noqueue"],
    "an fq_codel": ["qdisc", "replace", "dev", "eth0", "root", "handle", "16:", "fq_codel", "target", "7ms"],
    "an fq": ["qdisc", "replace", "dev", "eth0", "root", "handle", "17:", "fq", "maxrate", "50mbit"],
    "an mq": ["qdisc", "replace", "dev", "eth0", "root", "handle", "15:", "mq"],
}  # fmt: skip


#: What follows it in a parameter is the leaf.
LED_THROUGH = " through the "
LINE = f"the kernel's own{LED_THROUGH}line"


@pytest.fixture
def shaped(request, link_pair):
    """A pair whose links are shaped over one of several former roots: the pair, the daemon and what was."""
    name, _, leaf = getattr(request, "param", "the kernel's own").partition(LED_THROUGH)
    found = FOUND[name]
    if found:
        _make(link_pair, found)
    before = link_pair.qdiscs()
    daemon = link_pair.start("b", "serve", "--leaf", leaf or "tbf")
    assert link_pair.qdiscs() == before
    link_pair.set(8, 8)
    assert "htb" in link_pair.qdiscs()
    if leaf:
        assert any(name.startswith("tbline") for name in link_pair.interfaces())
    else:
        assert "tbf" in link_pair.qdiscs()
    return link_pair, daemon, before


def _make(pair, words: list[str]) -> None:
    done = subprocess.run(["tc", "-n", f"{pair.name}b", *words], capture_output=True, text=True)
    if "kind is unknown" in done.stderr or "not supported" in done.stderr:
        pytest.skip(f"this kernel cannot make it: {' '.join(words)}: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr


def _wait_until_gone(pair) -> None:
    deadline = time.monotonic() + 60
    while pair.state.exists():
        assert time.monotonic() < deadline, "not restored"
        time.sleep(0.02)


def _assert_as_before(pair, before: str) -> None:
    assert pair.qdiscs() == before
    assert sorted(pair.interfaces()) == ["eth0", "lo"]
    assert not pair.state.exists()


@pytest.mark.parametrize("shaped", [*FOUND, LINE], indirect=True)
def test_sigterm_restores(shaped) -> None:
    pair, daemon, before = shaped
    daemon.terminate()
    assert daemon.wait(60) == 0
    _assert_as_before(pair, before)
    assert not pair.socket.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_other_signals_restore(shaped, number) -> None:
    pair, daemon, before = shaped
    daemon.send_signal(number)
    assert daemon.wait(60) == 0
    _assert_as_before(pair, before)


@pytest.mark.parametrize("shaped", ["the kernel's own", "a tbf", LINE], indirect=True)
def test_kill_9_is_restored_by_the_guard(shaped) -> None:
    pair, daemon, before = shaped
    daemon.kill()
    daemon.wait()
    _wait_until_gone(pair)
    _assert_as_before(pair, before)


@pytest.mark.parametrize("shaped", ["a pfifo"], indirect=True)
def test_kill_9_of_daemon_and_guard_is_restored_by_the_next_daemon(shaped) -> None:
    pair, daemon, before = shaped
    kill_with(daemon, children_of(daemon)[:1])
    assert pair.state.exists()
    assert "htb" in pair.qdiscs()
    pair.start("b", "serve", "--leaf", "tbf")
    _assert_as_before(pair, before)
    pair.set(4, 4)
    assert "rate 4Mbit" in pair.qdiscs()


@pytest.mark.parametrize("command", ["restore", "clear"])
def test_kill_9_of_daemon_and_guard_is_restored_by_a_command(link_pair, command) -> None:
    before = link_pair.qdiscs()
    daemon = link_pair.start("b", "serve", "--leaf", "tbf")
    link_pair.set(8, 8)
    kill_with(daemon, children_of(daemon)[:1])
    assert "htb" in link_pair.qdiscs()
    assert link_pair.linkd(command).stdout == '{"restored": "eth0"}\n'
    _assert_as_before(link_pair, before)
    assert link_pair.linkd(command).stdout == '{"restored": null}\n'


def test_a_guard_that_was_killed_is_replaced(link_pair) -> None:
    before = link_pair.qdiscs()
    daemon = link_pair.start("b", "serve", "--leaf", "tbf")
    link_pair.set(8, 8)
    (first,) = children_of(daemon)
    os.kill(first, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while children_of(daemon) in ([], [first]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    daemon.kill()
    daemon.wait()
    _wait_until_gone(link_pair)
    _assert_as_before(link_pair, before)


def test_clear_restores_and_the_daemon_goes_on(link_pair) -> None:
    before = link_pair.qdiscs()
    link_pair.start("b", "serve", "--leaf", "tbf")
    for _ in range(2):
        link_pair.set(8, 8)
        link_pair.linkd("clear")
        _assert_as_before(link_pair, before)


def test_a_second_daemon_and_restore_keep_off_while_one_lives(link_pair) -> None:
    link_pair.start("b", "serve", "--leaf", "tbf")
    link_pair.set(8, 8)
    done = link_pair.linkd("restore", "--wait", "0.2", check=False)
    assert done.returncode == 1
    assert "another linkd" in done.stderr
    assert "htb" in link_pair.qdiscs()


@pytest.mark.parametrize(
    ("commands", "words"),
    [
        ([["qdisc", "add", "dev", "eth0", "root", "handle", "1:", "htb"]], "htb 1: as its root"),
        ([["qdisc", "add", "dev", "eth0", "ingress"]], "ingress hook of somebody else"),
        ([["qdisc", "add", "dev", "eth0", "clsact"]], "clsact hook of somebody else"),
        (
            [
                ["qdisc", "add", "dev", "eth0", "root", "handle", "1:", "tbf", "rate", "9mbit", "burst", "9k",
                 "limit", "90k"],
                ["qdisc", "add", "dev", "eth0", "parent", "1:1", "handle", "2:", "pfifo"],
            ],
            "pfifo 2: below its root tbf 1:",
        ),
    ],
)  # fmt: skip
def test_what_could_not_be_restored_is_refused_and_left_alone(link_pair, commands, words) -> None:
    for command in commands:
        link_pair.tc(*command)
    before = link_pair.qdiscs()
    link_pair.start("b", "serve", "--leaf", "tbf")
    done = link_pair.linkd("set", "--links", link_pair.links(8, 8), check=False)
    assert done.returncode == 3
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    _assert_as_before(link_pair, before)


def test_nobody_answers_where_no_daemon_runs(link_pair) -> None:
    for args in (["show"], ["set", "--links", link_pair.links(8, 8)], ["probe"]):
        done = link_pair.linkd(*args, check=False)
        assert done.returncode == 1
        assert "linkd does not run" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_a_device_without_a_route_is_told(link_pair) -> None:
    link_pair.start("b", "serve", "--leaf", "tbf")
    for address, words in (
        ("192.0.2.7", "no route to 192.0.2.7"),
        (link_pair.bs_address, "no address of another"),
    ):
        done = link_pair.linkd("set", "--links", link_pair.links(8, 8, address=address), check=False)
        assert done.returncode == 1
        assert words in done.stderr
