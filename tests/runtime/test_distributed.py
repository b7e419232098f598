"""Experts on devices give the same model as all in one place."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from payloads.wdmoe.bs.spec import read_spec
from payloads.wdmoe.decision import Decider, decider_of
from payloads.wdmoe.routing import LayerView, Routing, Selection

PROMPT = list(range(5, 45))


def local_model(checkpoints, dtype, **settings):
    path = checkpoints["published"] if isinstance(checkpoints, dict) else checkpoints
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, **settings).eval()
    assert model.config._experts_implementation == "grouped_mm"
    return model


def forward(model, ids):
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids])).logits


def decide(lab, station, selection):
    """Let a policy decide what is sent."""
    dispatcher = station._dispatcher
    model = read_spec(lab.write_spec()).latency.limited(dispatcher.devices)
    dispatcher.decider = decider_of(selection, {"kind": "scenario"}, model, dispatcher.device_of, None)


@pytest.mark.parametrize("layout", ["published", "fused"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_logits_equal_the_local_model(make_lab, checkpoints, layout, dtype):
    lab = make_lab(layout, dtype)
    station = lab.station()
    station.ping()
    for ids in (PROMPT, PROMPT[:1], PROMPT[::-1] * 3):
        expected = forward(local_model(checkpoints, getattr(torch, dtype)), ids)
        got = forward(station.model, ids)
        assert got.dtype == expected.dtype
        if dtype == "float32":
            assert (got - expected).abs().max() <= 1e-5
        else:
            assert torch.equal(got, expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_greedy_text_equals_the_local_model(make_lab, checkpoints, dtype):
    lab = make_lab(dtype=dtype)
    spec = lab.write_spec(warmup_prompts=0, max_new_tokens=20)
    station = lab.station()
    station.trial(read_spec(spec), "t001", lambda *_: None, lambda: None)
    records = [json.loads(line) for line in (spec.parent / "t001" / "tokens.jsonl").read_text().splitlines()]
    model = local_model(checkpoints, getattr(torch, dtype))
    for prompt in read_spec(spec).prompts:
        ids = torch.tensor([station._tokenizer(prompt.text)["input_ids"]])
        expected = model.generate(
            ids, max_new_tokens=20, do_sample=False, attention_mask=torch.ones_like(ids)
        )
        got = [row["token"] for row in records if row["request"] == prompt.id]
        assert got == expected[0, ids.shape[1] :].tolist()


def test_one_expert_instead_of_two_equals_the_local_model_with_one(make_lab, checkpoints):
    lab = make_lab(dtype="bfloat16")
    station = lab.station()
    station.ping()
    decide(lab, station, {"kind": "top_k", "k": 1})
    expected = forward(local_model(checkpoints, torch.bfloat16, num_experts_per_tok=1), PROMPT)
    assert torch.equal(forward(station.model, PROMPT), expected)
    dropped = sum(row.dropped for row in station._dispatcher.booking.rows)
    assert sum(row.assignments for row in station._dispatcher.booking.rows) == len(PROMPT) * 3
    assert dropped <= len(PROMPT) * 3


class Swap:
    """A selection that takes the place of every token's second expert, and gives away its third part of the weight."""

    def select(self, view):
        index = view.routing.index.copy()
        index[:, 1] = (index[:, 1] + 1 + (index[:, 0] == (index[:, 1] + 1) % 8)) % 8
        weights = view.routing.weights * [1.0, 0.5]
        return Selection(index, np.ones(index.shape, dtype=bool), weights.astype(view.routing.weights.dtype))

    def observe(self, layer, step, loads, seconds):
        self.seconds = seconds
        assert np.isnan(seconds).tolist() == (loads.pairs == 0).tolist()


