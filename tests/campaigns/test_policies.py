"""What a campaign's policies ask of a plan: passes in each scenario, links to imagine, files of the user's own."""

import json
from pathlib import Path

import pytest

from payloads.linkd.channel import parse_channel
from payloads.wdmoe.bs.spec import read_spec
from testbed.campaigns.describe import describe_run
from testbed.campaigns.phases import Kind
from testbed.campaigns.plan import plan_run
from testbed.campaigns.prepare import Probed, gather
from testbed.campaigns.session import new
from testbed.hosts.facts import assume_facts
from testbed.hosts.steps import Put

ROOT = Path(__file__).resolve().parents[2]
CAMPAIGN = f"""
campaign: policies
inventory: {ROOT}/inventory/emulated.yaml
model: tiny-mixtral
seed: 2
prompts: {{file: {ROOT}/payloads/prompts/quickstart.jsonl, count: 1}}
quality: {{texts: [{ROOT}/payloads/models/tiny-mixtral/held-out-austen.txt], windows: 2}}
policies:
  - {{name: top-2, selection: {{kind: top_k, k: 2}}}}
  - name: joint
    selection: {{kind: budget, tau: 0.9}}
    bandwidth: {{kind: minmax, rounds: 2}}
  - {{name: own, selection: {{kind: "{ROOT}/campaigns/policies/thrifty.py:Thrifty", share: 0.2}}}}
scenarios:
  - name: even
    links:
      default: {{downlink_mbit: 8, uplink_mbit: 4, delay_ms: 2}}
      orin-nx: {{downlink_mbit: 2, uplink_mbit: 1}}
  - name: street
    channel:
      model: shannon
      bandwidth_mhz: 20
      fading: rayleigh
      devices: {{default: {{downlink_snr_db: 10, uplink_snr_db: 10}}}}
latency: {{terms: [memory, framing]}}
"""


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "policies.yaml"
    path.write_text(CAMPAIGN)
    target = new(tmp_path / "results", path, None, [])
    facts = {name: assume_facts(host) for name, host in target.inventory.hosts.items()}
    probed = Probed(facts, {}, frozenset())
    return (
        gather(target, probed),
        probed,
    )


@pytest.fixture
def spec(inputs, tmp_path):
    """The specification as the base station reads it, and what is staged there."""
    staged = {
        step.target: step for phase in plan_run(inputs[0]) for step in phase.steps if isinstance(step, Put)
    }
    (found,) = (step for target, step in staged.items() if target.endswith("/spec.json"))
    (tmp_path / "spec.json").write_bytes(found.content)
    return read_spec(tmp_path / "spec.json"), staged


def test_who_looks_at_the_links_is_rated_in_each_scenario(inputs):
    phases = [phase for phase in plan_run(inputs[0]) if phase.kind is Kind.QUALITY]
    assert [phase.name for phase in phases] == [
        "quality-top-2",
        "quality-joint-IN-even",
        "quality-joint-IN-street",
        "quality-own-IN-even",
        "quality-own-IN-street",
    ]
    assert "--scenario" not in phases[0].steps[0].shell
    assert phases[2].steps[0].shell.endswith("--policy joint --scenario street")


def test_a_pass_imagines_the_links_that_its_scenario_has(inputs, spec):
    read, staged = spec
    assert set(read.scenarios) == {"even", "street"}
    files = {Path(target).name: step for target, step in staged.items() if target.endswith("-imagined.json")}
    even = parse_channel(json.loads(files["even-imagined.json"].content))
    assert even.rates(0)["agx-orin"] == pytest.approx((8, 4))
    assert even.rates(0)["orin-nx"] == pytest.approx((2, 1))
    assert read.scenarios["even"].delay_ms["orin-nx"] == 2
    # The very channel that the first repeat of the trials plays.
    (played,) = (step for target, step in staged.items() if target.endswith("channels/street-r0.json"))
    assert files["street-imagined.json"].content == played.content
    assert str(read.scenarios["street"].channel).endswith("channels/street-imagined.json")


def test_the_latency_model_is_that_of_the_lab_and_stands_in_the_manifest(inputs, spec):
    gathered, probed = inputs
    latency = spec[0].latency
    assert latency.devices == ("agx-orin", "orin-nx", "orin-nano", "xavier-nx")
    assert latency.terms == {"memory", "framing"}
    assert latency.speeds[0].ops_per_s == 1.7e11  # the pace of the inventory
    assert latency.shape.hidden == gathered.work.manifest.hidden_size
    manifest = describe_run(gathered, probed, "testbed run", 0.0)
    assert manifest["latency"] == {"calibration": None, "model": latency.as_json()}


def test_a_policy_of_the_users_own_is_staged_under_its_digest(spec):
    read, staged = spec
    settings = read.policies["own"]
    file, _, name = settings["kind"].rpartition(":")
    assert name == "Thrifty"
    assert settings["sha256"][:16] in file
    assert staged[file].content == ROOT / "campaigns" / "policies" / "thrifty.py"
    assert settings["share"] == 0.2
    assert read.policies["joint"] == {"kind": "budget", "tau": 0.9}
    assert read.bandwidth_of("joint") == {"kind": "minmax", "rounds": 2}
