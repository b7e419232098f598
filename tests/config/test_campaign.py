import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from testbed.cli import main
from testbed.config import campaign as module
from testbed.config.campaign import Campaign, check_campaign, load_campaign
from testbed.config.inventory import Inventory
from testbed.config.sizes import ModelSizes, size_problems
from testbed.errors import InputError

GOOD = """\
campaign: first
inventory: lab.yaml
model: tiny
repeats: 2
prompts:
  file: prompts.jsonl
policies:
  - name: two
    selection: {kind: top_k, k: 2}
  - name: one
    selection: {kind: top_k, k: 1}
scenarios:
  - name: even
    links:
      default: {downlink_mbit: 8, uplink_mbit: 8}
  - name: weak
    links:
      default: {downlink_mbit: 8, uplink_mbit: 8}
      nano: {downlink_mbit: 1.5, uplink_mbit: 1}
"""

BROKEN = {
    "unknown model": (
        ("model: tiny", "model: tini"),
        "run.yaml:3: model: no model of this name or path (a folder with config.json): 'tini'; did you mean tiny?",
    ),
    "unknown policy": (
        ("kind: top_k, k: 2", "kind: best"),
        "run.yaml:9: policies[0].selection.kind: unknown policy kind 'best'; ",
    ),
    "missing setting of a policy": (
        ("{kind: top_k, k: 2}", "{kind: top_k}"),
        "run.yaml:9: policies[0].selection.k: ",
    ),
    "wrong setting of a policy": (("k: 2", "k: two"), "run.yaml:9: policies[0].selection.k: "),
    "unknown kind of bandwidth": (
        ("k: 2}", "k: 2}\n    bandwidth: {kind: fair}"),
        "run.yaml:10: policies[0].bandwidth.kind: expected one of minmax, proportional, scenario, uniform, got 'fair'",
    ),
    "wrong setting of a bandwidth": (
        ("k: 2}", "k: 2}\n    bandwidth: {kind: proportional, per: day}"),
        "run.yaml:10: policies[0].bandwidth.per: expected one of layer, token, trial, got 'day'",
    ),
    "unknown setting of a bandwidth": (
        ("k: 2}", "k: 2}\n    bandwidth: {kind: proportional, pre: layer}"),
        "run.yaml:10: policies[0].bandwidth.pre: ",
    ),
    "a layer's cost for another model": (
        ("kind: top_k, k: 2", "kind: budget, tau: 0.9, layer_cost: [1, 2]"),
        "run.yaml:9: policies[0].selection.layer_cost: 4 numbers were expected (one a layer of the model), not 2",
    ),
    "a similarity of another model's experts": (
        ("kind: top_k, k: 2", "kind: similar, similarity: [[1, 0], [0, 1]]"),
        "run.yaml:9: policies[0].selection.similarity: a matrix of 8 x 8 was expected (the model's experts), not of 2",
    ),
    "more experts than there are": (
        ("k: 2", "k: 9"),
        "run.yaml:9: policies[0].selection.k: at most 8 was expected (the model's experts), not 9",
    ),
    "unknown way with a lost device": (
        ("k: 2}", "k: 2}\n    on_loss: {kind: retry}"),
        "run.yaml:10: policies[0].on_loss.kind: one of `fail`, `replica`, `drop`, `wait` was expected, not 'retry'",
    ),
    "a second way where there is no first": (
        ("k: 2}", "k: 2}\n    on_loss: {kind: drop, then: wait}"),
        "run.yaml:10: policies[0].on_loss.then: only the kind `replica` has it, and this is `drop`",
    ),
    "a wait where nothing waits": (
        ("k: 2}", "k: 2}\n    on_loss: {kind: replica, then: drop, wait_s: 5}"),
        "run.yaml:10: policies[0].on_loss.wait_s: nothing waits here: neither `kind` nor `then` is `wait`",
    ),
    "a deadline before the answer is due": (
        ("k: 2}", "k: 2}\n    on_loss: {kind: drop, deadline_factor: 1.0}"),
        "run.yaml:10: policies[0].on_loss.deadline_factor: a number above 1 and of at most 1e+06 was expected, not 1.0",
    ),
    "unknown activations": (
        ("k: 2}", "k: 2}\n    activations: int4"),
        "run.yaml:10: policies[0].activations: one of `bfloat16`, `float16`, `float32`, `int8` was expected",
    ),
    "unknown experts": (
        ("repeats: 2", "experts: int4"),
        "run.yaml:4: experts: `int8` was expected, not 'int4'",
    ),
    "no request at once": (
        ("  - name: even", "  - name: even\n    concurrency: 0"),
        "run.yaml:14: scenarios[0].concurrency: an integer from 1 to 256 was expected, not 0",
    ),
    "asked through nobody": (
        ("prompts.jsonl", "prompts.jsonl\n  through: ssh"),
        "run.yaml:7: prompts.through: one of `engine`, `api` was expected, not 'ssh'",
    ),
    "a deadline of no time": (
        ("prompts.jsonl", "prompts.jsonl\n  request_deadline_s: 0"),
        "run.yaml:7: prompts.request_deadline_s: a number above 0 was expected, not 0",
    ),
    "negative rate": (
        ("downlink_mbit: 1.5", "downlink_mbit: -1.5"),
        "run.yaml:19: scenarios[1].links.nano.downlink_mbit: a number above 0 was expected, not -1.5",
    ),
    "endless rate": (
        ("downlink_mbit: 1.5", "downlink_mbit: .inf"),
        "run.yaml:19: scenarios[1].links.nano.downlink_mbit: a number above 0 was expected, not inf",
    ),
    "wrong type": (
        ("repeats: 2", "repeats: often"),
        "run.yaml:4: repeats: an integer of at least 1 was expected, not 'often'",
    ),
    "unknown key": (("repeats: 2", "repeat: 2"), "run.yaml:4: repeat: unknown key; did you mean `repeats`?"),
    "unreadable prompts": (
        ("prompts.jsonl", "prompt.jsonl"),
        "run.yaml:6: prompts.file: prompt.jsonl cannot be read: No such file or directory",
    ),
    "doubled policy": (
        ("name: one", "name: two"),
        "run.yaml:10: policies[1].name: two is a name already (line 8)",
    ),
    "no scenario": (
        (GOOD[GOOD.index("scenarios:") :], "scenarios: []\n"),
        "run.yaml:12: scenarios: a list with at least one entry was expected, not an empty list",
    ),
    "settings of a placement without their kind": (
        ("repeats: 2", "placement: {copies: 2}"),
        "run.yaml:4: placement.kind: this key is missing: `auto`",
    ),
    "placement that is no placement": (
        ("repeats: 2", "placement: everywhere"),
        "run.yaml:4: placement: `auto` or keys and values (kind, frequency, copies, hot_copies) or keys and values was "
        "expected, not 'everywhere'",
    ),
}