def test_replaced_experts_equal_a_local_model_whose_router_chose_them(make_lab, checkpoints):
    lab = make_lab(dtype="bfloat16")
    station = lab.station()
    station.ping()
    dispatcher = station._dispatcher
    swap = Swap()
    model = read_spec(lab.write_spec()).latency.limited(dispatcher.devices)
    dispatcher.decider = Decider(swap, None, model, dispatcher.device_of)
    dispatcher.decided = []
    local = local_model(checkpoints, torch.bfloat16)

    def swapped(router, given, output):
        routing = Routing(output[2].numpy(), output[1].float().numpy(), None)
        chosen = swap.select(LayerView(0, 0, routing, None, None))
        return output[0], torch.from_numpy(chosen.weights).to(output[1].dtype), torch.from_numpy(chosen.index)

    for layer in local.model.layers:
        layer.mlp.gate.register_forward_hook(swapped)
    for ids in (PROMPT, PROMPT[:1]):
        assert torch.equal(forward(station.model, ids), forward(local, ids))
    # The scores of the router are overheard for every layer: they are what its choice follows from.
    for one in dispatcher.decided:
        assert one.routing.scores.sum(axis=1) == pytest.approx(1, abs=1e-5)
        best = np.take_along_axis(one.routing.scores, one.routing.index, axis=1)
        assert best.sum(axis=1) == pytest.approx(np.sort(one.routing.scores, axis=1)[:, -2:].sum(axis=1))
    # What the router wanted and did not get counts as dropped there.
    first = [row for row in dispatcher.booking.rows if row.expected is dispatcher.decided[0].expected]
    lost = dispatcher.device_of[0][dispatcher.decided[0].routing.index[:, 1]]
    assert {row.device: row.dropped for row in first} == {
        name: int((lost == number).sum()) for number, name in enumerate(dispatcher.devices)
    }


def test_an_expert_on_two_devices_gives_the_same_result(make_lab, checkpoints):
    lab = make_lab(dtype="bfloat16")
    devices = json.loads((lab.home / "devices.json").read_text())
    placement = devices["placement"]
    everything = lab.workers["big"].worker
    # A second worker of the same experts as "big" takes over some of its load.
    twin = lab.start("big")
    lab.workers["twin"] = twin
    for row in placement.values():
        for expert, holders in row.items():
            if holders == ["big"]:
                row[expert] = ["big", "twin"]
    (lab.home / "placement.json").write_text(json.dumps(placement))
    lab.write_devices()
    station = lab.station()
    station.ping()
    assert torch.equal(
        forward(station.model, PROMPT), forward(local_model(checkpoints, torch.bfloat16), PROMPT)
    )
    assert {row.device for row in station._dispatcher.booking.rows} == {"big", "twin", "middle", "small"}
    assert everything is not twin.worker


def test_no_expert_parameter_is_at_the_base_station(make_lab, checkpoints):
    lab = make_lab()
    station = lab.station()
    everything = sum(p.numel() for p in local_model(checkpoints, torch.float32).parameters())
    expert = 3 * 48 * 80
    base = sum(p.numel() for p in station.model.parameters())
    assert base == everything - 3 * 8 * expert
    assert not [name for name, _ in station.model.named_parameters() if "experts" in name]
    assert not [name for name, _ in station.model.named_buffers() if "experts" in name]
    held = {name: facts["parameters"] for name, facts in station.ping()["devices"].items()}
    assert held == {"big": 3 * 4 * expert, "middle": 3 * 3 * expert, "small": 3 * 1 * expert}
    assert base + sum(held.values()) == everything
    # Not even on disk: what the base station loads holds no expert.
    from payloads.tensors import TensorFile

    with TensorFile(station.folder.path / "model.safetensors") as file:
        assert not [name for name in file.tensors if ".experts." in name]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_shipped_model_is_the_same_from_afar(make_lab, shipped, dtype):
    path, shards = shipped
    station = make_lab(dtype=dtype, source=shards).station()
    station.ping()
    model = local_model(path, getattr(torch, dtype))
    ids = station._tokenizer("It is a truth universally acknowledged, that a single man")["input_ids"]
    got, expected = forward(station.model, ids), forward(model, ids)
    assert (got - expected).abs().max() <= 1e-5 if dtype == "float32" else torch.equal(got, expected)
    prompt = torch.tensor([ids])
    tokens = model.generate(
        prompt, max_new_tokens=24, do_sample=False, attention_mask=torch.ones_like(prompt)
    )
    answer = station.model.generate(
        prompt, max_new_tokens=24, do_sample=False, attention_mask=torch.ones_like(prompt)
    )
    assert torch.equal(tokens, answer)
    expert = 3 * model.config.hidden_size * model.config.intermediate_size
    experts = model.config.num_hidden_layers * model.config.num_local_experts
    base = sum(parameter.numel() for parameter in station.model.parameters())
    assert base == sum(parameter.numel() for parameter in model.parameters()) - experts * expert
    assert sum(facts["parameters"] for facts in station.ping()["devices"].values()) == experts * expert
