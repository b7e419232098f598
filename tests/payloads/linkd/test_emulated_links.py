"""The daemon and the probes on a real kernel: what is asked for is delivered, and nothing else is touched."""

from __future__ import annotations

import json
import time

import pytest

from payloads.linkd.client import Client
from payloads.linkd.errors import LinkdError

pytestmark = [pytest.mark.emulated, pytest.mark.alone]


@pytest.mark.parametrize(
    ("mbit", "sizes", "repeats"),
    [
        # A long message at 1 Mbit/s takes a second: three of them say enough.
        (1, "1024,4096,8192,32768,131072", "3"),
        (8, "1024,4096,8192,32768,131072", "5"),
        (20, "1024,4096,8192,32768,131072", "9"),
        (100, "1024,4096,8192,32768,131072", "15"),
    ],
)
def test_asked_is_delivered_for_every_size_both_ways(shaped_pair, mbit, sizes, repeats) -> None:
    """A measurement: the median within 5 % or one frame; what a busy machine disturbs is measured again."""
    shaped_pair.set(mbit, mbit)
    rows = shaped_pair.probe("--sizes", sizes, "--repeats", repeats, "--retries", "4")
    assert len(rows) == 10
    assert [row for row in rows if not row["ok"]] == []


def test_each_direction_has_its_own_rate(shaped_pair) -> None:
    shaped_pair.set(40, 8)
    rows = shaped_pair.probe("--sizes", "65536", "--retries", "4")
    assert [(row["direction"], row["asked_mbit"], row["ok"]) for row in rows] == [
        ("downlink", 40, True),
        ("uplink", 8, True),
    ]
    down, up = (row["measured_ms"] for row in rows)
    assert 4 < up / down < 6.2


def test_other_ports_are_not_shaped(shaped_pair) -> None:
    """At 1 Mbit/s 128 KiB would take more than a second in the shaped class."""
    shaped_pair.start("d", "respond", "--listen", f"{shaped_pair.address}:7999")
    shaped_pair.set(1, 1)
    before = json.loads(shaped_pair.linkd("show", "--json").stdout)
    links = shaped_pair.links(1, 1, probe_port=7999)
    rows = shaped_pair.probe("--links", links, "--sizes", "131072", "--retries", "0")
    after = json.loads(shaped_pair.linkd("show", "--json").stdout)
    assert all(row["ratio"] < 0.1 for row in rows)
    assert before["links"] == after["links"]
    assert after["unshaped"]["bytes"] - before["unshaped"]["bytes"] > 5 * 131072


def test_counters_count_the_frames_of_a_message(shaped_pair) -> None:
    shaped_pair.set(50, 50)
    before = json.loads(shaped_pair.linkd("show", "--json").stdout)["links"][0]
    shaped_pair.probe("--sizes", "144800", "--repeats", "1", "--retries", "0", "--direction", "downlink")
    after = json.loads(shaped_pair.linkd("show", "--json").stdout)["links"][0]
    frames = after["downlink"]["packets"] - before["downlink"]["packets"]
    # A hundred frames of data, and those of the connection, the handshake and the round trips.
    assert 100 + 5 <= frames <= 100 + 40
    assert after["downlink"]["bytes"] - before["downlink"]["bytes"] >= 100 * 1514
    assert after["uplink"]["packets"] > before["uplink"]["packets"]
    assert after["downlink"]["drops"] == after["uplink"]["drops"] == 0


def test_a_link_is_rerated_while_a_message_is_under_way(shaped_pair) -> None:
    """8.7 s at 1 Mbit/s, but nearly all of it passes at 200 Mbit/s; what waits in the queue is not lost."""
    shaped_pair.set(1, 1)
    with Client(shaped_pair.socket) as client:
        drops = [client.show()["links"][0][way]["drops"] for way in ("downlink", "uplink")]
        for direction in ("downlink", "uplink"):
            probe = shaped_pair.start_command(
                "probe", "--sizes", "1048576", "--repeats", "1", "--retries", "0", "--direction", direction
            )
            deadline = time.monotonic() + 20
            while client.show()["links"][0][direction]["backlog_bytes"] < 30_000:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            for rate in (2, 5, 200):
                assert client.rerate({"board": {f"{direction}_mbit": rate}})["changed"] == 1
            row = json.loads(probe.communicate(timeout=60)[0])
            assert row["ratio"] < 0.5
            shaped_pair.set(1, 1)
        assert [client.show()["links"][0][way]["drops"] for way in ("downlink", "uplink")] == drops


def test_links_come_and_go_beside_each_other(shaped_pair) -> None:
    (board,) = json.loads(shaped_pair.links(30, 30))
    other = {**board, "device": "other", "address": "10.84.0.9"}
    with Client(shaped_pair.socket) as client:
        client.set([board])
        assert client.set([board])["changed"] == 0
        client.set([board, other])
        assert [link["device"] for link in client.show()["links"]] == ["board", "other"]
        client.set([other])
        client.set([other, board])
        assert client.rerate({"board": {"downlink_mbit": 20}, "other": {"uplink_mbit": 3}})["changed"] == 2
        with pytest.raises(LinkdError, match="nobody"):
            client.rerate({"nobody": {"downlink_mbit": 20}})
    assert "rate 20Mbit" in shaped_pair.tc("qdisc", "show", "dev", "eth0")


def test_nobody_without_the_key_can_use_the_responder(shaped_pair) -> None:
    stranger = shaped_pair.folder / "stranger.key"
    stranger.touch(0o600)
    stranger.write_text("ab" * 32)
    shaped_pair.set(20, 20)
    done = shaped_pair.linkd("probe", "--key-file", str(stranger), check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "key" in done.stderr


def test_the_socket_is_its_owners_alone(shaped_pair) -> None:
    assert shaped_pair.socket.stat().st_mode & 0o777 == 0o600
