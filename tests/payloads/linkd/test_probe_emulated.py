"""Probes on a real kernel: beside full links, and where sockets pace themselves."""

from __future__ import annotations

import json
import subprocess

import pytest

pytestmark = [pytest.mark.emulated, pytest.mark.alone]


def test_a_link_keeps_its_rate_beside_a_full_one(shaped_pair) -> None:
    """The second device is another address of the first one's host; its link is full in both directions."""
    namespace, other = f"{shaped_pair.name}d", "10.84.0.3"
    subprocess.run(["ip", "-n", namespace, "addr", "add", f"{other}/24", "dev", "eth0"], check=True)
    shaped_pair.start("d", "respond", "--listen", f"{other}:7071")
    (link,) = json.loads(shaped_pair.links(20, 20))
    links = json.dumps([link, {**link, "device": "other", "address": other}])
    shaped_pair.linkd("set", "--links", links)
    args = ("--sizes", "8192,131072", "--device", "board", "--busy", "--retries", "4")
    rows = shaped_pair.probe(*args)
    assert [(row["state"], row["direction"]) for row in rows[::2]] == [
        ("idle", "downlink"), ("idle", "uplink"), ("busy", "downlink"), ("busy", "uplink"),
    ]  # fmt: skip
    assert [row for row in rows if not row["ok"]] == []
    assert {row["backend"] for row in rows} <= {"bs-htb-tbf", "bs-htb-netem", "bs-line"}
    assert all(row["load_share"] > 0.6 for row in rows if row["state"] == "busy")
    counters = json.loads(shaped_pair.linkd("show", "--json").stdout)["links"][1]
    assert counters["downlink"]["drops"] == counters["uplink"]["drops"] == 0


def test_where_sockets_pace_themselves_the_probe_does_so_at_both_ends(shaped_pair) -> None:
    """On a port that nothing shapes: 1 MiB at 40 Mbit/s takes a fifth of a second, and not a few milliseconds."""
    shaped_pair.start("d", "respond", "--listen", f"{shaped_pair.address}:7998")
    pacing = {"downlink": "socket-pacing", "uplink": "socket-pacing"}
    links = shaped_pair.links(40, 40, probe_port=7998, backends=pacing)
    rows = shaped_pair.probe("--links", links, "--sizes", "1048576", "--repeats", "3", "--retries", "4")
    assert [row["backend"] for row in rows] == ["socket-pacing", "socket-pacing"]
    assert all(0.9 < row["ratio"] < 1.15 for row in rows), rows
