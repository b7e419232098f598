"""What the base station knows of its links while a trial runs, against a real link daemon."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from payloads.linkd.channel import Channel, Rule
from payloads.station.link_feed import LinkFeed
from payloads.wdmoe.bs.link_facts import UNSHAPED, LinkFacts, link_facts, refined
from payloads.wdmoe.bs.links import LinkControl
from payloads.wdmoe.latency import DeviceSpeed, LatencyModel
from payloads.wdmoe.pace import ExpertShape
from payloads.wire.clock import Offset
from tests.runtime.conftest import SPEEDS

DEVICES = tuple(SPEEDS)


def wait_for(feed, done):
    """Follow until something is so; the machine may be busy."""
    deadline = time.monotonic() + 30
    while not done():
        assert time.monotonic() < deadline
        feed.follow()
        time.sleep(0.005)


def test_a_feed_has_the_links_as_they_are(linkd):
    with LinkFeed(linkd.socket) as feed:
        assert feed.links(DEVICES) is None  # none are set
        linkd.set(40.0, uplink_mbit=10.0)
        wait_for(feed, lambda: feed.links(DEVICES) is not None)
        links = feed.links(DEVICES)
        assert links.rates_mbit() == pytest.approx(np.array([[40.0] * 3, [10.0] * 3]))
        assert feed.links(DEVICES) is links  # made once for each event
        linkd.ask("allocate", shares={"big": 0.5, "middle": 0.25, "small": 0.25})
        wait_for(feed, lambda: feed.rates["big"][0] == 60.0)
        assert feed.links(DEVICES).rates_mbit()[0] == pytest.approx([60.0, 30.0, 30.0])
        assert feed.links(DEVICES[::-1]).rates_mbit()[0] == pytest.approx([30.0, 30.0, 60.0])
        linkd.ask("clear")
        wait_for(feed, lambda: feed.links(DEVICES) is None)


def test_a_direction_that_nobody_shapes_here_has_no_limit(linkd):
    linkd.set(40.0, uplink_mbit=None)
    with LinkFeed(linkd.socket) as feed:
        down, up = feed.links(DEVICES).rates_mbit()
        assert down == pytest.approx([40.0] * 3)
        assert (up >= 1e3).all()
        # A device that linkd does not know is one of them too.
        assert (feed.links((*DEVICES, "other")).rates_mbit()[:, -1] >= 1e3).all()


def test_blocks_come_while_shares_are_ones_own(linkd, tmp_path):
    """An event of a block that was on its way still has the shares of before: the trial's own count."""
    states = tuple((30.0 + n, 60.0, 90.0) for n in range(200))
    channel = Channel(
        Rule("linear"),
        DEVICES,
        (1 / 3,) * 3,
        (1 / 3,) * 3,
        tuple(n * 0.01 for n in range(200)),
        2.0,
        states,
        states,
    )
    path = tmp_path / "channel.json"
    path.write_text(json.dumps(channel.as_json()))
    links = [
        {"device": name, "address": f"10.9.0.{n + 2}", "port": 7070, "probe_port": 7071}
        for n, name in enumerate(DEVICES)
    ]
    linkd.ask("set", links=links, channel=str(path))
    shares = np.array([[0.2, 0.3, 0.5], [0.6, 0.2, 0.2]])
    with (
        LinkFeed(linkd.socket) as feed,
        LinkControl(linkd.socket, feed, "minmax", "t001", DEVICES) as control,
    ):
        linkd.ask("play")
        control.give(shares, "once")
        seen = set()

        def several_blocks():
            links = control.links()
            assert (links.shares == shares).all()
            seen.add(float(links.states[0, 0]))
            return len(seen) > 4

        wait_for(feed, several_blocks)
    whys = [change[2] for change in linkd.ask("history")["changes"] if change[1] == "allocate"]
    assert whys == ["once", "end of t001"]


def test_facts_of_the_links_and_round_trips_complete_the_model(linkd):
    linkd.set(40.0)
    facts = link_facts(linkd.socket)
    assert facts.delays_ms(DEVICES).tolist() == [0.0] * 3
    assert facts.first_frame is False  # sockets that are paced let a lone frame pass
    speeds = (DeviceSpeed(1e9, None, None), DeviceSpeed(1e9, None, 2.5), DeviceSpeed(1e9, None, None))
    model = LatencyModel(("small", "middle", "other"), ExpertShape(48, 80, 4), speeds)
    offsets = {"small": Offset(0, 0.0, 9_000_000), "middle": Offset(0, 0.0, 1_000_000)}
    bare = refined(model, ("middle", "small"), offsets, {}, UNSHAPED)
    assert bare.devices == ("middle", "small")
    assert [speed.fixed_ms for speed in bare.speeds] == [2.5, 9.0]  # what was calibrated stays
    shaped = LinkFacts({"small": 1.5}, first_frame=True)
    late = refined(model, ("middle", "small"), offsets, {"small": (1.0, 2.0)}, shaped)
    assert late.speeds[0].fixed_ms == 2.5
    # A delay both ways, and a few hundred bytes with their headers at 1 and 2 Mbit/s.
    assert 9.0 - 3.0 - 2.0 < late.speeds[1].fixed_ms < 9.0 - 3.0 - 0.5
