"""The leaf netem on a kernel that has it: rate, delay, jitter and loss arrive, and everything goes back.

Skipped where the kernel has no netem. ``scripts/stock_kernel`` runs this module under a kernel that has it.
"""

from __future__ import annotations

import json
import os
from typing import Any, Iterator

import pytest

from payloads.linkd.capabilities import capabilities
from payloads.linkd.client import Client

pytestmark = [pytest.mark.emulated, pytest.mark.alone]


@pytest.fixture(scope="module", autouse=True)
def _with_netem() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: network namespaces and queueing disciplines")
    lacks = capabilities()["backends"]["bs-htb-netem"]
    if lacks:
        pytest.skip(f"the leaf netem needs what this host does not have ({lacks})")


@pytest.fixture(scope="module")
def served_pair(free_pair) -> Any:
    """A pair with the daemon and the probe responder running, and the leaf left to the daemon's choice."""
    free_pair.start("d", "respond", "--listen", f"{free_pair.address}:7071")
    free_pair.start("b", "serve")
    return free_pair


@pytest.fixture
def netem_pair(served_pair) -> Iterator[Any]:
    """That pair, its links put back after each test: under a stock kernel, starting processes takes long."""
    yield served_pair
    with Client(served_pair.socket) as client:
        client.clear()


def _set(pair: Any, down: float, up: float, **impairments: float) -> dict[str, Any]:
    return json.loads(pair.linkd("set", "--links", pair.links(down, up, **impairments)).stdout)


def test_the_daemon_takes_netem_where_there_is_one(netem_pair) -> None:
    before = netem_pair.qdiscs()
    answer = _set(netem_pair, 8, 4, delay_ms=20, jitter_ms=5, loss_percent=2)
    assert answer["links"][0]["backends"] == {"downlink": "bs-htb-netem", "uplink": "bs-htb-netem"}
    (down,) = (line for line in netem_pair.qdiscs().splitlines() if " netem " in line)
    assert "delay 20ms 5ms loss 2% rate 8Mbit" in " ".join(down.split())
    (up,) = (
        line
        for line in netem_pair.tc("qdisc", "show", "dev", answer["ifb"]).splitlines()
        if " netem " in line
    )
    assert "rate 4Mbit" in up
    netem_pair.linkd("clear")
    assert netem_pair.qdiscs() == before


@pytest.mark.parametrize(("mbit", "repeats"), [(2, "3"), (20, "5")])
def test_every_message_takes_the_time_of_all_its_frames(netem_pair, mbit: int, repeats: str) -> None:
    """A measurement: the median within 5 % or one frame, the first frame included."""
    _set(netem_pair, mbit, mbit)
    rows = netem_pair.probe("--sizes", "1024,8192,65536", "--repeats", repeats, "--retries", "4")
    assert len(rows) == 6
    assert [row for row in rows if not row["ok"]] == []


def test_a_delay_is_there_once_each_way(netem_pair) -> None:
    _set(netem_pair, 100, 100)
    plain = netem_pair.probe("--sizes", "1024", "--repeats", "5", "--retries", "0")
    _set(netem_pair, 100, 100, delay_ms=40)
    delayed = netem_pair.probe("--sizes", "1024", "--repeats", "5", "--retries", "0")
    assert len(plain) == len(delayed)
    for without, with_delay in zip(plain, delayed):
        assert 80 <= with_delay["rtt_ms"] - without["rtt_ms"] <= 95


def test_rates_change_in_place(netem_pair) -> None:
    _set(netem_pair, 1, 1, delay_ms=5)
    with Client(netem_pair.socket) as client:
        assert client.rerate({"board": {"downlink_mbit": 20}})["changed"] == 1
    text = " ".join(netem_pair.qdiscs().split())
    assert "rate 20Mbit" in text
    assert "delay 5ms" in text
    rows = netem_pair.probe("--sizes", "65536", "--repeats", "3", "--retries", "4")
    assert [(row["direction"], row["ok"]) for row in rows] == [("downlink", True), ("uplink", True)]


def test_a_loss_takes_frames_and_not_whole_super_packets(netem_pair) -> None:
    """Of 1400 frames 5 % are lost, so TCP sends some again, but a long message still gets through in time.

    Were a super-packet of 45 frames one draw, each loss would take all of them.
    """
    _set(netem_pair, 50, 50, loss_percent=5)
    (row,) = netem_pair.probe(
        "--sizes", "1048576", "--repeats", "2", "--retries", "0", "--direction", "downlink"
    )
    assert row["measured_ms"] > row["expected_ms"]
    text = netem_pair.tc("-s", "-j", "qdisc", "show", "dev", "eth0")
    (netem,) = (item for item in json.loads(text) if item["kind"] == "netem")
    passed, lost = netem["packets"], netem["drops"]
    assert passed > 1400
    assert 0.02 < lost / (passed + lost) < 0.09
    # A class is not told of each of them: what is shown are the netem's own, and what it lost since.
    shown = json.loads(netem_pair.linkd("show", "--json").stdout)["links"][0]["downlink"]
    assert lost <= shown["drops"] <= lost + 5


def test_a_long_message_is_not_dropped_by_the_delays_queue(netem_pair) -> None:
    _set(netem_pair, 20, 20, delay_ms=150)
    rows = netem_pair.probe("--sizes", "1048576", "--repeats", "1", "--retries", "0")
    assert all(row["measured_ms"] > 0 for row in rows)
    shown = json.loads(netem_pair.linkd("show", "--json").stdout)["links"][0]
    assert [shown[direction]["drops"] for direction in ("downlink", "uplink")] == [0, 0]
