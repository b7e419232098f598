"""The channel file: rates of states and shares, blocks over time, and mistakes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloads.linkd.channel import (
    Channel,
    ChannelError,
    Rule,
    changed_shares,
    linear_channel,
    parse_channel,
    read_channel,
)

TABLE = Rule(
    "table", bandwidth_mhz=10, thresholds_db=(0, 10, 20), efficiencies=(0.5, 2, 4), margin_db=3, overhead=0.1
)
SHANNON = Rule("shannon", bandwidth_mhz=10, scale=0.5)
LINEAR = Rule("linear")
RULES = (LINEAR, SHANNON, TABLE)

states = st.floats(0, 1e9)
shares = st.floats(0, 1)


def channel(**changes: Any) -> Channel:
    values: dict[str, Any] = {
        "rule": LINEAR,
        "devices": ("a", "b"),
        "shares_downlink": (0.5, 0.5),
        "shares_uplink": (0.25, 0.75),
        "t_s": (0.0, 0.5, 2.0),
        "duration_s": 3.0,
        "downlink": ((2.0, 4.0), (6.0, 8.0), (10.0, 12.0)),
        "uplink": ((4.0, 4.0), (8.0, 8.0), (12.0, 12.0)),
    }
    return Channel(**{**values, **changes})


def test_a_linear_rate_is_the_state_times_the_share() -> None:
    assert LINEAR.rate_mbit(20, 0.25) == 5


def test_shannon_puts_the_same_power_into_the_band_that_it_has() -> None:
    """SNR 3 over 10 MHz is SNR 6 over 5 MHz."""
    assert SHANNON.rate_mbit(30, 1) == pytest.approx(10 * 2 * 0.5)
    assert SHANNON.rate_mbit(30, 0.5) == pytest.approx(5 * math.log2(7) * 0.5)


@pytest.mark.parametrize(
    ("snr_db", "efficiency"), [(2.99, 0), (3.01, 0.5), (12.99, 0.5), (13.01, 2), (22.99, 2), (23.01, 4)]
)
def test_a_table_is_entered_with_the_snr_less_the_margin(snr_db: float, efficiency: float) -> None:
    state = 10 ** (snr_db / 10) * 10
    assert TABLE.offered_mbit(state, 1) == pytest.approx(10 * efficiency * 0.9)
    assert TABLE.is_outage(state, 1) == (efficiency == 0)


@pytest.mark.parametrize("rule", RULES)
def test_no_band_and_no_power_are_outages_at_the_lowest_rate(rule: Rule) -> None:
    for state, share in ((0.0, 1.0), (1000.0, 0.0), (1000.0, 5e-324)):
        assert rule.rate_mbit(state, share) == rule.min_mbit
        assert rule.is_outage(state, share)


@given(st.sampled_from(RULES), states, shares)
def test_every_rate_is_within_its_limits(rule: Rule, state: float, share: float) -> None:
    assert rule.min_mbit <= rule.rate_mbit(state, share) <= rule.max_mbit


@given(st.sampled_from(RULES), states, states, shares)
def test_a_better_channel_is_never_slower(rule: Rule, a: float, b: float, share: float) -> None:
    low, high = sorted((a, b))
    assert rule.rate_mbit(low, share) <= rule.rate_mbit(high, share)


@given(st.sampled_from((LINEAR, SHANNON)), states, shares, shares)
def test_more_band_is_never_slower(rule: Rule, state: float, a: float, b: float) -> None:
    """A table's rate may fall with more band, where the SNR falls below a threshold."""
    low, high = sorted((a, b))
    assert rule.rate_mbit(state, low) <= rule.rate_mbit(state, high) * (1 + 1e-9)


@given(states, st.floats(0.01, 1))
def test_half_of_the_band_costs_at_most_half_of_the_shannon_rate(state: float, share: float) -> None:
    whole, half = SHANNON.offered_mbit(state, share), SHANNON.offered_mbit(state, share / 2)
    assert whole / 2 <= half * (1 + 1e-9)


@pytest.mark.parametrize("rule", RULES)
def test_a_channel_comes_back_from_its_file(tmp_path: Path, rule: Rule) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps(channel(rule=rule).as_json()))
    assert read_channel(path) == channel(rule=rule)


def test_the_rates_of_a_block() -> None:
    assert channel().rates(0) == {"a": (1.0, 1.0), "b": (2.0, 3.0)}
    assert channel().rates(2, {"a": (1, 0.5), "b": (0, 0.5)}) == {"a": (10.0, 6.0), "b": (0.05, 6.0)}


def test_a_mean_counts_each_block_by_its_length() -> None:
    down = (1 * 0.5 + 3 * 1.5 + 5 * 1.0) / 3
    assert channel().mean_rates()["a"][0] == pytest.approx(down)
    assert channel().mean_rates({"a": (1, 1), "b": (0, 0)})["a"][0] == pytest.approx(2 * down)


@pytest.mark.parametrize(
    ("elapsed_s", "block", "wait_s"),
    [(0, 0, 0.5), (0.4, 0, 0.1), (0.5, 1, 1.5), (1.9, 1, 0.1), (2.5, 2, 0.5), (3.0, 0, 0.5), (301.0, 1, 1.0)],
)
def test_blocks_follow_each_other_and_start_again(elapsed_s: float, block: int, wait_s: float) -> None:
    assert channel().block_at(elapsed_s) == block
    assert channel().next_block_in_s(elapsed_s) == pytest.approx(wait_s, abs=1e-5)


def test_a_channel_of_one_block_has_no_next_one() -> None:
    assert linear_channel({"a": (8, 4)}).next_block_in_s(17) is None


