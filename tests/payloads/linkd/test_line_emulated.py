"""The user-space line under the daemon on a real kernel: what it does to packets, and that nothing is left of it."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable

import pytest

from payloads.linkd.channel import linear_channel
from payloads.linkd.client import Client
from payloads.linkd.errors import LinkdError, RefusedError
from payloads.linkd.line import MAX_RATE_MBIT, MAX_SUM_MBIT
from tests.payloads.linkd.conftest import children_of, kill_with, runs

pytestmark = [pytest.mark.emulated, pytest.mark.alone]

#: Answers one byte to every eight: the length of a message, which it reads first.
DEVICE = """
import socket, sys
with socket.create_server((sys.argv[1], 7070)) as server:
    print("ready", flush=True)
    while True:
        client, _ = server.accept()
        with client:
            while header := client.recv(8, socket.MSG_WAITALL):
                left = int.from_bytes(header, "big")
                while left:
                    left -= len(client.recv(min(left, 65536)))
                client.sendall(b"x")
"""
#: Times messages of some length and their answers, in ms, over one connection; a line on stdin begins a round.
STATION = """
import json, socket, sys, time
with socket.create_connection((sys.argv[1], 7070)) as client:
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    print("ready", flush=True)
    for line in sys.stdin:
        count, size = map(int, line.split())
        message, times = size.to_bytes(8, "big") + bytes(size), []
        for _ in range(count):
            started = time.perf_counter()
            client.sendall(message)
            assert client.recv(1)
            times.append((time.perf_counter() - started) * 1e3)
        print(json.dumps(times), flush=True)
