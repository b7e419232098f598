"""Channels, histories, watchers and the other backends on a real kernel, and what is left when all is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from payloads.linkd.channel import Channel, Rule
from payloads.linkd.client import Client
from tests.payloads.linkd.conftest import children_of, kill_with, runs

pytestmark = pytest.mark.emulated

BLOCK_S = 0.02
BLOCKS = 40


@pytest.fixture
def channel_file(tmp_path: Path) -> str:
    """Blocks of 20 ms; the downlink goes from 5 to 44 Mbit/s and starts again, the uplink stays."""
    channel = Channel(
        Rule("linear"), ("board",), (1.0,), (1.0,),
        tuple(number * BLOCK_S for number in range(BLOCKS)), BLOCKS * BLOCK_S,
        tuple((5.0 + number,) for number in range(BLOCKS)), ((6.0,),) * BLOCKS,
    )  # fmt: skip
    path = tmp_path / "channel.json"
    path.write_text(json.dumps(channel.as_json()))
    return str(path)


def _set_channel(pair: Any, channel_file: str, **changes: Any) -> dict[str, Any]:
    done = pair.linkd("set", "--links", pair.links(1, 1, **changes), "--channel", channel_file)
    return json.loads(done.stdout)


def _show(pair: Any) -> dict[str, Any]:
    return json.loads(pair.linkd("show", "--json").stdout)


def _wait(what: Any, words: str) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline, words
        time.sleep(0.05)


def _assert_as_before(pair: Any, before: str) -> None:
    assert pair.qdiscs() == before
    assert sorted(pair.interfaces()) == ["eth0", "lo"]
    assert "tbl" not in pair.tc("filter", "show", "dev", "eth0")
    assert not pair.state.exists()


@pytest.mark.alone
def test_a_channel_is_played_held_and_told(link_pair, channel_file) -> None:
    link_pair.start("b", "serve", "--leaf", "tbf", "--sample-hz", "20")
    answer = _set_channel(link_pair, channel_file)
    assert answer["links"][0]["downlink_mbit"] == pytest.approx(5 + (BLOCKS - 1) / 2)
    with Client(link_pair.socket) as client:
        began = time.time()
        client.play()
        time.sleep(3 * BLOCKS * BLOCK_S)
        client.hold()
        lasted_s = time.time() - began
        history, shown = client.history(), client.show()
    changes = history["changes"]
    assert {change[1] for change in changes} == {"set", "block", "hold"}
    # A busy machine may miss blocks; it does not play them late.
    blocks = [change for change in changes if change[1] == "block"]
    assert BLOCKS < len(blocks) <= lasted_s / BLOCK_S + 2
    for at, _cause, _why, (down,), (up,) in blocks:
        # It began no sooner than it was told to; half a block is allowed for clocks that are set meanwhile.
        place = (at - began) / BLOCK_S % BLOCKS
        assert (place - (down - 5) + 0.5) % BLOCKS < BLOCKS / 2, "a block before its time"
        assert up == 6
    last = blocks[-1][3][0]
    assert shown["links"][0]["downlink_mbit"] == last
    assert f"rate {last:g}Mbit" in link_pair.qdiscs()
    assert len(history["samples"]) > 10


def test_shares_change_what_the_kernel_gives(link_pair) -> None:
    link_pair.start("b", "serve", "--leaf", "tbf")
    (board,) = json.loads(link_pair.links(8, 8))
    link_pair.linkd("set", "--links", json.dumps([board, {**board, "device": "o", "address": "10.84.0.9"}]))
    done = link_pair.linkd(
        "allocate", "--shares", '{"board": 0.25, "o": {"downlink": 0.75}}', "--why", "test"
    )
    assert json.loads(done.stdout)["rates"]["o"] == {"downlink_mbit": 12, "uplink_mbit": 8}
    assert "rate 4Mbit" in link_pair.qdiscs()
    assert "rate 12Mbit" in link_pair.qdiscs()
    assert json.loads(link_pair.linkd("history").stdout)["changes"][-1][1:3] == ["allocate", "test"]
    done = link_pair.linkd("allocate", "--shares", '{"board": 0.5}', check=False)
    assert done.returncode == 2
    assert "at most 1" in done.stderr


def test_watchers_hear_of_it_and_slow_ones_are_dropped(link_pair, channel_file) -> None:
    link_pair.start("b", "serve", "--leaf", "tbf", "--sample-hz", "10")
    _set_channel(link_pair, channel_file)
    deaf, good = Client(link_pair.socket), Client(link_pair.socket)
    with deaf, good, Client(link_pair.socket) as client:
        deaf._socket.setsockopt(1, 8, 1)  # the smallest buffer: it is full at once, and nothing is read
        deaf.request("watch")
        events = good.watch()
        assert next(events)["cause"] == "watch"
        client.play()
        heard = [next(events) for _ in range(30)]
        assert {event["event"] for event in heard} == {"rates", "sample"}
        # Long reasons fill what waits for the deaf one; nobody else waits for it.
        for _ in range(60):
            client.allocate({"board": 1.0}, "w" * 30_000)
        client.hold()
        # What its buffers held is there, and behind it the end.
        deaf._socket.settimeout(20)
        while deaf._socket.recv(1 << 20):
            pass
    assert link_pair.linkd("show").returncode == 0


def test_kill_9_while_a_channel_plays_is_restored_by_the_guard(link_pair, channel_file) -> None:
    before = link_pair.qdiscs()
    daemon = link_pair.start("b", "serve", "--leaf", "tbf")
    _set_channel(link_pair, channel_file)
    link_pair.linkd("play")
    time.sleep(0.3)
    daemon.kill()
    daemon.wait()
    _wait(lambda: not link_pair.state.exists(), "not restored")
    _assert_as_before(link_pair, before)


def test_kill_9_of_all_while_a_channel_plays_is_restored_by_a_command(link_pair, channel_file) -> None:
    before = link_pair.qdiscs()
    daemon = link_pair.start("b", "serve", "--leaf", "tbf")
    _set_channel(link_pair, channel_file)
    link_pair.linkd("play")
    (guard,) = children_of(daemon)
    kill_with(daemon, [guard])
    assert "htb" in link_pair.qdiscs()
    assert link_pair.linkd("restore").stdout == '{"restored": "eth0"}\n'
    _assert_as_before(link_pair, before)


@pytest.fixture
def line_pair(link_pair) -> Any:
    """A pair whose links go through the user-space line: the pair, the daemon and what was."""
    before = link_pair.qdiscs()
    link_pair.start("d", "respond", "--listen", f"{link_pair.address}:7071")
    daemon = link_pair.start("b", "serve", "--leaf", "line")
    answer = json.loads(link_pair.linkd("set", "--links", link_pair.links(10, 10, delay_ms=20)).stdout)
    assert answer["links"][0]["backends"] == {"downlink": "bs-line", "uplink": "bs-line"}
    assert answer["line"] == "alive"
    assert len(link_pair.interfaces()) > 3
    return link_pair, daemon, before


@pytest.mark.alone
def test_the_line_delays_both_ways_and_is_changed_in_place(line_pair) -> None:
    pair, _daemon, before = line_pair
    rows = pair.probe("--sizes", "1024", "--repeats", "3", "--retries", "0")
    assert all(40 <= row["rtt_ms"] < 80 for row in rows)
    lines = pair.links(10, 5, delay_ms=5)
    assert json.loads(pair.linkd("set", "--links", lines).stdout)["changed"] == 1
    rows = pair.probe("--sizes", "1024,32768", "--repeats", "3", "--retries", "4")
    assert all(10 <= row["rtt_ms"] < 35 for row in rows)
    counted = _show(pair)["links"][0]
    assert counted["downlink"]["packets"] > 50
    assert counted["uplink"]["packets"] > 50
    pair.linkd("clear")
    _assert_as_before(pair, before)


@pytest.mark.parametrize("guarded", [True, False])
def test_kill_9_takes_the_line_away_as_well(line_pair, guarded: bool) -> None:
    pair, daemon, before = line_pair
    children = children_of(daemon)
    assert len(children) > 1
    kill_with(daemon, [] if guarded else children)
    if guarded:
        _wait(lambda: not pair.state.exists(), "not restored")
    else:
        assert "htb" in pair.qdiscs()
        assert pair.linkd("restore").stdout == '{"restored": "eth0"}\n'
    _assert_as_before(pair, before)
    for child in children:
        _wait(lambda child=child: not runs(child), f"{child} still runs")


def test_a_line_that_died_is_told_and_set_starts_another(line_pair) -> None:
    pair, daemon, before = line_pair
    guard_first = children_of(daemon)
    os.kill(guard_first[-1], signal.SIGKILL)
    _wait(lambda: "line_died_unix_s" in json.loads(pair.linkd("history").stdout), "not told")
    assert _show(pair)["line"] == "died"
    assert "user-space line: died" in pair.linkd("show").stdout
    assert json.loads(pair.linkd("set", "--links", pair.links(10, 10, delay_ms=20)).stdout)["line"] == "alive"
    rows = pair.probe("--sizes", "1024", "--repeats", "2", "--retries", "0")
    assert all(row["rtt_ms"] >= 40 for row in rows)
    assert _show(pair)["line"] == "alive"
    daemon.terminate()
    assert daemon.wait(60) == 0
    _assert_as_before(pair, before)


def test_the_daemon_finds_a_leaf_for_a_delay_and_goes_back(link_pair) -> None:
    """From a token bucket to whatever this kernel has for delays, and back, with nothing left between."""
    before = link_pair.qdiscs()
    link_pair.start("b", "serve")
    plain = link_pair.set(8, 8)["backend"]
    links = link_pair.links(8, 8, delay_ms=5)
    assert json.loads(link_pair.linkd("set", "--links", links).stdout)["backend"] in {
        "bs-htb-netem",
        "bs-line",
    }
    assert link_pair.set(8, 8)["backend"] == plain
    link_pair.linkd("clear")
    _assert_as_before(link_pair, before)


@pytest.mark.alone
def test_a_device_shapes_its_own_uplink(link_pair) -> None:
    link_pair.start("d", "respond", "--listen", f"{link_pair.address}:7071")
    link_pair.start("d", "serve", "--side", "device", "--leaf", "tbf")
    device_socket = link_pair.home("d") / "linkd.sock"
    (link,) = json.loads(link_pair.links(8, 8, address=link_pair.bs_address))
    with Client(device_socket) as client:
        answer = client.set([{**link, "downlink_mbit": None}])
        assert answer["links"][0]["backends"] == {"downlink": "none", "uplink": "device-htb-tbf"}
        rows = link_pair.probe(
            "--links", link_pair.links(1000, 8), "--sizes", "65536", "--direction", "uplink", "--retries", "4"
        )
        assert all(row["ok"] for row in rows)
        counted = client.show()["links"][0]
        assert counted["downlink"] is None
        assert counted["uplink"]["bytes"] > 65536
        assert client.rerate({"board": {"uplink_mbit": 4}})["changed"] == 1
        client.clear()
    left = subprocess.run(
        ["tc", "-n", f"{link_pair.name}d", "qdisc", "show", "dev", "eth0"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "htb" not in left


def test_pacing_needs_no_root_and_touches_nothing(link_pair, channel_file) -> None:
    before = link_pair.qdiscs()
    daemon = link_pair.start("b", "serve", "--backend", "pacing")
    assert _set_channel(link_pair, channel_file)["backend"] == "socket-pacing"
    link_pair.linkd("play")
    time.sleep(0.2)
    shown = _show(link_pair)
    assert shown["playing"]
    assert shown["links"][0]["downlink"] is None
    assert "socket-pacing" in link_pair.linkd("show").stdout
    assert link_pair.qdiscs() == before
    done = link_pair.linkd("set", "--links", link_pair.links(8, 8, loss_percent=1), check=False)
    assert done.returncode == 3
    assert "cannot be given by pacing" in done.stderr
    daemon.terminate()
    assert daemon.wait(60) == 0


def test_capabilities_are_found_and_nothing_is_left(link_pair) -> None:
    before = link_pair.qdiscs(), sorted(link_pair.interfaces())
    found = json.loads(link_pair.linkd("capabilities").stdout)
    assert found["root"]
    assert found["backends"]["bs-htb-tbf"] is None
    assert found["backends"]["socket-pacing"] is None
    assert (link_pair.qdiscs(), sorted(link_pair.interfaces())) == before


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--leaf", "tbf"], "delay cannot be given by the leaf tbf"),
        (["--side", "device", "--leaf", "line"], "at the base station"),
    ],
)
def test_what_cannot_be_given_is_refused_and_nothing_is_touched(link_pair, args, words) -> None:
    before = link_pair.qdiscs()
    link_pair.start("b", "serve", *args)
    changes = {"downlink_mbit": None} if "device" in args else {}
    links = link_pair.links(8, 8, delay_ms=5, **changes)
    done = link_pair.linkd("set", "--links", links, check=False)
    assert done.returncode == 3
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    _assert_as_before(link_pair, before)
