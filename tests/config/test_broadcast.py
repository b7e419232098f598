"""The campaign file of semantic broadcast: every mistake by its line, and what is read of a good one."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from testbed.config.broadcast import BroadcastCampaign, slots_of
from testbed.config.campaign import Campaign, load_campaign
from testbed.config.campaign_base import check_campaign
from testbed.config.inventory import load_inventory
from testbed.config.workloads import load_any_campaign
from testbed.errors import InputError

GOOD = """campaign: good
workload: broadcast
inventory: lab.yaml
repeats: 2
users: [strong, weak]
images:
  - {set: natural-128, pairs: 2}
  - {set: natural-32, pairs: 2}
bandwidth_ratios: [1/6, 1/12]
shares: [0.2, 0.5]
schemes:
  - {name: webp, kind: digital, codec: webp, sharing: superposition}
  - {name: fusion, kind: learned, models: [model]}
  - {name: no CSI, kind: learned, models: [model], ablates: fusion}
scenarios:
  - {name: a, snr_db: [10, 1], links: {default: {downlink_mbit: 2, uplink_mbit: 2}}}
  - {name: b, snr_db: [5, 5.0], fading: rayleigh, csi_error: 0.1, links: {default: {downlink_mbit: 2, uplink_mbit: 2}}}
"""
LAB = """lab: lab
hosts:
  bs: {role: base_station, address: 10.0.0.1}
  weak: {role: device, address: 10.0.0.2}
  other: {role: device, address: 10.0.0.3}
  strong: {role: device, address: 10.0.0.4}