@given(
    st.lists(st.integers(1, 500), min_size=2, max_size=20),
    st.integers(0, 10**7),
    st.floats(-4e-7, 4e-7),
)
def test_waiting_for_the_next_block_always_leads_to_it(
    steps_ms: list[int], at_ms: int, jitter_s: float
) -> None:
    times = [0.0]
    for step in steps_ms:
        times.append(times[-1] + step / 1000)
    states = tuple((float(i),) for i in range(len(steps_ms)))
    played = channel(
        devices=("a",),
        shares_downlink=(1.0,),
        shares_uplink=(1.0,),
        t_s=tuple(times[:-1]),
        duration_s=times[-1],
        downlink=states,
        uplink=states,
    )
    now = at_ms / 1000 + jitter_s
    block, wait = played.block_at(now), played.next_block_in_s(now)
    assert wait is not None
    assert 0 < wait <= max(steps_ms) / 1000 + 1e-5
    assert played.block_at(now + wait) == (block + 1) % len(steps_ms)


def test_links_without_a_channel_share_their_band_equally() -> None:
    fixed = linear_channel({"a": (8, 4), "b": (2, 1)})
    assert fixed.rates(0) == fixed.mean_rates() == {"a": (8, 4), "b": (2, 1)}
    more = changed_shares(fixed.shares(), {"a": {"downlink": 0.75}, "b": 0.25})
    assert more == {"a": (0.75, 0.5), "b": (0.25, 0.25)}
    assert fixed.rates(0, more) == {"a": (12, 4), "b": (1, 0.5)}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"c": 0.1}, "no device 'c'; there are: a, b"),
        ({"a": -0.1}, "a: downlink: at least 0 was expected, not -0.1"),
        ({"a": 0.8}, "the downlink band is shared out 1.3 times"),
        ({"a": {"uplink": 0.8}}, "the uplink band is shared out 1.3 times"),
        ({"a": {"up": 0.1}}, "`downlink` or `uplink` was expected, not 'up'"),
        ({"a": "half"}, "a: a number was expected, not 'half'"),
        ({"a": math.nan}, "a: a number was expected, not nan"),
        ([0.5], "an object of shares by device was expected"),
    ],
)
def test_wrong_shares_are_refused_in_one_line(asked: Any, message: str) -> None:
    with pytest.raises(ChannelError) as caught:
        changed_shares({"a": (0.5, 0.5), "b": (0.5, 0.5)}, asked)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


WRONG = {
    "version": ({"version": 2}, "version: 1 was expected, not 2"),
    "no channel": ([], "a channel is a JSON object"),
    "unknown key": ({"more": 1}, "more: unknown key"),
    "no devices": ({"devices": []}, "devices: at least one name"),
    "a device twice": ({"devices": ["a", "a"]}, "each once"),
    "numbers as names": ({"devices": [1, 2]}, "devices: a list of names"),
    "too few states": ({"downlink": [[1, 2], [3], [4, 5]]}, "downlink[1]: 2 states were expected, not 1"),
    "negative state": (
        {"uplink": [[1, 2], [3, -4], [5, 6]]},
        "uplink[1]: numbers of at least 0 were expected",
    ),
    "a state that is no number": ({"uplink": [[1, 2], [3, "4"], [5, 6]]}, "uplink[1]: a number was expected"),
    "too few blocks": ({"uplink": [[1, 2]]}, "uplink: 3 blocks were expected, not 1"),
    "a late start": ({"t_s": [0.1, 0.5, 2]}, "t_s: times in seconds from 0 were expected"),
    "time that stands still": ({"t_s": [0, 0.5, 0.5]}, "t_s[2]: at least 0.5 + 0.001 s was expected"),
    "an early end": ({"duration_s": 2}, "duration_s: at least 2 + 0.001 s was expected"),
    "endless": ({"duration_s": math.inf}, "duration_s: a number was expected"),
    "too much band": (
        {"shares": {"downlink": [0.6, 0.6], "uplink": [0, 0]}},
        "downlink band is shared out 1.2 times",
    ),
    "one share": ({"shares": {"downlink": [0.6], "uplink": [0, 0]}}, "shares.downlink: 2 numbers"),
    "unknown rule": ({"rule": {"kind": "best"}}, "rule.kind: linear, shannon, table were expected"),
    "unknown setting": ({"rule": {"kind": "linear", "band": 1}}, "rule: unknown key 'band'"),
    "no band": ({"rule": {"kind": "shannon", "bandwidth_mhz": 0}}, "rule.bandwidth_mhz: a number above 0"),
    "limits that cross": (
        {"rule": {"kind": "linear", "min_mbit": 2, "max_mbit": 1}},
        "min_mbit <= max_mbit",
    ),
    "a table of two lengths": (
        {"rule": {"kind": "table", "thresholds_db": [1, 2], "efficiencies": [1]}},
        "as many thresholds_db as efficiencies were expected, not 2 and 1",
    ),
    "a table that falls": (
        {"rule": {"kind": "table", "thresholds_db": [2, 1], "efficiencies": [1, 2]}},
        "rule.thresholds_db: rising numbers",
    ),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_channel_is_refused_in_one_line(change: Any, message: str) -> None:
    value = channel().as_json()
    with pytest.raises(ChannelError) as caught:
        parse_channel({**value, **change} if isinstance(change, dict) else change)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_channel_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    for text in (None, "{", "[" * 100_000, "[1]"):
        if text is not None:
            path.write_text(text)
        with pytest.raises(ChannelError, match=r"c\.json: "):
            read_channel(path)
