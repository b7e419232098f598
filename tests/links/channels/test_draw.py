"""Channels drawn for a scenario: what they follow from, and that every part of the project gives the same rates."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from payloads.linkd.channel import Channel, Rule, parse_channel
from payloads.station.rates import channel_states, offered_mbit, start_shares
from testbed.config.scenario import ChannelSettings, Scenario
from testbed.errors import InputError
from testbed.links.channels import budgets_of, channel_of, describe, rates_mbit
from testbed.links.channels.describe import weighted_quantiles
from testbed.links.channels.draw import rule_of
from testbed.links.channels.export import write_traces

DEVICES = ("agx", "nano")

SHANNON: dict[str, Any] = {
    "model": "shannon",
    "bandwidth_mhz": 10,
    "devices": {"default": {"snr_db": 10}},
    "scale": 0.1,
}
FAR = {"carrier_ghz": 3.5, "path_loss": "umi", "devices": {"default": {"distance_m": 60}}}


def scenario(channel: dict[str, Any], name: str = "s") -> Scenario:
    return Scenario.model_validate({"name": name, "channel": channel})


def drawn(
    channel: dict[str, Any], *, devices: tuple[str, ...] = DEVICES, seed: int = 1, repeat: int = 0
) -> Channel:
    made = channel_of(scenario(channel), devices, seed=seed, repeat=repeat)
    assert made is not None
    return made


def test_fixed_rates_need_no_channel() -> None:
    fixed = Scenario.model_validate(
        {"name": "s", "links": {"default": {"downlink_mbit": 8, "uplink_mbit": 8}}}
    )
    assert channel_of(fixed, DEVICES, seed=1, repeat=0) is None
    assert budgets_of(fixed, DEVICES, seed=1, repeat=0) == {}


def test_a_channel_follows_from_seed_scenario_and_repeat() -> None:
    settings = {**SHANNON, **FAR}
    made = drawn(settings)
    assert made == drawn(settings)
    assert made != drawn(settings, seed=2)
    assert made != drawn(settings, repeat=1)
    assert made != channel_of(scenario(settings, "other"), DEVICES, seed=1, repeat=0)
    assert parse_channel(json.loads(json.dumps(made.as_json()))) == made


def test_a_device_has_its_channel_whoever_else_is_there() -> None:
    settings = {**SHANNON, **FAR}
    both, alone = drawn(settings), drawn(settings, devices=("nano",))
    assert [block[1] for block in both.downlink] == [block[0] for block in alone.downlink]
    assert both.shares_uplink == (0.5, 0.5)
    assert alone.shares_uplink == (1.0,)


def test_blocks_are_as_long_as_the_channel_stays() -> None:
    made = drawn({**SHANNON, "coherence_ms": 40, "duration_s": 0.1})
    assert made.t_s == (0.0, 0.04, 0.08)
    assert made.duration_s == 0.1
    assert drawn({**SHANNON, "fading": "none"}).t_s == (0.0,)
    assert len(drawn(SHANNON).t_s) == 600  # 30 s of 50 ms
    assert drawn({**SHANNON, "coherence_ms": 50, "duration_s": 0.1005}).t_s == (0.0, 0.05)


def test_without_fading_the_rate_is_shannon_s() -> None:
    made = drawn({**SHANNON, "fading": "none", "devices": {"default": {"snr_db": 10}, "agx": {"share": 0.2}}})
    rates = made.rates(0)
    assert rates["agx"][0] == pytest.approx(0.1 * 2 * math.log2(1 + 10 / 0.2))
    assert rates["nano"][1] == pytest.approx(0.1 * 8 * math.log2(1 + 10 / 0.8))


def test_a_mean_rate_is_the_ergodic_capacity() -> None:
    made = drawn({**SHANNON, "duration_s": 2000, "scale": 1}, devices=("agx",))
    exact = 10 * math.exp(0.1) * special.exp1(0.1) * math.log2(math.e)
    assert made.mean_rates()["agx"][0] == pytest.approx(exact, rel=0.01)
    assert describe(made)[0]["mean_mbit"] == pytest.approx(made.mean_rates()["agx"][0])


def test_the_snr_is_the_power_over_losses_and_noise() -> None:
    settings = {
        **SHANNON,
        **FAR,
        "path_loss": "umi-los",
        "shadowing_db": 0,
        "base_station_dbm": 30,
        "device_dbm": 20,
        "noise_figure_db": 5,
    }
    budget = budgets_of(scenario(settings), DEVICES, seed=1, repeat=0)["agx"]
    assert budget.path_loss_db is not None
    assert budget.los is True
    assert budget.downlink_snr_db == pytest.approx(30 - budget.path_loss_db + 174 - 5 - 70)
    assert budget.downlink_snr_db - budget.uplink_snr_db == pytest.approx(10)
    made = drawn({**settings, "fading": "none"})
    assert made.downlink[0][0] == pytest.approx(10 * 10 ** (budget.downlink_snr_db / 10), rel=1e-8)


def test_a_position_is_a_distance() -> None:
    placed = {**SHANNON, **FAR, "base_station_m": [10, -10], "devices": {"default": {"position_m": [40, 30]}}}
    at_fifty = {**SHANNON, **FAR, "devices": {"default": {"distance_m": 50}}}
    assert drawn(placed) == drawn(at_fifty)


def test_sight_and_shadowing_are_drawn_anew_for_each_repeat() -> None:
    """At 60 m a street has a line of sight in 0.432 of all cases."""
    budgets = [
        budgets_of(scenario({**SHANNON, **FAR}), ("agx",), seed=1, repeat=repeat)["agx"]
        for repeat in range(2000)
    ]
    seen = np.array([budget.los for budget in budgets])
    expected = 18 / 60 + math.exp(-60 / 36) * (1 - 18 / 60)
    assert seen.mean() == pytest.approx(expected, abs=0.045)
    shadows = np.array([budget.shadowing_db for budget in budgets])
    assert shadows[seen].std() == pytest.approx(4, rel=0.1)
    assert shadows[~seen].std() == pytest.approx(7.82, rel=0.1)


def test_directions_fade_alike_where_the_band_is_one() -> None:
    apart, alike = drawn(SHANNON), drawn({**SHANNON, "reciprocal": True})
    assert apart.downlink != apart.uplink
    assert alike.downlink == alike.uplink


def test_a_device_s_own_place_takes_the_default_s_away() -> None:
    settings = {**SHANNON, **FAR, "devices": {"default": {"distance_m": 60}, "agx": {"snr_db": 3}}}
    budgets = budgets_of(scenario(settings), DEVICES, seed=1, repeat=0)
    assert budgets["agx"].downlink_snr_db == 3
    assert budgets["agx"].distance_m is None
    assert budgets["nano"].distance_m == 60
    apart = {**SHANNON, "devices": {"default": {"downlink_snr_db": 3, "uplink_snr_db": -3}}}
    budget = budgets_of(scenario(apart), DEVICES, seed=1, repeat=0)["agx"]
    assert (budget.downlink_snr_db, budget.uplink_snr_db) == (3, -3)


@pytest.mark.parametrize("table", ["cqi-1", "cqi-2", "wifi-6"])
def test_a_table_gives_its_own_rates_and_no_others(table: str) -> None:
    made = drawn(
        {**SHANNON, "model": "mcs", "table": table, "bandwidth_mhz": 20, "overhead": 0.25, "scale": 0.5}
    )
    possible = {max(made.rule.min_mbit, 10 * e * 0.75 * 0.5): None for e in (0.0, *made.rule.efficiencies)}
    for rates in (made.rates(block) for block in range(len(made.t_s))):
        for rate in rates["agx"]:
            assert any(rate == pytest.approx(one) for one in possible)
    outage = describe(made)[0]["outage"]
    lowest = 10 ** (made.rule.thresholds_db[0] / 10) / (10 / 0.5)
    assert outage == pytest.approx(1 - math.exp(-lowest), abs=0.05)


def test_measured_thresholds_stand_in_place_of_the_rule() -> None:
    thresholds = [float(number) for number in range(15)]
    settings = ChannelSettings.model_validate(
        {**SHANNON, "model": "mcs", "table": "cqi-1", "thresholds_db": thresholds, "margin_db": 2}
    )
    rule = rule_of(settings)
    assert rule.thresholds_db == tuple(thresholds)
    assert rule.rate_mbit(10 * 10**0.199, 1) == rule.min_mbit
    assert rule.rate_mbit(10 * 10**0.201, 1) > rule.min_mbit


def test_traces_are_played_from_their_offsets_and_start_again(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("time_s,downlink_mbit,uplink_mbit\n0,8,1\n1,4,2\n2,6,3\n3,,\n")
    (tmp_path / "b.up").write_text("".join(f"{t}\n" for t in range(1, 1001)))
    settings = {
        "model": "trace",
        "bin_ms": 1000,
        "scale": 0.5,
        "devices": {
            "agx": {"file": str(tmp_path / "a.csv"), "offset_s": 1},
            "nano": {"downlink_file": str(tmp_path / "a.csv"), "uplink_file": str(tmp_path / "b.up")},
        },
    }
    made = drawn(settings)
    rates = [made.rates(block) for block in range(3)]
    assert made.duration_s == 3
    assert [rate["agx"] for rate in rates] == [
        pytest.approx((2, 1)),
        pytest.approx((3, 1.5)),
        pytest.approx((4, 0.5)),
    ]
    assert [rate["nano"] for rate in rates] == [pytest.approx((down, 6.016)) for down in (4, 2, 3)]
    alone = drawn({**settings, "duration_s": 2}, devices=("agx",))
    assert [alone.rates(block)["agx"][0] for block in range(2)] == pytest.approx([2, 3])


def test_a_trace_is_what_a_device_has_with_its_first_share(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("time_s,rate_mbit\n0,8\n")
    entry = {"file": str(tmp_path / "a.csv")}
    made = drawn({"model": "trace", "devices": {"default": entry, "agx": {"share": 0.2}}})
    assert made.rates(0) == {"agx": pytest.approx((8, 8)), "nano": pytest.approx((8, 8))}
    assert made.rates(0, {"agx": (0.4, 0.1), "nano": (0.6, 0.9)})["agx"] == pytest.approx((16, 4))


def test_a_channel_written_as_traces_plays_the_same_again(tmp_path: Path) -> None:
    made = drawn({**SHANNON, "duration_s": 3, "max_mbit": 5})
    files = write_traces(made, tmp_path / "traces")
    assert [file.name for file in files[:3]] == ["agx.csv", "agx.down", "agx.up"]
    entries = {name: {"file": str(tmp_path / "traces" / f"{name}.csv")} for name in DEVICES}
    again = drawn({"model": "trace", "bin_ms": 50, "devices": entries})
    assert again.duration_s == made.duration_s
    for block in range(len(made.t_s)):
        for device, pair in made.rates(block).items():
            assert again.rates(block)[device] == pytest.approx(pair, rel=1e-6)
    halves = {
        name: {f"{way}link_file": str(tmp_path / "traces" / f"{name}.{way}") for way in ("down", "up")}
        for name in DEVICES
    }
    packets = drawn({"model": "trace", "bin_ms": 500, "devices": halves})
    for device, (down, up) in made.mean_rates().items():
        # Two packets of 1504 bytes in 3 s.
        assert packets.mean_rates()[device] == pytest.approx((down, up), abs=2 * 1504 * 8 / 3e6 + 1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"devices": {"agx": {"snr_db": 1}}}, "scenario s: channel.devices: nothing about nano, and no default"),
        ({"bandwidth_mhz": None}, "scenario s: channel.bandwidth_mhz: this key is missing"),
        ({"devices": {"default": {"distance_m": 5}}, **{k: FAR[k] for k in ("carrier_ghz", "path_loss")}},
         "scenario s: channel.devices.default.distance_m: umi is for 10 to 5000 m, not 5"),
    ],
)  # fmt: skip
def test_a_scenario_that_nobody_checked_is_checked(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        drawn({**SHANNON, **change})
    assert message in str(caught.value)


rules = st.sampled_from(
    (
        Rule("linear"),
        Rule("shannon", bandwidth_mhz=20, scale=0.3),
        rule_of(ChannelSettings.model_validate({**SHANNON, "model": "mcs", "table": "cqi-2"})),
        rule_of(
            ChannelSettings.model_validate(
                {**SHANNON, "model": "mcs", "table": "wifi-6", "bandwidth_mhz": 80, "margin_db": 1}
            )
        ),
    )
)


@given(rules, st.lists(st.tuples(st.floats(0, 1e8), st.floats(0, 1)), min_size=1, max_size=50))
def test_arrays_give_the_rates_that_linkd_gives(rule: Rule, links: list[tuple[float, float]]) -> None:
    states, shares = np.array(links).T
    ours = rates_mbit(rule, states, shares)
    theirs = [rule.rate_mbit(state, share) for state, share in links]
    assert ours == pytest.approx(theirs, rel=1e-12)
    outages = (offered_mbit(rule, states, shares) < rule.min_mbit).tolist()
    assert outages == [rule.is_outage(state, share) for state, share in links]


@pytest.mark.parametrize("model", ["shannon", "mcs"])
def test_every_draw_has_the_rates_that_linkd_plays(model: str) -> None:
    extra = {"table": "cqi-1"} if model == "mcs" else {}
    made = drawn({**SHANNON, **FAR, "model": model, **extra})
    ours = rates_mbit(made.rule, channel_states(made), start_shares(made))
    for block in range(len(made.t_s)):
        for number, pair in enumerate(made.rates(block).values()):
            assert ours[:, block, number] == pytest.approx(pair, rel=1e-12)


@settings(max_examples=30, deadline=None)
@given(
    st.floats(-10, 25), st.floats(0, 20), st.floats(1, 100), st.sampled_from(("rayleigh", "rician", "none"))
)
def test_more_power_and_more_band_are_never_worse(
    snr_db: float, more_db: float, bandwidth: float, fading: str
) -> None:
    base = {**SHANNON, "fading": fading, "duration_s": 1, "bandwidth_mhz": bandwidth}
    if fading == "rician":
        base["rician_k_db"] = 3
    weak = drawn({**base, "devices": {"default": {"snr_db": snr_db}}}).mean_rates()
    strong = drawn({**base, "devices": {"default": {"snr_db": snr_db + more_db}}}).mean_rates()
    # The same power over a band twice as wide has half the SNR.
    wide = drawn(
        {
            **base,
            "bandwidth_mhz": 2 * bandwidth,
            "devices": {"default": {"snr_db": snr_db - 10 * math.log10(2)}},
        }
    ).mean_rates()
    for device in DEVICES:
        assert strong[device][0] >= weak[device][0] * (1 - 1e-9)
        assert wide[device][0] >= weak[device][0] * (1 - 1e-7)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(("free-space", "umi-los", "umi-nlos", "inh-los", "inh-nlos")),
    st.floats(10, 140),
    st.floats(10, 140),
)
def test_farther_away_is_never_faster(path_loss: str, a: float, b: float) -> None:
    near, far = sorted((a, b))
    base = {**SHANNON, "carrier_ghz": 3.5, "path_loss": path_loss, "duration_s": 1}
    rates = [
        drawn({**base, "devices": {"default": {"distance_m": distance}}}).mean_rates()["agx"]
        for distance in (near, far)
    ]
    assert rates[0] >= rates[1]


def test_a_description_counts_time() -> None:
    made = Channel(
        Rule("linear", min_mbit=1, max_mbit=50),
        ("a",),
        (1.0,),
        (1.0,),
        (0.0, 9.0, 9.4),
        10.0,
        ((10.0,), (0.5,), (100.0,)),
        ((4.0,), (4.0,), (4.0,)),
    )
    down, up = describe(made)
    assert down["outage"] == pytest.approx(0.04)
    assert down["mean_mbit"] == pytest.approx(9 + 0.04 + 3.0)
    assert (down["p5_mbit"], down["p50_mbit"], down["p95_mbit"]) == (10, 10, 50)
    assert (up["p5_mbit"], up["mean_mbit"], up["outage"], up["direction"]) == (4, 4, 0, "uplink")


@given(st.lists(st.floats(0, 100), min_size=1, max_size=50), st.floats(0.01, 1))
def test_a_quantile_is_a_value_with_enough_below_it(values: list[float], quantile: float) -> None:
    found = weighted_quantiles(np.array(values), np.ones(len(values)), [quantile])[0]
    assert found in values
    assert sum(value <= found for value in values) >= quantile * len(values) - 1e-6
    assert sum(value < found for value in values) <= quantile * len(values) + 1e-6
