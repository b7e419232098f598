"""Which passes a campaign has, and an evaluation: a run of passes only."""

from __future__ import annotations

import json

import pytest

from testbed.campaigns import session
from testbed.campaigns.passes import passes_of
from testbed.campaigns.phases import Kind
from testbed.campaigns.plan import plan_run
from testbed.campaigns.prepare import Probed, gather
from testbed.campaigns.target import Evaluation, Finished
from testbed.config.campaign import load_campaign
from testbed.errors import InputError
from testbed.hosts.facts import assume_facts
from testbed.hosts.steps import Put
from testbed.records import RecordWriter, load_run, write_manifest
from testbed.records.rated import rated

INVENTORY = """
lab: two
hosts:
  bs: {role: base_station, address: 10.0.0.1, python: {manage: false}}
  left: {role: device, address: 10.0.0.2, board: jetson-orin-nano-8gb, python: {manage: false}}
"""
CAMPAIGN = """
campaign: first
inventory: two.yaml
model: tiny-mixtral
prompts: {file: prompts.jsonl}
quality: {texts: [text.txt], window_tokens: 8, choices: [items.jsonl]}
policies:
  - {name: top-1, selection: {kind: top_k, k: 1}}
  - {name: careful, selection: {kind: budget, tau: 0.9}}
scenarios:
  - {name: even, links: {default: {downlink_mbit: 8, uplink_mbit: 8}}}
  - {name: weak, links: {default: {downlink_mbit: 1, uplink_mbit: 1}}}
"""
ITEM = {"id": "q1", "question": "Water boils at", "choices": ["100 C", "10 C"], "answer": 0}


@pytest.fixture
def campaign(tmp_path):
    (tmp_path / "two.yaml").write_text(INVENTORY)
    (tmp_path / "prompts.jsonl").write_text('{"id": "p1", "text": "so it was"}\n')
    (tmp_path / "text.txt").write_text("so it was " * 20)
    (tmp_path / "items.jsonl").write_text(json.dumps(ITEM) + "\n")
    (tmp_path / "first.yaml").write_text(CAMPAIGN)
    return tmp_path / "first.yaml"


def names(passes):
    return [one.name for one in passes]


def test_a_policy_that_looks_at_the_links_is_rated_in_each_scenario_and_any_other_once(campaign):
    loaded = load_campaign(campaign)
    both = ["quality-careful-IN-even", "quality-careful-IN-weak"]
    assert names(passes_of(loaded)) == ["quality-top-1", *both]
    assert names(passes_of(loaded, ["careful"])) == both
    assert names(passes_of(loaded, [], ["weak"])) == ["quality-top-1", both[1]]
    with pytest.raises(InputError, match="no policy 'top-9'") as caught:
        passes_of(loaded, ["top-9"])
    assert caught.value.hint == "it has top-1, careful"
    with pytest.raises(InputError, match="no scenario 'strong'"):
        passes_of(loaded, [], ["strong"])


def test_an_evaluation_has_passes_and_no_trial_and_can_go_on(campaign, tmp_path):
    results = tmp_path / "results"
    target = session.evaluation(results, campaign, None, [], Evaluation(("careful",), ("weak",)))
    assert (names(target.passes), target.trials) == (["quality-careful-IN-weak"], [])
    assert target.command.endswith("--policy careful --scenario weak")
    assert target.command.startswith("testbed evaluate ")
    files = {"campaign": str(campaign), "inventory": str(tmp_path / "two.yaml"), "limit": []}
    manifest = {
        "run": target.run,
        "started_unix": 1.0,
        "state": "interrupted",
        "campaign": CAMPAIGN,
        "inventory": target.inventory.resolved(),
        "files": files | {"evaluation": target.evaluation.as_json()},
    }
    write_manifest(target.folder, manifest)
    again = session.resumed(results, target.run, [])
    assert again.evaluation == target.evaluation
    assert (again.passes, again.trials) == (target.passes, [])
    # A run that was made before there were evaluations has trials.
    write_manifest(target.folder, manifest | {"files": files})
    assert len(session.resumed(results, target.run, []).trials) == 4


def test_a_campaign_without_quality_is_refused(campaign, tmp_path):
    lines = [line for line in CAMPAIGN.splitlines() if not line.startswith("quality")]
    campaign.write_text("\n".join(lines))
    with pytest.raises(InputError, match="measures no quality"):
        session.evaluation(tmp_path / "results", campaign, None, [], Evaluation())


@pytest.mark.parametrize(
    ("quality", "said"),
    [
        ("{windows: 3}", "quality: `texts` or `choices` was expected, with at least one file"),
        ("{texts: [text.txt], as: answer}", "quality.as: one of `decode`, `prompt` was expected"),
        ("{choices: [prompts.jsonl]}", "quality.choices[0]: "),
        ("{choices: [items.jsonl, ./items.jsonl]}", "a second file called items"),
        ("{choices: [items.jsonl], choice_count: 5}", "5 questions were asked for, and there are 1"),
    ],
)
def test_wrong_quality_keys_are_named_with_their_line(campaign, quality, said):
    lines = [f"quality: {quality}" if line.startswith("quality") else line for line in CAMPAIGN.splitlines()]
    campaign.write_text("\n".join(lines))
    with pytest.raises(InputError) as caught:
        load_campaign(campaign)
    assert said in caught.value.message
    assert f"{campaign}:6: " in caught.value.message


