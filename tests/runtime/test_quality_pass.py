"""Quality passes over real workers: the measures are those of the same model on one machine."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from payloads.linkd.channel import linear_channel
from payloads.station.specs import SpecError
from payloads.wdmoe.bs.spec import read_spec
from payloads.wdmoe.bs.station import StationError

ITEMS = [
    {
        "id": "q1",
        "question": "It is a truth",
        "choices": ["universally acknowledged", "wife wife"],
        "answer": 0,
    },
    {"id": "q2", "question": "in want of a", "choices": ["fortune", "wife", "man"], "answer": 1},
]
WEAK = {"big": (8.0, 8.0), "middle": (0.2, 0.2), "small": (8.0, 8.0)}


def nothing(*_):
    """Neither progress nor check."""


def table(folder, name):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


@pytest.fixture
def lab(make_lab):
    return make_lab()


@pytest.fixture
def spec(lab):
    """A run that asks for texts, questions and the links of one scenario."""
    path = lab.write_spec()
    value = json.loads(path.read_text())
    folder = path.parent
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    (folder / "weak.json").write_text(json.dumps(linear_channel(WEAK).as_json()))
    value["quality"]["choices"] = [{"name": "items", "path": str(folder / "items.jsonl")}]
    value["policies"]["ours"] = {"kind": "budget", "tau": 0.8}
    value["scenarios"] = {"weak": {"channel": str(folder / "weak.json")}}
    path.write_text(json.dumps(value))
    return read_spec(path)


def test_a_pass_at_the_base_station_equals_the_model_on_one_machine(lab, spec, checkpoints):
    station = lab.station()
    station.quality(spec, "top-1", None, nothing, nothing)
    folder = spec.folder / "quality-top-1"
    rows = table(folder, "quality")
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["published"])
    full, one = (
        AutoModelForCausalLM.from_pretrained(
            checkpoints["published"], dtype=torch.float32, num_experts_per_tok=experts
        )
        for experts in (2, 1)
    )

    def log_probabilities(model, tokens):
        with torch.inference_mode():
            return model(input_ids=torch.tensor([tokens])).logits[0].double().log_softmax(-1)

    tokens = tokenizer((spec.folder / "text.txt").read_text())["input_ids"]
    theirs, ours = (log_probabilities(model, tokens[:32])[:-1] for model in (full, one))
    nll = -ours.gather(1, torch.tensor(tokens[1:32])[:, None]).sum()
    divergence = torch.nn.functional.kl_div(ours, theirs, reduction="sum", log_target=True)
    assert rows[0]["nll_sum"] == pytest.approx(float(nll), rel=1e-5)
    assert rows[0]["kl_sum"] == pytest.approx(float(divergence), rel=1e-3)
    assert rows[0]["agree"] == int((ours.argmax(-1) == theirs.argmax(-1)).sum())
    answered = table(folder, "choices")
    assert [(row["set"], row["item"], row["choices"], row["answer"]) for row in answered] == [
        ("items", "q1", 2, 0),
        ("items", "q2", 3, 1),
    ]
    question, answer = tokenizer(ITEMS[1]["question"])["input_ids"], tokenizer(" wife")["input_ids"]
    said = log_probabilities(one, [*question, *answer])[len(question) - 1 : -1]
    nll = -said.gather(1, torch.tensor(answer)[:, None]).mean()
    assert answered[1]["nll_answer"] == pytest.approx(float(nll), rel=1e-5)
    assert answered[1]["nll_chosen"] <= answered[1]["nll_answer"]


def test_a_policy_that_looks_at_the_links_sees_those_of_its_scenario(lab, spec):
    station = lab.station()
    result = station.quality(spec, "ours", "weak", nothing, nothing)
    assert result["trial"] == "quality-ours-IN-weak"
    folder = spec.folder / "quality-ours-IN-weak"
    rows = table(folder, "quality")
    assert {(row["policy"], row["scenario"]) for row in rows} == {("ours", "weak")}
    assert all(row["mass_kept"] < 1 and row["kl_sum"] > 0 for row in rows)
    # The budget is kept over all that was read so far: a window may spend what those before it left.
    for read in range(1, len(rows) + 1):
        assert sum(row["mass_kept"] for row in rows[:read]) / read >= 0.8
    assert {row["scenario"] for row in table(folder, "choices")} == {"weak"}
    dispatches = table(folder, "dispatches")
    spared = {}
    for name in WEAK:
        mine = [row for row in dispatches if row["device"] == name]
        dropped = sum(row["dropped"] for row in mine)
        spared[name] = dropped / (dropped + sum(row["assignments"] for row in mine))
    # It is the device behind the weak link that is spared, though the real links are as fast as loopback.
    assert spared["middle"] > 2 * max(spared["big"], spared["small"])
    assert {row["predicted_ms"] for row in dispatches} == {None}
    # One dispatch a device, layer and text, for all of its tokens.
    assert len({(row["request"], row["layer"], row["device"]) for row in dispatches}) == len(dispatches)


def test_the_reference_is_asked_for_once_for_all_policies(lab, spec):
    station = lab.station()
    traffic = []
    for policy in ("top-2", "top-1"):
        before = sum(out for out, _ in station._devices.traffic().values())
        station.quality(spec, policy, None, nothing, nothing)
        traffic.append(sum(out for out, _ in station._devices.traffic().values()) - before)
        rows = table(spec.folder / f"quality-{policy}", "dispatches")
        assert not any(row["request"] == "reference" for row in rows)
    whole = table(spec.folder / "quality-top-2", "quality")
    assert all((row["kl_sum"], row["agree"]) == (0.0, row["tokens"]) for row in whole)
    # The second pass sends half of the pairs and no reference.
    assert traffic[1] < 0.75 * traffic[0]


def test_what_cannot_be_rated_is_said(lab, spec):
    station = lab.station()
    with pytest.raises(SpecError, match="no links of a scenario 'strong'; it has weak"):
        station.quality(spec, "ours", "strong", nothing, nothing)
    (spec.folder / "items.jsonl").write_text("{}\n")
    with pytest.raises(StationError, match=r"items\.jsonl:1: an object such as"):
        station.quality(spec, "top-1", None, nothing, nothing)
    assert not (spec.folder / "quality-top-1").exists()
