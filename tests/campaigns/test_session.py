"""What a run refuses before any host is asked."""

import json
import re
from pathlib import Path

import pytest

from testbed.campaigns import session
from testbed.campaigns.files import file_digests
from testbed.campaigns.placed import frequency_of
from testbed.campaigns.prepare import probe_hosts, refuse_held
from testbed.errors import ConnectError, HostKeyError, InputError, RefusedError, TestbedError
from testbed.records import write_manifest
from testbed.simulate.session import target as simulated

CAMPAIGN = """
campaign: first
inventory: two.yaml
model: model
prompts: {file: prompts.jsonl}
policies: [{name: top-1, selection: {kind: top_k, k: 1}}]
scenarios:
  - name: weak
    links: {default: {downlink_mbit: 8, uplink_mbit: 8}, right: {downlink_mbit: 1, uplink_mbit: 1}}
"""
SHIPPED = [
    file
    for file in sorted((Path(__file__).parents[2] / "campaigns").glob("*.yaml"))
    if not file.stem.startswith("sweep-")
]
PROMPT = '{"id": "p1", "text": "so it was"}\n'


@pytest.fixture
def campaign(tmp_path: Path, inventory) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"num_local_experts": 8}')
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / "model" / name).touch()
    (tmp_path / "prompts.jsonl").write_text(PROMPT)
    (tmp_path / "first.yaml").write_text(CAMPAIGN)
    return tmp_path / "first.yaml"


def test_a_run_can_be_limited_though_a_scenario_names_a_device_that_is_left_out(campaign, tmp_path):
    target = session.new(tmp_path / "results", campaign, None, ["left"])
    assert list(target.inventory.hosts) == ["bs", "left"]
    with pytest.raises(InputError, match="leaves no device"):
        session.new(tmp_path / "results", campaign, None, ["bs"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "prompts.jsonl: at least one prompt was expected"),
        ("[1]\n", "prompts.jsonl:1: an object"),
        ('{"id": "p1", "text": 5}\n', "prompts.jsonl:1: an object"),
        ('{"id": ["p1"], "text": "so"}\n', "prompts.jsonl:1: an object"),
        (PROMPT * 2, "prompts.jsonl:2: id: p1 stands twice, first in line 1"),
        ('{"id": "p1", "text": " "}\n', "prompts.jsonl:1: text: the prompt p1 is empty"),
    ],
)
def test_wrong_prompts_are_named_before_a_host_is_asked(campaign, tmp_path, text, expected):
    (tmp_path / "prompts.jsonl").write_text(text)
    with pytest.raises(InputError, match=expected):
        session.new(tmp_path / "results", campaign, None, [])


def test_what_the_campaign_asks_for_and_is_not_there_is_named_by_its_line(campaign, tmp_path):
    campaign.write_text(CAMPAIGN.replace("{file: prompts.jsonl}", "{file: prompts.jsonl, count: 400}"))
    with pytest.raises(
        InputError, match=r"first\.yaml:5: prompts\.count: 400 prompts were asked for, .* are 1"
    ):
        session.new(tmp_path / "results", campaign, None, [])
    campaign.write_text(CAMPAIGN + "placement: {kind: auto, frequency: nope}\n")
    asked = session.new(tmp_path / "results", campaign, None, []).campaign
    with pytest.raises(InputError, match=r"first\.yaml:10: placement\.frequency: .*nope: this is no run"):
        frequency_of(asked, manifest=None)
    campaign.write_text(CAMPAIGN.replace("two.yaml", "nope.yaml"))
    with pytest.raises(InputError, match=r"first\.yaml:3: inventory: .*nope\.yaml cannot be read") as caught:
        session.new(tmp_path / "results", campaign, None, [])
    assert "-i FILE" in caught.value.hint
    assert session.new(tmp_path / "results", campaign, tmp_path / "two.yaml", []).inventory.lab == "two"


def test_a_prompt_may_hold_line_breaks_of_its_own(campaign, tmp_path):
    text = json.dumps({"id": "p1", "text": "one\u2028two"}, ensure_ascii=False)
    (tmp_path / "prompts.jsonl").write_text(text + "\n", encoding="utf-8")
    assert session.new(tmp_path / "results", campaign, None, []).run == "first-0001"