def test_the_outcome_of_an_evaluation_speaks_of_passes(tmp_path):
    done = Finished("first-0001", tmp_path, tmp_path / "report.html", 0, 0, {}, "", passes=1)
    assert done.as_text().startswith("first-0001: 1 quality pass completed\n")
    assert done.as_json()["passes"] == 1
    trials = Finished("first-0001", tmp_path, tmp_path / "report.html", 2, 2, {}, "")
    assert trials.as_text().startswith("first-0001: 2 of 2 trials completed\n")
    assert "passes" not in trials.as_json()


def test_what_passes_come_to_is_added_up_by_token(tmp_path):
    write_manifest(tmp_path, {"run": "first-0001", "started_unix": 1.0, "state": "completed"})
    records = RecordWriter(tmp_path)

    def window(scenario, number, tokens, nll, **more):
        row = {"policy": "p", "scenario": scenario, "text": "t", "window": number, "tokens": tokens}
        return {**row, "nll_sum": nll, **more}

    whole = {"kl_sum": 1.0, "agree": 5, "mass_kept": 0.5}
    rows = [window("weak", 0, 10, 20.0, **whole), window("weak", 1, 30, 60.0, **{**whole, "mass_kept": 0.9})]
    records.write("quality", "quality-p-IN-weak", rows)
    records.write("quality", "quality-q", [{**window(None, 0, 10, 0.0), "policy": "q"}])
    choice = {"policy": "p", "scenario": "weak", "set": "s", "choices": 2, "answer": 0}
    choice |= {"nll_answer": 1.0, "nll_chosen": 1.0}
    items = [{**choice, "item": f"q{n}", "chosen": int(n == 3)} for n in range(4)]
    records.write("choices", "quality-p-IN-weak", items)
    none = {"kl": None, "agreement": None, "mass_kept": None, "accuracy": None}
    assert rated(load_run(tmp_path)) == [
        {
            "policy": "p",
            "scenario": "weak",
            "of": "t",
            "n": 40,
            "perplexity": pytest.approx(7.389056, rel=1e-6),
            "kl": pytest.approx(0.05),
            "agreement": pytest.approx(0.25),
            "mass_kept": pytest.approx(0.8),
            "accuracy": None,
        },
        {"policy": "p", "scenario": "weak", "of": "s", "n": 4, "perplexity": None, **none, "accuracy": 0.75},
        {"policy": "q", "scenario": None, "of": "t", "n": 10, "perplexity": 1.0, **none},
    ]


def planned(target):
    """Return the plan of what is left of a run."""
    facts = {name: assume_facts(host) for name, host in target.inventory.hosts.items()}
    probed = Probed(facts, {}, frozenset())
    inputs = gather(target, probed)
    return plan_run(inputs)


def test_an_evaluation_that_goes_on_makes_only_the_passes_that_are_not_whole(campaign, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    target = session.evaluation(tmp_path / "results", campaign, None, [], Evaluation())
    phases = planned(target)
    assert [phase.name for phase in phases if phase.kind is Kind.QUALITY] == names(target.passes)
    # Neither trials nor links: the real ones stay as they are.
    assert not {Kind.TRIAL, Kind.LINKS, Kind.VERIFY} & {phase.kind for phase in phases}
    sent = [step.target for phase in phases for step in phase.steps if isinstance(step, Put)]
    assert {name for path in sent if "/runs/" in path for name in [path.rpartition("/")[2]]} == {
        "text.txt",
        "items.jsonl",
        "even-imagined.json",
        "weak-imagined.json",
        "spec.json",
    }
    write_manifest(target.folder, {"run": target.run, "started_unix": 1.0, "state": "interrupted"})
    records = RecordWriter(target.folder)
    window = {"text": "text", "window": 0, "tokens": 7, "nll_sum": 1.0}
    choice = {"set": "items", "item": "q1", "choices": 2, "answer": 0, "chosen": 0}
    choice |= {"nll_answer": 1.0, "nll_chosen": 1.0}
    weak = {"policy": "careful", "scenario": "weak"}
    records.write("quality", "quality-careful-IN-weak", [weak | window])
    records.write("choices", "quality-careful-IN-weak", [weak | choice])
    # Cut off between its two tables: not whole.
    records.write("quality", "quality-top-1", [{"policy": "top-1", "scenario": None} | window])
    left = [phase.name for phase in planned(target) if phase.kind is Kind.QUALITY]
    assert left == ["quality-top-1", "quality-careful-IN-even"]