"""


class Talk:
    """One connection between the two ends that stays open, and times what passes over it."""

    def __init__(self, pair) -> None:
        self._device = self._start(pair, "d", DEVICE)
        self._station = self._start(pair, "b", STATION)

    @staticmethod
    def _start(pair, end: str, script: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            ["ip", "netns", "exec", f"{pair.name}{end}", sys.executable, "-c", script, pair.address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout.readline() == "ready\n"
        return process

    def times_ms(self, size: int, count: int = 15) -> list[float]:
        self._station.stdin.write(f"{count} {size}\n")
        self._station.stdin.flush()
        return json.loads(self._station.stdout.readline())

    def ms(self, size: int, count: int = 15) -> float:
        return statistics.median(self.times_ms(size, count))

    def close(self) -> None:
        for process in (self._station, self._device):
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()


@pytest.fixture
def talk(link_pair):
    """A connection that is older than the daemon."""
    talk = Talk(link_pair)
    yield talk
    talk.close()


def _set(pair, down: float | None, up: float | None, **changes: float) -> None:
    with Client(pair.socket) as client:
        client.set(json.loads(pair.links(down, up, **changes)))


def test_delay_rate_and_size_add_up_on_a_connection_that_was_open_before(link_pair, talk) -> None:
    bare = talk.ms(1, 50)
    link_pair.start("b", "serve", "--leaf", "line")
    _set(link_pair, 20, 20)
    undelayed = talk.ms(1)
    _set(link_pair, 20, 20, delay_ms=5)
    # Both ways, less the way without the line; half a millisecond each way is what was promised.
    assert talk.ms(1) - bare == pytest.approx(10, abs=1.0 + undelayed - bare)
    # A single frame takes its time too: 1448 bytes and their headers at 1 Mbit/s, and an answer of 67 bytes.
    _set(link_pair, 1, 1)
    assert talk.ms(1440) - bare == pytest.approx((1514 + 67) * 8 / 1e3, rel=0.15)
    _set(link_pair, 1, 20)
    assert talk.ms(14_472, 5) - bare == pytest.approx(1514 * 8 * 10 / 1e3, rel=0.1)


@pytest.mark.parametrize("mbit", [1, 8, 20, 50])
def test_asked_is_delivered_for_every_size_both_ways(link_pair, mbit) -> None:
    link_pair.start("d", "respond", "--listen", f"{link_pair.address}:7071")
    link_pair.start("b", "serve", "--leaf", "line")
    _set(link_pair, mbit, mbit)
    sizes = "1024,4096,32768,131072" if mbit > 1 else "1024,4096,32768"
    rows = link_pair.probe("--sizes", sizes, "--repeats", "5", "--retries", "4")
    assert len(rows) == 2 * len(sizes.split(","))
    assert [row for row in rows if not row["ok"]] == []
    assert {row["backend"] for row in rows} == {"bs-line"}


def test_a_direction_that_is_left_alone_passes_beside_the_line(link_pair, talk) -> None:
    bare = talk.ms(1, 50)
    link_pair.start("b", "serve", "--leaf", "line")
    _set(link_pair, 20, None, delay_ms=20)
    assert talk.ms(1) - bare == pytest.approx(20, rel=0.2)
    _set(link_pair, None, 20, delay_ms=20)
    assert talk.ms(1) - bare == pytest.approx(20, rel=0.2)


def test_strict_reverse_path_filters_do_not_mind(link_pair, talk) -> None:
    subprocess.run(
        ["ip", "netns", "exec", f"{link_pair.name}b", "sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1"],
        check=True,
    )
    link_pair.start("b", "serve", "--leaf", "line")
    _set(link_pair, 20, 20)
    assert len(talk.times_ms(100_000, 3)) == 3


def _sent_again(pair) -> int:
    """TCP segments that the base station sent more than once."""
    with_names = ["ip", "netns", "exec", f"{pair.name}b", "cat", "/proc/net/snmp"]
    lines = subprocess.run(with_names, capture_output=True, text=True, check=True).stdout.splitlines()
    names, values = (line.split() for line in lines if line.startswith("Tcp:"))
    return int(dict(zip(names, values))["RetransSegs"])


def test_frames_are_lost_as_asked(link_pair, talk) -> None:
    """3 MB are 2072 frames, of which about 104 are lost; TCP sends again what is lost, and a little more."""
    link_pair.start("b", "serve", "--leaf", "line")
    _set(link_pair, 50, 50, delay_ms=1)
    talk.times_ms(300_000, 10)
    without = _sent_again(link_pair)
    _set(link_pair, 50, 50, delay_ms=1, loss_percent=5)
    talk.times_ms(300_000, 10)
    assert without < 10
    assert 50 < _sent_again(link_pair) - without < 300


def test_jitter_spreads_the_delay(link_pair, talk) -> None:
    link_pair.start("b", "serve", "--leaf", "line")
    _set(link_pair, 50, 50, delay_ms=20)
    even = talk.times_ms(1, 20)
    _set(link_pair, 50, 50, delay_ms=20, jitter_ms=10)
    times = talk.times_ms(1, 60)
    # The sum of two even distributions of 10 to 30 ms: mean 40, standard deviation 8.2.
    assert statistics.mean(times) == pytest.approx(40, abs=5)
    assert 5 < statistics.stdev(times) < 12
    assert statistics.median(even) == pytest.approx(40, abs=3)


def test_counters_and_rates_change_under_way(link_pair, talk) -> None:
    """2 MB take 16 s at 1 Mbit/s, and nearly all of it passes at 50: what waits has the new rate at once."""
    link_pair.start("b", "serve", "--leaf", "line")
    _set(link_pair, 1, 50)
    talk._station.stdin.write("1 2000000\n")
    talk._station.stdin.flush()
    with Client(link_pair.socket) as client:
        deadline = time.monotonic() + 20
        while client.show()["links"][0]["downlink"]["backlog_bytes"] < 100_000:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        client.rerate({"board": {"downlink_mbit": 50}})
        (took_ms,) = json.loads(talk._station.stdout.readline())
        assert took_ms < 8_000
        counts = client.show()["links"][0]
    assert counts["downlink"]["drops"] == 0
    assert counts["downlink"]["packets"] > 2_000_000 // 1448
    assert counts["uplink"]["packets"] > 0


def test_more_than_the_line_keeps_up_with_is_refused(link_pair) -> None:
    link_pair.start("b", "serve", "--leaf", "line")
    before = link_pair.qdiscs()
    with Client(link_pair.socket) as client:
        links = json.loads(link_pair.links(MAX_RATE_MBIT + 1, 1))
        with pytest.raises(RefusedError, match=f"{MAX_RATE_MBIT:g} Mbit/s on one link"):
            client.set(links)
        many = [
            {**links[0], "device": f"d{n}", "address": f"10.84.0.{n + 10}", "downlink_mbit": MAX_RATE_MBIT}
            for n in range(1 + int(MAX_SUM_MBIT / MAX_RATE_MBIT))
        ]
        with pytest.raises(RefusedError, match=f"{MAX_SUM_MBIT:g} Mbit/s in sum"):
            client.set(many)
        assert link_pair.qdiscs() == before
        client.set(json.loads(link_pair.links(10, 10)))
        with pytest.raises(RefusedError, match="on one link"):
            client.rerate({"board": {"uplink_mbit": MAX_RATE_MBIT + 1}})
        # What was in force is so still.
        assert client.show()["links"][0]["uplink_mbit"] == 10


def _everything(pair) -> str:
    """All that a line could leave behind in the base station's namespace."""
    commands = (
        ["ip", "-o", "link"], ["ip", "-4", "rule"], ["ip", "-4", "route", "show", "table", "all"], ["tc", "qdisc"],
        ["tc", "filter", "show", "dev", "eth0", "ingress"], ["sysctl", "-n", "net.ipv4.conf.all.rp_filter"],
    )  # fmt: skip
    shown = [
        subprocess.run(
            ["ip", "netns", "exec", f"{pair.name}b", *command], capture_output=True, text=True
        ).stdout
        for command in commands
    ]
    return "\n".join(shown).replace(" qdisc noqueue state", " state")


