"""The links as a policy sees them, and links in a virtual time."""

from __future__ import annotations

import numpy as np
import pytest

from payloads.linkd.channel import Channel, ChannelError, Rule, linear_channel
from payloads.station.link_state import LinkState, VirtualLinks

CHANNEL = Channel(
    rule=Rule("shannon", bandwidth_mhz=10),
    devices=("a", "b", "c"),
    shares_downlink=(0.5, 0.25, 0.125),
    shares_uplink=(0.25, 0.25, 0.25),
    t_s=(0.0, 0.1, 0.3),
    duration_s=0.4,
    downlink=((100.0, 50.0, 0.0), (1.0, 2.0, 3.0), (7.0, 8.0, 9.0)),
    uplink=((10.0, 5.0, 2.0), (0.1, 0.2, 0.3), (0.7, 0.8, 0.9)),
)


@pytest.mark.parametrize("elapsed_s", [0.0, 0.05, 0.1, 0.29, 0.35, 0.4, 0.52, 40.35])
def test_virtual_links_give_what_linkd_would_play(elapsed_s):
    links = VirtualLinks(CHANNEL, ["c", "a", "b"])
    played = CHANNEL.rates(CHANNEL.block_at(elapsed_s))
    rates = links.at(elapsed_s).rates_mbit()
    assert pytest.approx(np.array([played[name] for name in ("c", "a", "b")]), rel=1e-12) == rates.T


def test_shares_given_stay_while_the_blocks_go_on():
    links = VirtualLinks(CHANNEL, CHANNEL.devices)
    shares = np.array([[0.1, 0.2, 0.7], [0.3, 0.3, 0.4]])
    links.give(shares, "layer 3")
    named = {name: tuple(shares[:, column]) for column, name in enumerate(CHANNEL.devices)}
    for block in range(links.blocks):
        played = CHANNEL.rates(block, named)
        assert (
            pytest.approx(np.array(list(played.values())))
            == links.at_block(block + links.blocks).rates_mbit().T
        )
    assert (links.changes, links.shares.tolist()) == (1, shares.tolist())


def test_the_band_of_other_devices_is_not_given_away():
    links = VirtualLinks(CHANNEL, ["a", "c"])
    links.give([[0.5, 0.25], [0.5, 0.25]], "layer 0")
    with pytest.raises(
        ChannelError, match="layer 1: shares of at least 0 and of at most 1 together were expected"
    ):
        links.give([[0.5, 0.3], [0.5, 0.25]], "layer 1")
    with pytest.raises(ChannelError, match="layer 2"):
        links.give([[0.5, -0.1], [0.5, 0.25]], "layer 2")
    with pytest.raises(ChannelError, match=r"shape \(2, 2\)"):
        links.give([0.5, 0.5], "layer 3")


def test_an_unknown_device_is_said():
    with pytest.raises(ChannelError, match="no device 'd'; it has: a, b, c"):
        VirtualLinks(CHANNEL, ["a", "d"])


def test_links_of_fixed_rates_have_their_rates_at_equal_shares():
    rates = {"a": (8.0, 4.0), "b": (2.0, 1.0)}
    state = VirtualLinks(linear_channel(rates), ["a", "b"]).at(12.0)
    assert state.rates_mbit().tolist() == [[8.0, 2.0], [4.0, 1.0]]
    assert state.with_shares(state.shares * [1.5, 0.5]).rates_mbit()[0].tolist() == [12.0, 1.0]
    assert state.with_states(state.states * 2).rates_mbit()[1].tolist() == [8.0, 2.0]
    assert isinstance(state, LinkState)