def test_prompts_that_are_no_text_are_refused(campaign, tmp_path):
    (tmp_path / "prompts.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="UTF-8"):
        session.new(tmp_path / "results", campaign, None, [])


def test_a_run_that_cannot_go_on_says_so(campaign, tmp_path):
    manifest = {"run": "first-0001", "started_unix": 1.0, "state": "interrupted", "campaign": CAMPAIGN}
    write_manifest(tmp_path / "first-0001", manifest)
    with pytest.raises(InputError, match="does not say which files"):
        session.resumed(tmp_path, "first-0001", [])
    files = {"campaign": str(campaign), "inventory": str(tmp_path / "two.yaml"), "limit": ["left"]}
    lab = session.new(tmp_path / "results", campaign, None, ["left"]).inventory.resolved()
    manifest["inventory"] = lab | {"lab": "another"}
    write_manifest(tmp_path / "first-0001", manifest | {"files": files})
    with pytest.raises(InputError, match="the lab has changed"):
        session.resumed(tmp_path, "first-0001", [])
    manifest["inventory"] = lab
    write_manifest(tmp_path / "first-0001", manifest | {"files": files})
    assert [d.name for d in session.resumed(tmp_path, "first-0001", []).inventory.devices] == ["left"]
    write_manifest(tmp_path / "first-0001", manifest | {"files": files, "state": "completed"})
    with pytest.raises(InputError, match="is complete"):
        session.resumed(tmp_path, "first-0001", [])


@pytest.mark.parametrize("name", ["prompts.jsonl", "mine.py"])
def test_a_run_does_not_go_on_with_another_file_than_it_was_started_with(campaign, tmp_path, name):
    (tmp_path / "mine.py").write_text("class Mine:\n    def select(self, view): ...\n")
    campaign.write_text(CAMPAIGN.replace("{kind: top_k, k: 1}", "{kind: 'mine.py:Mine'}"))
    target = session.new(tmp_path / "results", campaign, None, [])
    read = file_digests(target.campaign)
    assert set(read) == {str(tmp_path / "prompts.jsonl"), str(tmp_path / "mine.py")}
    files = {"campaign": str(campaign), "inventory": str(tmp_path / "two.yaml"), "limit": [], "read": read}
    manifest = {"run": target.run, "started_unix": 1.0, "state": "interrupted", "files": files}
    manifest |= {"campaign": target.campaign.text, "inventory": target.inventory.resolved()}
    write_manifest(target.folder, manifest)
    assert session.resumed(tmp_path / "results", target.run, []).resumed
    with (tmp_path / name).open("a") as file:
        file.write("\n")
    with pytest.raises(InputError, match=rf"{name}: the file has changed since {target.run} was started"):
        session.resumed(tmp_path / "results", target.run, [])


@pytest.mark.parametrize("typed", ["first.yaml", "link/first.yaml"])
def test_a_run_goes_on_however_its_campaign_was_named(campaign, tmp_path, monkeypatch, typed):
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    target = session.new(tmp_path / "results", Path(typed), None, [])
    read = file_digests(target.campaign)
    files = {"campaign": str(campaign), "inventory": str(tmp_path / "two.yaml"), "limit": []}
    manifest = {"run": target.run, "started_unix": 1.0, "state": "interrupted"}
    manifest |= {"campaign": target.campaign.text, "inventory": target.inventory.resolved()}
    # What was started before the paths were made absolute goes on from the same folder.
    as_typed = {str(Path(typed).with_name("prompts.jsonl")): digest for digest in read.values()}
    write_manifest(target.folder, manifest | {"files": files | {"read": as_typed}})
    assert session.resumed(tmp_path / "results", target.run, []).resumed
    write_manifest(target.folder, manifest | {"files": files | {"read": read}})
    monkeypatch.chdir("/")
    assert session.resumed(tmp_path / "results", target.run, []).resumed


def test_a_model_without_a_tokenizer_is_refused_before_a_host_is_asked(campaign, tmp_path):
    (tmp_path / "model" / "tokenizer.json").unlink()
    for refused in (session.new, lambda results, file, *_: simulated(file, results)):
        with pytest.raises(InputError, match="model has no tokenizer"):
            refused(tmp_path / "results", campaign, None, [])


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_a_campaign_that_comes_with_testbed_lacks_nothing_but_its_models(file, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # as in a fresh clone
    excused = re.compile(r"is not built yet; build it with scripts/|is a shape and has no weights")
    try:
        session.new(tmp_path / "results", file, None, [])
    except InputError as error:
        mistakes = error.problems or (error.message,)
        assert [line for line in mistakes if not excused.search(line)] == []


def test_a_wrong_calibration_is_named_before_a_host_is_asked(campaign, tmp_path):
    (tmp_path / "speeds.json").write_text("{}")
    campaign.write_text(f"{CAMPAIGN}latency: {{calibration: speeds.json}}\n")
    with pytest.raises(InputError, match=r"speeds\.json: a calibration was expected"):
        session.new(tmp_path / "results", campaign, None, [])


def test_a_new_run_does_not_take_the_folder_of_one_that_came_between(campaign, tmp_path):
    target = session.new(tmp_path / "results", campaign, None, [])
    write_manifest(target.folder, {"run": target.run, "started_unix": 1.0, "state": "completed"})
    with pytest.raises(RefusedError, match="another testbed"):
        session.execute(target)


def test_every_host_that_could_not_be_asked_is_named(open_fleet, script):
    script["left"].append(("", ConnectError("left", "no answer")))
    script["right"].append(("", HostKeyError("right", "the host's key has changed", hint="look twice")))
    script["bs"].append(("", ConnectError("bs", "no answer")))
    with open_fleet() as fleet, pytest.raises(TestbedError) as caught:
        probe_hosts(fleet, assume=False)
    assert [name for name in ("bs: ", "left: ", "right: ") if name not in caught.value.message] == []
    assert (caught.value.exit_code, caught.value.hint) == (3, "look twice")


def test_a_lab_that_somebody_else_has_is_refused_before_anything_is_written(open_fleet, script):
    free = json.dumps({"held": None, "reserved": None})
    by = {"kind": "run", "owner": "eve@far", "purpose": "run x-0001", "since_s": 9.0, "left_s": None}
    script["bs"].append(("services lease show", free))
    script["left"].append(("services lease show", json.dumps({"held": by, "reserved": None})))
    script["right"].append(("services lease show", json.dumps({"held": by, "reserved": None})))
    with (
        open_fleet() as fleet,
        pytest.raises(RefusedError, match=r"left, right: held by eve@far \(run x-0001\)"),
    ):
        refuse_held(fleet)