#: First trained for 2048 tokens. With longrope, who shares a pass with a longer one would be read otherwise than alone.
YARN, LONGROPE = (
    {
        "max_position_embeddings": 8192,
        "rope_scaling": {"type": kind, "original_max_position_embeddings": 2048},
    }
    for kind in ("yarn", "longrope")
)

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    (tmp_path / "models" / "tiny" / "config.json").write_text(
        json.dumps({"num_local_experts": 8, "num_hidden_layers": 4})
    )
    monkeypatch.setattr(module, "models_folder", lambda: tmp_path / "models")
    Path("prompts.jsonl").write_text('{"id": "p", "text": "Hello"}\n')

    def write(text: str) -> Path:
        Path("run.yaml").write_text(text)
        return Path("run.yaml")

    return write


@pytest.fixture
def inventory() -> Inventory:
    hosts = {"bs": {"role": "base_station", "address": "10.0.0.1"}}
    hosts |= {name: {"role": "device", "address": f"10.0.1.{i}"} for i, name in enumerate(("nano", "agx"))}
    return Inventory.model_validate({"lab": "shelf", "hosts": hosts})


def test_a_campaign_is_read_with_its_paths_from_its_own_folder(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(GOOD).resolve()
    monkeypatch.chdir("/")
    campaign = load_campaign(path)
    assert campaign.inventory == path.parent / "lab.yaml"
    assert campaign.prompts.file.read_text()
    assert campaign.model_name == "tiny"
    assert campaign.text == GOOD
    assert campaign.policy("one").selection.settings() == {"kind": "top_k", "k": 1}
    weak = campaign.scenario("weak")
    assert (weak.rates("nano").downlink_mbit, weak.rates("agx").downlink_mbit) == (1.5, 8)


def test_a_model_can_be_given_by_its_path(write: Write, tmp_path: Path) -> None:
    (tmp_path / "models").rename(tmp_path / "mine")
    assert (
        load_campaign(write(GOOD.replace("model: tiny", "model: mine/tiny"))).model
        == tmp_path / "mine" / "tiny"
    )


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_campaign_gets_one_clear_message(name: str, write: Write) -> None:
    (old, new), message = BROKEN[name]
    assert old in GOOD
    with pytest.raises(InputError) as caught:
        load_campaign(write(GOOD.replace(old, new, 1)))
    assert str(caught.value).startswith(message)
    assert str(caught.value).count("\n") == 0
    assert caught.value.exit_code == 2


def test_texts_are_told_apart_and_long_enough(write: Write) -> None:
    for name in ("one/a.txt", "two/a.txt", "short.txt"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("so it was " * (1 if "short" in name else 100))
    with pytest.raises(InputError) as caught:
        load_campaign(write(GOOD + "quality: {texts: [one/a.txt, two/a.txt, short.txt]}\n"))
    assert caught.value.problems == (
        "run.yaml:20: quality.texts[1]: a second text called a; give one of the files another name (line 20)",
        "run.yaml:20: quality.texts[2]: short.txt has 10 bytes, too few for one window of 256 tokens",
    )


@pytest.mark.parametrize(
    ("text", "wrong"), [("{", " is not JSON: "), ("[1]", ": a JSON object was expected")]
)
def test_a_model_with_a_broken_config_is_named(write: Write, tmp_path: Path, text: str, wrong: str) -> None:
    (tmp_path / "models" / "tiny" / "config.json").write_text(text)
    with pytest.raises(InputError) as caught:
        load_campaign(write(GOOD))
    assert str(caught.value).startswith("run.yaml:3: model: ")
    assert f"config.json{wrong}" in str(caught.value)


def test_the_command_ends_with_exit_code_2(
    write: Write, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (old, new), message = BROKEN["negative rate"]
    write(GOOD.replace(old, new))
    monkeypatch.setattr(sys, "argv", ["testbed", "run", "run.yaml", "--dry-run"])
    with pytest.raises(SystemExit) as caught:
        main.run()
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_devices_are_checked_against_the_lab(write: Write, inventory: Inventory) -> None:
    campaign = load_campaign(write(GOOD))
    check_campaign(campaign, inventory)
    campaign = load_campaign(write(GOOD.replace("nano:", "nanno:")))
    with pytest.raises(InputError) as caught:
        check_campaign(campaign, inventory)
    assert str(caught.value) == (
        "run.yaml:19: scenarios[1].links.nanno: the lab has no device 'nanno'; did you mean nano?"
    )
    campaign = load_campaign(write(GOOD.replace("default:", "agx:", 1)))
    with pytest.raises(
        InputError, match=r"run.yaml:14: scenarios\[0\].links: no rates for nano, and no default"
    ):
        check_campaign(campaign, inventory)


def test_an_explicit_placement_is_checked_against_the_lab(write: Write, inventory: Inventory) -> None:
    placement = "repeats: 2\nplacement:\n  0:\n    0: nano\n    1: [nano, axg]\n"
    campaign = load_campaign(write(GOOD.replace("repeats: 2\n", placement)))
    assert campaign.placement == {"0": {"0": "nano", "1": ("nano", "axg")}}
    with pytest.raises(InputError) as caught:
        check_campaign(campaign, inventory)
    assert str(caught.value) == "run.yaml:8: placement.0.1: the lab has no device 'axg'; did you mean agx?"


def test_a_campaign_made_in_a_program_needs_no_file(write: Write, tmp_path: Path) -> None:
    campaign = load_campaign(write(GOOD))
    again = Campaign.model_validate_json(campaign.model_dump_json())
    assert again.model_dump() == campaign.model_dump()
    assert json.loads(again.text)["campaign"] == "first"


@pytest.mark.parametrize(
    ("config", "new", "window", "concurrency", "mistakes"),
    [
        ({"max_position_embeddings": 2048}, 2047, 2048, 1, []),
        (
            {"max_position_embeddings": 2048},
            2048,
            2049,
            1,
            [
                "prompts.max_new_tokens: at most 2047 was expected, not 2048: the model reads 2048 tokens, prompt and "
                "answer together",
                "quality.window_tokens: at most 2048 was expected (what the model reads), not 2049",
            ],
        ),
        # What config.json leaves out has the default of the model's class, which nobody knows before it is loaded.
        ({}, 9000, 9000, 2, []),
        (YARN, 8000, 8192, 2, []),
        (LONGROPE, 8000, 8192, 1, []),
        (
            LONGROPE,
            2048,
            8192,
            2,
            [
                "prompts.max_new_tokens: at most 2047 was expected, not 2048: the model reads 2048 tokens, prompt and "
                "answer together, where several requests share a pass or prompts are cut"
            ],
        ),
    ],
)
def test_no_length_is_beyond_what_the_model_reads(
    write: Write, config: dict[str, object], new: int, window: int, concurrency: int, mistakes: list[str]
) -> None:
    Path("models/tiny/config.json").write_text(json.dumps(config))
    Path("a.txt").write_text("so it was " * 1000)
    text = GOOD.replace("prompts.jsonl", f"prompts.jsonl\n  max_new_tokens: {new}")
    text = text.replace("- name: even", f"- name: even\n    concurrency: {concurrency}")
    said: list[str] = []
    try:
        load_campaign(write(text + f"quality: {{texts: [a.txt], window_tokens: {window}}}\n"))
    except InputError as error:
        said = [line.split(": ", 1)[1] for line in error.problems or (error.message,)]
    assert said == mistakes


def test_a_matrix_of_experts_for_each_layer_fits_the_model_or_is_refused() -> None:
    one = [[1, 0], [0, 1]]
    sizes = ModelSizes(layers=3, experts=2)
    assert not list(size_problems({"kind": "similar", "similarity": [one] * 3}, sizes))
    assert [text for _, text in size_problems({"kind": "similar", "similarity": [one] * 2}, sizes)] == [
        "3 matrices were expected (one a layer of the model), not 2"
    ]
    # A model whose config.json does not say how large it is refuses nothing.
    assert not list(size_problems({"layer_cost": [1], "similarity": one, "k": 9}, ModelSizes(None, None)))