"""
CONFIG = {"model_type": "semcast", "scheme": "fusion", "users": 2, "slots": 64}

MISTAKES = {
    "an unknown workload": (
        ("workload: broadcast", "workload: multicast"),
        "run.yaml:2: workload: `split-experts` or `broadcast` was expected, not 'multicast'",
    ),
    "one user": (
        ("[strong, weak]", "[strong]"),
        "run.yaml:5: users: a list with 2 to 16 entries was expected, not a list with one entry",
    ),
    "a user twice": (
        ("[strong, weak]", "[weak, weak]"),
        "run.yaml:5: users[1]: weak is a user already (line 5)",
    ),
    "an unknown set": (
        ("set: natural-128", "set: natural-12"),
        "run.yaml:7: images[0].set: one of `natural-128`",
    ),
    "a set twice": (
        ("natural-128", "natural-32"),
        "run.yaml:8: images[1].name: natural-32 is a name already",
    ),
    "a set without its folder": (
        ("natural-128", "stl-10"),
        "run.yaml:7: images[0].folder: stl-10 does not come with testbed: the folder of its images was expected",
    ),
    "a shipped set with a folder": (
        ("natural-128, pairs", "natural-128, folder: here, pairs"),
        "run.yaml:7: images[0].folder: natural-128 comes with testbed; leave the folder out",
    ),
    "a ratio that is none": (
        ("1/12]", "a]"),
        "run.yaml:9: bandwidth_ratios[1]: a ratio such as 1/6 was expected",
    ),
    "a ratio of no whole symbols": (
        ("1/12]", "1/7]"),
        "run.yaml:9: bandwidth_ratios[1]: whole complex symbols",
    ),
    "a ratio of digits that are no number": (
        ("1/12]", "²/12]"),
        "run.yaml:9: bandwidth_ratios[1]: a ratio such as 1/6 was expected",
    ),
    "a ratio that no message has": (
        ("1/12]", "3]"),
        "run.yaml:9: bandwidth_ratios[1]: a ratio of at most 8/3 was expected, not 3",
    ),
    "an SNR beyond all bounds": (
        ("snr_db: [10, 1]", "snr_db: [10, -400]"),
        "run.yaml:16: scenarios[0].snr_db[1]: a number from -20 to 60 was expected",
    ),
    "an SNR for one of the users": (
        ("snr_db: [10, 1]", "snr_db: [10]"),
        "run.yaml:16: scenarios[0].snr_db: a list with at least 2 entries was expected, not a list with one entry",
    ),
    "a rate for such an SNR": (
        ("sharing: superposition}", "sharing: superposition, rate_for_snr_db: [4000, 1]}"),
        "run.yaml:12: schemes[0].rate_for_snr_db[0]: a number from -20 to 60 was expected",
    ),
    "a model twice, as if it were two trainings": (
        ("[model]", "[model, model]"),
        "run.yaml:13: schemes[1].models[1]: model stands twice",
    ),
    "a model whose name cannot travel": (
        ("[model]", "[my model]"),
        "run.yaml:13: schemes[1].models[0]: the folder's name: expected a name of letters, digits, dots and dashes",
    ),
    "a ratio that no model has": (
        ("1/12]", "1/3]"),
        "run.yaml:13: schemes[1].models[0]: model: its bandwidth ratio is at most 1/6, and 1/3 was asked for",
    ),
    "a share of all": (
        ("[0.2, 0.5]", "[0.2, 1]"),
        "run.yaml:10: shares[1]: a number between 0 and 1 was expected",
    ),
    "shares that are too many": (
        ("[0.2, 0.5]", "[[0.2, 0.3, 0.5]]"),
        "run.yaml:10: shares[0]: 2 parts were expected (one a user), not 3",
    ),
    "shares of nobody": (("[0.2, 0.5]", "[[], [0.2, 0.8]]"), "run.yaml:10: shares[0]: 2 parts were expected"),
    "shares that the records cannot tell apart": (
        ("[0.2, 0.5]", "[0.2, [0.2, 0.8]]"),
        "run.yaml:10: shares[1]: user 1 has as much already",
    ),
    "a codec that learned": (
        ("kind: learned, models: [model]}", "kind: learned, codec: webp, models: [model]}"),
        "run.yaml:13: schemes[1].codec: no key of the kind `learned`",
    ),
    "a digital scheme without a codec": (
        ("codec: webp, ", ""),
        "run.yaml:12: schemes[0].codec: this key is missing: the kind is `digital`",
    ),
    "a learned scheme without models": (
        ("models: [model]}", "models: []}"),
        "run.yaml:13: schemes[1].models: at least one model was expected: the kind is `learned`",
    ),
    "an unknown model": (
        ("[model]}", "[modell]}"),
        "run.yaml:13: schemes[1].models[0]: no model of this name",
    ),
    "an ablation of nothing": (
        ("ablates: fusion", "ablates: fusing"),
        "run.yaml:14: schemes[2].ablates: another scheme of this file was expected, not 'fusing'",
    ),
    "the weaker user first": (
        ("snr_db: [10, 1]", "snr_db: [1, 10]"),
        "run.yaml:16: scenarios[0].snr_db: the stronger user comes first",
    ),
    "an unknown fading": (
        ("rayleigh", "rician"),
        "run.yaml:17: scenarios[1].fading: one of `none`, `rayleigh`",
    ),
    "policies": (("schemes:", "policies:"), "run.yaml:11: policies: unknown key"),
}

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()
    Path("my model").mkdir()
    for model in ("model", "my model"):
        Path(model, "config.json").write_text(json.dumps(CONFIG))
    Path("lab.yaml").write_text(LAB)

    def write(text: str) -> Path:
        Path("run.yaml").write_text(text)
        return Path("run.yaml")

    return write


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_with_its_line(write: Write, mistake: str) -> None:
    (old, new), expected = MISTAKES[mistake]
    assert old in GOOD
    with pytest.raises(InputError) as caught:
        load_any_campaign(write(GOOD.replace(old, new, 1)))
    assert any(line.startswith(expected) for line in str(caught.value).splitlines()), str(caught.value)


def test_what_is_compared_runs_in_groups_and_only_users_take_part(write: Write) -> None:
    campaign = load_any_campaign(write(GOOD))
    assert isinstance(campaign, BroadcastCampaign)
    assert campaign.compared == (("fusion", "no CSI"), ("webp",))
    assert [slots_of(ratio) for ratio in campaign.bandwidth_ratios] == [64, 32]
    assert campaign.parts(0.2) == (0.2, 0.8)
    lab = load_inventory(campaign.inventory)
    check_campaign(campaign, lab)
    assert list(campaign.taking_part(lab, ()).hosts) == ["bs", "weak", "strong"]
    with pytest.raises(InputError, match="--limit leaves out weak, which is a user"):
        campaign.taking_part(lab, ["strong"])


def test_a_device_that_is_no_user_needs_no_link(write: Write) -> None:
    lab = load_inventory(write(GOOD).parent / "lab.yaml")
    links = "links: {strong: {downlink_mbit: 2, uplink_mbit: 2}, weak: {downlink_mbit: 2, uplink_mbit: 2}}"
    text = GOOD.replace("links: {default: {downlink_mbit: 2, uplink_mbit: 2}}", links)
    check_campaign(load_any_campaign(write(text)), lab)
    with pytest.raises(
        InputError, match=r"run.yaml:5: users\[1\]: the lab has no device 'weaker'; did you mean weak"
    ):
        check_campaign(load_any_campaign(write(GOOD.replace("strong, weak", "strong, weaker"))), lab)


def test_each_workload_refuses_the_others_models_and_verbs(write: Write) -> None:
    broadcast = write(GOOD)
    with pytest.raises(InputError, match=r"run.yaml:2: workload: split experts were expected"):
        load_campaign(broadcast)
    experts = "campaign: c\ninventory: lab.yaml\nmodel: model\nprompts: {file: lab.yaml}\n"
    with pytest.raises(
        InputError, match=r"run.yaml:3: model: model broadcasts images; a model that has experts"
    ):
        load_any_campaign(write(experts))
    with pytest.raises(
        InputError, match="tiny-mixtral has experts; a model that broadcasts images was expected"
    ):
        load_any_campaign(write(GOOD.replace("[model]}", "[tiny-mixtral]}")))


def test_a_campaign_without_a_workload_is_one_of_split_experts() -> None:
    campaign = load_any_campaign(Path(__file__).parents[2] / "campaigns" / "quickstart.yaml")
    assert isinstance(campaign, Campaign)
    assert campaign.workload == "split-experts"


@given(st.integers(1, 192), st.booleans())
def test_a_ratio_is_read_as_it_is_written(symbols: int, slash: bool) -> None:
    ratio = Fraction(symbols, 192)
    written = f"{ratio.numerator}/{ratio.denominator}" if slash else float(ratio)
    field = BroadcastCampaign.model_fields["bandwidth_ratios"]
    (read,) = TypeAdapter(field.annotation).validate_python([written])
    assert read == ratio
    assert slots_of(read) == 2 * symbols
