"""Scenarios in a campaign file: fixed rates, impairments and channels, and the words for what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from testbed.config import campaign as module
from testbed.config.campaign import check_campaign, load_campaign
from testbed.config.inventory import Inventory, load_inventory
from testbed.config.scenario import LinkRates, Scenario
from testbed.errors import InputError
from testbed.links.channels.preview import preview_rows

HEAD = """\
campaign: radio
inventory: lab.yaml
model: tiny
prompts: {file: prompts.jsonl}
policies:
  - name: two
    selection: {kind: top_k, k: 2}
scenarios:
  - name: air
"""
"""Nine lines."""

SHANNON = """\
    channel:
      model: shannon
      bandwidth_mhz: 20
      carrier_ghz: 3.5
      path_loss: umi
      devices:
        default: {distance_m: 50}
        nano: {snr_db: 12}
"""
MCS = """\
    channel:
      model: mcs
      table: wifi-6
      bandwidth_mhz: 20
      devices: {default: {snr_db: 20}}
"""
TRACE = """\
    channel:
      model: trace
      devices:
        default: {file: traces/walk.csv}
"""

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    (tmp_path / "models" / "tiny" / "config.json").write_text(json.dumps({"num_local_experts": 8}))
    monkeypatch.setattr(module, "models_folder", lambda: tmp_path / "models")
    Path("prompts.jsonl").write_text('{"id": "p", "text": "Hello"}\n')
    Path("traces").mkdir()
    Path("traces/walk.csv").write_text("time_s,rate_mbit\n0,8\n1,4\n")
    Path("traces/broken.csv").write_text("time_s,rate_mbit\n0,8\n1,quick\n")

    def write(text: str) -> Path:
        Path("run.yaml").write_text(HEAD + text)
        return Path("run.yaml")

    return write


@pytest.fixture
def inventory() -> Inventory:
    hosts = {"bs": {"role": "base_station", "address": "10.0.0.1"}}
    hosts |= {name: {"role": "device", "address": f"10.0.1.{i}"} for i, name in enumerate(("nano", "agx"))}
    return Inventory.model_validate({"lab": "shelf", "hosts": hosts})


BROKEN = {
    "neither links nor channel": (
        "    links: null\n",
        "run.yaml:10: scenarios[0].links: keys and values were expected, not nothing",
    ),
    "more jitter than delay": (
        "    links: {default: {downlink_mbit: 8, uplink_mbit: 8, delay_ms: 1, jitter_ms: 3}}\n",
        "run.yaml:10: scenarios[0].links.default.jitter_ms: at most delay_ms = 1 was expected, not 3",
    ),
    "jitter without a delay": (
        "    links: {nano: {jitter_ms: 3}}\n" + SHANNON,
        "run.yaml:10: scenarios[0].links.nano.jitter_ms: at most delay_ms = 0 was expected, not 3",
    ),
    "less delay than the default's jitter": (
        "    links: {default: {delay_ms: 5, jitter_ms: 3}, nano: {delay_ms: 2}}\n" + SHANNON,
        "run.yaml:10: scenarios[0].links.nano.delay_ms: at least jitter_ms = 3 was expected, not 2",
    ),
    "nothing at all": ("", "run.yaml:9: scenarios[0]: `links` (fixed rates) or `channel`"),
    "unknown model": (
        SHANNON.replace("shannon", "shanon"),
        "run.yaml:11: scenarios[0].channel.model: one of `shannon`, `mcs`, `trace` was expected, not 'shanon'",
    ),
    "no model": (
        "    channel: {devices: {}}\n",
        "run.yaml:10: scenarios[0].channel.model: this key is missing: one of `shannon`, `mcs`, `trace`",
    ),
    "unknown key": (
        SHANNON.replace("bandwidth_mhz", "bandwith_mhz"),
        "run.yaml:12: scenarios[0].channel.bandwith_mhz: unknown key; did you mean `bandwidth_mhz`?",
    ),
    "unknown path loss": (
        SHANNON.replace("umi", "uma"),
        "run.yaml:14: scenarios[0].channel.path_loss: ",
    ),
    "a key of another model": (
        SHANNON.replace("path_loss: umi", "path_loss: umi\n      table: cqi-1"),
        "run.yaml:15: scenarios[0].channel.table: this key belongs to the model mcs, not to shannon",
    ),
    "a device's key of another model": (
        TRACE.replace("file: traces/walk.csv", "file: traces/walk.csv, snr_db: 3"),
        "run.yaml:13: scenarios[0].channel.devices.default.snr_db: this key belongs to the models shannon and mcs, "
        "not to trace",
    ),
    "fading of a trace": (
        TRACE.replace("model: trace", "model: trace\n      fading: rician"),
        "run.yaml:12: scenarios[0].channel.fading: this key belongs to the models shannon and mcs, not to trace",
    ),
    "a key of another path loss": (
        SHANNON.replace("path_loss: umi", "path_loss: umi\n      path_loss_exponent: 3"),
        "run.yaml:15: scenarios[0].channel.path_loss_exponent: this key belongs to the path loss log-distance, "
        "not to umi",
    ),
    "rates beside a channel": (
        "    links: {nano: {downlink_mbit: 8}}\n" + SHANNON,
        "run.yaml:10: scenarios[0].links.nano.downlink_mbit: the scenario's channel makes the rates",
    ),
    "too near": (
        SHANNON.replace("distance_m: 50", "distance_m: 5"),
        "run.yaml:16: scenarios[0].channel.devices.default.distance_m: umi is for 10 to 5000 m, not 5",
    ),
    "too near by positions": (
        SHANNON.replace("distance_m: 50", "position_m: [3, 4]"),
        "run.yaml:16: scenarios[0].channel.devices.default.position_m: umi is for 10 to 5000 m, not 5",
    ),
    "too low a carrier": (
        SHANNON.replace("3.5", "0.4"),
        "run.yaml:13: scenarios[0].channel.carrier_ghz: umi is for 0.5 to 100 GHz, not 0.4",
    ),
    "too high a base station": (
        SHANNON.replace("carrier_ghz: 3.5", "carrier_ghz: 3.5\n      base_station_height_m: 25"),
        "run.yaml:14: scenarios[0].channel.base_station_height_m: umi is for a base station at 10 m, not 25",
    ),
    "no carrier": (
        SHANNON.replace("      carrier_ghz: 3.5\n", ""),
        "run.yaml:10: scenarios[0].channel.carrier_ghz: this key is missing: devices.default has a distance",
    ),
    "no exponent": (
        SHANNON.replace("umi", "log-distance"),
        "run.yaml:10: scenarios[0].channel.path_loss_exponent: this key is missing",
    ),
    "no direct path": (
        SHANNON.replace("path_loss: umi", "path_loss: umi\n      fading: rician"),
        "run.yaml:10: scenarios[0].channel.rician_k_db: this key is missing",
    ),
    "two places": (
        SHANNON.replace("{snr_db: 12}", "{snr_db: 12, distance_m: 20}"),
        "run.yaml:17: scenarios[0].channel.devices.nano: one of distance_m, position_m and an SNR was expected, "
        "not distance_m and an SNR",
    ),
    "half an SNR": (
        SHANNON.replace("{snr_db: 12}", "{downlink_snr_db: 12}"),
        "run.yaml:17: scenarios[0].channel.devices.nano.uplink_snr_db: this key is missing",
    ),
    "nowhere": (
        SHANNON.replace("        default: {distance_m: 50}\n", "").replace("snr_db: 12", "share: 0.5"),
        "run.yaml:16: scenarios[0].channel.devices.nano: nothing says where the device stands",
    ),
    "no table": (
        MCS.replace("      table: wifi-6\n", ""),
        "run.yaml:10: scenarios[0].channel.table: this key is missing: `cqi-1`, `cqi-2` or `wifi-6`",
    ),
    "a width that Wi-Fi has not": (
        MCS.replace("20\n", "25\n"),
        "run.yaml:13: scenarios[0].channel.bandwidth_mhz: a channel of wifi-6 is 20, 40, 80, 160 MHz wide, not 25",
    ),
    "a gap of Wi-Fi": (
        MCS + "      gap_db: 3\n",
        "run.yaml:15: scenarios[0].channel.gap_db: this key belongs to the tables cqi-1 and cqi-2, not to wifi-6",
    ),
    "thresholds of another table": (
        MCS + "      thresholds_db: [1, 2]\n",
        "run.yaml:15: scenarios[0].channel.thresholds_db: 12 numbers were expected, one for each row of wifi-6, not 2",
    ),
    "limits that cross": (
        MCS + "      max_mbit: 0.02\n",
        "run.yaml:15: scenarios[0].channel.max_mbit: at least min_mbit = 0.05 was expected, not 0.02",
    ),
    "too many blocks": (
        MCS + "      coherence_ms: 1\n      duration_s: 3600\n",
        "run.yaml:15: scenarios[0].channel.coherence_ms: more than 200000 blocks in 3600 s",
    ),
    "a mistake in a trace": (
        TRACE.replace("walk", "broken"),
        "run.yaml:13: scenarios[0].channel.devices.default.file: traces/broken.csv:3: rate_mbit: a rate from 0 to "
        "1e+06 Mbit/s was expected, not 'quick'",
    ),
    "a trace that is not there": (
        TRACE.replace("walk", "run"),
        "run.yaml:13: scenarios[0].channel.devices.default.file: traces/run.csv: cannot be read: No such file",
    ),
    "half a trace": (
        TRACE.replace("file:", "uplink_file:"),
        "run.yaml:13: scenarios[0].channel.devices.default.downlink_file: this key is missing: a path",
    ),
    "no trace": (
        TRACE + "        nano: {file: traces/walk.csv, uplink_file: traces/walk.csv}\n",
        "run.yaml:14: scenarios[0].channel.devices.nano: file for both directions, or downlink_file and uplink_file",
    ),
    "a loss of everything": (
        "    links: {default: {downlink_mbit: 8, uplink_mbit: 8, loss_percent: 100}}\n",
        "run.yaml:10: scenarios[0].links.default.loss_percent: a number of at least 0 and below 100 was expected, "
        "not 100",
    ),
    "a rate that no link has": (
        "    links: {default: {downlink_mbit: 8, uplink_mbit: 0.001}}\n",
        "run.yaml:10: scenarios[0].links.default.uplink_mbit: a rate from 0.01 to 10000 Mbit/s was expected",
    ),
}


@pytest.mark.parametrize(("text", "message"), BROKEN.values(), ids=BROKEN)
def test_a_mistake_is_one_line_with_its_place(write: Write, text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load_campaign(write(text))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


UNFIT = {
    "unknown device": (
        SHANNON.replace("nano:", "nanno:"),
        "run.yaml:17: scenarios[0].channel.devices.nanno: the lab has no device 'nanno'; did you mean nano?",
    ),
    "missing device": (
        SHANNON.replace("        default: {distance_m: 50}\n", ""),
        "run.yaml:15: scenarios[0].channel.devices: nothing about agx, and no default",
    ),
    "a default that stands nowhere": (
        SHANNON.replace("distance_m: 50", "share: 0.3"),
        "run.yaml:16: scenarios[0].channel.devices.default: nothing says where they stand: agx",
    ),
    "more than the band": (
        SHANNON.replace("distance_m: 50", "distance_m: 50, share: 0.6"),
        "run.yaml:15: scenarios[0].channel.devices: the shares add up to 1.2; at most 1 was expected",
    ),
    "nothing of the band": (
        SHANNON.replace("snr_db: 12", "snr_db: 12, share: 1"),
        "run.yaml:15: scenarios[0].channel.devices: the shares leave nothing of the band for agx",
    ),
    "impairments of a stranger": (
        "    links: {nanno: {delay_ms: 3}}\n" + SHANNON,
        "run.yaml:10: scenarios[0].links.nanno: the lab has no device 'nanno'; did you mean nano?",
    ),
    "no rates": (
        "    links: {nano: {downlink_mbit: 8, uplink_mbit: 8}, default: {delay_ms: 3}}\n",
        "run.yaml:10: scenarios[0].links: no rates for agx, and no default",
    ),
    "half of the rates": (
        "    links: {default: {downlink_mbit: 8}}\n",
        "run.yaml:10: scenarios[0].links.default.uplink_mbit: this key is missing",
    ),
}


@pytest.mark.parametrize(("text", "message"), UNFIT.values(), ids=UNFIT)
def test_a_scenario_has_to_fit_the_lab(write: Write, inventory: Inventory, text: str, message: str) -> None:
    campaign = load_campaign(write(text))
    with pytest.raises(InputError) as caught:
        check_campaign(campaign, inventory)
    assert message in str(caught.value)
    assert str(caught.value).count("run.yaml:") == 1  # said once, however many devices it is about


@pytest.mark.parametrize("text", [SHANNON, MCS, TRACE])
def test_good_scenarios_fit(write: Write, inventory: Inventory, text: str) -> None:
    check_campaign(load_campaign(write(text)), inventory)


def test_an_entry_says_what_differs_from_the_default() -> None:
    scenario = Scenario.model_validate(
        {
            "name": "far",
            "links": {
                "default": {"downlink_mbit": 8, "uplink_mbit": 4, "delay_ms": 5, "jitter_ms": 1},
                "nano": {"uplink_mbit": 1, "delay_ms": 30, "loss_percent": 0.5},
            },
        }
    )
    assert scenario.rates("nano") == LinkRates(downlink_mbit=8, uplink_mbit=1)
    assert scenario.impairments("nano") == (30, 1, 0.5)
    assert scenario.impairments("agx") == (5, 1, 0)
    channel = Scenario.model_validate(
        {
            "name": "air",
            "links": {"agx": {"delay_ms": 2}},
            "channel": {"model": "shannon", "devices": {}, "bandwidth_mhz": 1},
        }
    )
    assert channel.impairments("agx") == (2, 0, 0)
    assert channel.impairments("nano") == (0, 0, 0)
    with pytest.raises(KeyError):
        channel.rates("agx")


def test_a_preview_tells_what_each_link_will_have(write: Write, inventory: Inventory) -> None:
    text = (
        SHANNON + "  - name: cable\n    links: {default: {downlink_mbit: 8, uplink_mbit: 4, delay_ms: 3}}\n"
    )
    campaign = load_campaign(write(text))
    rows = preview_rows(campaign, inventory)
    assert [(row["scenario"], row["device"], row["direction"]) for row in rows[:3]] == [
        ("air", "nano", "downlink"),
        ("air", "nano", "uplink"),
        ("air", "agx", "downlink"),
    ]
    assert len(rows) == 8
    nano, _, agx, _, cable, *_ = rows
    assert nano["model"] == "shannon"
    assert nano["snr_db"] == 12
    assert nano["distance_m"] is None
    assert agx["distance_m"] == 50
    assert agx["los"] in (True, False)
    assert 0 < agx["p5_mbit"] < agx["p50_mbit"] < agx["p95_mbit"]
    assert (cable["model"], cable["mean_mbit"], cable["p5_mbit"], cable["delay_ms"]) == ("fixed", 8, 8, 3)
    assert preview_rows(campaign, inventory, scenario="air") == rows[:4]
    other = preview_rows(campaign, inventory, scenario="air", repeat=1)
    assert other[0]["mean_mbit"] != nano["mean_mbit"]
    with pytest.raises(InputError, match="no scenario 'ai'") as caught:
        preview_rows(campaign, inventory, scenario="ai")
    assert caught.value.hint == "did you mean air?"


def test_the_shipped_campaign_fits_the_emulated_lab_and_its_rates_suit_it() -> None:
    campaign = load_campaign(Path(__file__).parents[2] / "campaigns" / "fading.yaml")
    for repeat in range(campaign.repeats):
        rows = preview_rows(campaign, load_inventory(campaign.inventory), repeat=repeat)
        assert {row["model"] for row in rows} == {"shannon", "mcs", "trace"}
        for row in rows:
            assert 2 <= row["mean_mbit"] <= 20, row
            assert row["p5_mbit"] < row["p95_mbit"] <= 20, row