def _line_processes(daemon: subprocess.Popen[str]) -> list[int]:
    pids = children_of(daemon)
    return [pid for pid in pids if b"line_process" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.parametrize("way", ["SIGTERM", "SIGKILL", "SIGKILL of the guard too", "clear"])
def test_nothing_is_left_of_it(link_pair, talk, way) -> None:
    before = _everything(link_pair)
    daemon = link_pair.start("b", "serve", "--leaf", "line")
    _set(link_pair, 20, 20, delay_ms=50)
    assert talk.ms(1, 3) > 80
    lines = _line_processes(daemon)
    assert len(lines) == 2
    assert _everything(link_pair) != before
    if way == "clear":
        link_pair.linkd("clear")
    elif way == "SIGTERM":
        daemon.terminate()
        assert daemon.wait(60) == 0
    else:
        guards = [pid for pid in children_of(daemon) if pid not in lines]
        kill_with(daemon, guards if "guard" in way else [])
        if "guard" in way:
            link_pair.linkd("restore")
    deadline = time.monotonic() + 60
    while _everything(link_pair) != before or link_pair.state.exists() or any(runs(pid) for pid in lines):
        assert time.monotonic() < deadline, _everything(link_pair)
        time.sleep(0.05)
    assert talk.ms(1, 3) < 80


def test_links_that_come_and_go_are_led_anew(link_pair, talk) -> None:
    link_pair.start("b", "serve", "--leaf", "line")
    (board,) = json.loads(link_pair.links(20, 20, delay_ms=30))
    other = {**board, "device": "other", "address": "10.84.0.9"}
    with Client(link_pair.socket) as client:
        for links in ([board], [other, board], [board]):
            client.set(links)
            assert talk.ms(1, 3) > 50
        client.set([other])
        assert talk.ms(1, 3) < 50


def test_a_line_that_died_is_told_and_started_again_by_the_next_set(link_pair, talk) -> None:
    daemon = link_pair.start("b", "serve", "--leaf", "line")
    _set(link_pair, 20, 20, delay_ms=30)
    assert talk.ms(1, 3) > 50
    os.kill(_line_processes(daemon)[0], signal.SIGKILL)
    with Client(link_pair.socket) as client:
        deadline = time.monotonic() + 60
        while "died" not in json.dumps(client.show()) and client.show()["links"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    _set(link_pair, 20, 20, delay_ms=30)
    assert talk.ms(1, 3) > 50


def _wait(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_line_that_dies_while_a_channel_plays_is_no_trial_and_the_next_set_heals_it(
    link_pair, talk, tmp_path
) -> None:
    channel = linear_channel({"board": (20.0, 20.0)}).as_json()
    channel.update(t_s=[0.0, 1.0], duration_s=2.0, downlink=[[20.0], [10.0]], uplink=[[20.0], [10.0]])
    path = tmp_path / "channel.json"
    path.write_text(json.dumps(channel))
    daemon = link_pair.start("b", "serve", "--leaf", "line")
    links = json.loads(link_pair.links(20, 20, delay_ms=30))
    for direction in (0, 1):
        with Client(link_pair.socket) as client:
            client.set(links, str(path))
            client.play()
            assert talk.ms(1, 3) > 50
            os.kill(_line_processes(daemon)[direction], signal.SIGKILL)
            # Who shares the band out is told at once, and not by a device that does not answer.
            _wait(lambda: client.show()["line"] == "died")
            with pytest.raises(LinkdError, match="line has died: set the links again"):
                client.allocate({"board": 0.5})
            _wait(lambda: {"failed", "line_died_unix_s"} <= client.request("history").keys())
            assert client.show()["line"] == "died"
    _set(link_pair, 20, 20, delay_ms=30)
    assert talk.ms(1, 3) > 50
    link_pair.linkd("clear")
    assert talk.ms(1, 3) < 50


def test_a_line_that_hangs_is_told_and_started_again_by_the_next_set(link_pair, talk) -> None:
    daemon = link_pair.start("b", "serve", "--leaf", "line")
    _set(link_pair, 20, 20, delay_ms=30)
    hung = _line_processes(daemon)
    os.kill(hung[1], signal.SIGSTOP)
    with Client(link_pair.socket) as client:
        _wait(lambda: "does not answer" in client.request("history").get("failed", ""))
        with pytest.raises(LinkdError, match="the uplink of the user-space line does not answer"):
            client.show()
    _set(link_pair, 20, 20, delay_ms=30)
    assert talk.ms(1, 3) > 50
    assert not any(runs(pid) for pid in hung)


@pytest.mark.parametrize("leaf", ["tbf", "line"])
def test_what_somebody_else_deletes_is_told_and_made_again_by_the_next_set(link_pair, talk, leaf) -> None:
    before = _everything(link_pair)
    link_pair.start("b", "serve", "--leaf", leaf)
    _set(link_pair, 1, 1)
    slow = talk.ms(14_480, 3)
    assert slow > 80
    link_pair.tc("qdisc", "del", "dev", "eth0", "root")
    with Client(link_pair.socket) as client:
        with pytest.raises(LinkdError, match="the class of board's downlink is gone"):
            client.show()
        _wait(lambda: "is gone" in client.request("history").get("failed", ""))
    _set(link_pair, 1, 1)
    assert talk.ms(14_480, 3) > 80
    link_pair.linkd("clear")
    assert _everything(link_pair) == before


@pytest.mark.parametrize("leaf", ["tbf", "line"])
def test_an_ingress_hook_that_somebody_else_deletes_is_made_again_by_the_next_set(
    link_pair, talk, leaf
) -> None:
    link_pair.start("b", "serve", "--leaf", leaf)
    _set(link_pair, 50, 1)
    before = link_pair.qdiscs()
    link_pair.tc("qdisc", "del", "dev", "eth0", "ingress")
    _set(link_pair, 50, 1)
    assert link_pair.qdiscs() == before
    with Client(link_pair.socket) as client:
        already = client.show()["links"][0]["uplink"]["packets"]
        talk.times_ms(1, 3)
        assert client.show()["links"][0]["uplink"]["packets"] >= already + 3
        assert client.set(json.loads(link_pair.links(50, 1)))["changed"] == 0


def test_an_interface_that_goes_away_and_comes_back_is_shaped_anew(link_pair) -> None:
    daemon = link_pair.start("b", "serve", "--leaf", "line")
    _set(link_pair, 20, 20, delay_ms=30)
    ip = ["ip", "-n", f"{link_pair.name}b"]
    subprocess.run([*ip, "link", "del", "eth0"], check=True)
    with Client(link_pair.socket) as client:
        _wait(lambda: "failed" in client.request("history"))
        with pytest.raises(LinkdError, match="there is no interface eth0"):
            client.set(json.loads(link_pair.links(20, 20)))
    to = ["netns", f"{link_pair.name}d"]
    subprocess.run([*ip, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", *to], check=True)
    for end, address in (("b", link_pair.bs_address), ("d", link_pair.address)):
        at = ["ip", "-n", f"{link_pair.name}{end}"]
        subprocess.run([*at, "addr", "add", f"{address}/24", "dev", "eth0"], check=True)
        subprocess.run([*at, "link", "set", "eth0", "up"], check=True)
    before = link_pair.qdiscs()
    _set(link_pair, 20, 20, delay_ms=30)
    assert "htb" in link_pair.qdiscs()
    assert len(_line_processes(daemon)) == 2
    daemon.terminate()
    assert daemon.wait(60) == 0
    assert link_pair.qdiscs() == before
    assert sorted(name.split("@")[0] for name in link_pair.interfaces()) == ["eth0", "lo"]
